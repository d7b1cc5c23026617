"""Keys and values of the past, in pages of slots; one page for the whole context is the contiguous case."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from octavo.kernels.attention import SequencePages
from octavo.model.config import LlamaConfig


@dataclass(frozen=True)
class KVCache:
    """Preallocated keys and values of every layer; rows are written by slot, nothing is concatenated."""

    keys: tuple[Float[Tensor, "slots kv_heads head_dim"], ...]
    values: tuple[Float[Tensor, "slots kv_heads head_dim"], ...]
    page_size: int


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
    config: LlamaConfig, pages: int, page_size: int, device: torch.device, dtype: torch.dtype
) -> KVCache:
    """An empty cache of `pages` pages of `page_size` slots in every layer."""

    def empty() -> tuple[Tensor, ...]:
        shape = (pages * page_size, config.kv_heads, config.head_dim)
        return tuple(torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.layers))

    return KVCache(empty(), empty(), page_size)


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
