"""The replies to one call: requests into an engine, text out, cancelled when nobody listens any more."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from octavo.runtime.engine import Engine
from octavo.runtime.reply_text import Piece, ReplyText
from octavo.runtime.requests import Event, Failed, Finished, FinishReason, PromptScored, Request, Score, Written


@dataclass(frozen=True)
class Update:
    """What is new of reply `index`: text, and how it ended if it did; or the scores of its prompt."""

    index: int
    piece: Piece
    finish_reason: FinishReason | None = None
    prompt_scores: tuple[Score, ...] | None = None


class Replies:
    """Replies under way. Made, they are admitted; iterated, they come; closed, what is left of them is cancelled.

    Raises what the engine raises where it does not admit them, and TimeoutError after `seconds`.
    """

    def __init__(
        self, engine: Engine, requests: Sequence[Request], texts: Sequence[ReplyText], seconds: float
    ) -> None:
        self.texts = texts
        self._engine = engine
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()  # None: time is up
        self._numbers = engine.submit(requests, [self._listener(index) for index in range(len(requests))])

    @property
    def tokens_written(self) -> int:
        """Tokens of which the replies consist so far, the one that completed a stop string included."""
        return sum(text.count for text in self.texts)

    async def updates(self) -> AsyncIterator[Update]:
        """What is new, until all replies are whole; raises the error of one that fails."""
        left = set(range(len(self.texts)))
        # One timer for all of them: a timeout around each event costs half as much again.
        timer = self._loop.call_later(self._seconds, self._events.put_nowait, None)
        try:
            while left:
                heard = await self._events.get()
                if heard is None:
                    raise TimeoutError
                index, event = heard
                if index not in left:
                    continue
                update = self._update(index, event)
                if update.finish_reason is not None:
                    left.discard(index)
                yield update
        finally:
            timer.cancel()
            self.close()

    def close(self) -> None:
        """Give up what is not finished."""
        self._engine.cancel(self._numbers)

    def _listener(self, index: int) -> Callable[[Event], None]:
        def hear(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        return hear

    def _update(self, index: int, event: Event) -> Update:
        text = self.texts[index]
        match event:
            case Written():
                piece = text.push(event.token, event.score)
                if text.stopped:
                    self._engine.cancel([self._numbers[index]])
                return Update(index, piece, "stop" if text.stopped else None)
            case PromptScored():
                return Update(index, Piece("", ()), prompt_scores=event.scores)
            case Finished():
                return Update(index, text.finish(), event.reason)
            case Failed():
                raise event.error
