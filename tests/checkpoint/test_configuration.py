"""What configurations say of quantized linears: blocks written out, and what is refused."""

import json

import pytest

from octavo.checkpoint.configuration import FileQuantization, quantization_config, read_quantization
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.schemes import QuantScheme, SchemePlan, SchemeRule


def test_the_configuration_block_and_back(tmp_path):
    plan = SchemePlan(
        QuantScheme(4, 128, True),
        (SchemeRule("down_proj", QuantScheme(8, None, True)), SchemeRule("layers.0.*", None)),
        lm_head=QuantScheme(8, 128, True),
    )
    block = quantization_config(plan, "gptq", desc_act=False, meta={"quantizer": ["octavo:1"]})
    assert block == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "sym": True,
        "desc_act": False,
        "lm_head": True,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "dynamic": {
            r"+:(.*\.)?down_proj$": {"bits": 8, "group_size": -1, "sym": True},
            r"-:(.*\.)?layers\.0\..*$": {},
            "+:lm_head$": {"bits": 8, "group_size": 128, "sym": True},
        },
        "meta": {"quantizer": ["octavo:1"]},
    }
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": block}))
    assert read_quantization(tmp_path) == FileQuantization("gptq", plan.default, mixed=True)


@pytest.mark.parametrize(
    ("block", "error", "sentence"),
    [
        ({"quant_method": "exl3", "bits": 4}, UnsupportedModelError, "'exl3'"),
        ({"quant_method": ["gptq"]}, UnsupportedModelError, "Octavo reads gptq, awq"),
        ({"bits": 4, "group_size": 128, "checkpoint_format": "marlin"}, UnsupportedModelError, "'marlin'"),
        ({"bits": 5, "group_size": 128}, CheckpointError, "5 bits cannot be stored"),
        ({"bits": 4, "group_size": 0}, CheckpointError, "group size 0"),
        ({"bits": "4", "group_size": 128}, CheckpointError, "lacks usable bits"),
        ({"bits": True, "group_size": 128}, CheckpointError, "lacks usable bits"),
        ([], CheckpointError, "no object"),
    ],
)
def test_configurations_we_cannot_read_are_refused(tmp_path, block, error, sentence):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": block}))
    with pytest.raises(error, match=sentence):
        read_quantization(tmp_path)


def test_quantize_config_beside_a_config_without_one(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert read_quantization(tmp_path) is None
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": -1, "sym": false}')
    assert read_quantization(tmp_path) == FileQuantization("gptq", QuantScheme(4, None, False))


def test_the_block_of_compressed_tensors_and_back(tmp_path):
    plan = SchemePlan(
        QuantScheme(4, 128, True),
        (SchemeRule("down_proj", QuantScheme(8, None, False)), SchemeRule("layers.0.*", None)),
    )
    block = quantization_config(plan, "compressed-tensors", desc_act=False, meta={"quantizer": ["octavo:1"]})
    shared_keys = {"input_activations": None, "output_activations": None}
    assert block == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": 128,
                    "dynamic": False,
                    "actorder": None,
                },
                **shared_keys,
            },
            "group_1": {
                "targets": [r"re:(.*\.)?down_proj$"],
                "weights": {
                    "num_bits": 8,
                    "type": "int",
                    "symmetric": False,
                    "strategy": "channel",
                    "group_size": None,
                    "dynamic": False,
                    "actorder": None,
                },
                **shared_keys,
            },
        },
        "ignore": ["lm_head", r"re:(.*\.)?layers\.0\..*$"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": block}))
    assert read_quantization(tmp_path) == FileQuantization("compressed-tensors", plan.default, mixed=True)


def test_a_quantized_head_of_compressed_tensors():
    plan = SchemePlan(QuantScheme(4, 128, True), lm_head=QuantScheme(8, 128, True))
    block = quantization_config(plan, "compressed-tensors", desc_act=False, meta={})
    assert block["ignore"] == []
    assert block["config_groups"]["group_1"]["targets"] == ["lm_head"]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (
            {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "GEMM"},
            FileQuantization("awq", QuantScheme(4, 128, False)),
        ),
        (
            {"quant_method": "awq", "w_bit": 4, "q_group_size": 64},
            FileQuantization("awq", QuantScheme(4, 64, False)),
        ),
        (
            {"bits": 8, "group_size": 128, "desc_act": True, "sym": False, "damp_percent": 0.01},
            FileQuantization("gptq", QuantScheme(8, 128, False), ordered=True),
        ),
        ({"bits": 4, "group_size": -1}, FileQuantization("gptq", QuantScheme(4, None, True))),
    ],
)
def test_blocks_of_other_tools(tmp_path, block, expected):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": block}))
    assert read_quantization(tmp_path) == expected


def compressed(**changes):
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
    group = {"weights": {**weights, **changes.pop("weights", {})}, "input_activations": None, **changes}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}


@pytest.mark.parametrize(
    ("block", "error", "sentence"),
    [
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, UnsupportedModelError, "version 'gemv'"),
        (compressed(format="int-quantized"), UnsupportedModelError, "'int-quantized'"),
        (compressed(input_activations={"num_bits": 8}), UnsupportedModelError, "without quantized activations"),
        (compressed(weights={"type": "float"}), UnsupportedModelError, "type 'float'"),
        (compressed(weights={"num_bits": 3}), UnsupportedModelError, "has 3 bits by 'group'"),
        (compressed(weights={"strategy": "tensor"}), UnsupportedModelError, "by 'tensor'"),
        (compressed(weights={"group_size": None}), CheckpointError, "lacks usable bits, group_size"),
        ({"quant_method": "compressed-tensors"}, CheckpointError, "has no config_groups"),
        ({"bits": 4, "group_size": 128, "pack_dtype": "int8"}, UnsupportedModelError, "packs codes into 'int8'"),
        (
            {"bits": 4, "group_size": 128, "is_marlin_format": True},
            UnsupportedModelError,
            "reads gptq and gptq_v2",
        ),
    ],
)
def test_blocks_of_other_tools_that_are_refused(tmp_path, block, error, sentence):
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": block}))
    with pytest.raises(error, match=sentence):
        read_quantization(tmp_path)
