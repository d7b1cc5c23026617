"""Which blocks multiply by a weight fastest on the card at hand: as measured for its shape, else by a rule.

Tables of what was measured for common shapes lie beside this module, one per kind of card, made by
benchmarks/gpu_blocks.py. With OCTAVO_TUNE=1 in the environment a weight's blocks are measured when it is prepared,
unless that was done here for one of its shape before; what is found is kept beside the compiled kernels and used
from then on, asked or not.
"""

import json
import math
import os
import statistics
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

from octavo.errors import DeviceError
from octavo.kernels.cuda import layout
from octavo.kernels.cuda.compiler import cache_folder, keep
from octavo.kernels.cuda.driver import architecture
from octavo.kernels.cuda.product import WIDE_ROWS, Blocks, Prepared, blocks_for, decoded, parts, with_kernels
from octavo.kernels.cuda.units import Block, WideBlock

ONE_ROW = tuple(Block(1, tiles, warps) for tiles in (1, 2) for warps in (4, 8, 16))
SIXTEEN_ROWS = tuple(Block(2, tiles, warps) for tiles in (1, 2) for warps in (4, 8))
DOZENS_OF_ROWS = tuple(WideBlock(4, tiles, warps) for tiles in (1, 2) for warps in (4, 6, 7, 8))
ROTATED_BYTES = 200e6  # of weights that take turns, so that none is read from a cache
REPEATS = 9
WORTH_A_CHANGE = 1.02

AnyBlock = TypeVar("AnyBlock", Block, WideBlock)
Shape = tuple[int, int]
Timer = Callable[[Prepared, int], float]


def tuned_blocks(packed: layout.Packed, shape: Shape, dtype: torch.dtype) -> Blocks:
    """The blocks of a weight of (outputs, inputs): as measured on such a card, else by the rule."""
    device = packed.codes.device
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    rule = blocks_for(packed.form, dtype, shape[0], processors)
    table = f"blocks-sm_{architecture(device)}-{processors}.json"
    name, own = table_entry(packed.form, shape, dtype), cache_folder() / table
    measured_here = read_table(own)
    if name not in measured_here and os.environ.get("OCTAVO_TUNE") == "1" and dtype != torch.float32:
        measured_here[name] = measured_blocks(packed, shape, dtype, seconds_of)
        write_table(own, measured_here)
    return measured_here.get(name) or _published(table).get(name, rule)


@cache
def _published(table: str) -> dict[str, Blocks]:
    return read_table(Path(__file__).parent / table)


def table_entry(form: layout.Form, shape: Shape, dtype: torch.dtype) -> str:
    """The name under which a table has the blocks of weights of (outputs, inputs)."""
    zeros = "zeros" if form.zeros_differ else "one zero"
    numbers = str(dtype).removeprefix("torch.")
    return f"{shape[0]}x{shape[1]}, {form.bits} bits, {zeros}, {form.scales_per_step} scales a step, {numbers}"


def measured_blocks(packed: layout.Packed, shape: Shape, dtype: torch.dtype, timer: Timer) -> Blocks:
    """The fastest blocks for one row, for sixteen, and for some dozens; the rule's where those are as good."""
    processors = torch.cuda.get_device_properties(packed.codes.device).multi_processor_count
    rule = blocks_for(packed.form, dtype, shape[0], processors)

    def seconds(blocks: Blocks, *counts: int) -> float:
        prepared = with_kernels(packed, shape, dtype, blocks, processors)
        return sum(timer(prepared, count) for count in counts)

    def fastest(candidates: tuple[Block, ...], ordinary: Block, rows: int) -> Block:
        return _chosen({block: seconds(Blocks((block,), rule.wide), rows) for block in candidates}, ordinary)

    dozens = {block: seconds(Blocks((), block), WIDE_ROWS // 2, WIDE_ROWS) for block in DOZENS_OF_ROWS}
    few, more = rule.decode
    one_row = one_row_blocks(packed.form, dtype)
    return Blocks((fastest(one_row, few, 1), fastest(SIXTEEN_ROWS, more, 16)), _chosen(dozens, rule.wide))


def one_row_blocks(form: layout.Form, dtype: torch.dtype) -> tuple[Block, ...]:
    """The blocks to try for one row: all but one, where eight bits and bfloats would spill its registers."""
    spilling = Block(1, 2, 4) if form.bits == 8 and dtype == torch.bfloat16 else None
    return tuple(block for block in ONE_ROW if block != spilling)


def _chosen(seconds: dict[AnyBlock, float], ordinary: AnyBlock) -> AnyBlock:
    """The fastest block, unless what it gains over the ordinary one may be noise."""
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] * WORTH_A_CHANGE < seconds[ordinary] else ordinary


def seconds_of(prepared: Prepared, rows: int) -> float:
    """Seconds of one product of some rows, by replays of a graph in which copies of the weight take turns."""
    packed = prepared.packed
    copies = [prepared]
    for _ in range(math.ceil(ROTATED_BYTES / packed.codes.nbytes)):
        copy = replace(packed, codes=packed.codes.clone(), scales=packed.scales.clone())
        copies.append(replace(prepared, packed=copy))
    inputs = torch.randn(rows, prepared.width, device=packed.codes.device, dtype=prepared.dtype)

    def multiply_all() -> None:
        for each in copies:
            if rows <= each.decode_rows:
                decoded(inputs, each)
            else:
                parts(inputs, each).sum(0)

    multiply_all()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        multiply_all()
    times: list[float] = []
    for _ in range(REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000 / len(copies))
    return statistics.median(times)


def read_table(file: Path) -> dict[str, Blocks]:
    """Blocks by `table_entry`; none where nothing was measured yet."""
    try:
        table = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    try:
        return {
            name: Blocks(tuple(Block(*sizes) for sizes in blocks["decode"]), WideBlock(*blocks["wide"]))
            for name, blocks in table.items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise DeviceError(f"{file} is not a table of measured blocks; delete it") from error


def write_table(file: Path, table: dict[str, Blocks]) -> None:
    """Keep what was measured, an entry a line."""
    entries = {
        name: {"decode": [astuple(block) for block in blocks.decode], "wide": astuple(blocks.wide)}
        for name, blocks in sorted(table.items())
    }
    lines = (f"{json.dumps(name)}: {json.dumps(blocks)}" for name, blocks in entries.items())
    keep(file, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
