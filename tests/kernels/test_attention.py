"""Keys and values in 8 bits: what a code is, and what attention over codes sees."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.kernels import attention
from octavo.kernels.attention import (
    CodedHeads,
    SequencePages,
    cached_attention,
    encode_heads,
    read_cache,
    write_cache,
)

EVERY_SLOT = slice(None)


def decoded(coded, dtype=torch.float32):
    return read_cache(coded, EVERY_SLOT, dtype)


def test_codes_are_written_out():
    rows = torch.tensor([[[254.0, -127.0, 3.0, 1.0, 5.0, -3.0], [0.0] * 6]])  # 1.5, 0.5 and 2.5 are halves
    coded = encode_heads(rows)
    assert coded.codes.tolist() == [[[127, -64, 2, 0, 2, -2], [0] * 6]]
    assert coded.scales[0, 0] == 2 and coded.scales[0, 1] == torch.finfo(torch.float32).smallest_normal
    assert decoded(coded).tolist() == [[[254, -128, 4, 0, 4, -4], [0] * 6]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_head_that_holds_no_number_is_none_and_its_neighbours_are(bad):
    rows = torch.tensor([[[1.0, bad, 0.5], [1.0, 2.0, 3.0]]])
    found = decoded(encode_heads(rows))
    assert not found[0, 0].isfinite().any()
    assert found[0, 1].isfinite().all()


@settings(deadline=None)
@given(st.integers(0, 2**31), st.floats(-44, 37), st.sampled_from([torch.float16, torch.float32, torch.float64]))
def test_a_number_is_off_by_half_a_step_at_most(seed, exponent, dtype):
    """From the smallest denormal numbers to the largest of float32."""
    rows = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(seed)).double() * 10**exponent
    rows = rows.to(dtype)
    coded = encode_heads(rows)
    if not rows.float().isfinite().all():
        return
    steps = coded.scales.double()[..., None]
    assert ((decoded(coded, torch.float64) - rows.double()).abs() <= 0.50001 * steps).all()
    assert coded.codes.abs().max() <= 127


@pytest.mark.parametrize("rows", [1, 3])
def test_attention_over_codes_is_that_over_what_they_stand_for(monkeypatch, rows):
    generator = torch.Generator().manual_seed(rows)
    past = [torch.randn(16, 2, 4, generator=generator) for _ in range(2)]
    caches = [encode_heads(each) for each in past]
    new = [torch.randn(rows, 2, 4, generator=generator) for _ in range(2)]
    slots = torch.tensor([3, 8, 9])[:rows]  # the positions 7, 8 and 9 of pages 1, 0 and 2
    for cache, each in zip(caches, new, strict=True):
        write_cache(cache, each, slots)
        assert torch.equal(cache.codes[slots], encode_heads(each).codes)
        assert torch.equal(cache.scales[slots], encode_heads(each).scales)
    pages = SequencePages(
        torch.tensor([7 + rows]), torch.tensor([0, rows]), torch.tensor([[1, 0, 2]]), 4, rows, longest=7 + rows
    )
    queries = torch.randn(rows, 6, 4, generator=generator)
    found = cached_attention(queries, *caches, pages)
    assert torch.equal(found, cached_attention(queries, *map(decoded, caches), pages))
    if rows == 1:  # as it is computed where no length may be read
        monkeypatch.setattr(attention, "_host_may_read", lambda tensor: False)
        assert torch.allclose(found, cached_attention(queries, *caches, pages), atol=1e-6)


def test_a_cache_of_codes_gives_numbers_of_the_dtype_that_is_computed_in():
    coded = CodedHeads(torch.tensor([[[127, -1]]], dtype=torch.int8), torch.tensor([[0.5]]))
    assert decoded(coded, torch.float16).dtype == torch.float16
    assert decoded(coded, torch.float16).tolist() == [[[63.5, -0.5]]]
