"""Quality in numbers: perplexity with its error bar, paired differences, KL divergence, agreement.

A window is one sample of the text, so windows, not tokens, are what error bars are taken over. All sums are in
float64, and a model against itself gives exactly zero.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from octavo.errors import NumericalError, UsageError

# Float64 copies of logits are made for so many values at a time.
VALUES_AT_ONCE = 2**24


@dataclass(frozen=True)
class Estimate:
    """A mean over windows. Its standard error, s / √n, is None for a single window, which has no spread."""

    value: float
    standard_error: float | None
    windows: int

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Student's t interval; None for a single window."""
        if self.standard_error is None:
            return None
        reach = critical_t(confidence, self.windows - 1) * self.standard_error
        return self.value - reach, self.value + reach


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean over windows of each window's mean loss, in nats per token."""

    loss: Estimate

    @property
    def value(self) -> float:
        return math.exp(self.loss.value)

    @property
    def standard_error(self) -> float | None:
        """By the delta method: perplexity times the standard error of the loss."""
        return None if self.loss.standard_error is None else self.value * self.loss.standard_error

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """exp of the interval of the loss, so that it stays positive and is exact where the loss is normal."""
        ends = self.loss.interval(confidence)
        return None if ends is None else (math.exp(ends[0]), math.exp(ends[1]))


@dataclass(frozen=True)
class Summary:
    """Where the values of many positions lie; quantiles are interpolated linearly."""

    mean: float
    median: float
    percentile_99: float
    largest: float
    count: int


def mean_over_windows(values: Sequence[float]) -> Estimate:
    """Mean and standard error of one number per window; NumericalError where one is not finite."""
    if not values:
        raise UsageError("a mean needs at least one window")
    for window, value in enumerate(values):
        if not math.isfinite(value):
            raise NumericalError(f"window {window} gives {value}; the model's weights or activations overflow")
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, 1)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, math.sqrt(variance / count), count)


def perplexity(losses: Sequence[float]) -> Perplexity:
    """Perplexity from the mean loss of each window (nats per token): exp(Σ losses / windows).

    This is the formula of GPTQ's evaluation, exp(Σ loss·length / (windows·length)).
    """
    return Perplexity(mean_over_windows(losses))


def paired_difference(losses: Sequence[float], reference_losses: Sequence[float]) -> Estimate:
    """log perplexity(model) − log perplexity(reference), both over the same windows in the same order.

    The windows' common difficulty cancels, so this error bar is far smaller than those of the two perplexities.
    """
    if len(losses) != len(reference_losses):
        raise UsageError(
            f"{len(losses)} windows cannot be paired with {len(reference_losses)}; "
            "evaluate both models with the same text, protocol and number of windows"
        )
    return mean_over_windows([loss - other for loss, other in zip(losses, reference_losses, strict=True)])


def token_losses(
    logits: Float[Tensor, "positions vocabulary"], targets: Int64[Tensor, " positions"]
) -> Float64[Tensor, " positions"]:
    """−log p(targets[i]) under logits[i], in nats. The target of a position is the token after it.

    The mean over the length − 1 predictions of a window is that window's loss. NumericalError where a loss is not
    finite.
    """
    losses = torch.empty(len(targets), dtype=torch.float64, device=logits.device)
    for rows in _slices(*logits.shape):
        losses[rows] = -_log_probabilities(logits[rows]).gather(1, targets[rows, None]).squeeze(1)
    return _finite(losses, "the loss")


def kl_divergence(
    reference_logits: Float[Tensor, "positions vocabulary"], logits: Float[Tensor, "positions vocabulary"]
) -> Float64[Tensor, " positions"]:
    """KL(reference ‖ model) at each position: Σ p·(log p − log q), in nats.

    NumericalError where it is not finite.
    """
    divergences = torch.empty(len(logits), dtype=torch.float64, device=logits.device)
    for rows in _slices(*logits.shape):
        reference = _log_probabilities(reference_logits[rows])
        terms = reference.exp() * (reference - _log_probabilities(logits[rows]))
        divergences[rows] = terms.sum(dim=1)
    # The sum of terms of both signs can round to some −1e-17, which no divergence is.
    return _finite(divergences.clamp(min=0), "the KL divergence")


def top1_agreement(
    reference_logits: Float[Tensor, "positions vocabulary"], logits: Float[Tensor, "positions vocabulary"]
) -> Bool[Tensor, " positions"]:
    """Whether both models find the same token most likely; of equal logits the first counts."""
    return reference_logits.argmax(dim=1) == logits.argmax(dim=1)


def summarize(values: Float[Tensor, " positions"]) -> Summary:
    """Mean, median, 99th percentile and largest of the values at many positions."""
    if values.numel() == 0:
        raise UsageError("a summary needs at least one position")
    numbers = values.double().cpu().numpy()
    median, percentile_99 = numpy.quantile(numbers, [0.5, 0.99])
    return Summary(
        mean=math.fsum(numbers) / numbers.size,
        median=float(median),
        percentile_99=float(percentile_99),
        largest=float(numbers.max()),
        count=numbers.size,
    )


def critical_t(confidence: float, degrees: int) -> float:
    """The t that Student's distribution exceeds in absolute value with probability 1 − confidence.

    By bisection over the angle θ = arctan(t / √degrees), in which the distribution is a finite sum.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"a confidence of {confidence} is not between 0 and 1; use 0.95")
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _within(angle: float, degrees: int) -> float:
    """P(|T| ≤ √degrees · tan(angle)): Abramowitz & Stegun, formulas 26.7.3 and 26.7.4."""
    cosine, odd = math.cos(angle), degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total


def _log_probabilities(logits: Float[Tensor, "rows vocabulary"]) -> Float64[Tensor, "rows vocabulary"]:
    return logits.double().log_softmax(dim=1)


def _slices(rows: int, width: int) -> Iterator[slice]:
    step = max(1, VALUES_AT_ONCE // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _finite(values: Float64[Tensor, " positions"], what: str) -> Float64[Tensor, " positions"]:
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        raise NumericalError(f"{what} at position {int(bad[0])} is {float(values[bad[0]])}; the logits overflow")
    return values
