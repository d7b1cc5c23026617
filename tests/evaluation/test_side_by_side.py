"""Two models token by token, against the evaluator's own comparison of the whole text."""

import pytest
import torch

from octavo.errors import UsageError
from octavo.evaluation.scoring import compare
from octavo.evaluation.side_by_side import LIKELIEST, compared_tokens
from octavo.model.load import load_model
from octavo.runtime.generation import generate_tokens
from octavo.runtime.params import SamplingParams
from octavo.runtime.reading import Reader
from small_models import small_tensors, write_model

CPU = torch.device("cpu")
PROMPT = [1, 7, 30, 12]
DRAWN = SamplingParams(temperature=1.0, top_k=20, repetition_penalty=1.1, seed=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(write_model(tmp_path_factory.mktemp("side") / "dense"), CPU, torch.float32)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    tensors = small_tensors()
    for name in tensors:
        if "mlp" in name:
            tensors[name] = (tensors[name].float() * 1.2).half()
    return load_model(write_model(tmp_path_factory.mktemp("side") / "other", tensors), CPU, torch.float32)


def compared(first, second, length=40, sampling=DRAWN, ends=frozenset()):
    return list(compared_tokens(Reader(first, length), Reader(second, length), PROMPT, sampling, ends))


def test_each_token_has_the_divergence_that_the_evaluator_measures(model, other):
    steps = compared(model, other)
    text = torch.tensor([PROMPT + [step.token for step in steps]])
    [expected] = compare([other], model, text, lambda losses: None)
    start = len(PROMPT) - 1  # the evaluator measures from the second token on
    assert torch.allclose(
        torch.tensor([s.divergence for s in steps]).double(), expected.divergence[start:], atol=1e-6
    )
    assert [step.agrees for step in steps] == expected.agreement[start:].tolist()
    assert len(steps) == 36 and max(step.divergence for step in steps) > 0.001


def test_the_first_model_writes_as_it_does_alone(model, other):
    alone = list(generate_tokens(model, PROMPT, DRAWN, 36, ()))
    assert [step.token for step in compared(model, other)] == alone
    assert [step.token for step in compared(other, model)] != alone


def test_a_model_beside_itself_is_no_distance_away(model):
    steps = compared(model, model)
    assert all(step.divergence == 0 and step.agrees and step.scores[0] == step.scores[1] for step in steps)


def test_the_tables_hold_the_likeliest_tokens_and_the_one_that_came(model, other):
    for step in compared(model, other):
        for score in step.scores:
            assert len(score.top) == LIKELIEST
            assert [logprob for _, logprob in score.top] == sorted((lp for _, lp in score.top), reverse=True)
            assert dict(score.top).get(step.token, score.logprob) == score.logprob <= score.top[0][1]
        assert min(step.seconds) > 0


def test_it_ends_where_the_first_model_ends(model, other):
    whole = [step.token for step in compared(model, other)]
    end = whole[5]
    assert [step.token for step in compared(model, other, ends=frozenset({end}))] == whole[: whole.index(end)]


def test_models_of_different_vocabularies_are_refused(model, tmp_path):
    tensors = small_tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:60]
    smaller = load_model(write_model(tmp_path / "smaller", tensors, vocab_size=60), CPU, torch.float32)
    with pytest.raises(UsageError, match="61 and 60"):
        compared(model, smaller)
