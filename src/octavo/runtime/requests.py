"""What is asked of an engine, and what it answers: the nouns between it and its users. Loads without torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from octavo.errors import OctavoError, UsageError
from octavo.runtime.params import SamplingParams

MOST_TOP_LOGPROBS = 20
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class EngineLimits:
    """What an engine may use: `rows` replies at a time, `queue` requests that wait, `cache_bytes` for the past.

    `chunk` is the most tokens of prompts per round, `page_size` the positions of a page.
    """

    rows: int = 32
    queue: int = 256
    cache_bytes: int = 2 * 10**9
    chunk: int = 256
    page_size: int = 16


@runtime_checkable
class Grammar(Protocol):
    """What a reply must follow, token by token. A GrammarError ends the reply."""

    def allowed(self) -> bytes:
        """The tokens that may come next: bit i % 8 of byte i // 8 is token i."""

    def accept(self, token: int) -> None:
        """Go on by a token that was allowed."""

    @property
    def finished(self) -> bool:
        """Whether nothing can follow."""


@dataclass(frozen=True)
class Request:
    """A text to be continued.

    It ends at one of `end_ids`, after `most_tokens`, or where the context is full. `top_logprobs` None asks for no
    log-probabilities, k for those of each token and of the k likeliest; `scores_prompt` asks for them for the
    prompt as well. `client` is who asks: those who wait take turns.
    """

    prompt: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    most_tokens: int = 256
    end_ids: frozenset[int] = frozenset()
    top_logprobs: int | None = None
    scores_prompt: bool = False
    grammar: Grammar | None = None
    client: str = ""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise UsageError("the prompt is empty and this model's tokenizer adds no start token; give some text")
        if self.most_tokens < 0:
            raise UsageError(f"{self.most_tokens} new tokens cannot be written; ask for 0 or more")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MOST_TOP_LOGPROBS:
            raise UsageError(f"{self.top_logprobs} log-probabilities are not in 0 … {MOST_TOP_LOGPROBS}")
        if self.scores_prompt and self.top_logprobs is None:
            raise UsageError("a prompt is scored by log-probabilities; say how many are wanted of each token")


@dataclass(frozen=True)
class Score:
    """How likely the model itself held a token, before any sampler: natural logarithms, the likeliest first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class PromptScored:
    """The scores of a prompt's tokens from the second on; nothing comes before it."""

    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Written:
    """A token of the reply, not one of `end_ids`."""

    token: int
    score: Score | None


@dataclass(frozen=True)
class Finished:
    """The reply is whole; nothing comes after it."""

    reason: FinishReason


@dataclass(frozen=True)
class Failed:
    """The reply ends here because of an error; nothing comes after it."""

    error: OctavoError


Event = PromptScored | Written | Finished | Failed
# Called in the engine's thread, so it must be quick and must not raise.
Listener = Callable[[Event], None]
