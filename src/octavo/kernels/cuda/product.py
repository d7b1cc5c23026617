"""Products with a weight that is laid out on a GPU: which kernel multiplies how many rows, and its launch.

Up to 16 rows go through native/cuda/decode.cuh, up to 64 through native/cuda/wide.cuh; both read the codes once
and little else. More rows are torch's, with the weight expanded for the call.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor

from octavo.kernels.cuda import layout, units
from octavo.kernels.cuda.driver import Function, load
from octavo.kernels.cuda.units import Block, WideBlock

COLUMNS_PER_LOAD = 8
BYTES_PER_LOAD = 16
WIDE_ROWS = 64  # beyond, expanding the weight for cuBLAS is faster
MOST_SPLITS = 8
FEWEST_STEPS = 4  # of a split


@dataclass(frozen=True)
class Blocks:
    """The blocks that a weight's kernels are compiled for, those of decoding for more and more rows."""

    decode: tuple[Block, ...]
    wide: WideBlock


@dataclass(frozen=True)
class Decoder:
    """A kernel for few rows, and what a block of it computes."""

    block: Block
    function: Function


@dataclass(frozen=True)
class Multiplier:
    """The kernel for some dozens of rows, and what a block of it computes."""

    block: WideBlock
    function: Function


@dataclass(frozen=True)
class Prepared:
    """A weight of `shape` (outputs, inputs) in the kernels' layout, and its kernels, none for few float32 rows.

    `order` is the column of each slot, -1 for none, where kernels of 16-bit rows need their activations gathered.
    Outputs of a `gated` weight are pairs (gate, up).
    """

    packed: layout.Packed
    shape: tuple[int, int]
    dtype: torch.dtype
    gated: bool
    processors: int
    decoders: tuple[Decoder, ...]
    multiplier: Multiplier | None
    expand: Function
    gather: Function
    order: Int32[Tensor, " slots"] | None

    @property
    def width(self) -> int:
        """Of the activations, gathered where there is an order."""
        return self.shape[1] if self.order is None else len(self.order)

    @property
    def decode_rows(self) -> int:
        """The most rows of `decoded`; none for float32."""
        return self.decoders[-1].block.rows if self.decoders else 0


def blocks_for(form: layout.Form, dtype: torch.dtype, outputs: int, processors: int) -> Blocks:
    """A rule for shapes that were not measured, made from those that were, on an H200 (docs/log.md).

    Four bits are read so fast that a block lasts little longer than its start and its end: few outputs get two
    tiles to a block, many get blocks of four warps, of which more begin at once. Bfloats, and sixteen rows, cost
    instructions once per block, so two tiles share them.
    """
    many = outputs >= 2 * layout.BLOCK_ROWS * processors
    bfloats, whole_steps = dtype == torch.bfloat16, form.scales_per_step == 1
    few_rows, more_rows = Block(1, 1, 8), Block(2, 1, 4)
    if form.bits == 4 and whole_steps:
        few_rows = Block(1, 2 if bfloats or not many else 1, 4 if many else 8)
        more_rows = Block(2, 2 if bfloats or many else 1, 4 if many or not bfloats else 8)
    elif bfloats and whole_steps:
        more_rows = Block(2, 2, 8)
    return Blocks((few_rows, more_rows), _wide_block(form, outputs, processors))


def _wide_block(form: layout.Form, outputs: int, processors: int) -> WideBlock:
    """Two tiles a warp where registers suffice; the warps that leave the fewest multiprocessors idle."""
    tiles = 2 if form.scales_per_step == 1 else 1

    def busy(block: WideBlock) -> float:
        blocks = -(-outputs // block.outputs)
        return blocks * max(1, processors // blocks) / (-(-blocks // processors) * processors)

    return max((WideBlock(4, tiles, warps) for warps in (8, 7)), key=busy)


def with_kernels(
    packed: layout.Packed,
    shape: tuple[int, int],
    dtype: torch.dtype,
    blocks: Blocks,
    processors: int,
    gated: bool = False,
) -> Prepared:
    """A weight of (outputs, inputs) that is laid out, with kernels whose blocks are as given."""
    device, order = packed.codes.device, packed.column_of_slot
    if order is None and shape[1] % COLUMNS_PER_LOAD:
        order = torch.arange(packed.slots, dtype=torch.int32, device=device)
        order[shape[1] :] = -1
    form, halves = packed.form, dtype != torch.float32
    decode = [(block, units.decode_unit(form, dtype, block, gated)) for block in blocks.decode if halves]
    wide = load(units.wide_unit(form, dtype, blocks.wide), blocks.wide.threads, device) if halves else None
    return Prepared(
        packed=packed,
        shape=shape,
        dtype=dtype,
        gated=gated,
        processors=processors,
        decoders=tuple(Decoder(block, load(unit, block.threads, device)) for block, unit in decode),
        multiplier=None if wide is None else Multiplier(blocks.wide, wide),
        expand=load(units.expand_unit(form, dtype), units.EXPAND_THREADS, device),
        gather=load(units.GATHER, units.GATHER_THREADS, device),
        order=order,
    )


def decoded(
    rows: Float[Tensor, "rows width"],
    prepared: Prepared,
    residual: Float[Tensor, "rows results"] | None = None,
) -> Float[Tensor, "rows results"]:
    """residual + x W^T, gated where the weight is, for at most `decode_rows` rows by slot."""
    packed, outputs = prepared.packed, prepared.shape[0]
    decoder = next(each for each in prepared.decoders if len(rows) <= each.block.rows)
    results = rows.new_empty(len(rows), outputs // 2 if prepared.gated else outputs)
    arguments = units.DecodeArguments(
        *_addresses(packed),
        units.rows_of(rows),
        None if residual is None else residual.data_ptr(),
        results.data_ptr(),
        outputs,
        packed.steps,
        units.offsets_of(packed),
    )
    decoder.function.launch((-(-outputs // decoder.block.outputs), 1), arguments)
    return results


def parts(rows: Float[Tensor, "rows width"], prepared: Prepared) -> Float[Tensor, "parts rows outputs"]:
    """What adds up to x W^T for any number of rows by slot; no row of a gated weight is gated here."""
    if prepared.multiplier is not None and len(rows) <= WIDE_ROWS:
        return _wide_parts(rows, prepared, prepared.multiplier)
    return torch.mm(rows, expanded(prepared, prepared.width).t())[None]


def _wide_parts(
    rows: Float[Tensor, "rows width"], prepared: Prepared, multiplier: Multiplier
) -> Float[Tensor, "parts rows outputs"]:
    packed, outputs, block = prepared.packed, prepared.shape[0], multiplier.block
    wide, high = -(-outputs // block.outputs), -(-len(rows) // block.rows)
    wanted = prepared.processors // (wide * high)
    splits = max(1, min(wanted, MOST_SPLITS, packed.steps // FEWEST_STEPS))
    sums = torch.empty(splits, len(rows), outputs, dtype=torch.float32, device=rows.device)
    arguments = units.WideArguments(
        *_addresses(packed),
        units.rows_of(rows),
        sums.data_ptr(),
        outputs,
        packed.steps,
        -(-outputs // layout.TILE_ROWS),
        high,
        units.offsets_of(packed),
    )
    multiplier.function.launch((wide * high, splits), arguments)
    return sums


def by_slot(rows: Float[Tensor, "rows in_features"], prepared: Prepared) -> Float[Tensor, "rows width"]:
    """Rows as the kernels read them: plain memory, their columns in the order of slots, zero in empty ones."""
    order = prepared.order
    if order is None:
        plain = rows.is_contiguous() and rows.data_ptr() % BYTES_PER_LOAD == 0
        return rows if plain else rows.clone(memory_format=torch.contiguous_format)
    if prepared.dtype == torch.float32:
        return F.pad(rows, (0, 1))[:, order]  # -1 picks the zero behind the last column
    rows = rows.contiguous()
    gathered = rows.new_empty(len(rows), len(order))
    arguments = units.GatherArguments(
        rows.data_ptr(), order.data_ptr(), gathered.data_ptr(), rows.shape[1], len(order)
    )
    prepared.gather.launch((-(-len(order) // units.GATHER_THREADS), len(rows)), arguments)
    return gathered


def expanded(prepared: Prepared, width: int) -> Float[Tensor, "out_features width"]:
    """The first `width` slots of the weight as numbers of the prepared dtype."""
    packed, outputs = prepared.packed, prepared.shape[0]
    weights = torch.empty(outputs, width, dtype=prepared.dtype, device=packed.codes.device)
    size = (outputs, width, packed.steps)
    offsets = units.offsets_of(packed)
    arguments = units.ExpandArguments(*_addresses(packed), weights.data_ptr(), *size, offsets)
    grid = (-(-packed.steps // units.EXPAND_STEPS), -(-outputs // layout.TILE_ROWS))
    prepared.expand.launch(grid, arguments)
    return weights


def _addresses(packed: layout.Packed) -> tuple[int, int]:
    return packed.codes.data_ptr(), packed.scales.data_ptr()
