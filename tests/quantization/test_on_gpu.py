"""Products of halves against float64, on a CPU, where the same halves are multiplied in float32."""

import pytest
import torch

from octavo.quantization.on_gpu import add_gram, halves, linear_of_halves, streamed
from octavo.schemes import QuantScheme
from octavo.weights import DenseWeight, QuantizedWeight, dequantize, sequential_groups

CPU = torch.device("cpu")
ROUNDING = 2.0**-11  # of a number that becomes a half


def inputs(largest: float) -> torch.Tensor:
    """Rows of which one reaches far beyond what halves hold."""
    rows = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    rows[2] *= largest
    return rows


@pytest.mark.parametrize("each_row", [True, False])
def test_large_values_are_divided_by_powers_of_two(each_row):
    rows = inputs(1e7)
    rounded, factors = halves(rows, each_row=each_row)
    assert torch.equal(factors.log2(), factors.log2().round())
    assert bool((factors > 1).any())
    assert factors.shape == ((6, 1) if each_row else (1, 1))
    largest = rows.abs().amax(1, keepdim=True) if each_row else rows.abs().amax()
    assert bool(((rounded.float() * factors - rows).abs() <= ROUNDING * rows.abs() + 2**-38 * largest).all())
    unscaled, ones = halves(inputs(1.0), each_row=each_row)
    assert bool((ones == 1).all())
    assert torch.equal(unscaled, inputs(1.0).half())


def test_a_gram_matrix_of_halves_is_close_to_the_exact_one():
    total, rows = torch.full((64, 64), 3.0), inputs(1e6)
    add_gram(total, rows)
    exact = 3.0 + rows.double().t() @ rows.double()
    assert float((total - exact).norm() / exact.norm()) < ROUNDING


@pytest.mark.parametrize("quantized", [False, True])
def test_a_linear_of_halves_is_close_to_the_exact_one(quantized):
    generator = torch.Generator().manual_seed(1)
    exact = torch.randn(5, 64, generator=generator)
    weight = DenseWeight(exact)
    if quantized:
        codes = torch.randint(0, 256, (5, 64), generator=generator, dtype=torch.uint8)
        zeros = torch.full((5, 2), 128, dtype=torch.int16)
        scheme = QuantScheme(8, 32, True)
        weight = QuantizedWeight(codes, torch.full((5, 2), 0.01).half(), zeros, sequential_groups(64, 32), scheme)
        exact = dequantize(weight)
    bias, rows = torch.randn(5, generator=generator), inputs(1e6)
    got = linear_of_halves(weight, bias, CPU)(rows)
    expected = rows.double() @ exact.double().t() + bias
    assert bool(((got - expected).norm(dim=1) / expected.norm(dim=1) < 2 * ROUNDING).all())


def test_states_stay_where_they_are_on_a_cpu():
    states = [torch.zeros(2, 3)]
    with streamed(states, CPU) as here:
        assert here is states
