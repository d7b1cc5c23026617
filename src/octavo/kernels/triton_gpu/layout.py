"""Weights in the order in which the GPU kernels read them: bytes along the inputs, one scale to a block.

The inputs of a packed weight are *slots*: the columns of a linear, put in the order of their groups, each group
padded to whole blocks. Whoever produces the inputs stores them by slot, zero where there is no column, so that a
kernel meets neither `g_idx` nor a ragged group. A block is as many slots as a kernel multiplies at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16, Int, Int32, UInt8
from torch import Tensor

from octavo.weights import DenseWeight, QuantizedWeight, Weight

BLOCKS = (128, 64, 32)  # slots of a block, widest first
OUTPUT_MULTIPLE = 128  # the widest tile of outputs; rows of codes are padded to it, so that loads need no mask
DENSE_BITS = 16
NONE = -1  # a slot without a column, or an output without a row: all zeros
WORTHWHILE_PADDING = 9 / 8  # slots per column that a wider block may cost
MOST_PADDING = 2.0


@dataclass(frozen=True)
class PackedWeight:
    """`w[n, slot] = scales[block, n] * (code - zero)`, or plain values where `bits` is 16.

    A block of 8-bit codes is its codes in order; of 4-bit codes, byte j holds slot j (low nibble) and slot
    j + block / 2. `zeros` is None where all groups share `zero`. `column_of_slot` is -1 at padding, and None where
    slots are the columns.
    """

    codes: UInt8[Tensor, "padded_outputs bytes"] | Float[Tensor, "padded_outputs slots"]
    scales: Float16[Tensor, "blocks padded_outputs"] | None
    zeros: Float16[Tensor, "blocks padded_outputs"] | None
    zero: int
    bits: int
    block: int
    columns: int
    outputs: int
    column_of_slot: Int32[Tensor, " slots"] | None

    @property
    def slots(self) -> int:
        return self.columns if self.column_of_slot is None else len(self.column_of_slot)


@dataclass(frozen=True)
class Slots:
    """Columns by group, each group in whole blocks of `block` slots; -1 marks padding."""

    column_of_slot: Int[Tensor, " slots"]
    group_of_block: Int[Tensor, " blocks"]
    block: int

    @property
    def plain(self) -> bool:
        """Whether slots are the columns, in order and without padding."""
        return torch.equal(self.column_of_slot, torch.arange(len(self.column_of_slot)))


def slots_of(group_of_column: Int[Tensor, " columns"], block: int) -> Slots:
    """The slots of columns whose groups are given, in any order and of any size."""
    order = torch.argsort(group_of_column, stable=True)
    counts = torch.bincount(group_of_column.long())
    blocks = -(-counts // block)
    first_slot, first_rank = (blocks.cumsum(0) - blocks) * block, counts.cumsum(0) - counts
    group = group_of_column.long()[order]
    slots = first_slot[group] + torch.arange(len(order)) - first_rank[group]
    column_of_slot = torch.full((int(blocks.sum()) * block,), NONE)
    column_of_slot[slots] = order
    return Slots(column_of_slot, torch.repeat_interleave(torch.arange(len(counts)), blocks), block)


def best_slots(group_of_column: Int[Tensor, " columns"]) -> Slots:
    """The slots of the widest block that pads little, else of the one that pads least."""
    candidates = [slots_of(group_of_column, block) for block in BLOCKS]
    columns = len(group_of_column)
    for slots in candidates:
        if len(slots.column_of_slot) <= WORTHWHILE_PADDING * columns:
            return slots
    return min(candidates, key=lambda slots: len(slots.column_of_slot))


def why_not_packed(weight: QuantizedWeight) -> str | None:
    """Why a weight is better left to other kernels; None where it packs well."""
    slots, columns = len(best_slots(weight.group_of_column.cpu()).column_of_slot), weight.shape[1]
    if slots > MOST_PADDING * columns:
        return (
            f"its groups are so small that {columns} columns would be padded to {slots}; "
            f"groups of {BLOCKS[-1]} columns or more fit"
        )
    return None


def why_not_together(weights: Sequence[Weight]) -> str | None:
    """Why linears with the same input cannot be one matrix; None where they can."""
    quantized = [weight for weight in weights if isinstance(weight, QuantizedWeight)]
    if 0 < len(quantized) < len(weights):
        return "some are dense and some quantized"
    if any(not torch.equal(weight.group_of_column, quantized[0].group_of_column) for weight in quantized):
        return "their columns are grouped in different ways"
    return None


def pack(
    weights: Sequence[Weight],
    device: torch.device,
    dtype: torch.dtype,
    rows: Int[Tensor, " outputs"] | None = None,
) -> PackedWeight:
    """Linears with one input, to which `why_not_together` does not object, as one matrix.

    Its outputs are `rows` of all their outputs in turn, where -1 is an output of zero; None takes them as they
    come. Dense values are stored in `dtype`.
    """
    if rows is None:
        rows = torch.arange(sum(weight.shape[0] for weight in weights))
    padded_rows = F.pad(rows, (0, -len(rows) % OUTPUT_MULTIPLE), value=NONE).to(device)
    quantized = [weight for weight in weights if isinstance(weight, QuantizedWeight)]
    if quantized:
        return _pack_codes(quantized, padded_rows, len(rows))
    values = [weight.values.to(device, dtype) for weight in weights if isinstance(weight, DenseWeight)]
    return _pack_values(values, padded_rows, len(rows))


def _pack_codes(
    weights: Sequence[QuantizedWeight], padded_rows: Int[Tensor, " padded_outputs"], outputs: int
) -> PackedWeight:
    device, columns = padded_rows.device, weights[0].shape[1]
    slots = best_slots(weights[0].group_of_column.cpu())
    bits = 8 if any(weight.scheme.bits == 8 for weight in weights) else 4
    # Index -1 picks the column of zeros that is padded on.
    codes = _rows_of([weight.codes.to(device) for weight in weights], padded_rows)
    by_slot = F.pad(codes, (0, 1))[:, slots.column_of_slot.to(device)]
    group_of_block = slots.group_of_block.to(device)
    scales = _rows_of([weight.scales.to(device, torch.float16) for weight in weights], padded_rows)
    zeros = [weight.zeros.to(device, torch.float16) for weight in weights]
    zero = zeros[0][0, 0]
    shared = all(bool((part == zero).all()) for part in zeros)
    return PackedWeight(
        codes=by_slot.contiguous() if bits == 8 else _nibbles(by_slot, slots.block),
        scales=scales[:, group_of_block].t().contiguous(),
        zeros=None if shared else _rows_of(zeros, padded_rows)[:, group_of_block].t().contiguous(),
        zero=int(zero) if shared else 0,
        bits=bits,
        block=slots.block,
        columns=columns,
        outputs=outputs,
        column_of_slot=None if slots.plain else slots.column_of_slot.to(device, torch.int32),
    )


def _pack_values(
    weights: Sequence[Tensor], padded_rows: Int[Tensor, " padded_outputs"], outputs: int
) -> PackedWeight:
    columns = weights[0].shape[1]
    slots = best_slots(torch.zeros(columns, dtype=torch.int32))
    values = F.pad(_rows_of(weights, padded_rows), (0, len(slots.column_of_slot) - columns))
    return PackedWeight(
        codes=values.contiguous(),
        scales=None,
        zeros=None,
        zero=0,
        bits=DENSE_BITS,
        block=slots.block,
        columns=columns,
        outputs=outputs,
        column_of_slot=None if slots.plain else slots.column_of_slot.to(values.device, torch.int32),
    )


def _rows_of(parts: Sequence[Tensor], rows: Int[Tensor, " padded_outputs"]) -> Tensor:
    """Rows of matrices below one another; -1 is a row of zeros."""
    chosen: Tensor = F.pad(torch.cat(list(parts)), (0, 0, 0, 1))[rows]
    return chosen


def _nibbles(codes: UInt8[Tensor, "outputs slots"], block: int) -> UInt8[Tensor, "outputs bytes"]:
    """Two codes to a byte: slot j of a block, and in the high nibble slot j + block / 2."""
    low, high = codes.unflatten(1, (-1, 2, block // 2)).unbind(2)
    stored: Tensor = (low | high << 4).flatten(1)
    return stored
