"""The CUDA C++ kernels on a card: right in every form, then how fast each shape of block reads 13B's weights.

    python benchmarks/gpu_cuda.py [--check] [--sweep]

`checks` and `sweep` give plain rows, for gpu.py; without arguments both run and the tables are printed.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from gpu_correctness import LINEAR_BOUND, poison, relative
from gpu_speed import SHAPES
from gpu_synthetic import DEVICE, Storage, random_weight, weight_bytes
from gpu_timing import STREAM_BYTES, time_graph, timed
from measuring import show

from octavo.kernels.cuda import layout, linear, product
from octavo.kernels.cuda.driver import indexed, load
from octavo.kernels.cuda.product import Blocks, with_kernels
from octavo.kernels.cuda.tuning import DOZENS_OF_ROWS, ONE_ROW, SIXTEEN_ROWS
from octavo.kernels.cuda.units import STREAM, STREAM_THREADS, Block, StreamArguments
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight, dequantize

ROTATED_BYTES = 400e6  # of weights, several times the L2
Row = dict[str, Any]


def read_ceiling() -> dict[str, float]:
    """Bytes per second of a kernel that reads 6 GiB in loads of 16 bytes, by blocks per multiprocessor."""
    device = indexed(DEVICE)
    buffer = torch.randint(-(2**31), 2**31 - 1, (STREAM_BYTES // 4,), dtype=torch.int32, device=device)
    never = torch.zeros(1, dtype=torch.int32, device=device)
    arguments = StreamArguments(buffer.data_ptr(), never.data_ptr(), STREAM_BYTES // 16)
    kernel = load(STREAM, STREAM_THREADS, device)
    found = {}
    for blocks in (1, 2, 4, 8, 16):
        grid = (blocks * processors(), 1)
        kernel.launch(grid, arguments)  # warms up
        timing = timed(lambda grid=grid: kernel.launch(grid, arguments))
        found[f"read_bytes_per_second_{blocks}_blocks"] = STREAM_BYTES / timing.median
    return found


def checks() -> Iterator[Row]:
    """Each form of kernel against float64, on poisoned outputs: also twice, and a row alone and in company."""
    schemes = itertools.product((8, 4, 3, 2), (128, 64, 32, 48, None), (True, False), (False, True))
    for bits, group, symmetric, act_order in schemes:
        storage = Storage(QuantScheme(bits, group, symmetric), act_order)
        for outputs, inputs in ((300, 1416), (5120, 577)):
            order = torch.randperm(inputs, device=DEVICE) if act_order else None
            weight = random_weight(outputs, inputs, storage, order)
            assert isinstance(weight, QuantizedWeight)
            for dtype in (torch.float16, torch.bfloat16):
                blocks = (*ONE_ROW, *SIXTEEN_ROWS) if group == 128 else ONE_ROW[1::2]
                yield from _checked(weight, dtype, blocks, str(storage))


def _checked(weight: QuantizedWeight, dtype: torch.dtype, blocks: tuple[Block, ...], label: str) -> Iterator[Row]:
    """One weight: by each block the most rows that it takes, by a wide block one more than that, by torch 65."""
    packed, exact = layout.pack(weight, indexed(DEVICE)), dequantize(weight, torch.float64)
    for block, wide in zip(blocks, itertools.cycle(DOZENS_OF_ROWS), strict=False):
        prepared = with_kernels(packed, weight.shape, dtype, Blocks((block,), wide), processors())
        for count in (block.rows, block.rows + 1, product.WIDE_ROWS + 1):
            inputs = torch.randn(count, weight.shape[1], device=DEVICE, dtype=dtype)
            poison(count * weight.shape[0])
            got = linear.matmul(inputs, prepared)
            error = relative(got, inputs.double() @ exact.t())
            again = torch.equal(got, linear.matmul(inputs, prepared))
            alone = count > block.rows or torch.equal(got[3:4], linear.matmul(inputs[3:4], prepared))
            what = f"{label} {list(weight.shape)} × {count} {dtype} {block} {wide}"
            yield {"what": what, "error": error, "bound": LINEAR_BOUND[dtype], "repeats": again, "alone": alone}


def sweep() -> Iterator[Row]:
    """Every shape of block over 13B's products, with weights that do not fit the L2 taking turns in one graph."""
    for (name, shape), bits in itertools.product(SHAPES.items(), (8, 4)):
        storage = Storage(QuantScheme(bits, 128, True))
        size = weight_bytes(*shape, storage)
        weights = [random_weight(*shape, storage) for _ in range(max(2, int(ROTATED_BYTES / size)))]
        packed = [
            layout.pack(weight, indexed(DEVICE)) for weight in weights if isinstance(weight, QuantizedWeight)
        ]
        del weights
        cases = [(block, DOZENS_OF_ROWS[-1], (block.rows,)) for block in (*ONE_ROW, *SIXTEEN_ROWS)]
        cases += [(ONE_ROW[0], wide, (17, 32, 64)) for wide in DOZENS_OF_ROWS]
        for dtype, (block, wide, counts) in itertools.product((torch.float16, torch.bfloat16), cases):
            blocks = Blocks((block,), wide)
            prepared = [with_kernels(each, shape, dtype, blocks, processors()) for each in packed]
            for count in counts:
                inputs = torch.randn(count, shape[1], device=DEVICE, dtype=dtype)

                def calls(inputs: torch.Tensor = inputs, prepared: list[product.Prepared] = prepared) -> None:
                    for each in prepared:
                        linear.matmul(inputs, each)

                seconds = time_graph(calls, len(prepared)).median
                labels = {"product": name, "bits": bits, "dtype": str(dtype).removeprefix("torch."), "rows": count}
                used = block if count <= block.rows else wide
                yield {**labels, "block": used, "seconds": seconds, "bytes_per_second": size / seconds}
        del packed
        torch.cuda.empty_cache()


def processors() -> int:
    return torch.cuda.get_device_properties(DEVICE).multi_processor_count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--sweep", action="store_true")
    given = parser.parse_args()
    both = not (given.check or given.sweep)
    missed: list[Row] = []
    if given.check or both:
        rows = list(checks())
        missed = [row for row in rows if not (row["error"] <= row["bound"] and row["repeats"] and row["alone"])]
        worst = max(rows, key=lambda row: row["error"] / row["bound"])
        show(f"{len(rows)} checks, {len(missed)} missed; the worst: {worst}")
        for row in missed[:40]:
            show(f"MISSED {row}")
    if given.sweep or both:
        ceilings = read_ceiling()
        ceiling = max(ceilings.values())
        for name, value in ceilings.items():
            show(f"{name}: {value / 1e9:.0f} GB/s")
        for row in sweep():
            rate = row.pop("bytes_per_second")
            seconds = row.pop("seconds")
            label = " ".join(str(value) for value in row.values())
            show(f"{label}: {seconds * 1e6:.1f} µs, {rate / 1e9:.0f} GB/s, {rate / ceiling:.1%}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
