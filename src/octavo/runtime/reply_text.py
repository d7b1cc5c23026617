"""Tokens of a reply to text that may be shown at once, with the scores of the tokens that it is made of."""

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.model.tokenizer import Tokenizer
from octavo.runtime.generation import StopStrings
from octavo.runtime.requests import Score


@dataclass(frozen=True)
class ShownToken:
    """A token in its text: the UTF-8 it adds, perhaps a part of a character, and where that begins.

    `offset` counts characters from the beginning of the reply.
    """

    token: int
    data: bytes
    offset: int
    score: Score | None


@dataclass(frozen=True)
class Piece:
    """Text that is settled, and the tokens that became settled with it."""

    text: str
    tokens: tuple[ShownToken, ...]


class ReplyText:
    """The text of a reply, piece by piece: never half a character, never the beginning of a stop string.

    Special tokens are left out unless `control_tokens`. `continued` says that other text stands before, so that a
    space before the first word is one. After a push that completes a stop string, `stopped` is True; that string
    and what follows it are left out. So are bytes at the end that are no whole character. `count` is the number of
    tokens pushed.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str], *, continued: bool, control_tokens: bool = False
    ) -> None:
        self.count = 0
        self._control_tokens = control_tokens
        self._tokenizer = tokenizer
        self._strips_space = tokenizer.vocabulary.decoder.strips_space and not continued
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = StopStrings(stop)
        self._decoded = 0  # characters
        self._settled = 0
        self._pending: deque[tuple[ShownToken, int]] = deque()  # with the number of characters to its end

    @property
    def stopped(self) -> bool:
        return self._stop.found

    def push(self, token: int, score: Score | None) -> Piece:
        """Take the next token in; the text that it settles."""
        self.count += 1
        data = self._tokenizer.bytes_of(token, control_tokens=self._control_tokens)
        if data and self._strips_space:
            self._strips_space = False
            data = data.removeprefix(b" ")
        text = self._characters.decode(data)
        unfinished = bool(self._characters.getstate()[0])
        end = self._decoded + len(text) + unfinished
        self._pending.append((ShownToken(token, data, self._decoded, score), end))
        self._decoded += len(text)
        settled = self._stop.push(text)
        self._settled += len(settled)
        if self.stopped:
            return Piece(settled, self._taken(len(self._pending), self._settled))
        return Piece(settled, self._taken(sum(end <= self._settled for _, end in self._pending), None))

    def finish(self) -> Piece:
        """What was held back, once no more tokens come; nothing after a stop string."""
        if self.stopped:
            return Piece("", ())
        return Piece(self._stop.rest(), self._taken(len(self._pending), None))

    def _taken(self, count: int, cut: int | None) -> tuple[ShownToken, ...]:
        """The first pending tokens, without those that begin where the text is `cut` or later."""
        tokens = [self._pending.popleft()[0] for _ in range(count)]
        return tuple(token for token in tokens if cut is None or token.offset < cut)
