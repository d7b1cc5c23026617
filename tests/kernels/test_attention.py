"""Keys and values in 8 bits: what a code is, and what attention over codes sees."""

import itertools
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


batches = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), min_size=2, max_size=8)


@settings(deadline=None)
@given(batches, st.sampled_from([None, 1, 7]), st.booleans(), st.integers(0, 2**31))
def test_sequences_that_attend_together_see_what_each_sees_alone(batch, window, coded, seed):
    """As on a GPU; what no sequence of the batch owns holds no numbers."""
    generator = torch.Generator().manual_seed(seed)
    rows, lengths = [new for new, _ in batch], [max(new + past, 1) for new, past in batch]
    page_size, pages_each = 4, 10
    table = torch.randperm(len(batch) * pages_each, generator=generator).view(len(batch), pages_each)
    owned = [
        int(page) * page_size + position % page_size
        for pages, length in zip(table, lengths, strict=True)
        for position in range(length)
        for page in [pages[position // page_size]]
    ]
    caches = [torch.full((table.numel() * page_size, 2, 4), math.nan) for _ in range(2)]
    for cache in caches:
        cache[owned] = torch.randn(len(owned), 2, 4, generator=generator)
    keys, values = map(encode_heads, caches) if coded else caches
    starts = torch.tensor([0, *itertools.accumulate(rows)])
    pages = SequencePages(torch.tensor(lengths), starts, table, page_size, max(rows), max(lengths))
    queries = torch.randn(sum(rows), 6, 4, generator=generator)
    expected = cached_attention(queries, keys, values, pages, window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_host_may_read", lambda tensor: False)
        patch.setattr(attention, "_newest_attention", attention._attention_together)
        found = cached_attention(queries, keys, values, pages, window)
    assert found.isfinite().all() and torch.allclose(found, expected, atol=1e-5)


@given(batches)
def test_those_that_attend_together_are_mostly_themselves(batch):
    rows, lengths = [new for new, _ in batch], [new + past for new, past in batch]
    groups = attention._alike(rows, lengths)
    assert sorted(itertools.chain(*groups)) == [each for each, count in enumerate(rows) if count]
    for group in groups:
        longest, most = max(lengths[each] for each in group), max(rows[each] for each in group)
        assert len(group) * longest * most <= 2 * sum(lengths[each] * rows[each] for each in group)


def test_sequences_alike_are_one_call_and_long_ones_are_not_copied_at_once():
    assert attention._alike([4] * 64, [100] * 64) == [list(range(64))]
    assert attention._alike([4, 0, 250, 4], [8, 9, 1000, 8]) == [[0, 3], [2]]
    assert [len(group) for group in attention._alike([4] * 32, [4096] * 32)] == [16, 16]
