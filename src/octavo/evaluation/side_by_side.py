"""Two models on one text, token by token: the first writes it, the second is fed what the first wrote."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from octavo.errors import UsageError
from octavo.evaluation.metrics import kl_divergence, softmax, top1_agreement
from octavo.runtime.params import SamplingParams
from octavo.runtime.reading import Reader
from octavo.runtime.requests import Score
from octavo.runtime.sampling import drawing_of, empty_state, next_tokens
from octavo.runtime.scores import score

LIKELIEST = 10  # tokens of each model's table


@dataclass(frozen=True)
class ComparedToken:
    """A token that the first model wrote, and what both expected in its place.

    `divergence` is KL(first ‖ second) in nats, over the whole vocabulary and before any sampler; `agrees` says
    whether both hold the same token likeliest; `seconds` is what each took to read the token before it.
    """

    token: int
    divergence: float
    agrees: bool
    scores: tuple[Score, Score]
    seconds: tuple[float, float]


def compared_tokens(
    first: Reader, second: Reader, prompt: Sequence[int], sampling: SamplingParams, ends: frozenset[int]
) -> Iterator[ComparedToken]:
    """What the first model writes after `prompt`, until one of `ends` or the readers are full.

    Both read every token in a step of its own, so that their times are comparable. UsageError for models of
    different vocabularies.
    """
    vocabulary, other = first.model.config.vocabulary_size, second.model.config.vocabulary_size
    if vocabulary != other:
        raise UsageError(
            f"the models have vocabularies of {vocabulary} and {other} tokens; choose two of one kind"
        )
    text = list(prompt)
    logits = first.read(text), second.read(text)
    drawing, state = drawing_of([sampling]), empty_state(1, vocabulary, first.model.device)
    state.assign(0, sampling, text)
    while len(text) < min(first.length, second.length):
        with torch.inference_mode():
            position = torch.tensor([len(text)], device=first.model.device)
            token = next_tokens(logits[0], state, position, drawing)
            state.seen[0, token] = True
            if int(token) in ends:
                return
            compared = _compared(token, logits, (first.seconds, second.seconds))
        yield compared
        text.append(compared.token)
        logits = first.read(text[-1:]), second.read(text[-1:])


def _compared(
    token: Int64[Tensor, "1"],
    logits: tuple[Float[Tensor, "1 vocabulary"], Float[Tensor, "1 vocabulary"]],
    seconds: tuple[float, float],
) -> ComparedToken:
    both = softmax(logits[0]), softmax(logits[1].to(logits[0].device))
    scores = [score(each.logits, token).read([LIKELIEST])[0] for each in both]
    assert scores[0] is not None and scores[1] is not None, "both were asked for"
    return ComparedToken(
        token=int(token),
        divergence=float(kl_divergence(*both)),
        agrees=bool(top1_agreement(*both)),
        scores=(scores[0], scores[1]),
        seconds=seconds,
    )
