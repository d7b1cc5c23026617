"""What happens to rows between products: the RMS norm, with what is added before it, and the order of slots."""

from dataclasses import dataclass
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor
from triton.language.extra import cuda

from octavo.kernels.triton_gpu.card import Card
from octavo.kernels.triton_gpu.early import starts_early
from octavo.kernels.triton_gpu.product import Sums

GATHER_BLOCK = 1024


class NormForm(NamedTuple):
    """What a norm is compiled for; `splits` is 0 where nothing is added to the hidden state."""

    columns: int
    slots: int
    splits: int
    column_block: int
    slot_block: int
    early: bool  # whether it begins before the kernel ahead of it has ended


class NormParts(NamedTuple):
    """The weight of a norm, and the column of each slot of what it stores; None: slots are columns."""

    weight: Tensor
    column_of_slot: Tensor | None


class Stored(NamedTuple):
    """Where a norm stores hidden + product, if it adds one, and what it normalized."""

    hidden: Tensor | None
    normalized: Tensor


@triton.jit
@no_type_check
def normalize(hidden, added, norm, stored, epsilon, form: tl.constexpr):
    """One row: hidden + product, stored; then its RMS norm, stored by slot."""
    splits: tl.constexpr = form.splits
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, form.column_block)
    inside = column < form.columns
    at = row * form.columns + column
    weight = tl.load(norm.weight + column, mask=inside, other=0.0).to(tl.float32)
    slot = tl.arange(0, form.slot_block)
    if norm.column_of_slot is not None:
        source = tl.load(norm.column_of_slot + slot, mask=slot < form.slots, other=-1)
    if form.early:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()  # what is loaded above is never written
    values = tl.load(hidden + at, mask=inside, other=0.0).to(tl.float32)
    if splits > 0:
        rows = tl.num_programs(0)
        for split in tl.static_range(splits):
            values += tl.load(added.parts + split * rows * form.columns + at, mask=inside, other=0.0).to(
                tl.float32
            )
        if added.bias is not None:
            values += tl.load(added.bias + column, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(stored.hidden.dtype.element_ty)
        tl.store(stored.hidden + at, rounded, mask=inside)
        values = rounded.to(tl.float32)  # the norm sees what the next layer will see
    scale = tl.rsqrt(tl.sum(values * values, 0) / form.columns + epsilon)
    values *= scale * weight
    if norm.column_of_slot is not None:
        values = tl.where(source < 0, 0.0, tl.gather(values, tl.maximum(source, 0), 0))
    target = stored.normalized + row * form.slots + slot
    tl.store(target, values.to(stored.normalized.dtype.element_ty), mask=slot < form.slots)


@triton.jit
@no_type_check
def gather(inputs, column_of_slot, results, columns, slots, block: tl.constexpr):
    """inputs [rows, columns] by slot, zero where a slot has no column."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.program_id(1) * block + tl.arange(0, block)
    source = tl.load(column_of_slot + slot, mask=slot < slots, other=-1)
    values = tl.load(inputs + row * columns + source, mask=source >= 0, other=0.0)
    tl.store(results + row * slots + slot, values, mask=slot < slots)


@dataclass(frozen=True)
class Norm:
    """An RMS norm whose outputs stand in the slots of the product that follows."""

    weight: Float[Tensor, " columns"]
    epsilon: float
    slots: int
    column_of_slot: Int32[Tensor, " slots"] | None
    card: Card


def normalized(
    hidden: Float[Tensor, "rows columns"], norm: Norm, added: Sums | None = None
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "rows slots"]]:
    """The hidden state, with a product added to it, and its norm by slot (https://arxiv.org/abs/1910.07467)."""
    assert hidden.is_contiguous(), "kernels read plain memory"
    rows, columns = hidden.shape
    form = NormForm(
        columns=columns,
        slots=norm.slots,
        splits=0 if added is None else len(added.parts),
        column_block=triton.next_power_of_2(columns),
        slot_block=triton.next_power_of_2(norm.slots),
        early=starts_early(norm.card),
    )
    sum_of_both = None if added is None else _empty(hidden, columns)
    stored = Stored(sum_of_both, _empty(hidden, norm.slots))
    parts = NormParts(norm.weight, norm.column_of_slot)
    warps = _warps(form.column_block)
    normalize[(rows,)](hidden, added, parts, stored, norm.epsilon, form, num_warps=warps, launch_pdl=form.early)
    return hidden if sum_of_both is None else sum_of_both, stored.normalized


def _empty(like: Tensor, width: int) -> Tensor:
    """Rows of another width."""
    return torch.empty(len(like), width, dtype=like.dtype, device=like.device)


def _warps(width: int) -> int:
    """Warps of a program that holds one row: about eight numbers to a thread, which hides the loads' latency."""
    return max(1, min(16, width // 256))


def gathered(
    inputs: Float[Tensor, "rows columns"], column_of_slot: Int32[Tensor, " slots"] | None
) -> Float[Tensor, "rows slots"]:
    """The inputs of a packed weight, by slot."""
    assert inputs.is_contiguous(), "kernels read plain memory"
    if column_of_slot is None:
        return inputs
    rows, slots = len(inputs), len(column_of_slot)
    results = _empty(inputs, slots)
    grid = (rows, triton.cdiv(slots, GATHER_BLOCK))
    gather[grid](inputs, column_of_slot, results, inputs.shape[1], slots, GATHER_BLOCK)
    return results
