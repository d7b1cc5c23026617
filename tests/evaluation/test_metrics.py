"""Statistics against slow, obvious twins: fractions and decimals for sums, lists of floats for logits."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import NumericalError, UsageError
from octavo.evaluation.metrics import (
    Estimate,
    critical_t,
    kl_divergence,
    mean_over_windows,
    paired_difference,
    perplexity,
    softmax,
    summarize,
    token_losses,
    top1_agreement,
    windows_needed,
)

losses = st.lists(st.floats(0, 12), min_size=2, max_size=40)


def exact_mean_and_variance_of_mean(values: list[float]) -> tuple[Fraction, Fraction]:
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    variance = sum((value - mean) ** 2 for value in exact) / (len(exact) - 1)
    return mean, variance / len(exact)


@given(losses)
def test_the_mean_and_its_standard_error_are_those_of_exact_arithmetic(values: list[float]) -> None:
    mean, variance = exact_mean_and_variance_of_mean(values)
    estimate = mean_over_windows(values)
    assert estimate.value == pytest.approx(float(mean), rel=1e-14)
    assert estimate.standard_error == pytest.approx(math.sqrt(variance), rel=1e-12, abs=1e-13)
    assert estimate.windows == len(values)


@given(losses)
def test_perplexity_is_the_reference_formula(values: list[float]) -> None:
    length = 2048
    negative_log_likelihoods = [value * length for value in values]
    expected = math.exp(sum(negative_log_likelihoods) / (len(values) * length))
    result = perplexity(values)
    assert result.value == pytest.approx(expected, rel=1e-12)
    assert result.standard_error is not None and result.loss.standard_error is not None
    assert result.standard_error == pytest.approx(expected * result.loss.standard_error, rel=1e-12)


def test_perplexity_of_three_windows_by_hand() -> None:
    result = perplexity([math.log(2), math.log(4), math.log(8)])
    assert result.value == pytest.approx(4)
    # s = log 2, so the loss's standard error is log 2 / sqrt 3, and t(0.975, 2) = 4.302653
    assert result.standard_error == pytest.approx(4 * math.log(2) / math.sqrt(3))
    reach = 2 ** (4.302653 / math.sqrt(3))
    assert result.interval() == pytest.approx((4 / reach, 4 * reach), rel=1e-6)


def test_a_single_window_has_no_error_bar() -> None:
    result = perplexity([1.5])
    assert (result.value, result.standard_error, result.interval()) == (math.exp(1.5), None, None)
    assert result.loss == Estimate(1.5, None, 1)


def test_the_order_of_windows_does_not_matter() -> None:
    values = [0.1 * k**0.5 for k in range(200)]
    assert mean_over_windows(values) == mean_over_windows(values[::-1])


@given(losses)
def test_a_model_against_itself_differs_by_exactly_zero(values: list[float]) -> None:
    assert paired_difference(values, values) == Estimate(0.0, 0.0, len(values))


def test_pairing_removes_what_both_models_share() -> None:
    hard_and_easy = [1.0, 5.0, 2.0, 6.0]
    worse_by_about_a_tenth = [1.125, 5.125, 2.0625, 6.0625]
    difference = paired_difference(worse_by_about_a_tenth, hard_and_easy)
    assert difference.value == 0.09375
    assert difference.standard_error == pytest.approx(math.sqrt(4 * 0.03125**2 / 3 / 4))
    assert paired_difference(hard_and_easy, worse_by_about_a_tenth).value == -0.09375


def test_windows_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(UsageError, match="3 windows cannot be paired with 2"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])


def test_weights_count_a_window_as_often_as_they_say() -> None:
    values, weights = [1.0, 2.0, 4.0], [1.0, 3.0, 2.0]
    estimate = mean_over_windows(values, weights)
    assert estimate.value == (1 + 3 * 2 + 2 * 4) / 6
    deviations = [1 * (1 - 2.5), 3 * (2 - 2.5), 2 * (4 - 2.5)]
    assert estimate.standard_error == pytest.approx(math.sqrt(3 / 2 * sum(d * d for d in deviations)) / 6)
    assert mean_over_windows(values, [0.5, 0.5, 0.5]) == mean_over_windows(values)
    assert perplexity(values, weights).loss == estimate
    assert paired_difference(values, [1.0, 1.0, 1.0], weights).value == 1.5


def test_windows_needed_is_the_first_number_that_would_do() -> None:
    difference = Estimate(0.01, 0.02, 16)  # s = 0.08
    needed = windows_needed(difference)
    assert needed is not None

    def reach(windows: int) -> float:
        return critical_t(0.95, windows - 1) * 0.08 / math.sqrt(windows)

    assert reach(needed) < 0.01 <= reach(needed - 1)
    assert needed == 249
    assert windows_needed(Estimate(-0.01, 0.02, 16)) == needed
    assert windows_needed(Estimate(1.0, 1e-9, 16)) == 2
    assert windows_needed(Estimate(1e-5, 0.01, 100)) == pytest.approx((1.9623 * 0.1 / 1e-5) ** 2, rel=1e-3)
    assert windows_needed(Estimate(0.0, 0.02, 16)) is None
    assert windows_needed(Estimate(0.1, None, 1)) is None


def test_no_windows_are_refused() -> None:
    with pytest.raises(UsageError, match="at least one window"):
        perplexity([])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_window_without_a_finite_loss_is_named(value: float) -> None:
    with pytest.raises(NumericalError, match=f"window 1 gives {value}"):
        perplexity([1.0, value])


# Two-sided 95 % and 99 % points from the tables of Student's distribution.
@pytest.mark.parametrize(
    ("degrees", "at_95", "at_99"),
    [
        (1, 12.706, 63.657),
        (2, 4.303, 9.925),
        (3, 3.182, 5.841),
        (4, 2.776, 4.604),
        (5, 2.571, 4.032),
        (9, 2.262, 3.250),
        (10, 2.228, 3.169),
        (29, 2.045, 2.756),
        (30, 2.042, 2.750),
        (120, 1.980, 2.617),
        (1001, 1.962, 2.581),
    ],
)
def test_critical_t_is_that_of_the_tables(degrees: int, at_95: float, at_99: float) -> None:
    assert critical_t(0.95, degrees) == pytest.approx(at_95, abs=5.1e-4)
    assert critical_t(0.99, degrees) == pytest.approx(at_99, abs=5.1e-4)


@given(degrees=st.integers(1, 40), confidence=st.floats(0.01, 0.99))
@settings(max_examples=30)
def test_critical_t_encloses_the_wanted_probability(degrees: int, confidence: float) -> None:
    """Twin: the density of Student's distribution, integrated by Simpson's rule."""

    def density(t: float) -> float:
        gammas = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
        return math.exp(gammas) / math.sqrt(degrees * math.pi) * (1 + t * t / degrees) ** (-(degrees + 1) / 2)

    edge = critical_t(confidence, degrees)
    steps = 4000
    width = edge / steps
    inner = sum((4 if k % 2 else 2) * density(k * width) for k in range(1, steps))
    assert 2 * width / 3 * (density(0) + inner + density(edge)) == pytest.approx(confidence, abs=1e-6)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_a_confidence_must_be_a_probability(confidence: float) -> None:
    with pytest.raises(UsageError, match="not between 0 and 1"):
        critical_t(confidence, 5)


def slow_log_probabilities(logits: list[float]) -> list[float]:
    largest = max(logits)
    total = math.log(math.fsum(math.exp(logit - largest) for logit in logits)) + largest
    return [logit - total for logit in logits]


rows_of_logits = st.integers(2, 12).flatmap(
    lambda width: st.lists(
        st.lists(st.floats(-90, 90, width=32), min_size=width, max_size=width), min_size=2, max_size=6
    )
)


@given(rows_of_logits, st.randoms(use_true_random=False))
def test_token_losses_and_divergences_match_their_twins(rows: list[list[float]], random) -> None:
    others = [[logit + random.uniform(-1, 1) for logit in row] for row in rows]
    tokens = [random.randrange(len(rows[0])) for _ in rows]
    expected_losses = [-slow_log_probabilities(row)[token] for row, token in zip(rows, tokens, strict=True)]
    reference, other = torch.tensor(rows), torch.tensor(others)
    expected_divergences = [
        math.fsum(math.exp(p) * (p - q) for p, q in zip(*map(slow_log_probabilities, pair), strict=True))
        for pair in zip(reference.tolist(), other.tolist(), strict=True)
    ]
    losses = token_losses(softmax(reference), torch.tensor(tokens))
    assert losses.dtype == torch.float64
    assert losses.tolist() == pytest.approx(expected_losses, rel=1e-6, abs=1e-6)
    divergences = kl_divergence(softmax(reference), softmax(other))
    assert divergences.dtype == torch.float64
    assert divergences.tolist() == pytest.approx(expected_divergences, abs=1e-6)
    assert (divergences >= 0).all()


def test_small_divergences_over_a_wide_vocabulary_are_those_of_float64() -> None:
    """Twin: log-softmax in float64 throughout, which takes ten times as long."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(64, 49152, generator=generator) * 3
    other = reference + 0.02 * torch.randn(64, 49152, generator=generator)
    tokens = torch.randint(49152, (64,), generator=generator)
    wide, other_wide = reference.double().log_softmax(1), other.double().log_softmax(1)
    expected = (wide.exp() * (wide - other_wide)).sum(1)
    assert 1e-4 < expected.min() < expected.max() < 1e-3
    divergences = kl_divergence(softmax(reference), softmax(other))
    assert (divergences - expected).abs().max() < 1e-7
    assert abs(float((divergences - expected).mean())) < 1e-8
    losses = token_losses(softmax(other), tokens)
    assert (losses + other_wide.gather(1, tokens[:, None]).squeeze(1)).abs().max() < 1e-6


def test_the_losses_of_two_tokens_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    assert token_losses(softmax(logits), torch.tensor([0, 1])).tolist() == pytest.approx(
        [math.log(2), math.log(4 / 3)]
    )


def test_the_divergence_of_two_coins_by_hand() -> None:
    fair, biased = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3)]])
    assert kl_divergence(softmax(fair), softmax(biased)).item() == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    assert kl_divergence(softmax(biased), softmax(fair)).item() == pytest.approx(
        0.25 * math.log(27 / 16), rel=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_logits_against_themselves_give_exactly_zero(dtype: torch.dtype) -> None:
    logits = (torch.randn(50, 3000, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    assert kl_divergence(softmax(logits), softmax(logits.clone())).eq(0).all()
    assert top1_agreement(softmax(logits), softmax(logits.clone())).all()


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[60000.0, 0.0], [0.0, 60000.0]])
    assert token_losses(softmax(logits), torch.tensor([0, 0])).tolist() == [0.0, 60000.0]
    assert kl_divergence(softmax(logits), softmax(logits.flip(1))).tolist() == [60000.0, 60000.0]


def test_overflowed_logits_are_refused_by_position() -> None:
    good = torch.zeros(3, 4)
    bad = good.clone()
    bad[1, 2] = math.inf
    with pytest.raises(NumericalError, match="the KL divergence at row 1 is nan"):
        kl_divergence(softmax(good), softmax(bad))
    with pytest.raises(NumericalError, match="the loss at row 1 is nan"):
        token_losses(softmax(bad), torch.tensor([0, 1, 2]))


def test_agreement_is_about_the_reference_s_likeliest_token() -> None:
    reference = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 1.0], [0.0, 0.0, 1.0]])
    other = torch.tensor([[0.0, 9.0, 8.0], [4.0, 4.0, 1.0], [1.0, 0.0, 0.0]])
    assert top1_agreement(softmax(reference), softmax(other)).tolist() == [True, True, False]


def test_a_summary_by_hand() -> None:
    summary = summarize(torch.arange(101, dtype=torch.float32).flip(0))
    assert (summary.mean, summary.median, summary.percentile_99, summary.largest) == (50, 50, 99, 100)
    assert summary.count == 101
    assert summarize(torch.tensor([0.0, 1.0])).percentile_99 == pytest.approx(0.99)


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=60))
def test_a_summary_matches_sorting(values: list[float]) -> None:
    ordered = sorted(values)

    def quantile(share: float) -> float:
        position = share * (len(ordered) - 1)
        below = math.floor(position)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (position - below) * (ordered[above] - ordered[below])

    summary = summarize(torch.tensor(values))
    assert summary.median == pytest.approx(quantile(0.5), rel=1e-12)
    assert summary.percentile_99 == pytest.approx(quantile(0.99), rel=1e-9)
    assert summary.mean == pytest.approx(float(sum(map(Fraction, values)) / len(values)), rel=1e-14)
    assert summary.largest == ordered[-1]


def test_an_empty_summary_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one position"):
        summarize(torch.empty(0))
