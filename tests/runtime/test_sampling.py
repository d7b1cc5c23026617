"""Sampling: distributions written out, and cuts that keep their promises."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import NumericalError, UsageError
from octavo.runtime.params import SamplingParams
from octavo.runtime.sampling import distribution, next_token

# probabilities 0.5, 0.25, 0.125, 0.125
LOGITS = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()


def draw(logits, params, history=(), seed=0):
    return next_token(logits, history, params, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(temperature=1.0), [0.5, 0.25, 0.125, 0.125]),
        (SamplingParams(temperature=0.5), [16 / 22, 4 / 22, 1 / 22, 1 / 22]),
        (SamplingParams(temperature=1.0, top_k=1), [1, 0, 0, 0]),
        (SamplingParams(temperature=1.0, top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (SamplingParams(temperature=1.0, top_k=100), [0.5, 0.25, 0.125, 0.125]),
        (SamplingParams(temperature=1.0, top_p=0.5), [1, 0, 0, 0]),
        (SamplingParams(temperature=1.0, top_p=0.51), [2 / 3, 1 / 3, 0, 0]),
        (SamplingParams(temperature=1.0, top_p=0.8), [4 / 7, 2 / 7, 1 / 7, 0]),
        (SamplingParams(temperature=1.0, min_p=0.5), [2 / 3, 1 / 3, 0, 0]),
        (SamplingParams(temperature=1.0, min_p=0.25), [0.5, 0.25, 0.125, 0.125]),
        (SamplingParams(temperature=1.0, top_k=2, top_p=0.6), [1, 0, 0, 0]),
    ],
)
def test_distributions_written_out(params, expected):
    assert torch.allclose(distribution(LOGITS, (), params), torch.tensor(expected, dtype=torch.float32))


def test_greedy_takes_the_likeliest_and_of_equals_the_first():
    assert draw(LOGITS, SamplingParams()) == 0
    assert draw(torch.tensor([0.0, 1.0, 1.0]), SamplingParams()) == 1


def test_the_penalty_moves_seen_tokens_away():
    logits = torch.tensor([2.0, 1.5, -1.0])
    params = SamplingParams(temperature=1.0, repetition_penalty=2.0)
    expected = torch.tensor([1.0, 1.5, -2.0]).softmax(0)
    assert torch.allclose(distribution(logits, [0, 2, 0], params), expected)
    assert draw(logits, SamplingParams(repetition_penalty=2.0), history=[0]) == 1
    assert draw(logits, SamplingParams(repetition_penalty=2.0)) == 0


def test_a_seed_repeats_a_draw_and_draws_follow_the_distribution():
    params = SamplingParams(temperature=1.0)
    assert draw(LOGITS, params, seed=5) == draw(LOGITS, params, seed=5)
    generator = torch.Generator().manual_seed(0)
    counts = [0] * 4
    for _ in range(4000):
        counts[next_token(LOGITS, (), params, generator)] += 1
    for count, probability in zip(counts, [0.5, 0.25, 0.125, 0.125], strict=True):
        deviation = math.sqrt(4000 * probability * (1 - probability))
        assert abs(count - 4000 * probability) < 4 * deviation


@given(
    logits=st.lists(st.floats(-20, 20), min_size=1, max_size=30),
    temperature=st.floats(0.05, 3),
    top_k=st.one_of(st.none(), st.integers(1, 40)),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
)
@settings(deadline=None)
def test_cuts_keep_the_likeliest_and_sum_to_one(logits, temperature, top_k, top_p, min_p):
    values = torch.tensor(logits)
    kept = distribution(values, (), SamplingParams(temperature, top_k, top_p, min_p))
    assert kept.sum().item() == pytest.approx(1, abs=1e-4)
    assert kept[values.argmax()] == kept.max() > 0
    out = kept == 0
    if out.any() and (~out).any():
        assert values[out].max() <= values[~out].min() + 1e-3


def test_broken_logits_are_not_sampled():
    with pytest.raises(NumericalError, match="NaN or Inf"):
        draw(torch.tensor([1.0, float("nan")]), SamplingParams())


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
    ],
)
def test_values_out_of_range_are_refused(values):
    with pytest.raises(UsageError):
        SamplingParams(**values)
