"""Decoding several sequences one token at a time, over memory that never moves.

All that a step depends on lies in tensors on the device: the step reads them, writes each row's next token, and
moves on by itself. So it can be captured once per number of rows and repeated, and the host need not wait for a
token before it asks for the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from octavo.errors import NumericalError
from octavo.kernels.attention import SequencePages
from octavo.model.kv_cache import Batch, KVCache
from octavo.model.llama import LlamaModel, forward
from octavo.runtime.capture import Capture, Step, run_each_time
from octavo.runtime.params import SamplingParams
from octavo.runtime.sampling import Drawing, SamplingState, drawing_of, empty_state, next_tokens
from octavo.runtime.scores import Scores, empty_scores, score


@dataclass(frozen=True)
class DecodeState:
    """Where each row stands: its newest token, that token's position, its pages, and how it is drawn.

    `running` is 1 for rows that hold a sequence; the others stay at position 0 of the idle page. `broken` marks
    rows whose logits were not finite. `scores` are of the newest tokens, after a step that was asked for them.
    """

    tokens: Int64[Tensor, " rows"]
    positions: Int64[Tensor, " rows"]
    running: Int64[Tensor, " rows"]
    page_table: Int64[Tensor, "rows pages"]
    row_starts: Int64[Tensor, " rows+1"]
    sampling: SamplingState
    broken: Bool[Tensor, " rows"]
    scores: Scores

    def first(self, rows: int) -> "DecodeState":
        """The first rows, sharing memory."""
        return DecodeState(
            tokens=self.tokens[:rows],
            positions=self.positions[:rows],
            running=self.running[:rows],
            page_table=self.page_table[:rows],
            row_starts=self.row_starts[: rows + 1],
            sampling=self.sampling.first(rows),
            broken=self.broken[:rows],
            scores=self.scores.first(rows),
        )


@dataclass(frozen=True)
class Emitted:
    """The tokens of one step, and their scores if they were asked for, on their way to the host."""

    tokens: Int64[Tensor, " rows"]
    broken: Bool[Tensor, " rows"]
    scores: Scores | None
    arrived: torch.cuda.Event | None

    def read(self) -> list[int]:
        """The tokens, once they are here; NumericalError where a row's logits were not finite."""
        self.wait()
        if self.broken.any():
            raise broken_logits()
        return self.tokens.tolist()

    def wait(self) -> None:
        """Return when all of it is here."""
        if self.arrived is not None:
            self.arrived.synchronize()


def broken_logits() -> NumericalError:
    """What to raise where logits are not finite."""
    return NumericalError("the model's logits hold NaN or Inf; its weights are damaged or overflow")


class Decoder:
    """Rows of sequences that advance together; the rows in use are always the first.

    `rows` is the most sequences at a time, `pages` the most pages of one; `idle_page` is where rows without a
    sequence write. Steps that are captured run in buckets, the powers of two up to `rows`, each captured at its
    first use; others run with as many rows as there are sequences.
    """

    def __init__(
        self, model: LlamaModel, cache: KVCache, rows: int, pages: int, capture: Capture, idle_page: int = 0
    ) -> None:
        self.model = model
        self.cache = cache
        self.idle_page = idle_page
        self.params: list[SamplingParams] = []
        self.state = _empty_state(model, rows, pages, idle_page)
        self._capture = capture
        self._steps: dict[tuple[int, Drawing], Step] = {}

    def admit(
        self, token: int | Int64[Tensor, ""], history: Sequence[int], pages: Sequence[int], params: SamplingParams
    ) -> int:
        """Give the next row to a sequence whose past `history` is in the cache; `token`, its newest, is not."""
        row, state = len(self.params), self.state
        self.params.append(params)
        state.tokens[row] = token
        state.positions[row] = len(history)
        state.running[row] = 1
        state.page_table[row, : len(pages)] = torch.tensor(list(pages), device=self.model.device)
        state.sampling.assign(row, params, history)
        state.sampling.seen[row, state.tokens[row]] = True
        state.broken[row] = False
        return row

    def give_page(self, row: int, place: int, page: int) -> None:
        """The page in which a sequence goes on when the `place` pages before it are full."""
        self.state.page_table[row, place] = page

    def allow(self, row: int, tokens: Bool[Tensor, " vocabulary"]) -> None:
        """The tokens that a sequence may draw in the next limited step."""
        self.state.sampling.allowed[row] = tokens

    def release(self, row: int) -> None:
        """Take a sequence out; the last row moves into its place."""
        last = len(self.params) - 1
        if row != last:
            for tensor in _row_tensors(self.state):
                tensor[row] = tensor[last]
            self.params[row] = self.params[last]
        self.params.pop()
        self.state.running[last] = 0
        self.state.positions[last] = 0
        self.state.page_table[last] = self.idle_page

    def step(self, *, limited: bool = False, scored: bool = False) -> Emitted:
        """Advance every row by one token; `limited` to what is allowed, `scored` with log-probabilities."""
        rows = len(self.params)
        bucket = rows if self._capture is run_each_time else bucket_for(rows, len(self.state.tokens))
        self.prepared_step(bucket, replace(drawing_of(self.params), limited=limited, scored=scored))()
        return self._emit(rows, scored)

    def prepared_step(self, bucket: int, drawing: Drawing) -> Step:
        """The step of a bucket, captured when it is first asked for; that moves no sequence."""
        if (bucket, drawing) not in self._steps:
            state = self.state.first(bucket)
            kept = [tensor.clone() for tensor in _row_tensors(state)]
            step = self._capture(lambda: decode_step(self.model, self.cache, state, drawing))
            for tensor, before in zip(_row_tensors(state), kept, strict=True):
                tensor.copy_(before)
            self._steps[bucket, drawing] = step
        return self._steps[bucket, drawing]

    def _emit(self, rows: int, scored: bool) -> Emitted:
        state = self.state.first(rows)
        parts = [state.tokens, state.broken, *(vars(state.scores).values() if scored else ())]
        arrived = None
        if self.model.device.type == "cuda":
            on_host = [torch.empty_like(part, device="cpu", pin_memory=True) for part in parts]
            for destination, part in zip(on_host, parts, strict=True):
                destination.copy_(part, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        else:
            on_host = [part.clone() for part in parts]
        tokens, broken, *scores = on_host
        return Emitted(tokens, broken, Scores(*scores) if scored else None, arrived)


def decode_step(model: LlamaModel, cache: KVCache, state: DecodeState, drawing: Drawing) -> None:
    """Write each row's newest token to the cache, draw its next, and move on."""
    page_size = cache.page_size
    pages = state.page_table.gather(1, (state.positions // page_size)[:, None])[:, 0]
    batch = Batch(
        tokens=state.tokens,
        positions=state.positions,
        write_slots=pages * page_size + state.positions % page_size,
        pages=SequencePages(
            lengths=state.positions + 1,
            row_starts=state.row_starts,
            page_table=state.page_table,
            page_size=page_size,
            most_rows=1,
            longest=state.page_table.shape[1] * page_size,
        ),
    )
    logits = forward(model, batch, cache)
    likeliest = logits.max(-1)
    # The largest of a row is NaN if any of it is.
    state.broken.copy_(~torch.isfinite(likeliest.values) & state.running.bool())
    state.positions.add_(state.running)
    if drawing.takes_likeliest:
        state.tokens.copy_(likeliest.indices)
    else:
        state.tokens.copy_(next_tokens(logits, state.sampling, state.positions, drawing))
    if drawing.scored:
        state.scores.write(score(logits, state.tokens))
    state.sampling.seen.scatter_(1, state.tokens[:, None], True)


def bucket_for(rows: int, most: int) -> int:
    """The number of rows that a step of `rows` sequences runs with: the next power of two, at most `most`."""
    return min(1 << max(rows - 1, 0).bit_length(), most)


def _empty_state(model: LlamaModel, rows: int, pages: int, idle_page: int) -> DecodeState:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=model.device)

    return DecodeState(
        tokens=zeros(rows),
        positions=zeros(rows),
        running=zeros(rows),
        page_table=zeros(rows, pages) + idle_page,
        row_starts=torch.arange(rows + 1, device=model.device),
        sampling=empty_state(rows, model.config.vocabulary_size, model.device),
        broken=torch.zeros(rows, dtype=torch.bool, device=model.device),
        scores=empty_scores(rows, model.config.vocabulary_size, model.device),
    )


def _row_tensors(state: DecodeState) -> list[Tensor]:
    """All that belongs to a row."""
    drawn = [*vars(state.sampling).values(), *vars(state.scores).values()]
    return [state.tokens, state.positions, state.running, state.page_table, state.broken, *drawn]
