"""Which blocks decode a weight fastest on the card at hand: measured once per shape if asked, else by a rule.

With OCTAVO_TUNE=1 in the environment a weight's blocks are measured when it is prepared, unless that was done for
one of its shape before; what is found is kept beside the compiled kernels and used from then on, asked or not.
"""

import json
import math
import os
import statistics
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import torch

from octavo.errors import DeviceError
from octavo.kernels.cuda import layout
from octavo.kernels.cuda.compiler import cache_folder, keep
from octavo.kernels.cuda.driver import architecture
from octavo.kernels.cuda.product import Blocks, Prepared, blocks_for, decoded, with_kernels
from octavo.kernels.cuda.units import Block

ONE_ROW = (Block(1, 1, 4), Block(1, 1, 8), Block(1, 2, 4), Block(1, 2, 8))
SIXTEEN_ROWS = (Block(2, 1, 4), Block(2, 1, 8), Block(2, 2, 4))
ROTATED_BYTES = 200e6  # of weights that take turns, so that none is read from a cache
REPEATS = 9

Shape = tuple[int, int]
Timer = Callable[[Prepared, int], float]


def tuned_blocks(packed: layout.Packed, shape: Shape, dtype: torch.dtype) -> Blocks:
    """The blocks of a weight of (outputs, inputs): as measured on this card, else `product.blocks_for`."""
    device = packed.codes.device
    properties = torch.cuda.get_device_properties(device)
    processors = properties.multi_processor_count
    blocks = blocks_for(packed.form, dtype, shape[0], processors)
    file = cache_folder() / f"blocks-sm_{architecture(device)}-{processors}.json"
    name = f"{shape[0]}x{shape[1]} {packed.form} {dtype}"
    known = read_table(file)
    if name not in known and os.environ.get("OCTAVO_TUNE") == "1" and dtype != torch.float32:
        known[name] = measured_blocks(packed, shape, dtype, replace(blocks, decode=()), seconds_of)
        write_table(file, known)
    return replace(blocks, decode=known.get(name, blocks.decode))


def measured_blocks(
    packed: layout.Packed, shape: Shape, dtype: torch.dtype, blocks: Blocks, timer: Timer
) -> tuple[Block, ...]:
    """The fastest block for one row, and the fastest for sixteen."""
    processors = torch.cuda.get_device_properties(packed.codes.device).multi_processor_count

    def seconds(block: Block) -> float:
        prepared = with_kernels(packed, shape, dtype, replace(blocks, decode=(block,)), processors)
        return timer(prepared, 1 if block.row_groups == 1 else block.rows)

    return min(ONE_ROW, key=seconds), min(SIXTEEN_ROWS, key=seconds)


def seconds_of(prepared: Prepared, rows: int) -> float:
    """Seconds of one product of a few rows, by replays of a graph in which copies of the weight take turns."""
    packed = prepared.packed
    copies = [prepared]
    for _ in range(math.ceil(ROTATED_BYTES / packed.codes.nbytes)):
        copy = replace(packed, codes=packed.codes.clone(), scales=packed.scales.clone())
        copies.append(replace(prepared, packed=copy))
    inputs = torch.randn(rows, prepared.width, device=packed.codes.device, dtype=prepared.dtype)
    for each in copies:
        decoded(inputs, each)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for each in copies:
            decoded(inputs, each)
    times: list[float] = []
    for _ in range(REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000 / len(copies))
    return statistics.median(times)


def read_table(file: Path) -> dict[str, tuple[Block, ...]]:
    """Blocks by the name of a weight's shape; none where nothing was measured yet."""
    try:
        table = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    try:
        return {name: tuple(Block(*sizes) for sizes in blocks) for name, blocks in table.items()}
    except (AttributeError, TypeError) as error:
        raise DeviceError(f"{file} is not a table of measured blocks; delete it") from error


def write_table(file: Path, table: dict[str, tuple[Block, ...]]) -> None:
    """Keep what was measured."""
    keep(file, json.dumps({name: [astuple(block) for block in blocks] for name, blocks in table.items()}).encode())
