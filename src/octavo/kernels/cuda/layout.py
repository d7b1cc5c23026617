"""A quantized weight as the CUDA kernels read it: columns in slots, codes in the order of the matrix units.

The layout is explained, and read, in native/cuda/codes.cuh; this module writes it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int32, UInt8
from torch import Tensor

from octavo.weights import QuantizedWeight

TILE_ROWS = 16
BLOCK_ROWS = 32  # outputs are padded to whole blocks of at most two tiles
STEP_SLOTS = 128


@dataclass(frozen=True)
class Form:
    """What kernels are compiled for: bits of a code, and how many stretches of a step have a scale of their own.

    Where zeros differ between groups, each scale has its zero beside it.
    """

    bits: int
    zeros_differ: bool
    scales_per_step: int


@dataclass(frozen=True)
class Packed:
    """A weight in tiles of 16 rows × 128 slots.

    `codes` are bytes as the kernels load them, `scales` pairs of halves. `column_of_slot` is -1 for an empty slot,
    and None where slot i holds column i and empty slots come last. `zero` is that of all groups, and means nothing
    where they differ.
    """

    form: Form
    codes: UInt8[Tensor, " code_bytes"]
    scales: Int32[Tensor, " scale_words"]
    column_of_slot: Int32[Tensor, " slots"] | None
    zero: int
    steps: int

    @property
    def slots(self) -> int:
        return self.steps * STEP_SLOTS


def pack(weight: QuantizedWeight, device: torch.device) -> Packed:
    """Lay a weight out on a device; 2- and 3-bit codes take four bits."""
    bits = 8 if weight.scheme.bits == 8 else 4
    scales_per_step = _scales_per_step(weight.scheme.group_size)
    group_of_column = weight.group_of_column.to(device).long()
    groups = weight.scales.shape[1]
    column_of_slot, group_of_stretch = _slots(group_of_column, groups, STEP_SLOTS // scales_per_step)
    codes = _padded_rows(weight.codes.to(device))
    if _is_identity(column_of_slot, len(group_of_column)):
        codes, order = F.pad(codes, (0, len(column_of_slot) - codes.shape[1])), None
    else:
        codes, order = codes[:, column_of_slot.clamp(min=0)], column_of_slot.to(torch.int32)
    scales = _padded_rows(weight.scales.to(device).half())[:, group_of_stretch]
    zeros = weight.zeros.to(device)
    zero = int(zeros[0, 0])
    zeros_differ = bool((zeros != zero).any())
    parts = [scales]
    if zeros_differ:
        parts.append(_offsets_by_row(_padded_rows(zeros)[:, group_of_stretch], bits))
    return Packed(
        form=Form(bits, zeros_differ, scales_per_step),
        codes=_tiled_codes(codes, bits),
        scales=_tiled_scales(torch.stack(parts, -1), scales_per_step),
        column_of_slot=order,
        zero=zero,
        steps=len(column_of_slot) // STEP_SLOTS,
    )


def offsets(zero: int, bits: int) -> tuple[float, float]:
    """What is added to the halves of codes of the upper and the lower rows of a tile, to give code - zero."""
    return (-1024.0 - zero, -1024.0 - zero) if bits == 8 else (-1024.0 - zero, -64.0 - zero)


def _scales_per_step(group_size: int | None) -> int:
    """How many stretches of slots with a scale of their own a step has: groups are padded to whole stretches."""
    if group_size is None or group_size % 128 == 0:
        return 1
    return 2 if group_size % 64 == 0 else 4


def _slots(group_of_column: Tensor, groups: int, stretch: int) -> tuple[Tensor, Tensor]:
    """The column of each slot, -1 for none, and the group of each stretch of slots; whole steps of both."""
    order = torch.argsort(group_of_column, stable=True)
    counts = torch.bincount(group_of_column, minlength=groups)
    stretches = (counts + stretch - 1) // stretch
    starts = (stretches.cumsum(0) - stretches) * stretch
    sorted_groups = group_of_column[order]
    within = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[sorted_groups]
    used = int(stretches.sum()) * stretch
    column_of_slot = torch.full((-(-used // STEP_SLOTS) * STEP_SLOTS,), -1, device=order.device)
    column_of_slot[starts[sorted_groups] + within] = order
    group_of_stretch = torch.zeros(len(column_of_slot) // stretch, dtype=torch.long, device=order.device)
    of_groups = torch.repeat_interleave(torch.arange(groups, device=order.device), stretches)
    group_of_stretch[: len(of_groups)] = of_groups
    return column_of_slot, group_of_stretch


def _is_identity(column_of_slot: Tensor, columns: int) -> bool:
    wanted = torch.arange(len(column_of_slot), device=column_of_slot.device)
    wanted[columns:] = -1
    return torch.equal(column_of_slot, wanted)


def _padded_rows(values: Tensor) -> Tensor:
    return F.pad(values, (0, 0, 0, -len(values) % BLOCK_ROWS))


def _offsets_by_row(zeros: Tensor, bits: int) -> Tensor:
    """Halves; see `offsets`."""
    of_tile = torch.tensor(offsets(0, bits), device=zeros.device).repeat_interleave(TILE_ROWS // 2)
    of_zero: Tensor = of_tile.repeat(len(zeros) // TILE_ROWS)[:, None]
    return (of_zero - zeros.float()).half()


def _tiled_codes(codes: UInt8[Tensor, "rows slots"], bits: int) -> UInt8[Tensor, " code_bytes"]:
    """16 bytes a lane; a byte holds one code of eight bits, or those of an upper and a lower row."""
    rows, slots = codes.shape
    # tile, half of its rows, row; step, span, lane's quarter, product, pair, which of the pair
    parts = codes.view(rows // TILE_ROWS, 2, 8, slots // STEP_SLOTS, 4, 4, 2, 2, 2)
    if bits == 8:
        # tile, step, span, row, quarter; product, pair, half, which
        return parts.permute(0, 3, 4, 2, 5, 6, 7, 1, 8).flatten()
    upper, lower = parts.unbind(1)
    spans_of_load = (*upper.shape[:3], 2, 2, *upper.shape[4:])
    # tile, step, load, row, quarter; span of the load, product, which, pair
    return (upper | lower << 4).reshape(spans_of_load).permute(0, 2, 3, 1, 5, 4, 6, 8, 7).flatten()


def _tiled_scales(values: Tensor, scales_per_step: int) -> Int32[Tensor, " scale_words"]:
    """[rows, stretches, kinds] halves -> tile, step, row, stretch, kind; those of two rows as a pair."""
    rows, stretches, kinds = values.shape
    parts = values.view(rows // TILE_ROWS, 2, 8, stretches // scales_per_step, scales_per_step, kinds)
    return parts.permute(0, 3, 2, 4, 5, 1).contiguous().view(torch.int32).flatten()
