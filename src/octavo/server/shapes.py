"""Replies in OpenAI's shapes: whole, or chunk by chunk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octavo.model.tokenizer import Tokenizer
from octavo.runtime.reply_text import Piece, ReplyText, ShownToken
from octavo.runtime.requests import Score
from octavo.server.replies import Update

LEAST_LOGPROB = -9999.0  # for minus infinity, which JSON cannot say


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompts, each once, and of all replies. The token that ends a reply does not count."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def body(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def finite_logprob(value: float) -> float:
    return max(value, LEAST_LOGPROB)


@dataclass(frozen=True)
class ChatShape:
    """Chats; `logprobs` says whether they are wanted."""

    tokenizer: Tokenizer
    logprobs: bool
    whole_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any]:
        """The chunk that comes first: who speaks."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def chunks(self, update: Update) -> list[dict[str, Any]]:
        """Choices of the chunks for an update; the end of a reply is a chunk of its own."""
        piece, chunks = update.piece, []
        if piece.text or (self.logprobs and piece.tokens):
            chunks.append(self._chunk(update.index, {"content": piece.text}, self._logprobs(piece.tokens), None))
        if update.finish_reason is not None:
            chunks.append(self._chunk(update.index, {}, None, update.finish_reason))
        return chunks

    def whole(self, index: int, updates: Sequence[Update]) -> dict[str, Any]:
        """The choice for a reply that is whole."""
        tokens = [token for update in updates for token in update.piece.tokens]
        text = "".join(update.piece.text for update in updates)
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(tokens),
            "finish_reason": updates[-1].finish_reason,
        }

    def _chunk(
        self, index: int, delta: dict[str, str], logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, tokens: Sequence[ShownToken]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        return {"content": [self._entry(token) for token in tokens], "refusal": None}

    def _entry(self, shown: ShownToken) -> dict[str, Any]:
        assert shown.score is not None, "scores were asked for"
        # The space that a SentencePiece reply begins with is not shown, so neither is it in what else could be.
        space = b" " if self.tokenizer.bytes_of(shown.token, control_tokens=False) == b" " + shown.data else b""
        others = (
            (self.tokenizer.bytes_of(token, control_tokens=True), logprob) for token, logprob in shown.score.top
        )
        top = [self._named(data.removeprefix(space), logprob) for data, logprob in others]
        return {**self._named(shown.data, shown.score.logprob), "top_logprobs": top}

    def _named(self, data: bytes, logprob: float) -> dict[str, Any]:
        return {"token": data.decode(errors="replace"), "logprob": finite_logprob(logprob), "bytes": list(data)}


@dataclass(frozen=True)
class CompletionShape:
    """Continued texts. `echoes` are the prompts that are given back before their replies, one per reply."""

    tokenizer: Tokenizer
    logprobs: bool
    echoes: Sequence["Echo"]
    whole_name = "text_completion"
    chunk_name = "text_completion"

    def opening(self, index: int) -> dict[str, Any] | None:
        """The chunk that comes first: the prompt, unless it must be scored before."""
        echo = self.echoes[index]
        if not echo.text or self.logprobs:
            return None
        return self._choice(index, echo.text, None, None)

    def chunks(self, update: Update) -> list[dict[str, Any]]:
        """Choices of the chunks for an update; the end of a reply is a chunk of its own."""
        piece, chunks = update.piece, []
        if piece.text or update.prompt_scores is not None or (self.logprobs and piece.tokens):
            text, logprobs = self._content([update])
            chunks.append(self._choice(update.index, text, logprobs, None))
        if update.finish_reason is not None:
            chunks.append(self._choice(update.index, "", None, update.finish_reason))
        return chunks

    def whole(self, index: int, updates: Sequence[Update]) -> dict[str, Any]:
        """The choice for a reply that is whole."""
        text, logprobs = self._content(updates)
        if not self.logprobs:
            text = self.echoes[index].text + text
        return self._choice(index, text, logprobs, updates[-1].finish_reason)

    def _choice(
        self, index: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _content(self, updates: Sequence[Update]) -> tuple[str, dict[str, Any] | None]:
        """The text of updates of one reply, and the log-probabilities of its tokens where they are wanted."""
        echo = self.echoes[updates[0].index]
        pieces: list[Piece] = []
        for update in updates:
            if update.prompt_scores is not None:
                pieces.append(echo.scored(update.prompt_scores))
            start = len(echo.text)
            moved = (ShownToken(t.token, t.data, start + t.offset, t.score) for t in update.piece.tokens)
            pieces.append(Piece(update.piece.text, tuple(moved)))
        text = "".join(piece.text for piece in pieces)
        return text, self._logprobs(
            [token for piece in pieces for token in piece.tokens]
        ) if self.logprobs else None

    def _logprobs(self, tokens: Sequence[ShownToken]) -> dict[str, Any]:
        return {
            "tokens": [self._spelled(token.token) for token in tokens],
            "token_logprobs": [None if t.score is None else finite_logprob(t.score.logprob) for t in tokens],
            "top_logprobs": [None if token.score is None else self._top(token.score) for token in tokens],
            "text_offset": [token.offset for token in tokens],
        }

    def _top(self, score: Score) -> dict[str, float]:
        """By text; of tokens with the same text the likeliest."""
        return {self._spelled(token): finite_logprob(logprob) for token, logprob in reversed(score.top)}

    def _spelled(self, token: int) -> str:
        """A token as text; one that is only a part of a character as OpenAI writes it, bytes:\\\\xf0\\\\x9f."""
        data = self.tokenizer.bytes_of(token, control_tokens=True)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def echo_of(prompt: Sequence[int], tokenizer: Tokenizer) -> "Echo":
    """A prompt as text, control tokens spelled out; what the tokenizer puts before every text is not shown."""
    put_before = len(tokenizer.beginning)
    if tuple(prompt[:put_before]) != tokenizer.beginning:
        put_before = 0
    hidden = tuple(ShownToken(token, b"", 0, None) for token in prompt[:put_before])
    text = ReplyText(tokenizer, (), continued=False, control_tokens=True)
    pieces = [*(text.push(token, None) for token in prompt[put_before:]), text.finish()]
    shown = tuple(token for piece in pieces for token in piece.tokens)
    return Echo("".join(piece.text for piece in pieces), hidden + shown)


@dataclass(frozen=True)
class Echo:
    """A prompt that is given back: its text, and its tokens with their places in it. Empty if none is wanted."""

    text: str = ""
    tokens: tuple[ShownToken, ...] = ()

    def scored(self, scores: Sequence[Score]) -> Piece:
        """The prompt with the scores of its tokens; the first has none."""
        pairs = zip(self.tokens, (None, *scores), strict=True)
        return Piece(self.text, tuple(ShownToken(t.token, t.data, t.offset, score) for t, score in pairs))
