"""Bytes from a configuration alone: against the reference card's memory, and against real folders."""

import json
from pathlib import Path

import pytest

from octavo.evaluation.memory import baseline_size, predict, predict_2023, stored_size
from octavo.evaluation.subject import Subject
from octavo.model.config import LlamaConfig, read_config
from octavo.model.load import open_folder
from octavo.quantization.pipeline import Destination
from octavo.quantization.recipe import Recipe
from octavo.schemes import QuantScheme, SchemePlan, SchemeRule
from small_models import write_model

VICUNA_13B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
MEBIBYTE = 2**20
EIGHT = QuantScheme(8, 16, False)


@pytest.fixture
def vicuna(tmp_path: Path) -> LlamaConfig:
    (tmp_path / "config.json").write_text(json.dumps(VICUNA_13B))
    return read_config(tmp_path)


@pytest.mark.parametrize(("bits", "card", "here"), [(8, 14840.26171875, 14834.62), (4, 8670.26953125, 8647.35)])
def test_vicuna_takes_what_the_card_says(vicuna: LlamaConfig, bits: int, card: float, here: float) -> None:
    plan = SchemePlan(QuantScheme(bits, 128, False))
    predicted = predict_2023(vicuna, plan, 2048) / MEBIBYTE
    assert predicted == pytest.approx(card, rel=0.005)
    assert predicted == pytest.approx(here, abs=0.01)  # what docs/protocols.md says


def test_vicuna_by_part(vicuna: LlamaConfig) -> None:
    """Shapes of the card's own file: 40 layers of 5120 × 5120 four times, 5120 × 13824 three times."""
    footprint = predict(vicuna, SchemePlan(QuantScheme(8, 128, False)), 2048)
    weights = 40 * (4 * 5120 * 5120 + 3 * 5120 * 13824)
    assert footprint.parts["codes"] == weights
    assert footprint.parts["scales"] == weights // 128 * 2
    assert footprint.parts["zeros"] == weights // 128
    assert footprint.parts["group indices"] == 40 * (6 * 5120 + 13824) * 4
    assert footprint.parts["head"] == footprint.parts["embedding"] == 32000 * 5120 * 2
    assert footprint.parts["norms and biases"] == 81 * 5120 * 2
    assert footprint.parts["cache"] == 2 * 40 * 2048 * 5120 * 2
    assert footprint.total == sum(footprint.parts.values())
    dense = predict(vicuna, None, 1)
    assert dense.parts["dense weights"] == 2 * weights and "codes" not in dense.parts


@pytest.mark.parametrize("lm_head", [None, QuantScheme(4, 16, False)])
def test_weights_are_those_of_a_written_folder(tmp_path: Path, lm_head: QuantScheme | None) -> None:
    from octavo import quantize

    dense = write_model(tmp_path / "dense")
    plan = SchemePlan(EIGHT, (SchemeRule("layers.1.mlp.*", None),), lm_head)
    recipe = Recipe(plan, "rtn", "none", 0.01, "none")
    quantize(dense, Destination(tmp_path / "out"), recipe)
    folder = open_folder(tmp_path / "out")
    parts = predict(folder.config, plan, 5).parts
    cache, activations = parts.pop("cache"), parts.pop("activations")
    assert sum(parts.values()) == stored_size(folder).total
    assert cache == 2 * 3 * 5 * 24 * 2 and activations > 0


def test_sizes_of_folders_and_baselines(tmp_path: Path) -> None:
    folder = open_folder(write_model(tmp_path / "dense"))
    linears = 3 * (2 * 48 * 48 + 2 * 24 * 48 + 3 * 48 * 70)
    head, norms = 61 * 48, 7 * 48
    stored = stored_size(folder)
    assert stored.weights == linears + head
    assert stored.linears == 2 * (linears + head) and stored.bits_per_weight == 16
    assert stored.total == 2 * (linears + head + head + norms)
    assert stored.per_token == stored.total - 2 * head  # the embedding is read row by row
    eight = baseline_size(folder, Subject(folder.path, "llm.int8"))
    rows = 3 * (2 * 48 + 2 * 24 + 2 * 70 + 48)
    assert eight.linears == linears + 4 * rows + 2 * head
    assert stored.total - eight.total == stored.per_token - eight.per_token == linears - 4 * rows


def test_a_tied_embedding_is_read_for_every_token(tmp_path: Path) -> None:
    from small_models import small_tensors

    tensors = small_tensors()
    del tensors["lm_head.weight"]
    folder = open_folder(write_model(tmp_path, tensors, tie_word_embeddings=True))
    size = stored_size(folder)
    assert size.per_token == size.total == 2 * sum(tensor.numel() for tensor in tensors.values())
