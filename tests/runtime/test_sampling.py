"""Sampling: distributions written out, and cuts that keep their promises."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from octavo.errors import UsageError
from octavo.runtime import sampling
from octavo.runtime.params import SamplingParams
from octavo.runtime.sampling import drawing_of, empty_state, next_tokens, penalized, uniform

# probabilities 0.5, 0.25, 0.125, 0.125
LOGITS = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()


def state_of(params, vocabulary, histories=None):
    state = empty_state(len(params), vocabulary, torch.device("cpu"))
    for row, each in enumerate(params):
        state.assign(row, each, histories[row] if histories else ())
    return state


def draw(logits, params, history=(), position=0):
    state = state_of([params], len(logits), [history])
    return int(next_tokens(logits[None], state, torch.tensor([position]), drawing_of([params]))[0])


def distribution(logits, history, params):
    state = state_of([params], len(logits), [history])
    return sampling.distribution(penalized(logits[None], state), state, drawing_of([params]))[0]


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


def test_draws_follow_the_distribution_and_differ_by_position_and_seed():
    counts = [0] * 4
    for position in range(4000):
        counts[draw(LOGITS, SamplingParams(temperature=1.0, seed=7), position=position)] += 1
    for count, probability in zip(counts, [0.5, 0.25, 0.125, 0.125], strict=True):
        deviation = math.sqrt(4000 * probability * (1 - probability))
        assert abs(count - 4000 * probability) < 4 * deviation
    draws = {
        seed: [draw(LOGITS, SamplingParams(1.0, seed=seed), position=at) for at in range(40)] for seed in (1, 2)
    }
    assert draws[1] == [draw(LOGITS, SamplingParams(1.0, seed=1), position=at) for at in range(40)]
    assert draws[1] != draws[2]


def test_uniform_numbers_written_out():
    seeds = torch.tensor([0, 0, 1, 2**62, 2**63 - 1])
    positions = torch.tensor([0, 1, 0, 0, 2**31])
    expected = [murmur_uniform(int(seed), int(at)) for seed, at in zip(seeds, positions, strict=True)]
    assert uniform(seeds, positions).tolist() == expected
    many = uniform(torch.zeros(100_000, dtype=torch.int64), torch.arange(100_000))
    assert many.min() >= 0 and many.max() < 1
    assert many.mean().item() == pytest.approx(0.5, abs=0.005)
    assert many.var().item() == pytest.approx(1 / 12, abs=0.002)


def murmur_uniform(seed, position):
    """The same hash in whole numbers of any size."""

    def finalized(value):
        value = (value ^ (value >> 16)) * 0x85EBCA6B % 2**32
        value = (value ^ (value >> 13)) * 0xC2B2AE35 % 2**32
        return value ^ (value >> 16)

    mixed = finalized(position)
    for part in (seed % 2**32, seed >> 32):
        mixed = finalized(mixed ^ part)
    return (mixed >> 8) / 2**24


def test_a_row_is_drawn_as_if_it_were_alone():
    generator = torch.Generator().manual_seed(0)
    params = [
        SamplingParams(),
        SamplingParams(temperature=0.8, seed=1),
        SamplingParams(temperature=1.5, top_k=5, seed=2),
        SamplingParams(temperature=1.0, top_p=0.7, min_p=0.01, repetition_penalty=1.3, seed=3),
        SamplingParams(repetition_penalty=1.2),
    ]
    logits = torch.randn(len(params), 3000, generator=generator) * 3
    histories = [torch.randint(0, 3000, (50,), generator=generator).tolist() for _ in params]
    positions = torch.arange(len(params)) * 7
    together = next_tokens(logits, state_of(params, 3000, histories), positions, drawing_of(params))
    for row, each in enumerate(params):
        assert draw(logits[row], each, histories[row], int(positions[row])) == together[row]


@pytest.mark.parametrize(
    "params", [{"top_k": 700}, {"top_k": 1500}, {"top_p": 0.5}, {"top_p": 0.999}, {"min_p": 0.3}]
)
def test_a_cut_found_among_the_likeliest_is_the_cut_of_all(monkeypatch, params):
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(0)) * 2
    quick = distribution(logits, (), SamplingParams(temperature=1.0, **params))
    monkeypatch.setattr(sampling, "RANKED_AT_FIRST", 3000)
    assert torch.allclose(distribution(logits, (), SamplingParams(temperature=1.0, **params)), quick, atol=1e-7)


@given(
    logits=st.lists(st.floats(-20, 20), min_size=1, max_size=30),
    temperature=st.floats(0.05, 3),
    top_k=st.one_of(st.none(), st.integers(1, 40)),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
)
@example(logits=[-2.220446049250313e-16, 0.0], temperature=1.0, top_k=None, top_p=0.5, min_p=0.0)
@settings(deadline=None)
def test_cuts_keep_the_likeliest_and_sum_to_one(logits, temperature, top_k, top_p, min_p):
    values = torch.tensor(logits)
    kept = distribution(values, (), SamplingParams(temperature, top_k, top_p, min_p))
    assert kept.sum().item() == pytest.approx(1, abs=1e-4)
    uncut = distribution(values, (), SamplingParams(temperature))  # where different logits may be equally likely
    assert kept[uncut == uncut.max()].max() == kept.max() > 0
    out = kept == 0
    if out.any() and (~out).any():
        assert values[out].max() <= values[~out].min() + 1e-3


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
