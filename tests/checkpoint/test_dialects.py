"""Each dialect by bytes that are written out from its specification, and what of it is damaged or lost."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.checkpoint.configuration import FileQuantization
from octavo.checkpoint.dialects.gptq import wrapped_zeros
from octavo.checkpoint.formats import decode_linear, dense_half, encode_linear, linear_specs, why_not_stored
from octavo.checkpoint.packing import pack
from octavo.errors import CheckpointError
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight
from stored_linears import in_random_order, quantized, same


def words(rows):
    """int32 from numbers that are easier read without a sign."""
    return torch.tensor([[word - 2**32 if word >= 2**31 else word for word in row] for row in rows]).int()


def tensors_of(**parts):
    return {f"p.{suffix}": tensor for suffix, tensor in parts.items()}


def test_the_first_layout_of_march_2023():
    # W = scales * q - zeros: zeros are float, times the scale, one group per output
    tensors = tensors_of(
        qweight=words([[0x04030201, 0xFDFCFBFA]]),
        scales=torch.tensor([[0.5], [2.0]]),
        zeros=torch.tensor([[64.0], [256.0]]),
        bias=torch.zeros(2),
    )
    weight = decode_linear("p", tensors, (2, 4), FileQuantization("gptq", QuantScheme(8, None, False)))
    assert weight.codes.tolist() == [[1, 2, 3, 4], [250, 251, 252, 253]]
    assert weight.zeros.tolist() == [[128], [128]]
    assert weight.scales.tolist() == [[0.5], [2.0]] and weight.scales.dtype == torch.float16
    assert weight.group_of_column.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("zeros", "sentence"),
    [
        ([[64.2], [256.0]], "no whole multiples"),
        ([[float("nan")], [256.0]], "no whole multiples"),
        ([[64.0], [-2.0]], "outside 0 … 255"),
        ([[64.0, 64.0], [256.0, 256.0]], r"expected \[2, 1\]"),
    ],
)
def test_products_that_hold_no_zeros_are_refused(zeros, sentence):
    tensors = tensors_of(qweight=words([[1, 1]]), scales=torch.tensor([[0.5], [2.0]]), zeros=torch.tensor(zeros))
    with pytest.raises(CheckpointError, match=sentence):
        decode_linear("p", tensors, (2, 4), FileQuantization("gptq", QuantScheme(8, None, False)))


def test_the_second_layout_of_march_2023():
    # float32 scales, zeros minus one, and no g_idx: neighbouring columns share a group
    tensors = tensors_of(
        qweight=words([[0x04030201, 0xFDFCFBFA]]),
        qzeros=words([[0x7F00], [0xFE0F]]),
        scales=torch.tensor([[0.5, 2.0], [1.0, 1 / 3]]),
    )
    weight = decode_linear("p", tensors, (2, 4), FileQuantization("gptq", QuantScheme(8, 2, False)))
    assert weight.zeros.tolist() == [[1, 16], [128, 255]]
    assert weight.group_of_column.tolist() == [0, 0, 1, 1]
    assert weight.scales.tolist() == [[0.5, 1.0], [2.0, float(torch.tensor(1 / 3).half())]]
    ordered = FileQuantization("gptq", QuantScheme(8, 2, False), ordered=True)
    with pytest.raises(CheckpointError, match=r"p.g_idx is missing, and without it .* cannot be told apart"):
        decode_linear("p", tensors, (2, 4), ordered)


def test_awq_written_out():
    # eight outputs in a word: 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up
    tensors = tensors_of(
        qweight=words([[0x75316420], [0xFDB9ECA8]]),
        qzeros=words([[0x88888881]]),
        scales=torch.arange(1.0, 9.0).half()[None],
    )
    weight = decode_linear("p", tensors, (8, 2), FileQuantization("awq", QuantScheme(4, 128, False)))
    assert weight.codes.t().tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15]]
    assert weight.zeros.flatten().tolist() == [1, 8, 8, 8, 8, 8, 8, 8]
    assert weight.scales.flatten().tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    with pytest.raises(CheckpointError, match="is not the awq layout of a weight of 8 x 3"):
        decode_linear("p", tensors, (8, 3), FileQuantization("awq", QuantScheme(4, 128, False)))


# Three outputs, four inputs in two groups, 4 bits: signed numbers are stored moved up by 8.
COMPRESSED = QuantizedWeight(
    codes=torch.tensor([[0, 1, 2, 3], [8, 8, 8, 8], [15, 14, 13, 12]], dtype=torch.uint8),
    scales=torch.tensor([[0.5, 1.0], [2.0, 4.0], [8.0, 16.0]], dtype=torch.float16),
    zeros=torch.tensor([[0, 8], [15, 1], [7, 2]], dtype=torch.int16),
    group_of_column=torch.tensor([0, 0, 1, 1], dtype=torch.int32),
    scheme=QuantScheme(4, 2, False),
)


def test_compressed_tensors_written_out():
    tensors = encode_linear("p", COMPRESSED, "compressed-tensors")
    assert tensors["p.weight_packed"].tolist() == [[0x3210], [0x8888], [0xCDEF]]
    assert tensors["p.weight_scale"].tolist() == [[0.5, 1.0], [2.0, 4.0], [8.0, 16.0]]
    assert tensors["p.weight_shape"].tolist() == [3, 4] and tensors["p.weight_shape"].dtype == torch.int64
    assert tensors["p.weight_zero_point"].tolist() == [[0x7F0, 0x218]]  # packed along the outputs
    quantization = FileQuantization("compressed-tensors", COMPRESSED.scheme)
    assert same(decode_linear("p", tensors, (3, 4), quantization), COMPRESSED)


def test_compressed_tensors_with_an_index_of_columns_and_other_scales():
    tensors = encode_linear("p", COMPRESSED, "compressed-tensors")
    tensors["p.weight_scale"] = tensors["p.weight_scale"].to(torch.bfloat16)
    tensors["p.weight_g_idx"] = torch.tensor([1, 0, 1, 0], dtype=torch.int32)
    quantization = FileQuantization("compressed-tensors", COMPRESSED.scheme, ordered=True)
    weight = decode_linear("p", tensors, (3, 4), quantization)
    assert weight.group_of_column.tolist() == [1, 0, 1, 0]
    assert torch.equal(weight.scales, COMPRESSED.scales)
    tensors["p.weight_g_idx"] = torch.full((4,), -1, dtype=torch.int32)  # as the library leaves it where unused
    assert same(decode_linear("p", tensors, (3, 4), quantization), COMPRESSED)


@pytest.mark.parametrize(
    ("suffix", "damage", "sentence"),
    [
        ("weight_packed", lambda t: t[:, :0], "weight_packed of shape"),
        ("weight_packed", lambda t: t.float(), "expected torch.int32"),
        ("weight_shape", lambda t: t + 1, r"weight_shape is \[4, 5\]"),
        ("weight_scale", lambda t: t[:, :1], "with 1 groups is not the 4-bit-2g asymmetric"),
        ("weight_scale", lambda t: t * float("inf"), "scales do not fit"),
        ("weight_zero_point", lambda t: t[:, :1], "weight_zero_point does not fit"),
        ("weight_zero_point", None, "is not the 4-bit-2g asymmetric"),
        ("weight_scale", None, "weight_scale is missing"),
    ],
)
def test_damaged_compressed_tensors_are_named(suffix, damage, sentence):
    tensors = encode_linear("p", COMPRESSED, "compressed-tensors")
    stored = tensors.pop(f"p.{suffix}")
    if damage is not None:
        tensors[f"p.{suffix}"] = damage(stored)
    with pytest.raises(CheckpointError, match=sentence):
        decode_linear("p", tensors, (3, 4), FileQuantization("compressed-tensors", COMPRESSED.scheme))


@given(
    bits=st.sampled_from([4, 8]),
    group_size=st.sampled_from([None, 16, 50, 128]),
    symmetric=st.booleans(),
    rows=st.integers(1, 40),
    columns=st.integers(1, 172),
)
@settings(deadline=None)
def test_compressed_tensors_round_trip(bits, group_size, symmetric, rows, columns):
    scheme = QuantScheme(bits, group_size, symmetric)
    weight = quantized(rows, columns, scheme, smallest_zero=0)
    tensors = encode_linear("p", weight, "compressed-tensors")
    for spec in linear_specs("p", (rows, columns), scheme, "compressed-tensors"):
        assert (spec.dtype, spec.shape) == (tensors[spec.name].dtype, tuple(tensors[spec.name].shape))
    assert same(
        decode_linear("p", tensors, (rows, columns), FileQuantization("compressed-tensors", scheme)), weight
    )


def test_what_compressed_tensors_cannot_hold():
    with pytest.raises(CheckpointError, match="p has 3 bits"):
        encode_linear("p", quantized(2, 64, QuantScheme(3, 32, True)), "compressed-tensors")
    ordered = in_random_order(quantized(2, 64, QuantScheme(4, 32, True)))
    with pytest.raises(CheckpointError, match="order of activation"):
        encode_linear("p", ordered, "compressed-tensors")
    assert "not 3" in why_not_stored(QuantScheme(3, 32, True), "compressed-tensors", ordered=False)
    assert "act-order static" in why_not_stored(QuantScheme(4, 32, True), "compressed-tensors", ordered=True)
    assert why_not_stored(QuantScheme(4, 32, True), "compressed-tensors", ordered=False) is None
    assert why_not_stored(QuantScheme(3, 32, True), "gptq", ordered=True) is None


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([None, 16, 50]),
    rows=st.integers(1, 40),
    columns=st.integers(1, 120),
)
@settings(deadline=None)
def test_versions_1_and_2_of_the_same_weight_read_alike(bits, group_size, rows, columns):
    scheme = QuantScheme(bits, group_size, False)
    weight = in_random_order(quantized(rows, columns, scheme))
    first, second = (
        decode_linear("p", encode_linear("p", weight, version), (rows, columns), FileQuantization(version, scheme))
        for version in ("gptq", "gptq_v2")
    )
    assert same(first, second) and same(first, weight)


def test_a_false_claim_of_symmetry_is_not_believed():
    weight = quantized(8, 64, QuantScheme(8, 32, False))
    claimed = FileQuantization("gptq", QuantScheme(8, 32, True))
    assert same(decode_linear("p", encode_linear("p", weight, "gptq"), (8, 64), claimed), weight)


def packed_without_mask(zeros, bits):
    """As GPTQ-for-LLaMa packs 2, 4 and 8 bits: zeros minus one, as unsigned words, shifted and or-ed."""
    packed = [0] * -(-len(zeros) * bits // 32)
    for number, zero in enumerate(zeros):
        word, offset = divmod(number * bits, 32)
        packed[word] |= ((zero - 1) % 2**32 << offset) % 2**32
    return words([packed])


def decoded_zeros(zeros, bits, qzeros):
    tensors = encode_linear("p", quantized(len(zeros), 32, QuantScheme(bits, None, False)), "gptq")
    file = FileQuantization("gptq", QuantScheme(bits, None, False))
    weight = decode_linear("p", tensors | {"p.qzeros": qzeros}, (len(zeros), 32), file)
    return weight.zeros.flatten().tolist()


def test_a_zero_that_wrapped_is_repaired_where_nothing_was_overwritten():
    zeros = [128, 7, 128, 0, 5, 6, 7, 8]
    assert packed_without_mask(zeros, 8).tolist() == words([[0xFF7F067F, 0x07060504]]).tolist()
    assert decoded_zeros(zeros, 8, packed_without_mask(zeros, 8)) == zeros


def test_zeros_that_a_wrapped_one_overwrote_are_refused_with_their_number():
    zeros = [128, 0, 128, 128, 5, 6, 7, 8]
    assert packed_without_mask(zeros, 8).tolist() == words([[0xFFFFFF7F, 0x07060504]]).tolist()
    with pytest.raises(CheckpointError, match=r"p\.qzeros hold 2 zeros that a neighbour of 0"):
        decoded_zeros(zeros, 8, packed_without_mask(zeros, 8))


def test_a_packer_that_masked_lost_nothing():
    # one field with a sound one above it shows that this packer wrote no further than its field
    zeros = [0, 128, 0, 0, 5, 6, 7, 8]
    masked = pack((torch.tensor([zeros]) - 1) & 255, 8)
    assert decoded_zeros(zeros, 8, masked) == zeros


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    zeros=st.lists(st.integers(0, 255), min_size=1, max_size=70),
    masks=st.booleans(),
)
@settings(deadline=None)
def test_wrapped_zeros_are_true_or_counted(bits, zeros, masks):
    zeros = [zero % 2**bits for zero in zeros]
    fields = [(zero - 1) % 2**bits for zero in zeros]
    stored = list(fields)
    if not masks:  # each wrapped field sets the higher bits of its word
        for number, zero in enumerate(zeros):
            if zero == 0:
                for above in range(number + 1, len(zeros)):
                    if above * bits // 32 == number * bits // 32:
                        stored[above] |= 2 ** min(bits, 32 - above * bits % 32) - 1
    found = wrapped_zeros(torch.tensor([stored], dtype=torch.uint8), bits)
    if found.lost == 0:
        repaired = [0 if wrapped else field + 1 for wrapped, field in zip(found.fields[0], stored, strict=True)]
        assert repaired == zeros
    else:
        destroyed = sum(field != before for field, before in zip(stored, fields, strict=True))
        assert found.lost >= destroyed


def test_dense_half_is_the_equation():
    halves = dense_half("p", COMPRESSED)
    assert halves.dtype == torch.float16
    assert halves.tolist() == [[0.0, 0.5, -6.0, -5.0], [-14.0, -14.0, 28.0, 28.0], [64.0, 56.0, 176.0, 160.0]]
    large = QuantizedWeight(
        COMPRESSED.codes, COMPRESSED.scales * 1000, COMPRESSED.zeros, COMPRESSED.group_of_column, COMPRESSED.scheme
    )
    with pytest.raises(CheckpointError, match="p has weights beyond float16"):
        dense_half("p", large)
