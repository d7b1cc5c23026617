"""How much of the memory bus the native decoder layer uses: layers of a 7B model with random weights, one row.

    .venv/bin/python benchmarks/bus.py [--threads N] [--bits 8] [--turns N]

Enough different layers take turns that none is in a cache when it comes again. The bandwidth is measured between
turns, with the same threads; what holds a figure against it is 90 % at 8 bits and 85 % at 4.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from measuring import finish, show

from octavo.kernels import cpu_blocks
from octavo.kernels.blocks import BlockParts, BlockShape, LayerCache, LinearParts, Rows
from octavo.kernels.cpu import read_bandwidth, set_threads
from octavo.model.kv_cache import one_sequence
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight, sequential_groups

HIDDEN, MLP, HEADS, HEAD_DIM = 4096, 11008, 32, 128  # LLaMA-7B
LEAST_BYTES = 1.2e9
CONTEXT = 64
PASSES = 5
BARS = {8: 0.90, 4: 0.85}
CPU = torch.device("cpu")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--bits", type=int, nargs="+", default=[8, 4])
    arguments.add_argument("--turns", type=int, default=15)
    given = arguments.parse_args()
    set_threads(given.threads)
    results, misses = {}, []
    for bits in given.bits:
        layers, size = make_layers(QuantScheme(bits, 128, True))
        fractions, rates = measure(layers, size, given.turns)
        middle, rate = statistics.median(fractions), statistics.median(rates)
        show(
            f"{bits}-bit-128g: {rate / 1e9:.1f} GB/s, {100 * middle:.0f} % of the bus "
            f"({100 * min(fractions):.0f} … {100 * max(fractions):.0f}), to be {100 * BARS[bits]:.0f} or more"
        )
        results[f"{bits}-bit-128g"] = {"fraction": middle, "fractions": fractions, "rates": rates}
        if middle < BARS[bits]:
            misses.append(f"{bits} bits use {100 * middle:.0f} % of the bus, not {100 * BARS[bits]:.0f}")
        del layers
    return finish("bus", {"threads": given.threads, **results}, misses)


def make_layers(scheme: QuantScheme) -> tuple[list[cpu_blocks.PreparedBlock], int]:
    """Different layers, and the bytes of each: codes and fp16 scales."""
    shapes = [(HIDDEN, HIDDEN)] * 4 + [(MLP, HIDDEN)] * 2 + [(HIDDEN, MLP)]
    size = sum(rows * columns * scheme.bits // 8 + 2 * rows * scheme.groups(columns) for rows, columns in shapes)
    return [make_layer(scheme) for _ in range(int(LEAST_BYTES / size) + 1)], size


def make_layer(scheme: QuantScheme) -> cpu_blocks.PreparedBlock:
    def linear(rows: int, columns: int) -> LinearParts:
        groups = scheme.groups(columns)
        codes = torch.randint(0, scheme.largest_code + 1, (rows, columns), dtype=torch.uint8)
        scales = torch.full((rows, groups), columns**-0.5 / scheme.largest_code, dtype=torch.float16)
        zeros = torch.full((rows, groups), scheme.middle, dtype=torch.int16)
        return LinearParts(
            QuantizedWeight(codes, scales, zeros, sequential_groups(columns, scheme.group_size), scheme)
        )

    square = [linear(HIDDEN, HIDDEN) for _ in range(4)]
    parts = BlockParts(
        torch.ones(HIDDEN), *square, None, None, torch.ones(HIDDEN),
        linear(MLP, HIDDEN), linear(MLP, HIDDEN), linear(HIDDEN, MLP),
    )  # fmt: skip
    return cpu_blocks.prepare_block(parts, BlockShape(HEAD_DIM, 1e-6, None), CPU, torch.float32)


def measure(layers: Sequence[cpu_blocks.PreparedBlock], size: int, turns: int) -> tuple[list[float], list[float]]:
    """Fraction of the bandwidth beside it, and bytes per second, of each turn."""
    cache = LayerCache(*(torch.randn(CONTEXT, HEADS, HEAD_DIM) for _ in range(2)))
    batch = one_sequence(torch.zeros(1, dtype=torch.int64), CONTEXT - 1, CONTEXT)
    rows = Rows(torch.full((1, HEAD_DIM // 2), 0.5), 1.0, batch.write_slots, batch.pages)
    hidden = torch.randn(1, HIDDEN)
    fractions, rates = [], []

    def run(passes: int) -> float:
        started = time.perf_counter()
        for _ in range(passes):
            states = hidden
            for layer in layers:
                states = cpu_blocks.run_block(states, rows, cache, layer)
        return passes * len(layers) * size / (time.perf_counter() - started)

    for _ in range(turns):
        bandwidth = read_bandwidth()
        # The measurement frees over a gigabyte, which keeps the system busy for some tens of milliseconds.
        run(1)
        rates.append(run(PASSES))
        fractions.append(rates[-1] / bandwidth)
    return fractions, rates


if __name__ == "__main__":
    sys.exit(main())
