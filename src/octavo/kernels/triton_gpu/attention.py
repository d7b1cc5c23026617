"""Attention of one new row per sequence over its cached past, the past split over many programs.

Lengths, rows and pages are read on the device, so that a launch that was recorded once serves every position.
The new row's key and value come straight from their product: one program per key head writes them to the cache.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from octavo.kernels.blocks import LayerCache, Rows
from octavo.kernels.triton_gpu.card import Card
from octavo.kernels.triton_gpu.early import starts_early, take_turn
from octavo.kernels.triton_gpu.heads import (
    CacheParts,
    HeadForm,
    HeadInputs,
    half_heads,
    store_halves,
    turned_heads,
)
from octavo.kernels.triton_gpu.product import compute_type

TILE = 64
COMBINE_BLOCK = 128
LOG2_E = 1.4426950408889634
FEWEST_HEADS = 16  # rows of the tensor cores' first operand
MOST_PARTS = 32
PROGRAMS_PER_PROCESSOR = 3


class Pages(NamedTuple):
    """`SequencePages` as kernels take them."""

    lengths: Tensor
    row_starts: Tensor
    page_table: Tensor
    pages: int  # of a sequence in the table


@dataclass(frozen=True)
class Sight:
    """How far a layer's rows see, and in which slots its output projection wants what they saw."""

    window: int | None
    slots: int
    column_of_slot: Int32[Tensor, " slots"] | None
    card: Card


class Partials(NamedTuple):
    """What each part saw [parts, rows, heads, head_dim], and log2 of its weight; -inf is nothing."""

    attended: Tensor
    weights: Tensor


class AttentionForm(NamedTuple):
    """What attention is compiled for; the first fields are those of `HeadForm`."""

    heads: int
    kv_heads: int
    head_dim: int
    half_block: int
    splits: int  # of the sums
    padded_group: int  # query heads that share a key head, at least as many as a product needs
    page_size: int
    window: int  # positions that a row sees; 0 is all
    parts: int  # that a past is split into
    tile: int  # positions at a time
    combine_block: int  # slots of a program that combines parts
    scale: float  # of scores, for powers of two
    compute: Any
    early: bool  # whether it begins before the kernel ahead of it has ended


@triton.jit
@no_type_check
def attend(inputs, cache, pages, partials, rows, form: tl.constexpr):
    """One part of one sequence's past, for the query heads that share one key head."""
    take_turn(form.early)
    kv_head, part, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tl.load(pages.row_starts + sequence).to(tl.int64)
    if tl.load(pages.row_starts + sequence + 1) > row:
        newest = tl.load(pages.lengths + sequence).to(tl.int32) - 1
        start = tl.maximum(newest + 1 - form.window, 0) if form.window > 0 else newest * 0
        first_tile = start // form.tile
        tiles = tl.maximum(tl.cdiv(newest, form.tile) - first_tile, 0)
        each = tl.cdiv(tiles, form.parts)
        begin = first_tile + tl.minimum(part * each, tiles)
        end = first_tile + tl.minimum((part + 1) * each, tiles)
        group: tl.constexpr = form.heads // form.kv_heads
        member = tl.arange(0, form.padded_group)[:, None]
        head = tl.where(member < group, kv_head * group + member, -1)
        first, second = turned_heads(inputs, inputs.query_norm, head, (row, rows), form)
        stored = cache.key_slots.dtype.element_ty
        queries = (first.to(stored), second.to(stored))
        padded_group: tl.constexpr = form.padded_group
        half_block: tl.constexpr = form.half_block
        nothing = tl.zeros((padded_group, half_block), tl.float32)
        state = (
            tl.full((padded_group, 1), float("-inf"), tl.float32),
            tl.zeros((padded_group, 1), tl.float32),
            nothing,
            nothing,
        )
        if part == 0:
            state = newest_state(inputs, cache, queries, (kv_head, row, rows), form)
        for tile in tl.range(begin, end):
            state = add_tile(state, cache, pages, queries, (kv_head, sequence, tile, start, newest), form)
        highest, total, first_values, second_values = state
        total = tl.where(total > 0.0, total, 1.0)  # a part without positions weighs 2 ** -inf
        at = ((part * rows + row) * form.heads + head).to(tl.int64)
        tl.store(partials.weights + at, highest + tl.log2(total), mask=head >= 0)
        half: tl.constexpr = form.head_dim // 2
        within = tl.arange(0, form.half_block)[None, :]
        target = partials.attended + at * form.head_dim + within
        tl.store(target, first_values / total, mask=(head >= 0) & (within < half))
        tl.store(target + half, second_values / total, mask=(head >= 0) & (within < half))


@triton.jit
@no_type_check
def newest_state(inputs, cache, queries, place, form: tl.constexpr):
    """The running softmax after the new position alone, whose key and value it writes to the cache."""
    kv_head, row, rows = place
    key_head = form.heads + kv_head + tl.zeros((1, 1), tl.int32)
    first_key, second_key = turned_heads(inputs, inputs.key_norm, key_head, (row, rows), form)
    first_value = half_heads(inputs, key_head + form.kv_heads, (row, rows), False, form)
    second_value = half_heads(inputs, key_head + form.kv_heads, (row, rows), True, form)
    stored = cache.key_slots.dtype.element_ty
    at = (tl.load(cache.write_slots + row).to(tl.int64) * form.kv_heads + kv_head) * form.head_dim
    store_halves(cache.key_slots + at, first_key, second_key, form)
    store_halves(cache.value_slots + at, first_value, second_value, form)
    products = queries[0].to(tl.float32) * first_key.to(stored).to(tl.float32)
    products += queries[1].to(tl.float32) * second_key.to(stored).to(tl.float32)
    scores = tl.sum(products, 1, keep_dims=True) * form.scale
    padded_group: tl.constexpr = form.padded_group
    ones = tl.full((padded_group, 1), 1.0, tl.float32)
    first_values = ones * first_value.to(stored).to(tl.float32)
    return scores, ones, first_values, ones * second_value.to(stored).to(tl.float32)


@triton.jit
@no_type_check
def add_tile(state, cache, pages, queries, place, form: tl.constexpr):
    """The running softmax (https://arxiv.org/abs/1805.02867) after one more tile of positions."""
    highest, total, first_values, second_values = state
    kv_head, sequence, tile, start, newest = place
    half: tl.constexpr = form.head_dim // 2
    position = tile * form.tile + tl.arange(0, form.tile)
    seen = (position >= start) & (position < newest)
    table = pages.page_table + sequence * pages.pages
    if form.page_size % form.tile == 0:  # the tile lies in one page
        page = tl.load(table + tile * form.tile // form.page_size).to(tl.int64)
    else:
        page = tl.load(table + position // form.page_size, mask=seen, other=0).to(tl.int64)
    slot = page * form.page_size + position % form.page_size
    within = tl.arange(0, form.half_block)
    at = (slot * form.kv_heads + kv_head)[:, None] * form.head_dim + within[None, :]
    inside = seen[:, None] & (within < half)[None, :]
    first_keys = tl.load(cache.key_slots + at, mask=inside, other=0.0).to(form.compute)
    second_keys = tl.load(cache.key_slots + at + half, mask=inside, other=0.0).to(form.compute)
    scores = tl.dot(queries[0].to(form.compute), tl.trans(first_keys), input_precision="ieee")
    scores = tl.dot(queries[1].to(form.compute), tl.trans(second_keys), scores, input_precision="ieee")
    scores = tl.where(seen[None, :], scores * form.scale, float("-inf"))
    now_highest = tl.maximum(highest, tl.max(scores, 1, keep_dims=True))
    weights = tl.exp2(scores - now_highest)
    faded = tl.exp2(highest - now_highest)
    total = total * faded + tl.sum(weights, 1, keep_dims=True)
    weights = weights.to(form.compute)
    first = tl.load(cache.value_slots + at, mask=inside, other=0.0).to(form.compute)
    second = tl.load(cache.value_slots + at + half, mask=inside, other=0.0).to(form.compute)
    first_values = tl.dot(weights, first, first_values * faded, input_precision="ieee")
    second_values = tl.dot(weights, second, second_values * faded, input_precision="ieee")
    return now_highest, total, first_values, second_values


@triton.jit
@no_type_check
def combine(partials, column_of_slot, results, slots, form: tl.constexpr):
    """The parts of one row put together, stored by slot of the output projection."""
    take_turn(form.early)
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    slot = tl.program_id(1) * form.combine_block + tl.arange(0, form.combine_block)
    column = slot if column_of_slot is None else tl.load(column_of_slot + slot, mask=slot < slots, other=-1)
    exists = ((column >= 0) & (slot < slots))[None, :]
    part = tl.arange(0, form.parts)[:, None]
    at = (part * rows + row) * form.heads + (column // form.head_dim)[None, :]
    weights = tl.load(partials.weights + at, mask=exists, other=0.0)
    factors = tl.exp2(weights - tl.max(weights, 0, keep_dims=True))
    value_at = at * form.head_dim + (column % form.head_dim)[None, :]
    values = tl.load(partials.attended + value_at, mask=exists, other=0.0)
    attended = tl.sum(values * factors, 0) / tl.sum(factors, 0)
    tl.store(results + row * slots + slot, attended.to(results.dtype.element_ty), mask=slot < slots)


def newest_attention(
    inputs: HeadInputs, rows: Rows, cache: LayerCache, form: HeadForm, sight: Sight
) -> Float[Tensor, "rows slots"]:
    """Attention of one row per sequence, by slot of the output projection; the row's key and value are cached."""
    count, device, pages = inputs.sums.parts.shape[1], cache.keys.device, rows.pages
    sequences = len(pages.lengths)
    parts = _parts(sight.card, sequences * form.kv_heads, pages.longest)
    whole = AttentionForm(
        *form,
        padded_group=max(FEWEST_HEADS, triton.next_power_of_2(form.heads // form.kv_heads)),
        page_size=pages.page_size,
        window=sight.window or 0,
        parts=parts,
        tile=TILE,
        combine_block=COMBINE_BLOCK,
        scale=LOG2_E / form.head_dim**0.5,
        compute=compute_type(cache.keys.dtype),
        early=starts_early(sight.card),
    )
    partials = Partials(
        torch.empty(parts, count, form.heads, form.head_dim, dtype=torch.float32, device=device),
        torch.empty(parts, count, form.heads, dtype=torch.float32, device=device),
    )
    parts_of_cache = CacheParts(cache.keys, cache.values, rows.write_slots)
    table = Pages(pages.lengths, pages.row_starts, pages.page_table, pages.page_table.shape[1])
    attend[form.kv_heads, parts, sequences](
        inputs, parts_of_cache, table, partials, count, whole, num_warps=4, num_stages=2, launch_pdl=whole.early
    )
    attended = torch.empty(count, sight.slots, dtype=cache.keys.dtype, device=device)
    combine[count, triton.cdiv(sight.slots, COMBINE_BLOCK)](
        partials, sight.column_of_slot, attended, sight.slots, whole, num_warps=4, launch_pdl=whole.early
    )
    return attended


def _parts(card: Card, programs: int, longest: int) -> int:
    """Into how many parts a past is split: a power of two that keeps the card busy, with a tile for each."""
    wanted = min(PROGRAMS_PER_PROCESSOR * card.processors // programs, -(-longest // TILE), MOST_PARTS)
    return 1 << max(wanted, 1).bit_length() - 1
