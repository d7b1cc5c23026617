"""Packed words, written out from the specification of the layouts (docs/formats.md)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.checkpoint.packing import pack, packed_width, unpack


def words(*values: int) -> torch.Tensor:
    """int32 words from their unsigned values."""
    return torch.tensor([value - 2**32 if value >= 2**31 else value for value in values], dtype=torch.int32)


def definition(codes: list[int], bits: int) -> list[int]:
    """The words of a run of codes: one long number, the first code in its lowest bits."""
    number = sum(code << (bits * place) for place, code in enumerate(codes))
    return [(number >> (32 * word)) & 0xFFFFFFFF for word in range(packed_width(len(codes), bits))]


@pytest.mark.parametrize(
    ("bits", "codes", "expected"),
    [
        (8, [1, 2, 3, 255], words(0xFF030201)),
        (8, [0x80, 0, 0x7F], words(0x007F0080)),
        (4, [1, 2, 3, 4, 5, 6, 7, 15], words(0xF7654321)),
        (4, [8] * 8 + [9], words(0x88888888, 0x00000009)),
        (2, [0, 1, 2, 3] * 4, words(0xE4E4E4E4)),
        # 3 bits: code 10 has its low two bits on top of word 0, code 21 its low bit on top of word 1
        (3, [0] * 10 + [0b101] + [0] * 21, words(0b01 << 30, 0b1, 0)),
        (3, [0] * 21 + [0b101] + [0] * 10, words(0, 0b1 << 31, 0b10)),
        (3, [7] * 32, words(0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)),
        (3, [1, 2, 3], words(0o321, 0, 0)),
    ],
)
def test_words_written_out(bits, codes, expected):
    assert torch.equal(pack(torch.tensor(codes), bits), expected)
    assert unpack(expected, bits, len(codes)).tolist() == codes


@given(bits=st.sampled_from([2, 3, 4, 8]), data=st.data())
def test_packing_is_its_definition_and_comes_back(bits, data):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1, max_size=100))
    packed = pack(torch.tensor(codes), bits)
    assert packed.tolist() == words(*definition(codes, bits)).tolist()
    assert unpack(packed, bits, len(codes)).tolist() == codes


@given(bits=st.sampled_from([2, 3, 4, 8]), rows=st.integers(1, 5), count=st.integers(1, 70))
def test_rows_are_packed_apart(bits, rows, count):
    codes = torch.randint(0, 2**bits, (rows, count), generator=torch.Generator().manual_seed(count))
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_width(count, bits))
    for row in range(rows):
        assert torch.equal(packed[row], pack(codes[row], bits))
