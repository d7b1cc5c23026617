"""Queries, keys and values on their way out of their product: bias, norm of each head, rotation, the cache.

A head is handled in two halves, for the rotation pairs each place of the first with one of the second; and halves
may be any multiple of 8 wide, whatever power of two they are padded to.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from octavo.kernels.blocks import LayerCache, Rows
from octavo.kernels.triton_gpu.product import Sums


class HeadForm(NamedTuple):
    """The heads of a row of queries, keys and values."""

    heads: int
    kv_heads: int
    head_dim: int
    half_block: int  # the power of two that half a head fits in
    splits: int  # of the sums


class HeadInputs(NamedTuple):
    """Queries, keys and values, one head after another, and what they go through."""

    sums: Sums
    query_norm: Tensor | None
    key_norm: Tensor | None
    epsilon: float
    angles: Tensor
    temperature: float


class CacheParts(NamedTuple):
    """The keys and values of one layer [slots, kv_heads, head_dim], and the slot of each row."""

    key_slots: Tensor
    value_slots: Tensor
    write_slots: Tensor


@triton.jit
@no_type_check
def half_heads(inputs, head, place, second: tl.constexpr, form: tl.constexpr):
    """First or second halves [heads, half_block] of the heads [heads, 1] of a row, in float32; -1 is no head."""
    row, rows = place
    half: tl.constexpr = form.head_dim // 2
    splits: tl.constexpr = form.splits
    width: tl.constexpr = (form.heads + 2 * form.kv_heads) * form.head_dim
    within = tl.arange(0, form.half_block)[None, :]
    inside = (within < half) & (head >= 0)
    column = head * form.head_dim + within
    if second:
        column += half
    total = tl.load(inputs.sums.parts + row * width + column, mask=inside, other=0.0).to(tl.float32)
    for split in tl.static_range(1, splits):
        at = (split * rows + row) * width + column
        total += tl.load(inputs.sums.parts + at, mask=inside, other=0.0).to(tl.float32)
    if inputs.sums.bias is not None:
        total += tl.load(inputs.sums.bias + column, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
@no_type_check
def turned_heads(inputs, norm, head, place, form: tl.constexpr):
    """Both halves of heads of a row, normalized where there is a norm, and rotated."""
    half: tl.constexpr = form.head_dim // 2
    within = tl.arange(0, form.half_block)[None, :]
    inside = within < half
    first, second = half_heads(inputs, head, place, False, form), half_heads(inputs, head, place, True, form)
    if norm is not None:
        squares = tl.sum(first * first + second * second, 1, keep_dims=True)
        scale = tl.rsqrt(squares / form.head_dim + inputs.epsilon)
        first *= scale * tl.load(norm + within, mask=inside, other=0.0).to(tl.float32)
        second *= scale * tl.load(norm + half + within, mask=inside, other=0.0).to(tl.float32)
    angles = tl.load(inputs.angles + place[0] * half + within, mask=inside, other=0.0)
    cosine, sine = cosine_and_sine(angles)
    cosine, sine = cosine * inputs.temperature, sine * inputs.temperature
    return first * cosine - second * sine, second * cosine + first * sine


@triton.jit
@no_type_check
def cosine_and_sine(angles):
    """Both for angles in radians, float32, to 1e-7 where the angle itself is that exact.

    The angle less the nearest quarter turns, and a polynomial each, as in Cephes (https://www.netlib.org/cephes/,
    sinf.c); the library's functions carry along a path for huge angles, ten times as long.
    """
    quarters = tl.floor(angles * 0.6366197723675814 + 0.5)
    # A quarter turn in three parts, the first ones short, so that their products are exact.
    rest = angles - quarters * 1.5703125 - quarters * 4.837512969970703e-4 - quarters * 7.54978995489188e-8
    square = rest * rest
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * rest + rest
    cosine = ((2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2) * square
    cosine = (cosine - 0.5) * square + 1.0
    quadrant = quarters.to(tl.int32) & 3
    odd = (quadrant & 1) == 1
    along, across = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    along = tl.where((quadrant == 1) | (quadrant == 2), -along, along)
    return along, tl.where(quadrant >= 2, -across, across)


@triton.jit
@no_type_check
def store_halves(target, first, second, form: tl.constexpr):
    """Store both halves of one head, [1, half_block] each, at `target`."""
    half: tl.constexpr = form.head_dim // 2
    within = tl.arange(0, form.half_block)[None, :]
    tl.store(target + within, first.to(target.dtype.element_ty), mask=within < half)
    tl.store(target + half + within, second.to(target.dtype.element_ty), mask=within < half)


@triton.jit
@no_type_check
def settle_heads(inputs, queries, cache, form: tl.constexpr):
    """One head of one row: a rotated query to `queries` [rows, heads, head_dim], a key or value to the cache."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    number = tl.program_id(1)
    head = number + tl.zeros((1, 1), tl.int32)
    if number < form.heads:
        first, second = turned_heads(inputs, inputs.query_norm, head, (row, rows), form)
        store_halves(queries + (row * form.heads + number) * form.head_dim, first, second, form)
    else:
        slot = tl.load(cache.write_slots + row).to(tl.int64)
        if number < form.heads + form.kv_heads:
            first, second = turned_heads(inputs, inputs.key_norm, head, (row, rows), form)
            at = (slot * form.kv_heads + number - form.heads) * form.head_dim
            store_halves(cache.key_slots + at, first, second, form)
        else:
            first = half_heads(inputs, head, (row, rows), False, form)
            second = half_heads(inputs, head, (row, rows), True, form)
            at = (slot * form.kv_heads + number - form.heads - form.kv_heads) * form.head_dim
            store_halves(cache.value_slots + at, first, second, form)


def settled_queries(
    inputs: HeadInputs, rows: Rows, cache: LayerCache, form: HeadForm
) -> Float[Tensor, "rows heads head_dim"]:
    """The rotated queries of rows whose keys and values are written to the cache."""
    count = inputs.sums.parts.shape[1]
    queries = torch.empty(count, form.heads, form.head_dim, dtype=cache.keys.dtype, device=cache.keys.device)
    parts = CacheParts(cache.keys, cache.values, rows.write_slots)
    settle_heads[count, form.heads + 2 * form.kv_heads](inputs, queries, parts, form, num_warps=1)
    return queries
