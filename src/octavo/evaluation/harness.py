"""A model as lm-evaluation-harness asks it: likelihoods of texts, and greedy or drawn continuations.

Imported only where a task is asked for, since the harness is an extra. Which tokens are scored is the harness's
own rule, that of its adapter for transformers; the forward pass is ours.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from octavo.errors import UsageError
from octavo.evaluation.metrics import softmax, token_losses
from octavo.model.kv_cache import make_cache, one_sequence
from octavo.model.llama import LlamaModel, hidden_states
from octavo.model.tokenizer import TextStream, Tokenizer
from octavo.runtime.generation import generate_tokens, text_of, until_stop
from octavo.runtime.params import SamplingParams

ROWS_AT_ONCE = 64  # rows whose logits are held at a time; a vocabulary is wide
USUAL_NEW_TOKENS = 256  # the harness's own, where a task says nothing
Asked = tuple[Any, list[int], list[int]]  # what the harness calls it, tokens before, tokens that are scored


class HarnessModel(TemplateLM):
    """A loaded model with its tokenizer; `progress` hears how many of how many requests are done."""

    def __init__(self, network: LlamaModel, tokenizer: Tokenizer, progress: Callable[[int, int], None]) -> None:
        super().__init__()
        self._network, self._tokenizer, self._progress = network, tokenizer, progress

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self._tokenizer.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context is conditioned on."""
        return self.eot_token_id if self._tokenizer.bos_id is None else self._tokenizer.bos_id

    @property
    def max_length(self) -> int:
        return self._network.config.context

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, behind what the tokenizer puts first unless that is refused."""
        return self._tokenizer.encode(string, control_tokens=True, beginning=add_special_tokens is not False)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """For each (context, continuation): log p of the continuation, and whether greedy decoding gives it."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def _loglikelihood_tokens(self, requests: Sequence[Asked], **_: Any) -> list[tuple[float, bool]]:
        answers = []
        for number, (_name, context, continuation) in enumerate(requests, start=1):
            answers.append(likelihood(self._network, context, continuation))
            self._progress(number, len(requests))
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """log p of each whole text, in windows of the model's context that predict every token once."""
        answers = []
        for number, request in enumerate(requests, start=1):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            parts = [likelihood(self._network, *make_disjoint_window(window))[0] for window in windows]
            answers.append(sum(parts))
            self._progress(number, len(requests))
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Continuations of contexts, each up to one of its stop strings, the end of the text, or a length."""
        answers = []
        for number, request in enumerate(requests, start=1):
            answers.append(self._continued(*request.args))
            self._progress(number, len(requests))
        return answers

    def _continued(self, context: str, wanted: dict[str, Any]) -> str:
        options = dict(wanted)
        stop = options.pop("until", [])
        longest = int(options.pop("max_gen_toks", USUAL_NEW_TOKENS))
        drawn = options.pop("do_sample", options.get("temperature", 0.0) > 0)
        temperature = float(options.pop("temperature", 1.0))
        params = SamplingParams(
            temperature=temperature if drawn else 0.0,
            top_p=float(options.pop("top_p", 1.0)),
            top_k=options.pop("top_k", None),
            seed=0,
        )
        if options:
            raise UsageError(f"a task asks for {', '.join(sorted(options))} of generation, which Octavo has not")
        if longest >= self.max_length:
            raise UsageError(f"a task asks for {longest} new tokens, and the model's context is {self.max_length}")
        prompt = self.tok_encode(context)[-(self.max_length - longest) :]
        tokens = generate_tokens(self._network, prompt, params, longest, self._tokenizer.eos_ids)
        strings = [stop] if isinstance(stop, str) else list(stop)
        return "".join(until_stop(text_of(tokens, TextStream(self._tokenizer)), strings))


def likelihood(model: LlamaModel, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """log p(continuation | context) in nats, and whether each of its tokens is the likeliest there.

    A context too long for the model is cut from the left; UsageError where the continuation alone is.
    """
    scored, most = len(continuation), model.config.context
    if scored > most:
        raise UsageError(f"a task scores {scored} tokens at once, and the model's context is {most}")
    tokens = torch.tensor([*context, *continuation][-(most + 1) :], device=model.device)
    cache = make_cache(model.config, 1, len(tokens) - 1, model.device, model.dtype)
    total, greedy = 0.0, True
    with torch.inference_mode():
        states = hidden_states(model, one_sequence(tokens[:-1], 0, cache.page_size), cache)[-scored:]
        for rows, targets in zip(states.split(ROWS_AT_ONCE), tokens[-scored:].split(ROWS_AT_ONCE), strict=True):
            logits = model.head(rows)
            total -= float(token_losses(softmax(logits), targets).sum())
            greedy = greedy and bool((logits.argmax(1) == targets).all())
    return total, greedy
