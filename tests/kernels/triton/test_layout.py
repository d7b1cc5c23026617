"""The packed layout, unpacked one slot at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.kernels.triton_gpu.layout import NONE, best_slots, pack, slots_of, why_not_packed, why_not_together
from octavo.schemes import QuantScheme
from octavo.weights import dequantize
from random_weights import column_groups, random_dense, random_quantized

CPU = torch.device("cpu")


def unpacked(weight, columns):
    """[outputs, columns], by the equation in the docstring of PackedWeight."""
    values = torch.zeros(weight.outputs, columns, dtype=torch.float64)
    half = weight.block // 2
    for slot in range(weight.slots):
        block, within = divmod(slot, weight.block)
        if weight.bits == 8:
            codes = weight.codes[: weight.outputs, slot].int()
        else:
            stored = weight.codes[: weight.outputs, block * half + within % half].int()
            codes = stored >> 4 if within >= half else stored & 15
        zeros = weight.zero if weight.zeros is None else weight.zeros[block, : weight.outputs].double()
        column = slot if weight.column_of_slot is None else int(weight.column_of_slot[slot])
        if column != NONE:
            values[:, column] = weight.scales[block, : weight.outputs].double() * (codes - zeros)
    return values


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    outputs=st.integers(1, 9),
    columns=st.integers(1, 300),
    group_size=st.sampled_from([16, 32, 48, 64, 128, None]),
    symmetric=st.booleans(),
    act_order=st.booleans(),
    seed=st.integers(0, 9),
)
def test_packed_weights_hold_every_value(bits, outputs, columns, group_size, symmetric, act_order, seed):
    torch.manual_seed(seed)
    groups = column_groups(columns, group_size, act_order)
    weight = random_quantized(outputs, groups, QuantScheme(bits, group_size, symmetric))
    packed = pack([weight], CPU, torch.float16)
    assert torch.equal(unpacked(packed, columns), dequantize(weight, torch.float64))
    assert packed.bits == (8 if bits == 8 else 4)
    assert len(packed.codes) % 128 == 0
    if symmetric:
        assert packed.zeros is None


def test_slots_of_a_ragged_act_order():
    groups = torch.tensor([1, 0, 1, 1, 0, 1])
    slots = slots_of(groups, 4)
    assert slots.column_of_slot.tolist() == [1, 4, NONE, NONE, 0, 2, 3, 5]
    assert slots.group_of_block.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("columns", "group_size", "block", "slots"),
    [
        (5120, 128, 128, 5120),
        (13824, None, 128, 13824),
        (576, 128, 128, 640),  # a ragged last group: 64 columns of padding are less than a ninth
        (200, 128, 32, 224),
        (4096, 64, 64, 4096),
        (4096, 32, 32, 4096),
        (100, 10, 32, 320),
    ],
)
def test_the_widest_block_that_pads_little(columns, group_size, block, slots):
    found = best_slots(column_groups(columns, group_size, False))
    assert (found.block, len(found.column_of_slot)) == (block, slots)


def test_linears_of_different_bits_share_bytes():
    torch.manual_seed(0)
    groups = column_groups(96, 32, True)
    four, eight = (random_quantized(3, groups, QuantScheme(bits, 32, True)) for bits in (4, 8))
    packed = pack([four, eight], CPU, torch.float16, torch.tensor([4, NONE, 0]))
    values = torch.cat((dequantize(four, torch.float64), dequantize(eight, torch.float64)))
    expected = torch.stack((values[4], torch.zeros(96), values[0]))
    assert torch.equal(unpacked(packed, 96), expected)
    assert packed.bits == 8


def test_dense_values_are_padded_to_blocks():
    dense = random_dense(5, 40)
    packed = pack([dense], CPU, torch.float16, torch.tensor([4, NONE, 0]))
    assert packed.codes.shape == (128, 64)
    assert torch.equal(
        packed.codes[:3, :40].float(), torch.stack((dense.values[4], torch.zeros(40), dense.values[0]))
    )
    assert packed.codes[3:].abs().sum() == packed.codes[:, 40:].abs().sum() == 0
    assert packed.column_of_slot.tolist() == [*range(40), *[NONE] * 24]


def test_what_cannot_be_one_matrix_says_why():
    torch.manual_seed(0)
    scheme = QuantScheme(4, 32, True)
    one = random_quantized(3, column_groups(96, 32, False), scheme)
    other = random_quantized(3, column_groups(96, 32, True), scheme)
    assert why_not_together([one, one]) is None
    assert why_not_together([one, other]) == "their columns are grouped in different ways"
    assert why_not_together([one, random_dense(3, 96)]) == "some are dense and some quantized"


def test_groups_too_small_are_left_to_others():
    tiny = random_quantized(3, column_groups(100, 10, False), QuantScheme(4, 10, True))
    assert why_not_packed(tiny) == (
        "its groups are so small that 100 columns would be padded to 320; groups of 32 columns or more fit"
    )
    assert why_not_packed(random_quantized(3, column_groups(100, 25, False), QuantScheme(4, 25, True))) is None
