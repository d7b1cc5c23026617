"""A model that reads one text, piece by piece, and what it holds likely next: no engine, no other texts."""

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from octavo.errors import ContextLengthError
from octavo.model.kv_cache import make_cache, one_sequence
from octavo.model.llama import LlamaModel, hidden_states
from octavo.runtime.params import SamplingParams
from octavo.runtime.sampling import Logits, distribution, drawing_of, empty_state, penalized

CHUNK = 256  # tokens of a text that are read in one step


class Reader:
    """Reads a text of at most `length` tokens, with a cache of its own; not for several threads at a time.

    Readers and engines that share `turn` take turns, a step each.
    """

    def __init__(self, model: LlamaModel, length: int, turn: AbstractContextManager[object] | None = None) -> None:
        if length > model.config.context:
            raise ContextLengthError(
                f"this model's maximum context length is {model.config.context} tokens, but {length} are wanted; "
                "shorten the text, or ask for fewer new tokens"
            )
        self.model = model
        self.length = length
        self.read_so_far = 0
        self.seconds = 0.0  # of the last step, without the wait for its turn
        self._cache = make_cache(model.config, 1, length, model.device, model.dtype, model.coded_cache)
        self._turn = turn or threading.Lock()

    def read(self, tokens: Sequence[int]) -> Logits:
        """The logits `[1, vocabulary]` after the last of `tokens`, which follow those read before."""
        if self.read_so_far + len(tokens) > self.length:
            raise ContextLengthError(f"this reader has room for {self.length} tokens; make a longer one")
        hidden = torch.empty(0)
        with torch.inference_mode():
            for start in range(0, len(tokens), CHUNK):
                chunk = torch.tensor(list(tokens[start : start + CHUNK]), device=self.model.device)
                with self._turn:
                    began = time.perf_counter()
                    batch = one_sequence(chunk, self.read_so_far, self.length)
                    hidden = self.model.head(hidden_states(self.model, batch, self._cache)[-1:])
                    if hidden.device.type == "cuda":
                        torch.cuda.synchronize(hidden.device)
                    self.seconds = time.perf_counter() - began
                self.read_so_far += len(chunk)
        return hidden


@dataclass(frozen=True)
class Candidate:
    """A token that may come next: its probability as the model gives it, and that with which it is drawn."""

    token: int
    given: float
    drawn: float


def candidates(
    logits: Float[Tensor, "1 vocabulary"], history: Sequence[int], sampling: SamplingParams, most: int
) -> list[Candidate]:
    """The likeliest next tokens before and after the samplers, `most` of either, in falling order as given.

    What follows `history` is drawn by penalty, temperature and cuts, as `sampling.next_tokens` does; greedy puts
    all on one token.
    """
    with torch.inference_mode():
        given = logits.float().softmax(-1)[0]
        drawn = _drawn_from(logits, history, sampling)
        most = min(most, len(given))
        likeliest, preferred = given.topk(most).indices, drawn.topk(most).indices
        chosen = torch.cat([likeliest, preferred[drawn[preferred] > 0]]).unique()
        chosen = chosen[given[chosen].argsort(descending=True, stable=True)]
        rows = zip(chosen.tolist(), given[chosen].tolist(), drawn[chosen].tolist(), strict=True)
        return [Candidate(*row) for row in rows]


def _drawn_from(logits: Logits, history: Sequence[int], sampling: SamplingParams) -> Float[Tensor, " vocabulary"]:
    """The probabilities with which the next token is drawn."""
    state = empty_state(1, logits.shape[1], logits.device)
    state.assign(0, sampling, history)
    logits = penalized(logits, state)
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(logits[0].argmax(), logits.shape[1]).float()
    return distribution(logits, state, drawing_of([sampling]))[0]
