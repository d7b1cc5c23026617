"""The covering cases cover: every pair of values of any two axes."""

import itertools

from covering import covering_cases, every_case, pairs_of


def test_every_pair_is_met_by_far_fewer_cases():
    axes = {"a": (1, 2, 3), "b": ("x", "y"), "c": (True, False), "d": (None, 1, 2, 3)}
    cases, whole = covering_cases(axes), every_case(axes)
    assert len(whole) == 48
    assert 12 <= len(cases) <= 16
    assert set.union(*map(pairs_of, cases)) == set.union(*map(pairs_of, whole))
    assert all(list(case) == list(axes) for case in cases)


def test_two_axes_are_their_product():
    assert len(covering_cases({"a": (1, 2), "b": (1, 2, 3)})) == len(list(itertools.product(range(2), range(3))))
