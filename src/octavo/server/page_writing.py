"""Tokens one by one, for the page: a text continued, what may come next, and two models on one text."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Request as HttpRequest
from fastapi.responses import Response
from pydantic import Field

from octavo.errors import UsageError
from octavo.evaluation.side_by_side import ComparedToken, compared_tokens
from octavo.model.tokenizer import Tokenizer
from octavo.runtime.reading import Reader, candidates
from octavo.runtime.reply_text import Piece, ReplyText
from octavo.runtime.requests import MOST_TOP_LOGPROBS, Request, Score
from octavo.server.errors import RETRY, ApiError
from octavo.server.generation import Kitchen
from octavo.server.replies import Replies
from octavo.server.schemas import Drawing, Text, Token, Tokens, Whole
from octavo.server.shapes import Usage, finite_logprob
from octavo.server.shelf import ServedModel
from octavo.server.streams import EventStream

MOST_READERS = 4  # calls that read a text outside of the engines at a time: each has a cache of its own
LONGEST_TEXT = 4096  # tokens of such a text
MOST_COMPARED = 1024


class ContinuedText(Drawing):
    """A text, and the tokens that were written after it."""

    prompt: Text
    tokens: Annotated[list[Token], Field(default_factory=list, max_length=2**20)]

    def ids(self, served: ServedModel) -> list[int]:
        """The whole of it as token ids; UsageError where there are none."""
        ids = [*served.tokenizer.encode(self.prompt, control_tokens=True, beginning=True), *self.tokens]
        if not ids:
            raise UsageError("the text is empty, and this model's tokenizer adds nothing; write a word")
        return ids


class WriteRequest(ContinuedText):
    """`POST /page/write`: a text to be continued; `likeliest` tokens are told of each place."""

    max_tokens: Annotated[Whole, Field(ge=1, lt=2**31)]
    likeliest: Annotated[Whole, Field(ge=0, le=MOST_TOP_LOGPROBS)] = 10


class NextTokensRequest(ContinuedText):
    """`POST /page/next_tokens`: a text of which only the next token is looked at."""

    likeliest: Annotated[Whole, Field(ge=1, le=100)] = 20


class CompareRequest(Drawing):
    """`POST /page/compare`: `model` writes, `second` is fed what it writes."""

    second: Annotated[str, Field(max_length=256)]
    prompt: Text | Tokens
    max_tokens: Annotated[Whole, Field(ge=1, le=MOST_COMPARED)]

    def ids(self, served: ServedModel) -> list[int]:
        """The prompt as token ids; UsageError for one that is empty, or holds what is no token of the model."""
        prompt, tokenizer = self.prompt, served.tokenizer
        ids = tokenizer.encode(prompt, control_tokens=True, beginning=True) if isinstance(prompt, str) else prompt
        vocabulary = served.engine.model.config.vocabulary_size
        if not ids or max(ids) >= vocabulary:
            raise UsageError(f"the prompt is empty, or holds ids outside 0 … {vocabulary - 1}; write a word")
        return ids


@dataclass
class Workbench:
    """Where texts are read outside of the engines; it has room for MOST_READERS calls at a time."""

    kitchen: Kitchen
    readers: int = 0

    @contextlib.contextmanager
    def seat(self) -> Iterator[None]:
        """A place for one more; ApiError where all are taken."""
        self.refuse_if_full()
        self.readers += 1
        try:
            yield
        finally:
            self.readers -= 1

    def refuse_if_full(self) -> None:
        """ApiError where all places are taken."""
        if self.readers >= MOST_READERS:
            message = f"{self.readers} texts are being compared or looked at; try again"
            raise ApiError(429, message, "queue_full", headers=RETRY)

    def reader(self, served: ServedModel, length: int) -> Reader:
        """A reader that takes turns with the engines, to be made in a seat: its cache is its own."""
        return Reader(served.engine.model, length, self.kitchen.shelf.turn)


def refuse_too_long(length: int, *models: ServedModel) -> None:
    """ApiError for a text of more tokens than are looked at outside of the engines, or than a model can read."""
    longest = min(LONGEST_TEXT, *(served.engine.model.config.context for served in models))
    if length > longest:
        message = f"{length} tokens are more than the {longest} that can be looked at; shorten the text"
        raise ApiError(400, message, "context_length_exceeded", "prompt")


async def write(body: WriteRequest, http: HttpRequest, kitchen: Kitchen) -> Response:
    """Continue a text: a stream of pieces, each with its tokens, and how it ended."""
    served = kitchen.shelf.get(body.model)
    ids = await asyncio.to_thread(body.ids, served)
    request = Request(
        tuple(ids),
        sampling=body.sampling,
        most_tokens=body.max_tokens,
        end_ids=frozenset(served.tokenizer.eos_ids),
        top_logprobs=body.likeliest,
        client=http.state.client,
    )
    text = ReplyText(served.tokenizer, body.stops, continued=True)
    replies = Replies(served.engine, [request], [text], kitchen.limits.reply_seconds)
    return EventStream(_pieces(replies, len(ids), served, kitchen), kitchen.limits)


async def _pieces(
    replies: Replies, prompt_tokens: int, served: ServedModel, kitchen: Kitchen
) -> AsyncIterator[dict[str, Any]]:
    watch = kitchen.metrics.watch(served.name)
    try:
        yield {"prompt_tokens": prompt_tokens}
        async for update in replies.updates():
            if update.piece.tokens:
                watch.token(update.index)
            if update.piece.text or update.piece.tokens:
                yield _piece(update.piece, served.tokenizer)
            if update.finish_reason is not None:
                usage = Usage(prompt_tokens, replies.tokens_written)
                watch.finished(usage)
                yield {"finish_reason": update.finish_reason, "usage": usage.body}
    finally:
        replies.close()  # a client may leave before the first update is waited for


async def next_tokens(body: NextTokensRequest, bench: Workbench) -> dict[str, Any]:
    """What may come next, before and after the samplers."""
    served = bench.kitchen.shelf.get(body.model)
    ids = await asyncio.to_thread(body.ids, served)
    refuse_too_long(len(ids), served)
    with bench.seat():
        reader = bench.reader(served, len(ids))
        logits = await asyncio.to_thread(reader.read, ids)
    found = await asyncio.to_thread(candidates, logits, ids, body.sampling, body.likeliest)
    rows = [
        {
            "id": each.token,
            "text": _text_of(each.token, served.tokenizer),
            "given": each.given,
            "drawn": each.drawn,
        }
        for each in found
    ]
    return {"candidates": rows}


async def compare(body: CompareRequest, bench: Workbench) -> Response:
    """Two models on one text: a stream of tokens, each with what both held likely in its place."""
    first, second = (bench.kitchen.shelf.get(name) for name in (body.model, body.second))
    if first.tokenizer.fingerprint != second.tokenizer.fingerprint:
        message = "the two models have different tokenizers, so their predictions cannot be compared"
        raise ApiError(400, message, "invalid_value", "second")
    ids = await asyncio.to_thread(body.ids, first)
    refuse_too_long(len(ids) + body.max_tokens, first, second)
    bench.refuse_if_full()

    def steps() -> Iterator[ComparedToken]:
        readers = [bench.reader(served, len(ids) + body.max_tokens) for served in (first, second)]
        return compared_tokens(readers[0], readers[1], ids, body.sampling, frozenset(first.tokenizer.eos_ids))

    text = ComparedText(ReplyText(first.tokenizer, body.stops, continued=True), first.tokenizer)
    return EventStream(_comparison(steps, text, len(ids), bench), bench.kitchen.limits)


async def _comparison(
    begin: Callable[[], Iterator[ComparedToken]], text: "ComparedText", prompt_tokens: int, bench: Workbench
) -> AsyncIterator[dict[str, Any]]:
    deadline = asyncio.get_running_loop().time() + bench.kitchen.limits.reply_seconds
    with bench.seat():
        steps = await asyncio.to_thread(begin)
        yield {"prompt_tokens": prompt_tokens}
        while not text.reply.stopped:
            async with asyncio.timeout_at(deadline):
                step = await asyncio.to_thread(next, steps, None)
            if step is None:
                yield text.finish()
                break
            yield text.push(step)
        yield {"usage": Usage(prompt_tokens, text.reply.count).body}


@dataclass
class ComparedText:
    """The text of a comparison, with what was compared at each of its tokens once that is settled."""

    reply: ReplyText
    tokenizer: Tokenizer
    unsettled: deque[ComparedToken] = field(default_factory=deque)

    def push(self, step: ComparedToken) -> dict[str, Any]:
        """Take the next token in; what it settles."""
        self.unsettled.append(step)
        return self._told(self.reply.push(step.token, None))

    def finish(self) -> dict[str, Any]:
        """What was held back."""
        return self._told(self.reply.finish())

    def _told(self, piece: Piece) -> dict[str, Any]:
        told = _piece(piece, self.tokenizer)
        for token in told["tokens"]:  # they settle in the order in which they came
            step = self.unsettled.popleft()
            token["divergence"], token["agrees"], token["seconds"] = step.divergence, step.agrees, step.seconds
            token["scores"] = [_score(score, self.tokenizer) for score in step.scores]
        return told


def _piece(piece: Piece, tokenizer: Tokenizer) -> dict[str, Any]:
    """Text that is settled, and tokens with where they begin in the whole text."""
    tokens: list[dict[str, Any]] = []
    for token in piece.tokens:
        told: dict[str, Any] = {"id": token.token, "offset": token.offset}
        if token.score is not None:
            told |= _score(token.score, tokenizer)
        tokens.append(told)
    return {"text": piece.text, "tokens": tokens}


def _score(score: Score, tokenizer: Tokenizer) -> dict[str, Any]:
    """A token's log-probability, and the likeliest tokens with theirs."""
    top: Sequence[tuple[int, float]] = score.top
    return {
        "logprob": finite_logprob(score.logprob),
        "likeliest": [[token, _text_of(token, tokenizer), finite_logprob(logprob)] for token, logprob in top],
    }


def _text_of(token: int, tokenizer: Tokenizer) -> str:
    """What a token adds to a text; bytes that are only a part of a character are shown as U+FFFD."""
    return tokenizer.bytes_of(token, control_tokens=True).decode(errors="replace")
