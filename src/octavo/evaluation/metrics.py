"""Quality in numbers: perplexity with its error bar, paired differences, KL divergence, agreement.

A window is one sample of the text, so windows, not tokens, are what error bars are taken over. A model against
itself gives exactly zero.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from octavo.errors import NumericalError, UsageError


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


def mean_over_windows(values: Sequence[float], weights: Sequence[float] | None = None) -> Estimate:
    """Mean and standard error of one number per window; NumericalError where one is not finite.

    With weights, the mean is Σ w·x / Σ w, and its variance that of a ratio of sums over samples:
    n / (n − 1) · Σ w²·(x − mean)² / (Σ w)² (Cochran, *Sampling Techniques*, 6.3). Equal weights give s² / n.
    """
    if not values:
        raise UsageError("a mean needs at least one window")
    for window, value in enumerate(values):
        if not math.isfinite(value):
            raise NumericalError(f"window {window} gives {value}; the model's weights or activations overflow")
    count = len(values)
    shares = [1.0] * count if weights is None else weights
    total = math.fsum(shares)
    mean = math.fsum(share * value for share, value in zip(shares, values, strict=True)) / total
    if count == 1:
        return Estimate(mean, None, 1)
    squares = math.fsum((share * (value - mean)) ** 2 for share, value in zip(shares, values, strict=True))
    return Estimate(mean, math.sqrt(count / (count - 1) * squares) / total, count)


def perplexity(losses: Sequence[float], weights: Sequence[float] | None = None) -> Perplexity:
    """Perplexity from the mean loss of each window (nats per token): exp(Σ losses / windows).

    This is the formula of GPTQ's evaluation, exp(Σ loss·length / (windows·length)). Conventions whose windows
    differ in length give weights.
    """
    return Perplexity(mean_over_windows(losses, weights))


def paired_difference(
    losses: Sequence[float], reference_losses: Sequence[float], weights: Sequence[float] | None = None
) -> Estimate:
    """log perplexity(model) − log perplexity(reference), both over the same windows in the same order.

    The windows' common difficulty cancels, so this error bar is far smaller than those of the two perplexities.
    """
    if len(losses) != len(reference_losses):
        raise UsageError(
            f"{len(losses)} windows cannot be paired with {len(reference_losses)}; "
            "evaluate both models with the same text, protocol and number of windows"
        )
    differences = [loss - other for loss, other in zip(losses, reference_losses, strict=True)]
    return mean_over_windows(differences, weights)


def windows_needed(difference: Estimate, confidence: float = 0.95) -> int | None:
    """How many such windows would set a difference of this size apart from zero.

    The least n with |difference| > t(n − 1) · s / √n, as if neither it nor the spread s changed. None where no
    number would: there is no difference, or a single window shows no spread.
    """
    if difference.standard_error is None or difference.value == 0:
        return None
    ratio = difference.standard_error * math.sqrt(difference.windows) / abs(difference.value)

    def too_few(windows: int) -> bool:
        degrees = min(windows - 1, 1000)  # beyond, t falls by no more than 0.13 %
        return critical_t(confidence, degrees) * ratio >= math.sqrt(windows)

    low, high = 1, 2
    while too_few(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if too_few(middle) else (low, middle)
    return high


@dataclass(frozen=True)
class Softmax:
    """What rows of logits predict, kept so that neither a probability nor its logarithm is rounded.

    `powers` are exp(logits - largest) in float32, p(token) = powers / total, log p(token) = logits - log_total.
    Sums and what follows them are float64, so that losses are within 1e-6 nats of arithmetic in float64
    throughout, at a tenth of its time.
    """

    logits: Float32[Tensor, "rows vocabulary"]
    largest: Float32[Tensor, " rows"]
    powers: Float32[Tensor, "rows vocabulary"]
    total: Float64[Tensor, " rows"]

    @property
    def log_total(self) -> Float64[Tensor, " rows"]:
        """The logarithm of the sum of exponentials of the logits."""
        return self.largest.double() + self.total.log()


def softmax(logits: Float[Tensor, "rows vocabulary"]) -> Softmax:
    """The predictions of some rows; a few megabytes of them at a time stay in the processor's cache."""
    wide = logits.float()
    largest = wide.amax(1)
    powers = (wide - largest[:, None]).exp_()
    return Softmax(wide, largest, powers, powers.sum(1, dtype=torch.float64))


def token_losses(predictions: Softmax, targets: Int64[Tensor, " rows"]) -> Float64[Tensor, " rows"]:
    """−log p(targets[i]) in nats. The target of a position is the token after it.

    NumericalError where a loss is not finite.
    """
    chosen = predictions.logits.gather(1, targets[:, None]).squeeze(1)
    return _finite(predictions.log_total - chosen.double(), "the loss")


def kl_divergence(reference: Softmax, predictions: Softmax) -> Float64[Tensor, " rows"]:
    """KL(reference ‖ model) of each row, Σ p·(log p − log q), in nats.

    Written as Σ p·(a − b) + log Σ exp b − log Σ exp a with logits a and b, whose difference is nearly exact where
    the models are close. NumericalError where it is not finite.
    """
    differences = (reference.logits - predictions.logits).mul_(reference.powers)
    mean_difference = differences.sum(1, dtype=torch.float64) / reference.total
    divergences = mean_difference + (predictions.log_total - reference.log_total)
    # What rounds to some −1e−8 is no divergence.
    return _finite(divergences.clamp(min=0), "the KL divergence")


def top1_agreement(reference: Softmax, predictions: Softmax) -> Bool[Tensor, " rows"]:
    """Whether the token that the reference finds likeliest has the model's highest logit, too."""
    likeliest = reference.logits.argmax(1, keepdim=True)
    return predictions.logits.gather(1, likeliest).squeeze(1) == predictions.largest


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


@lru_cache(maxsize=1024)
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


def _finite(values: Float64[Tensor, " rows"], what: str) -> Float64[Tensor, " rows"]:
    bad = (~values.isfinite()).nonzero()
    if len(bad):
        raise NumericalError(f"{what} at row {int(bad[0])} is {float(values[bad[0]])}; the logits overflow")
    return values
