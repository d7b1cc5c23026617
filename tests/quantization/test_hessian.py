"""Sums of x^T x: against float64, and the same to the last bit however the windows are shared out."""

import pytest
import torch

from octavo.errors import NumericalError
from octavo.quantization.crew import dealt
from octavo.quantization.hessian import PartialSum, append, mean_of, partial_sums


def windows(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(4 + number % 3, 24, generator=generator) for number in range(count)]


def summed_by(processes: int, inputs: list[torch.Tensor]) -> list[PartialSum]:
    """What the first of so many processes holds in the end."""
    joined: list[PartialSum] = []
    rest = iter(inputs)
    for runs in dealt(len(inputs), processes):
        own = [next(rest) for run in runs for _ in range(run.windows)]
        for part in partial_sums(own, runs):
            append(joined, part)
    return joined


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 21])
def test_any_number_of_processes_sums_the_same(count):
    inputs = windows(count)
    alone = mean_of(summed_by(1, inputs), "query")
    for processes in range(2, min(count, 8) + 1):
        assert torch.equal(mean_of(summed_by(processes, inputs), "query"), alone), processes


def test_the_mean_is_that_of_all_tokens():
    inputs = windows(11)
    exact = torch.cat(inputs).double()
    got = mean_of(summed_by(3, inputs), "query")
    assert float((got - exact.t() @ exact / len(exact)).norm() / got.norm()) < 2e-4  # inputs of 13 bits
    assert torch.equal(got, got.t())


def test_neighbours_become_one_as_soon_as_they_are_halves_of_one():
    def places(sums: list[PartialSum]) -> list[tuple[int, int, int]]:
        return [(part.level, part.index, part.tokens) for part in sums]

    sums: list[PartialSum] = []
    found = []
    for number in range(6):
        append(sums, PartialSum(0, number, 10, torch.zeros(2, 2)))
        found.append(places(sums))
    assert found == [
        [(0, 0, 10)],
        [(1, 0, 20)],
        [(1, 0, 20), (0, 2, 10)],
        [(2, 0, 40)],
        [(2, 0, 40), (0, 4, 10)],
        [(2, 0, 40), (1, 2, 20)],
    ]
    # The second of two processes begins in the middle of a pair, which only the first can join.
    second: list[PartialSum] = []
    for number in range(3, 6):
        append(second, PartialSum(0, number, 10, torch.zeros(2, 2)))
    assert places(second) == [(0, 3, 10), (1, 2, 20)]


def test_what_is_not_finite_is_named():
    inputs = windows(3)
    inputs[1][2, 5] = float("inf")
    with pytest.raises(NumericalError, match="the inputs of query and key hold NaN or Inf"):
        mean_of(summed_by(1, inputs), "query and key")
