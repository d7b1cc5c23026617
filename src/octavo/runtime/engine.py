"""Requests in, token events out: one thread owns a model and writes many replies at a time.

A round of its work reads one chunk of the prompts that are new, and writes one token of every reply under way. So
a long prompt holds nobody up for longer than a chunk, and a request that is cancelled is gone within one token.
"""

import itertools
import secrets
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.errors import ContextLengthError, EngineError, GrammarError, OverloadError, UsageError
from octavo.model.kv_cache import make_batch, make_cache, slot_bytes
from octavo.model.llama import LlamaModel, hidden_states
from octavo.runtime.capture import capture_for
from octavo.runtime.decoding import Decoder, broken_logits
from octavo.runtime.pages import PagePool
from octavo.runtime.requests import (
    EngineLimits,
    Event,
    Failed,
    Finished,
    Listener,
    PromptScored,
    Request,
    Score,
    Written,
)
from octavo.runtime.scheduler import Draft, Scheduler
from octavo.runtime.scores import score

IDLE_PAGE = 0
ROWS_SCORED_AT_ONCE = 64  # of a prompt; bounds the memory of their logits


@dataclass(frozen=True)
class EngineStatus:
    """A moment of an engine's life, and what it has done so far."""

    alive: bool
    waiting: int
    reading: int
    writing: int
    pages: int
    pages_held: int
    tokens_read: int
    tokens_reused: int
    tokens_written: int
    set_back: int
    cancelled: int


@dataclass
class _Counters:
    tokens_read: int = 0
    tokens_written: int = 0
    set_back: int = 0
    cancelled: int = 0


class Engine:
    """A model at work. Its thread starts at once and ends with `close`, or with an error that is not a request's.

    Engines that share `turn` take turns with their steps, so that those of one processor do not fight for it.
    """

    def __init__(
        self,
        model: LlamaModel,
        limits: EngineLimits = EngineLimits(),
        turn: AbstractContextManager[object] | None = None,
    ) -> None:
        pages = _affordable_pages(model, limits)
        self.model = model
        self.limits = limits
        self.context = min(model.config.context, pages * limits.page_size)
        pages_each = -(-self.context // limits.page_size)
        # With dynamic scaling, keys depend on how long their text was when they were made.
        reuse = model.config.rope_scaling.type != "dynamic"
        pool = PagePool(IDLE_PAGE + 1, pages)
        self._scheduler = Scheduler(limits.rows, limits.page_size, pool, reuse)
        with torch.inference_mode():
            self._cache = make_cache(
                model.config, pages + 1, limits.page_size, model.device, model.dtype, model.coded_cache
            )
            self._decoder = Decoder(
                model, self._cache, limits.rows, pages_each, capture_for(model.device), IDLE_PAGE
            )
        self._turn = turn or threading.Lock()
        self._changed = threading.Condition()  # guards the five below
        self._arrived: list[Draft] = []
        self._cancelled: list[Draft] = []
        self._live: dict[int, Draft] = {}
        self._closing = False
        self._stopped = False
        self._arrivals = itertools.count()
        self._counters = _Counters()
        self._thread = threading.Thread(target=self._work, name="octavo-engine", daemon=True)
        self._thread.start()

    def submit(self, requests: Sequence[Request], listeners: Sequence[Listener]) -> list[int]:
        """Take requests in, all or none; the numbers to cancel them by.

        Each listener hears of its request, at last `Finished` or `Failed`, unless it is cancelled. UsageError for
        what can never be answered, OverloadError where too much is waiting, EngineError after the engine's end.
        """
        for request in requests:
            self._refuse_impossible(request)
        most = self.limits.rows + self.limits.queue
        if len(requests) > most:
            raise UsageError(f"{len(requests)} replies at once are more than the {most} that this server takes")
        with self._changed:
            if self._stopped or self._closing:
                raise EngineError("the engine of this model has stopped; try again when it is back")
            if len(self._live) + len(requests) > most:
                raise OverloadError(f"{len(self._live)} requests are running or waiting; try again later")
            drafts = [
                Draft(_seeded(request), listener, next(self._arrivals), list(request.prompt))
                for request, listener in zip(requests, listeners, strict=True)
            ]
            self._live |= {draft.arrival: draft for draft in drafts}
            self._arrived += drafts
            self._changed.notify_all()
        return [draft.arrival for draft in drafts]

    def cancel(self, numbers: Sequence[int]) -> None:
        """Give requests up, those that are over already excepted; no event is sent from the next round on."""
        with self._changed:
            drafts = [self._live.pop(number) for number in numbers if number in self._live]
            self._counters.cancelled += len(drafts)
            self._cancelled += drafts
            self._changed.notify_all()

    def status(self) -> EngineStatus:
        with self._changed:
            scheduler, counters = self._scheduler, self._counters
            reading, writing = len(scheduler.reading), len(scheduler.writing)
            return EngineStatus(
                alive=not self._stopped and self._thread.is_alive(),
                waiting=max(len(self._live) - reading - writing, 0),
                reading=reading,
                writing=writing,
                pages=scheduler.pool.count,
                pages_held=scheduler.pool.count - scheduler.pool.free,
                tokens_read=counters.tokens_read,
                tokens_reused=scheduler.tokens_reused,
                tokens_written=counters.tokens_written,
                set_back=counters.set_back,
                cancelled=counters.cancelled,
            )

    def close(self) -> None:
        """End the thread; what is not finished fails. Not to be called by a listener."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _refuse_impossible(self, request: Request) -> None:
        """UsageError for a prompt that no page or no row of the embedding is for."""
        length = len(request.prompt)
        if length > self.context or (length == self.context and request.most_tokens > 0):
            raise ContextLengthError(
                f"this model's maximum context length is {self.context} tokens, but the prompt has {length}; "
                "shorten it"
            )
        vocabulary = self.model.config.vocabulary_size
        if not all(0 <= token < vocabulary for token in request.prompt):
            raise UsageError(f"the prompt holds token ids outside 0 … {vocabulary - 1}, the ids of this model")

    def _work(self) -> None:
        """The thread's life."""
        try:
            with torch.inference_mode():
                while self._take_in():
                    self._scheduler.admit()
                    with self._turn:
                        self._read_chunk()
                        self._write_tokens()
        finally:
            self._stop(sys.exception())

    def _take_in(self) -> bool:
        """Wait for something to do, and take note of who came and who left; False at the end."""
        with self._changed:
            self._changed.wait_for(self._has_work)
            arrived, self._arrived = self._arrived, []
            cancelled, self._cancelled = self._cancelled, []
            for draft in arrived:
                self._scheduler.add(draft)
            for draft in cancelled:
                self._take_out(draft)
            return not self._closing

    def _has_work(self) -> bool:
        return bool(self._closing or self._arrived or self._cancelled or self._live)

    def _stop(self, error: BaseException | None) -> None:
        """Tell all who still wait that there will be no more."""
        with self._changed:
            self._stopped = True
            drafts, self._live = list(self._live.values()), {}
        reason = "it was shut down" if error is None else f"{type(error).__name__}: {error}"
        for draft in drafts:
            draft.listener(Failed(EngineError(f"the engine of this model has stopped ({reason})")))

    def _read_chunk(self) -> None:
        """Bring the next chunk of prompts into the cache; those that are read to the end are written on."""
        chunks = self._scheduler.next_chunks(self.limits.chunk)
        if chunks:
            tokens = [torch.tensor(draft.tokens[draft.cached :][:count]) for draft, count in chunks]
            widest = max(len(draft.pages) for draft, _ in chunks)
            table = [draft.pages + [IDLE_PAGE] * (widest - len(draft.pages)) for draft, _ in chunks]
            device = self.model.device
            batch = make_batch(
                [part.to(device) for part in tokens],
                [draft.cached for draft, _ in chunks],
                torch.tensor(table, device=device),
                self.limits.page_size,
            )
            hidden = hidden_states(self.model, batch, self._cache)
            first = 0
            for draft, count in chunks:
                if draft.unscored:
                    self._score_prompt(draft, hidden[first : first + count])
                self._scheduler.note_cached(draft, count)
                first += count
            self._counters.tokens_read += first
        for draft in [draft for draft in self._scheduler.reading if draft.unread <= 0]:
            self._begin_to_write(draft)

    def _score_prompt(self, draft: Draft, hidden: Tensor) -> None:
        """The scores of the tokens that follow those read; all are sent when the last is known."""
        for start in range(0, len(hidden), ROWS_SCORED_AT_ONCE):
            rows = hidden[start : start + ROWS_SCORED_AT_ONCE]
            first = draft.cached + start + 1
            following = draft.tokens[first : first + len(rows)]
            scores = score(self.model.head(rows), torch.tensor(following, device=rows.device))
            read = scores.read([draft.request.top_logprobs] * len(rows))
            known = max(len(draft.scores) + 1 - first, 0)  # from before it was set back
            draft.scores += [each for each in read[known:] if each is not None]
        if not draft.unscored:
            self._tell(draft, PromptScored(tuple(draft.scores)))

    def _begin_to_write(self, draft: Draft) -> None:
        self._scheduler.reading.remove(draft)
        if draft.request.scores_prompt and len(draft.request.prompt) == 1:
            self._tell(draft, PromptScored(()))
        if draft.request.most_tokens == 0:
            self._scheduler.let_go(draft)
            self._end(draft, Finished("length"))
            return
        self._decoder.admit(draft.tokens[-1], draft.tokens[:-1], draft.pages, draft.request.sampling)
        self._scheduler.writing.append(draft)

    def _write_tokens(self) -> None:
        """One token more for each reply under way."""
        self._make_room()
        self._apply_grammars()
        writing = self._scheduler.writing
        if not writing:
            return
        emitted = self._decoder.step(
            limited=any(draft.request.grammar for draft in writing),
            scored=any(draft.request.top_logprobs is not None for draft in writing),
        )
        emitted.wait()
        wanted = [draft.request.top_logprobs for draft in writing]
        scores = [None] * len(writing) if emitted.scores is None else emitted.scores.read(wanted)
        rows = zip(writing, emitted.tokens.tolist(), emitted.broken.tolist(), scores, strict=True)
        endings: dict[Draft, Event] = {}
        for draft, token, broken, token_score in rows:
            ending = Failed(broken_logits()) if broken else self._go_on(draft, token, token_score)
            if ending is not None:
                endings[draft] = ending
        for draft, ending in endings.items():
            self._take_out(draft)
            self._end(draft, ending)

    def _go_on(self, draft: Draft, token: int, token_score: Score | None) -> Event | None:
        """Append a token to a reply; how the reply ends, if it does."""
        request = draft.request
        self._scheduler.note_cached(draft, 1)
        if token in request.end_ids:
            return Finished("stop")
        draft.tokens.append(token)
        self._counters.tokens_written += 1
        self._tell(draft, Written(token, token_score))
        if request.grammar is not None:
            try:
                request.grammar.accept(token)
            except GrammarError as error:
                return Failed(error)
            if request.grammar.finished:
                return Finished("stop")
        if draft.written == request.most_tokens or len(draft.tokens) == self.context:
            return Finished("length")
        return None

    def _make_room(self) -> None:
        """A slot for the newest token of each reply, the oldest first; where pages run out, the youngest wait."""
        scheduler = self._scheduler
        for draft in sorted(scheduler.writing, key=lambda each: each.arrival):
            while draft in scheduler.writing and scheduler.lacks_page(draft):
                if scheduler.pool.free:
                    page = scheduler.pool.take()
                    self._decoder.give_page(scheduler.writing.index(draft), len(draft.pages), page)
                    draft.pages.append(page)
                else:
                    youngest = scheduler.youngest()
                    self._leave(youngest)
                    scheduler.send_back(youngest)
                    self._counters.set_back += 1

    def _apply_grammars(self) -> None:
        """Tell the decoder what each reply with a grammar may go on with."""
        vocabulary = self.model.config.vocabulary_size
        broken: dict[Draft, GrammarError] = {}
        for row, draft in enumerate(self._scheduler.writing):
            if draft.request.grammar is None:
                continue
            try:
                bits = draft.request.grammar.allowed()
            except GrammarError as error:
                broken[draft] = error
                continue
            self._decoder.allow(row, _mask(bits, vocabulary).to(self.model.device))
        for draft, problem in broken.items():
            self._take_out(draft)
            self._end(draft, Failed(problem))

    def _tell(self, draft: Draft, event: Event) -> None:
        if draft.arrival in self._live:
            draft.listener(event)

    def _end(self, draft: Draft, event: Event) -> None:
        """The last that is heard of a request."""
        with self._changed:
            wanted = self._live.pop(draft.arrival, None)
        if wanted is not None:
            draft.listener(event)

    def _take_out(self, draft: Draft) -> None:
        """Remove a draft from wherever it is, and free its pages."""
        scheduler = self._scheduler
        if draft in scheduler.writing or draft in scheduler.reading:
            self._leave(draft)
            scheduler.let_go(draft)
        elif draft in scheduler.set_back:
            scheduler.set_back.remove(draft)
        elif draft in scheduler.waiting:
            scheduler.waiting.remove(draft.request.client, draft)

    def _leave(self, draft: Draft) -> None:
        """Take a draft from among those that are read or written; the last row moves into its place."""
        scheduler = self._scheduler
        if draft in scheduler.reading:
            scheduler.reading.remove(draft)
            return
        row = scheduler.writing.index(draft)
        self._decoder.release(row)
        scheduler.writing[row] = scheduler.writing[-1]
        scheduler.writing.pop()


def _seeded(request: Request) -> Request:
    """The request with a seed, so that a reply that was set back goes on as it would have."""
    if request.sampling.seed is not None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))


def _mask(bits: bytes, vocabulary: int) -> Tensor:
    """One bool per token from one bit per token; tokens beyond the bits are not allowed."""
    spread = torch.frombuffer(bytearray(bits), dtype=torch.uint8)[:, None] >> torch.arange(8) & 1
    known = spread.flatten()[:vocabulary].bool()
    return torch.nn.functional.pad(known, (0, vocabulary - len(known)))


def _affordable_pages(model: LlamaModel, limits: EngineLimits) -> int:
    """Pages that `cache_bytes` hold beside the idle one, but no more than all rows at full length can use."""
    page_bytes = limits.page_size * slot_bytes(model.config, model.dtype, model.coded_cache)
    pages = limits.cache_bytes // page_bytes - 1
    if pages < 1:
        raise UsageError(
            f"a cache of {limits.cache_bytes} bytes holds no two pages of {page_bytes} bytes; allow more memory"
        )
    return min(pages, limits.rows * -(-model.config.context // limits.page_size))
