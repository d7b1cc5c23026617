"""Scores against transformers' own loss, and a model against itself."""

import math

import pytest
import torch

from octavo.errors import UsageError
from octavo.evaluation import scoring
from octavo.evaluation.metrics import perplexity
from octavo.evaluation.scoring import compare, score
from octavo.model.load import load_model
from small_models import small_tensors, write_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("scoring") / "dense")


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder, CPU, torch.float32)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    tensors = small_tensors()
    for name in tensors:
        if "mlp" in name:
            tensors[name] = (tensors[name].float() * 1.2).half()
    return load_model(write_model(tmp_path_factory.mktemp("scoring") / "other", tensors), CPU, torch.float32)


WINDOWS = torch.randint(0, 61, (4, 33), generator=torch.Generator().manual_seed(0))


def transformers_logits(folder):
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return network(WINDOWS).logits.double()


@pytest.mark.parametrize("rows_at_once", [256, 32, 10, 1])
def test_losses_are_those_of_transformers(folder, model, monkeypatch, rows_at_once):
    monkeypatch.setattr(scoring, "ROWS_AT_ONCE", rows_at_once)
    heard = []
    losses = score(model, WINDOWS, lambda losses: heard.append(len(losses)))
    logits = transformers_logits(folder)
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), WINDOWS[:, 1:], reduction="none"
    ).mean(1)
    assert losses == pytest.approx(expected.tolist(), abs=1e-5)
    assert heard == [1, 2, 3, 4]
    assert perplexity(losses).value == pytest.approx(math.exp(expected.mean()), rel=1e-5)


def test_a_comparison_is_its_definition(model, other):
    heard = []
    (comparison,) = compare([model], other, WINDOWS, lambda losses: heard.append(losses[-1]))
    assert comparison.losses == score(model, WINDOWS, heard.append)
    assert comparison.reference_losses == score(other, WINDOWS, heard.append)
    from octavo.model.kv_cache import make_cache, one_sequence
    from octavo.model.llama import forward

    divergences, agreements = [], []
    for window in WINDOWS:
        logits = [
            forward(
                each,
                one_sequence(window, 0, 33),
                make_cache(each.config, 1, 33, CPU, torch.float32),
                torch.arange(33),
            )[:32].double()
            for each in (other, model)
        ]
        probabilities = [each.softmax(1) for each in logits]
        divergences.append((probabilities[0] * (probabilities[0] / probabilities[1]).log()).sum(1))
        agreements.append(logits[0].argmax(1) == logits[1].argmax(1))
    assert torch.allclose(comparison.divergence, torch.cat(divergences), atol=1e-6)
    assert torch.equal(comparison.agreement, torch.cat(agreements))
    assert not comparison.agreement.all() and comparison.divergence.mean() > 1e-4


def test_a_model_against_itself_is_exactly_zero(model):
    (comparison,) = compare([model], model, WINDOWS, lambda losses: None)
    assert comparison.losses == comparison.reference_losses
    assert comparison.divergence.abs().max() == 0
    assert comparison.agreement.all()


def test_several_models_beside_one_reference_equal_each_alone(model, other):
    together = compare([model, other], other, WINDOWS, lambda losses: None)
    for each, got in zip((model, other), together, strict=True):
        (alone,) = compare([each], other, WINDOWS, lambda losses: None)
        assert got.losses == alone.losses and torch.equal(got.divergence, alone.divergence)


def test_tokens_beyond_the_vocabulary_are_refused(model):
    with pytest.raises(UsageError, match="beyond the model's vocabulary"):
        score(model, torch.full((1, 5), 61), lambda losses: None)


def test_other_vocabularies_are_refused(tmp_path, model):
    tensors = small_tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:60]
    fewer = load_model(write_model(tmp_path, tensors, vocab_size=60), CPU, torch.float32)
    with pytest.raises(UsageError, match="vocabularies of 61 and 60"):
        compare([model], fewer, WINDOWS.clamp(max=59), lambda losses: None)
