"""Keys and values of the past, in pages of slots; one page for the whole context is the contiguous case."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from octavo.kernels.attention import CachedHeads, CodedHeads, SequencePages
from octavo.kernels.blocks import CodedLayerCache, LayerCache
from octavo.model.config import LlamaConfig


@dataclass(frozen=True)
class KVCache:
    """Preallocated keys and values of every layer, all as computed or all in 8 bits.

    Rows are written by slot, nothing is concatenated.
    """

    keys: tuple[CachedHeads, ...]
    values: tuple[CachedHeads, ...]
    page_size: int

    def layer(self, index: int) -> LayerCache | CodedLayerCache:
        """The keys and values of one layer, as kernels of whole layers take them."""
        keys, values = self.keys[index], self.values[index]
        if isinstance(keys, CodedHeads) and isinstance(values, CodedHeads):
            return CodedLayerCache(keys, values)
        assert isinstance(keys, Tensor) and isinstance(values, Tensor), "keys and values are cached alike"
        return LayerCache(keys, values)


@dataclass(frozen=True)
class Batch:
    """Rows of several sequences for one forward pass, all on the model's device.

    `positions` count from 0 within each sequence; `write_slots` say where each row's key and value go.
    """

    tokens: Int[Tensor, " rows"]
    positions: Int[Tensor, " rows"]
    write_slots: Int[Tensor, " rows"]
    pages: SequencePages


def make_cache(
    config: LlamaConfig, pages: int, page_size: int, device: torch.device, dtype: torch.dtype, coded: bool = False
) -> KVCache:
    """An empty cache of `pages` pages of `page_size` slots in every layer, in `dtype` or `coded` in 8 bits."""

    slots, heads = pages * page_size, config.kv_heads

    def zeros(*size: int, dtype: torch.dtype) -> Tensor:
        if device.type == "cpu":  # which goes through the slots of one head, and reads fastest what lies in a row
            return torch.zeros(heads, slots, *size, dtype=dtype).transpose(0, 1)
        return torch.zeros(slots, heads, *size, device=device, dtype=dtype)

    def empty() -> CachedHeads:
        if coded:
            return CodedHeads(zeros(config.head_dim, dtype=torch.int8), zeros(dtype=torch.float32))
        return zeros(config.head_dim, dtype=dtype)

    keys, values = (tuple(empty() for _ in range(config.layers)) for _ in range(2))
    return KVCache(keys, values, page_size)


def slot_bytes(config: LlamaConfig, dtype: torch.dtype, coded: bool) -> int:
    """Memory of one position in all layers."""
    head = config.head_dim + torch.float32.itemsize if coded else config.head_dim * dtype.itemsize
    return 2 * config.layers * config.kv_heads * head


def make_batch(
    new_tokens: Sequence[Int[Tensor, " _"]], cached: Sequence[int], page_table: Int[Tensor, "sequences pages"],
    page_size: int,
) -> Batch:  # fmt: skip
    """The batch that appends `new_tokens[s]` to sequence s, of which `cached[s]` positions are in the cache."""
    device = page_table.device
    counts = torch.tensor([len(tokens) for tokens in new_tokens], device=device)
    row_starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    past = torch.tensor(cached, device=device)
    sequence_of_row = torch.repeat_interleave(torch.arange(len(new_tokens), device=device), counts)
    rows = torch.arange(len(sequence_of_row), device=device)
    positions = past[sequence_of_row] + rows - row_starts[sequence_of_row]
    pages = page_table[sequence_of_row, positions // page_size]
    return Batch(
        tokens=torch.cat(list(new_tokens)).to(device),
        positions=positions,
        write_slots=pages * page_size + positions % page_size,
        pages=SequencePages(
            lengths=past + counts,
            row_starts=row_starts,
            page_table=page_table,
            page_size=page_size,
            most_rows=max(map(len, new_tokens)),
            longest=max(before + len(tokens) for before, tokens in zip(cached, new_tokens, strict=True)),
        ),
    )


def one_sequence(tokens: Int[Tensor, " rows"], cached: int, page_size: int) -> Batch:
    """The batch of a single sequence that has page 0 of a cache to itself."""
    page_table = torch.zeros(1, 1, dtype=torch.int64, device=tokens.device)
    return make_batch([tokens], [cached], page_table, page_size)
