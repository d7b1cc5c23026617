"""Runs models over windows: the loss of each, and how far each is from a reference.

All models of a comparison run over the same window one after the other, so no logits are ever stored.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from octavo.errors import UsageError
from octavo.evaluation.metrics import kl_divergence, token_losses, top1_agreement
from octavo.evaluation.protocol import EvaluationWindows
from octavo.model.kv_cache import KVCache, make_cache, one_sequence
from octavo.model.llama import Hidden, LlamaModel, hidden_states

ROWS_AT_ONCE = 256  # rows whose logits are held at a time; a vocabulary is wide

Windows = Int64[Tensor, "windows length"]
Progress = Callable[[list[float]], None]  # is told the losses so far, after each window


@dataclass(frozen=True)
class Comparison:
    """A model beside its reference: the mean loss of each window, in nats per token, and every position.

    `divergence` is KL(reference ‖ model) in nats, `agreement` whether both find the same token likeliest.
    """

    losses: list[float]
    reference_losses: list[float]
    divergence: Float64[Tensor, " positions"]
    agreement: Bool[Tensor, " positions"]


class EvaluationObserver:
    """Is told how an evaluation goes; this one listens to nothing."""

    def preparing(self, what: str) -> None:
        """Something that takes a while has begun: a file is hashed, a model loaded, a text read."""

    def started(self, windows: EvaluationWindows) -> None:
        """A text has been cut into windows."""

    def scored(self, losses: list[float]) -> None:
        """One more window has its loss; these are all so far."""


def score(model: LlamaModel, windows: Windows, progress: Progress) -> list[float]:
    """The mean loss of each window over its length - 1 predictions, with no past before it."""
    losses: list[float] = []
    cache = _window_cache(model, windows)
    for window in windows:
        with torch.inference_mode():
            states = _states(model, window, cache)
            losses.append(sum(_loss(model.head(states[rows]), window, rows) for rows in _chunks(window)))
        progress(losses)
    return losses


def compare(
    models: Sequence[LlamaModel], reference: LlamaModel, windows: Windows, progress: Progress
) -> list[Comparison]:
    """Models and their reference over the same windows; `progress` hears the first model's losses."""
    for model in models:
        if model.config.vocabulary_size != reference.config.vocabulary_size:
            raise UsageError(
                f"the models have vocabularies of {model.config.vocabulary_size} and "
                f"{reference.config.vocabulary_size} tokens, so their predictions cannot be compared"
            )
    everyone = [reference, *models]
    caches = [_window_cache(model, windows) for model in everyone]
    losses: list[list[float]] = [[] for _ in everyone]
    divergences: list[list[Tensor]] = [[] for _ in models]
    agreements: list[list[Tensor]] = [[] for _ in models]
    for window in windows:
        with torch.inference_mode():
            states = [_states(model, window, cache) for model, cache in zip(everyone, caches, strict=True)]
            totals = [0.0] * len(everyone)
            for rows in _chunks(window):
                expected = reference.head(states[0][rows])
                totals[0] += _loss(expected, window, rows)
                for number, model in enumerate(models):
                    logits = model.head(states[number + 1][rows])
                    totals[number + 1] += _loss(logits, window, rows)
                    divergences[number].append(kl_divergence(expected, logits).cpu())
                    agreements[number].append(top1_agreement(expected, logits).cpu())
        for each, total in zip(losses, totals, strict=True):
            each.append(total)
        progress(losses[1])
    return [
        Comparison(losses[number + 1], losses[0], torch.cat(divergences[number]), torch.cat(agreements[number]))
        for number in range(len(models))
    ]


def _states(model: LlamaModel, window: Int64[Tensor, " length"], cache: KVCache) -> Hidden:
    return hidden_states(model, one_sequence(window.to(model.device), 0, len(window)), cache)


def _loss(logits: Tensor, window: Int64[Tensor, " length"], rows: slice) -> float:
    """What these rows add to the mean loss of their window; the last position predicts nothing."""
    targets = window[rows.start + 1 : rows.stop + 1].to(logits.device)
    return float(token_losses(logits[: len(targets)], targets).sum()) / (len(window) - 1)


def _window_cache(model: LlamaModel, windows: Windows) -> KVCache:
    """One window's worth of cache; each window writes over the last."""
    if int(windows.max()) >= model.config.vocabulary_size:
        raise UsageError("the tokenizer gives ids beyond the model's vocabulary; they do not belong together")
    return make_cache(model.config, 1, windows.shape[1], model.device, model.dtype)


def _chunks(window: Int64[Tensor, " length"]) -> Iterator[slice]:
    return (slice(start, min(start + ROWS_AT_ONCE, len(window))) for start in range(0, len(window), ROWS_AT_ONCE))
