"""Quantized linears on disk: bytes from the specification, and files that contradict themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.checkpoint.configuration import FileQuantization
from octavo.checkpoint.formats import decode_linear, encode_linear, linear_specs
from octavo.errors import CheckpointError
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight
from stored_linears import quantized, same


def file_of(scheme, layout="gptq", mixed=False):
    return FileQuantization(layout, scheme, mixed)


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
    for spec in linear_specs("p", (rows, columns), scheme, layout):
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
