"""Configurations: what is read, and what is refused by name."""

import json

import pytest

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.model.config import RopeScaling, read_config

LLAMA_13B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "max_position_embeddings": 2048,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "rms_norm_eps": 1e-06,
    "vocab_size": 32000,
}


def config_of(folder, **changes):
    (folder / "config.json").write_text(json.dumps({**LLAMA_13B, **changes}))
    return read_config(folder)


def test_a_configuration_of_2023(tmp_path):
    config = config_of(tmp_path)
    assert (config.layers, config.heads, config.kv_heads, config.head_dim) == (40, 40, 40, 128)
    assert (config.rope_theta, config.rope_scaling) == (10000.0, RopeScaling(original_context=2048))
    assert not config.tied_embeddings and not config.attention_bias
    assert config.windows == (None,) * 40


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "'GPT2LMHeadModel'; Octavo runs LlamaForCausalLM"),
        ({"architectures": None}, "architecture None"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope type 'longrope'"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"partial_rotary_factor": 0.5}, "only part of each head"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "per layer type"),
    ],
)
def test_other_networks_are_refused_by_name(tmp_path, changes, sentence):
    with pytest.raises(UnsupportedModelError, match=sentence):
        config_of(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": "5120"}, "hidden_size in .* is '5120'"),
        ({"num_hidden_layers": True}, "num_hidden_layers in .* is True"),
        ({"num_hidden_layers": 2**60}, "num_hidden_layers"),
        ({"hidden_size": None}, "hidden_size in .* is None"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"num_key_value_heads": 7}, "does not divide"),
        ({"rope_scaling": [1]}, "rope_scaling in .* is no object"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_damaged_configurations_are_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        config_of(tmp_path, **changes)


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no config.json"):
        read_config(tmp_path)
    for text, sentence in (("{", "no valid JSON"), ("[]", "JSON list"), ("[" * 100_000, "no valid JSON")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=sentence):
            read_config(tmp_path)
