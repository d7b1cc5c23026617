"""Attention over a cache of keys and values, defined: the twin of every fused attention.

Rows of several sequences share one call. The cache is a flat run of slots; a sequence's page table says in which
pages of slots its past lies, in order. One page that spans the whole context is the contiguous case. A slot holds
its keys and values as they are computed, or in 8 bits (`CodedHeads`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, Int8
from torch import Tensor

LARGEST_CODE = 127
MOST_TOGETHER = 2**16  # positions of sequences that attend together, for their keys and values are copied


@dataclass(frozen=True)
class Together:
    """Sequences that attend in one call, as long as the longest: they end in repeated rows and positions."""

    rows: Int[Tensor, "sequences most_rows"]  # of the call
    own: Bool[Tensor, "sequences most_rows"]  # rows that are not repeated
    row_positions: Int[Tensor, "sequences most_rows"]
    slots: Int[Tensor, "sequences longest"]


@dataclass(frozen=True)
class SequencePages:
    """Which rows of a call belong to which sequence, and where each sequence's past lies in the cache.

    Sequence s owns rows `row_starts[s]` to `row_starts[s + 1]`, which are the newest of its `lengths[s]`
    positions; position p is in slot `page_table[s, p // page_size] * page_size + p % page_size`.

    `most_rows` and `longest` bound the rows and the positions of any one sequence. They are known to the host, so
    that a kernel can size its launch without asking the device.
    """

    lengths: Int[Tensor, " sequences"]
    row_starts: Int[Tensor, " sequences+1"]
    page_table: Int[Tensor, "sequences pages"]
    page_size: int
    most_rows: int
    longest: int

    @cached_property
    def on_host(self) -> tuple[list[int], list[int], list[int]]:
        """Row starts, lengths and first pages; read once, for on a GPU that waits for all that was asked of it."""
        return self.row_starts.tolist(), self.lengths.tolist(), self.page_table[:, 0].tolist()

    @cached_property
    def together(self) -> list[Together]:
        """All sequences that have rows, those that are alike together."""
        starts, lengths, _ = self.on_host
        rows = [end - start for start, end in pairwise(starts)]
        device = self.page_table.device
        found = []
        for group in _alike(rows, lengths):
            chosen = torch.tensor(group, device=device)
            first, last = self.row_starts[chosen, None], self.row_starts[chosen + 1, None] - 1
            newest = self.lengths[chosen, None] - 1
            counted = first + torch.arange(max(rows[each] for each in group), device=device)
            positions = torch.arange(max(lengths[each] for each in group), device=device).minimum(newest)
            pages = self.page_table[chosen].gather(1, positions // self.page_size)
            found.append(
                Together(
                    rows=counted.minimum(last),
                    own=counted <= last,
                    row_positions=newest - (last - counted.minimum(last)),
                    slots=pages * self.page_size + positions % self.page_size,
                )
            )
        return found

    def slots_of(self, sequence: int, length: int) -> slice | Int[Tensor, " length"]:
        """Slots of a sequence's first `length` positions; a slice where one page holds them all."""
        if length <= self.page_size:
            first = self.on_host[2][sequence] * self.page_size
            return slice(first, first + length)
        positions = torch.arange(length, device=self.page_table.device)
        return self.page_table[sequence, positions // self.page_size] * self.page_size + positions % self.page_size


def _alike(rows: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Sequences in groups of which no more than half is repetition; those without rows are left out."""
    groups: list[list[int]] = []
    present = [sequence for sequence, count in enumerate(rows) if count]
    for sequence in sorted(present, key=lambda each: (rows[each], lengths[each])):
        group = [*groups[-1], sequence] if groups else [sequence]
        positions = len(group) * max(lengths[each] for each in group)
        scores = positions * max(rows[each] for each in group)
        fits = positions <= min(2 * sum(lengths[each] for each in group), MOST_TOGETHER) and scores <= 2 * sum(
            rows[each] * lengths[each] for each in group
        )
        if groups and fits:
            groups[-1] = group
        else:
            groups.append([sequence])
    return groups


@dataclass(frozen=True)
class CodedHeads:
    """Keys (or values) in 8 bits: a number is its code, -127 … 127, times the scale of its slot and head."""

    codes: Int8[Tensor, "slots kv_heads head_dim"]
    scales: Float32[Tensor, "slots kv_heads"]


CachedHeads = Float[Tensor, "slots kv_heads head_dim"] | CodedHeads


def encode_heads(rows: Float[Tensor, "rows kv_heads head_dim"]) -> CodedHeads:
    """Each head's numbers as codes: the largest magnitude is 127, halves are rounded to even.

    A scale is at least the smallest normal number, so that zeros are codes of 0. It is no finite number where the
    head holds one that is not: what is decoded of it is then none either.
    """
    wide = rows.float()
    scales = (wide.abs().amax(-1) / LARGEST_CODE).clamp(min=torch.finfo(torch.float32).smallest_normal)
    codes = (wide / scales[..., None]).nan_to_num(0.0).round().to(torch.int8)
    return CodedHeads(codes, scales)


def write_cache(
    cache: CachedHeads, rows: Float[Tensor, "rows kv_heads head_dim"], write_slots: Int[Tensor, " rows"]
) -> None:
    """Store each row's keys (or values) in its slot."""
    if isinstance(cache, CodedHeads):
        coded = encode_heads(rows)
        cache.codes.index_copy_(0, write_slots, coded.codes)
        cache.scales.index_copy_(0, write_slots, coded.scales)
    else:
        cache.index_copy_(0, write_slots, rows)


def read_cache(
    cache: CachedHeads, slots: slice | Int[Tensor, "*shape"], dtype: torch.dtype
) -> Float[Tensor, "*shape kv_heads head_dim"]:
    """The keys (or values) in some slots."""
    if isinstance(cache, CodedHeads):
        return (cache.codes[slots] * cache.scales[slots][..., None]).to(dtype)
    return cache[slots]


def cached_attention(
    queries: Float[Tensor, "rows heads head_dim"],
    keys: CachedHeads,
    values: CachedHeads,
    pages: SequencePages,
    window: int | None = None,
) -> Float[Tensor, "rows heads head_dim"]:
    """softmax(q k^T / sqrt(head_dim)) v, where each row sees its own sequence up to itself.

    The rows of a sequence are its newest; their keys and values must already be written. `window` is the number
    of positions that a row sees, itself included; None sees all.
    """
    if not _host_may_read(pages.lengths):
        if pages.most_rows == 1:
            return _newest_attention(queries, keys, values, pages, window)
        if len(pages.lengths) > 1:
            return _attention_together(queries, keys, values, pages, window)
    outputs = torch.empty_like(queries)
    starts, lengths, _ = pages.on_host
    for sequence, length in enumerate(lengths):
        first, last = starts[sequence], starts[sequence + 1]
        if first == last:
            continue
        slots = pages.slots_of(sequence, length)
        past_keys, past_values = (read_cache(cache, slots, queries.dtype) for cache in (keys, values))
        outputs[first:last] = _attend(queries[first:last], past_keys, past_values, window)
    return outputs


def _host_may_read(tensor: Tensor) -> bool:
    """Whether its values are at hand; elsewhere reading them stalls the device, and a captured step cannot."""
    return tensor.device.type == "cpu"


def _newest_attention(
    queries: Float[Tensor, "rows heads head_dim"],
    keys: CachedHeads,
    values: CachedHeads,
    pages: SequencePages,
    window: int | None,
) -> Float[Tensor, "rows heads head_dim"]:
    """The same for one row per sequence, by masking all that a sequence could hold: no length is read here."""
    positions = torch.arange(pages.longest, device=queries.device)
    slots = pages.page_table[:, positions // pages.page_size] * pages.page_size + positions % pages.page_size
    behind = pages.lengths[:, None] - 1 - positions
    visible = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    past_keys, past_values = (read_cache(cache, slots, queries.dtype).transpose(1, 2) for cache in (keys, values))
    shared_by = queries.shape[1] // past_keys.shape[1]
    past_keys = past_keys.repeat_interleave(shared_by, 1)
    past_values = past_values.repeat_interleave(shared_by, 1)
    mask = visible[:, None, None]
    return F.scaled_dot_product_attention(queries[:, :, None], past_keys, past_values, attn_mask=mask)[:, :, 0]


def _attention_together(
    queries: Float[Tensor, "rows heads head_dim"],
    keys: CachedHeads,
    values: CachedHeads,
    pages: SequencePages,
    window: int | None,
) -> Float[Tensor, "rows heads head_dim"]:
    """The same by groups: what a device is asked for costs more time there than some repetition."""
    outputs = torch.empty_like(queries)
    for group in pages.together:
        positions = torch.arange(group.slots.shape[1], device=queries.device)
        behind = group.row_positions[..., None] - positions
        visible = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        past_keys, past_values = (
            read_cache(cache, group.slots, queries.dtype).transpose(1, 2) for cache in (keys, values)
        )
        shared_by = queries.shape[1] // past_keys.shape[1]
        attended = F.scaled_dot_product_attention(
            queries[group.rows].transpose(1, 2),
            past_keys.repeat_interleave(shared_by, 1),
            past_values.repeat_interleave(shared_by, 1),
            attn_mask=visible[:, None],
        )
        outputs[group.rows[group.own]] = attended.transpose(1, 2)[group.own]
    return outputs


def _attend(
    queries: Float[Tensor, "rows heads head_dim"],
    keys: Float[Tensor, "length kv_heads head_dim"],
    values: Float[Tensor, "length kv_heads head_dim"],
    window: int | None,
) -> Float[Tensor, "rows heads head_dim"]:
    """Causal attention of a sequence's newest rows over all of it."""
    rows, length = queries.shape[0], keys.shape[0]
    shared_by = queries.shape[1] // keys.shape[1]
    per_head = queries.transpose(0, 1)[None]
    all_keys = keys.transpose(0, 1).repeat_interleave(shared_by, 0)[None]
    all_values = values.transpose(0, 1).repeat_interleave(shared_by, 0)[None]
    if rows == length and (window is None or window >= length):
        attended = F.scaled_dot_product_attention(per_head, all_keys, all_values, is_causal=True)
    else:
        positions = torch.arange(length, device=queries.device)
        behind = positions[length - rows :, None] - positions[None, :]
        visible = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        attended = F.scaled_dot_product_attention(per_head, all_keys, all_values, attn_mask=visible)
    return attended[0].transpose(0, 1)
