"""Runs models over windows: the loss of each, and how far each is from a reference.

All models of a comparison run over the same window one after the other, so no logits are ever stored.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from octavo.errors import UsageError
from octavo.evaluation.metrics import kl_divergence, softmax, token_losses, top1_agreement
from octavo.evaluation.protocol import EvaluationWindows, Span
from octavo.model.kv_cache import KVCache, make_cache, one_sequence
from octavo.model.llama import Hidden, LlamaModel, hidden_states

ROWS_AT_ONCE = 256  # rows whose logits are held at a time; a vocabulary is wide
VALUES_AT_ONCE = 2**20  # logits that are turned into losses at a time: 4 MB stay in a processor's cache

Windows = Int64[Tensor, "windows length"]
Window = Int64[Tensor, " length"]
Progress = Callable[[list[float]], None]  # is told the losses so far, after each window


@dataclass(frozen=True)
class Comparison:
    """A model beside its reference: the mean loss of each window, in nats per token, and every prediction.

    `divergence` is KL(reference ‖ model) in nats, `agreement` whether both find the same token likeliest;
    `predictions` counts those of each window.
    """

    losses: list[float]
    reference_losses: list[float]
    divergence: Float64[Tensor, " positions"]
    agreement: Bool[Tensor, " positions"]
    predictions: list[int]

    def window_divergences(self) -> list[float]:
        """The mean KL divergence of each window."""
        return [float(part.mean()) for part in self.divergence.split(self.predictions)]


class EvaluationObserver:
    """Is told how an evaluation goes; this one listens to nothing."""

    def preparing(self, what: str) -> None:
        """Something that takes a while has begun: a file is hashed, a model loaded, a text read."""

    def started(self, windows: EvaluationWindows) -> None:
        """A text has been cut into windows."""

    def scored(self, losses: list[float]) -> None:
        """One more window has its loss; these are all so far."""

    def asked(self, done: int, total: int) -> None:
        """So many of the requests of tasks are answered; they come in several rounds."""


def score(
    model: LlamaModel, windows: Windows, progress: Progress, spans: Sequence[Span] | None = None
) -> list[float]:
    """The mean loss of each window over what is predicted of it, with no past before the window.

    Without `spans` that is every token but the first.
    """
    losses: list[float] = []
    cache = _window_cache(model, windows)
    for window, span in zip(windows, spans or _whole_windows(windows), strict=True):
        with torch.inference_mode():
            states = _states(model, window, span, cache)
            parts = [losses_of(model.head(states[rows]), window, rows) for rows in _chunks(span)]
        losses.append(mean_loss(parts))
        progress(losses)
    return losses


def compare(
    models: Sequence[LlamaModel],
    reference: LlamaModel,
    windows: Windows,
    progress: Progress,
    spans: Sequence[Span] | None = None,
) -> list[Comparison]:
    """Models and their reference over the same windows; `progress` hears the first model's losses."""
    for model in models:
        if model.config.vocabulary_size != reference.config.vocabulary_size:
            raise UsageError(
                f"the models have vocabularies of {model.config.vocabulary_size} and "
                f"{reference.config.vocabulary_size} tokens, so their predictions cannot be compared"
            )
    everyone = [reference, *models]
    chosen = spans or _whole_windows(windows)
    caches = [_window_cache(model, windows) for model in everyone]
    losses: list[list[float]] = [[] for _ in everyone]
    measured: list[_Rows] = []
    for window, span in zip(windows, chosen, strict=True):
        with torch.inference_mode():
            states = [_states(model, window, span, cache) for model, cache in zip(everyone, caches, strict=True)]
            parts = list(_compared(everyone, states, window, span))
        for number, each in enumerate(losses):
            each.append(mean_loss([part.losses[number] for part in parts]))
        measured += parts
        progress(losses[1])
    return [
        Comparison(
            losses=losses[number + 1],
            reference_losses=losses[0],
            divergence=torch.cat([part.divergences[number] for part in measured]),
            agreement=torch.cat([part.agreements[number] for part in measured]),
            predictions=[span.end - span.first for span in chosen],
        )
        for number in range(len(models))
    ]


def losses_of(logits: Float[Tensor, "rows vocabulary"], window: Window, rows: slice) -> Float64[Tensor, " rows"]:
    """The losses of the tokens after `rows` of a window, from the logits of those rows."""
    targets = _targets(window, rows, logits.device)
    return torch.cat([token_losses(softmax(logits[part]), targets[part]) for part in _slices(logits)])


def mean_loss(parts: Sequence[Float64[Tensor, " _"]]) -> float:
    """The mean of losses, the same in whatever parts they come."""
    losses = torch.cat(list(parts)).tolist()
    return math.fsum(losses) / len(losses)


@dataclass(frozen=True)
class _Rows:
    """What some rows of a window gave: losses of all models, the rest of each but the reference; on the CPU."""

    losses: list[Tensor]
    divergences: list[Tensor]
    agreements: list[Tensor]


def _compared(
    everyone: Sequence[LlamaModel], states: Sequence[Hidden], window: Window, span: Span
) -> Iterator[_Rows]:
    for rows in _chunks(span):
        all_logits = [model.head(hidden[rows]) for model, hidden in zip(everyone, states, strict=True)]
        targets = _targets(window, rows, all_logits[0].device)
        for part in _slices(all_logits[0]):
            reference, *others = [softmax(logits[part]) for logits in all_logits]
            yield _Rows(
                losses=[token_losses(each, targets[part]).cpu() for each in (reference, *others)],
                divergences=[kl_divergence(reference, each).cpu() for each in others],
                agreements=[top1_agreement(reference, each).cpu() for each in others],
            )


def _states(model: LlamaModel, window: Window, span: Span, cache: KVCache) -> Hidden:
    """Of all rows that something is predicted from; the last token of a span predicts nothing."""
    tokens = window[: span.end - 1].to(model.device)
    return hidden_states(model, one_sequence(tokens, 0, cache.page_size), cache)


def _window_cache(model: LlamaModel, windows: Windows) -> KVCache:
    """One window's worth of cache; each window writes over the last."""
    if int(windows.max()) >= model.config.vocabulary_size:
        raise UsageError("the tokenizer gives ids beyond the model's vocabulary; they do not belong together")
    return make_cache(model.config, 1, windows.shape[1], model.device, model.dtype, model.coded_cache)


def _whole_windows(windows: Windows) -> list[Span]:
    return [Span(1, windows.shape[1])] * len(windows)


def _chunks(span: Span) -> Iterator[slice]:
    """The rows that predict a span, so many at a time."""
    first, last = span.first - 1, span.end - 1
    return (slice(start, min(start + ROWS_AT_ONCE, last)) for start in range(first, last, ROWS_AT_ONCE))


def _targets(window: Window, rows: slice, device: torch.device) -> Int64[Tensor, " rows"]:
    """The tokens after some rows."""
    return window[rows.start + 1 : rows.stop + 1].to(device)


def _slices(logits: Float[Tensor, "rows vocabulary"]) -> Iterator[slice]:
    rows, vocabulary = logits.shape
    step = max(1, VALUES_AT_ONCE // vocabulary)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
