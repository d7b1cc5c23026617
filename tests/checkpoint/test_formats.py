"""Quantized linears on disk: bytes from the specification, and files that contradict themselves."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.checkpoint.formats import (
    FileQuantization,
    decode_linear,
    encode_linear,
    linear_specs,
    quantization_config,
    read_quantization,
)
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.schemes import QuantScheme, SchemePlan, SchemeRule
from octavo.weights import QuantizedWeight, sequential_groups


def quantized(rows, columns, scheme, seed=0, smallest_zero=1):
    generator = torch.Generator().manual_seed(seed)
    groups = scheme.groups(columns)
    zeros = torch.randint(smallest_zero, 2**scheme.bits, (rows, groups), generator=generator)
    return QuantizedWeight(
        codes=torch.randint(0, 2**scheme.bits, (rows, columns), generator=generator).to(torch.uint8),
        scales=(torch.rand(rows, groups, generator=generator) + 0.01).to(torch.float16),
        zeros=(torch.full_like(zeros, scheme.middle) if scheme.symmetric else zeros).to(torch.int16),
        group_of_column=sequential_groups(columns, scheme.group_size),
        scheme=scheme,
    )


def file_of(scheme, layout="gptq", mixed=False):
    return FileQuantization(layout, scheme, mixed, lm_head=False)


def same(first, second):
    return first.scheme == second.scheme and all(
        torch.equal(getattr(first, name), getattr(second, name))
        for name in ("codes", "scales", "zeros", "group_of_column")
    )


# Two outputs, four inputs in two groups of two, 8 bits; by hand from the table of docs/formats.md.
BY_HAND = QuantizedWeight(
    codes=torch.tensor([[1, 2, 3, 4], [250, 251, 252, 253]], dtype=torch.uint8),
    scales=torch.tensor([[0.5, 1.0], [2.0, 4.0]], dtype=torch.float16),
    zeros=torch.tensor([[1, 128], [16, 255]], dtype=torch.int16),
    group_of_column=torch.tensor([0, 0, 1, 1], dtype=torch.int32),
    scheme=QuantScheme(8, 2, False),
)


@pytest.mark.parametrize(("layout", "zeros"), [("gptq", [[0x0F00], [0xFE7F]]), ("gptq_v2", [[0x1001], [0xFF80]])])
def test_tensors_written_out(layout, zeros):
    tensors = encode_linear("p", BY_HAND, layout)
    # the words of the two outputs stand side by side: qweight is [words, out_features]
    assert tensors["p.qweight"].tolist() == [[0x04030201, 0xFDFCFBFA - 2**32]]
    assert tensors["p.qzeros"].tolist() == zeros
    assert tensors["p.scales"].tolist() == [[0.5, 2.0], [1.0, 4.0]]
    assert tensors["p.scales"].dtype == torch.float16
    assert tensors["p.g_idx"].tolist() == [0, 0, 1, 1]
    assert same(decode_linear("p", tensors, (2, 4), file_of(BY_HAND.scheme, layout)), BY_HAND)


@pytest.mark.parametrize(
    ("bits", "layout", "word"),
    [(8, "gptq", 0x7F7F7F7F), (4, "gptq", 0x77777777), (8, "gptq_v2", 0x80808080), (4, "gptq_v2", 0x88888888)],
)
def test_symmetric_zeros_are_the_constants_that_engines_expect(bits, layout, word):
    tensors = encode_linear("p", quantized(32, 64, QuantScheme(bits, 32, True)), layout)
    assert set((tensors["p.qzeros"].long() & 0xFFFFFFFF).flatten().tolist()) == {word}


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([None, 16, 32, 50, 128]),
    symmetric=st.booleans(),
    layout=st.sampled_from(["gptq", "gptq_v2"]),
    rows=st.integers(1, 40),
    columns=st.integers(1, 172),
    shuffled=st.booleans(),
)
@settings(deadline=None)
def test_round_trip(bits, group_size, symmetric, layout, rows, columns, shuffled):
    scheme = QuantScheme(bits, group_size, symmetric)
    weight = quantized(rows, columns, scheme, smallest_zero=1 if layout == "gptq" else 0)
    if shuffled:
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(columns))
        weight = QuantizedWeight(weight.codes, weight.scales, weight.zeros, weight.group_of_column[order], scheme)
    tensors = encode_linear("p", weight, layout)
    for spec in linear_specs("p", (rows, columns), scheme):
        assert (spec.dtype, spec.shape) == (tensors[spec.name].dtype, tuple(tensors[spec.name].shape))
    assert same(decode_linear("p", tensors, (rows, columns), file_of(scheme, layout)), weight)


def test_version_1_cannot_store_a_zero_of_zero():
    weight = quantized(4, 8, QuantScheme(4, None, False), smallest_zero=0)
    weight.zeros[2] = 0
    with pytest.raises(CheckpointError, match="p has a zero point that the gptq layout cannot store"):
        encode_linear("p", weight, "gptq")
    encode_linear("p", weight, "gptq_v2")


@pytest.mark.parametrize(
    "override", [QuantScheme(4, 32, True), QuantScheme(8, None, True), QuantScheme(2, 64, True)]
)
def test_a_mixed_checkpoint_is_read_by_its_shapes(override):
    weight = quantized(8, 96, override)
    tensors = encode_linear("p", weight, "gptq")
    default = QuantScheme(8, 64, True)
    assert same(decode_linear("p", tensors, (8, 96), file_of(default, mixed=True)), weight)
    with pytest.raises(CheckpointError, match="is not the 8-bit-64g symmetric that the configuration declares"):
        decode_linear("p", tensors, (8, 96), file_of(default))


@pytest.mark.parametrize(
    ("suffix", "damage", "sentence"),
    [
        ("g_idx", lambda t: t.fill_(7), "points outside its 2 groups"),
        ("g_idx", lambda t: t.fill_(-1), "points outside its 2 groups"),
        ("g_idx", lambda t: t[:-1], r"g_idx has shape \[63\]"),
        ("scales", lambda t: t.fill_(float("nan")), "scales do not fit"),
        ("scales", lambda t: t[:, :-1], "scales do not fit"),
        ("qzeros", lambda t: t[:1], "qzeros do not fit"),
        ("qweight", lambda t: t[:-1], "qweight of shape"),
    ],
)
def test_contradictions_are_named(suffix, damage, sentence):
    scheme = QuantScheme(4, 32, True)
    tensors = encode_linear("p", quantized(8, 64, scheme), "gptq")
    tensors[f"p.{suffix}"] = damage(tensors[f"p.{suffix}"])
    with pytest.raises(CheckpointError, match=sentence):
        decode_linear("p", tensors, (8, 64), file_of(scheme))


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
    assert read_quantization(tmp_path) == FileQuantization("gptq", plan.default, mixed=True, lm_head=True)


@pytest.mark.parametrize(
    ("block", "error", "sentence"),
    [
        ({"quant_method": "awq", "bits": 4}, UnsupportedModelError, "'awq'"),
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
    assert read_quantization(tmp_path) == FileQuantization("gptq", QuantScheme(4, None, False), False, False)
