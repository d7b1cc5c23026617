"""The solver against its definition, and the grid against its promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import NumericalError
from octavo.kernels.solver import GridRule
from octavo.quantization.gptq import factor_hessian, output_error, round_to_nearest, solve
from octavo.quantization.grid import min_max_grid, round_to_codes, search_grid, shrinks
from octavo.quantization.recipe import Recipe
from octavo.schemes import QuantScheme, SchemePlan
from octavo.weights import QuantizedWeight, dequantize

DAMPING = 0.01


def correlated_inputs(tokens: int, columns: int, seed: int) -> torch.Tensor:
    """Inputs whose columns differ in size and depend on each other, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(tokens, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5
    sizes = torch.logspace(-1, 1, columns, dtype=torch.float64)[torch.randperm(columns, generator=generator)]
    return (sources + sources @ mixing) * sizes


def problem(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and a Hessian."""
    generator = torch.Generator().manual_seed(seed + 1)
    inputs = correlated_inputs(4 * columns, columns, seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 0.05
    return weight, inputs.t() @ inputs / len(inputs)


def recipe_of(scheme: QuantScheme, act_order: str, scale_search: str = "none") -> Recipe:
    return Recipe(SchemePlan(scheme), "gptq", act_order, DAMPING, scale_search)


def definition(weight, hessian, scheme, act_order, smallest_zero=0):
    """GPTQ as the paper states it: the Hessian of the remaining columns is inverted anew at each column."""
    rows, columns = weight.shape
    size = scheme.group_size or columns
    diagonal = hessian.diagonal()
    order = list(range(columns))
    if act_order != "none":
        order.sort(key=lambda column: -diagonal[column].item())
    damped = hessian + DAMPING * diagonal.mean() * torch.eye(columns, dtype=hessian.dtype)
    weight = weight.clone()
    original = weight.clone()
    codes = torch.zeros(rows, columns, dtype=torch.uint8)
    group_of_column = torch.zeros(columns, dtype=torch.int32)
    grids = {}
    for position, column in enumerate(order):
        remaining = order[position:]
        if act_order == "static":
            group = column // size
            members = range(group * size, min((group + 1) * size, columns))
            grids.setdefault(group, min_max_grid(original[:, list(members)], scheme, smallest_zero))
        else:
            group = position // size
            if position % size == 0:
                grids[group] = min_max_grid(weight[:, order[position : position + size]], scheme, smallest_zero)
        scale, zero = grids[group]
        inverse = torch.linalg.inv(damped[remaining][:, remaining])
        code = round_to_codes(weight[:, column], scale, zero, scheme)
        error = (weight[:, column] - scale * (code - zero)) / inverse[0, 0]
        weight[:, remaining] -= error[:, None] * inverse[0]
        codes[:, column] = code.to(torch.uint8)
        group_of_column[column] = group
    scales, zeros = (torch.stack([grids[group][part] for group in sorted(grids)], 1) for part in (0, 1))
    return QuantizedWeight(codes, scales.to(torch.float16), zeros.to(torch.int16), group_of_column, scheme)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [None, 32, 50, 128, 150])
@pytest.mark.parametrize("act_order", ["none", "group", "static"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns", "seed"),
    [
        (4, 160, 0),
        pytest.param(16, 300, 1, marks=pytest.mark.proof),
    ],
)
def test_the_solver_is_its_definition(bits, group_size, act_order, symmetric, rows, columns, seed):
    scheme = QuantScheme(bits, group_size, symmetric)
    weight, hessian = problem(rows, columns, seed)
    expected = definition(weight, hessian, scheme, act_order)
    factored = factor_hessian(hessian, DAMPING, act_order)
    solved = solve(weight, factored, scheme, recipe_of(scheme, act_order), smallest_zero=0)
    assert torch.equal(solved.codes, expected.codes)
    assert torch.equal(solved.scales, expected.scales)
    assert torch.equal(solved.zeros, expected.zeros)
    assert torch.equal(solved.group_of_column, expected.group_of_column)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("act_order", ["none", "group", "static"])
def test_it_beats_rounding_to_nearest(bits, symmetric, act_order):
    scheme = QuantScheme(bits, 64, symmetric)
    weight, hessian = problem(rows=32, columns=192)
    factored = factor_hessian(hessian, DAMPING, act_order)
    solved = solve(weight, factored, scheme, recipe_of(scheme, act_order, "hessian"), smallest_zero=0)
    nearest = round_to_nearest(weight, scheme, smallest_zero=0)
    assert output_error(weight, solved, hessian) < 0.7 * output_error(weight, nearest, hessian)


def test_output_error_is_the_mean_squared_change_of_the_output():
    inputs = correlated_inputs(300, 40, seed=3)
    weight = torch.randn(7, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    quantized = round_to_nearest(weight, QuantScheme(3, 16, True), smallest_zero=0)
    change = inputs @ (weight - dequantize(quantized, torch.float64)).t()
    by_definition = change.square().sum(1).mean().item()
    assert output_error(weight, quantized, inputs.t() @ inputs / len(inputs)) == pytest.approx(by_definition)


def test_damping_is_raised_until_the_hessian_can_be_factored_and_recorded():
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    singular = inputs.t() @ inputs
    singular[5, 5] -= 0.5  # rounding errors of long sums make a Hessian indefinite; here by hand
    factored = factor_hessian(singular, DAMPING, "none")
    assert factored.damping > DAMPING
    damped = singular + torch.diag((factored.damping * singular.diagonal().mean()).expand(64))
    assert torch.allclose(factored.factor.t() @ factored.factor @ damped, torch.eye(64), atol=1e-3)


def test_a_hopeless_hessian_is_refused():
    with pytest.raises(NumericalError, match="more calibration samples"):
        factor_hessian(torch.full((4, 4), float("nan")), DAMPING, "none")


@pytest.mark.parametrize("act_order", ["none", "group", "static"])
def test_columns_that_nothing_reaches_are_rounded_to_nearest(act_order):
    scheme = QuantScheme(8, None, True)
    weight, hessian = problem(rows=5, columns=32)
    hessian[3], hessian[:, 3] = 0, 0
    factored = factor_hessian(hessian, DAMPING, act_order)
    solved = solve(weight, factored, scheme, recipe_of(scheme, act_order), smallest_zero=0)
    off = (dequantize(solved, torch.float64)[:, 3] - weight[:, 3]).abs()
    assert (off <= solved.scales[:, 0].double() * 0.5001).all()
    assert weight[:, 3].abs().min() > 0


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    symmetric=st.booleans(),
    smallest_zero=st.sampled_from([0, 1]),
    exponent=st.integers(-9, 4),
    sign=st.sampled_from([-1, 0, 1]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200, deadline=None)
def test_grids_hold_their_promises(bits, symmetric, smallest_zero, exponent, sign, seed):
    scheme = QuantScheme(bits, None, symmetric)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 20, generator=generator, dtype=torch.float64) * 10.0**exponent
    values = values.abs() * sign if sign else values
    importance = torch.rand(20, generator=generator, dtype=torch.float64) + 0.01

    def error(grid):
        scale, zero = grid
        codes = round_to_codes(values, scale[:, None], zero[:, None], scheme)
        assert codes.min() >= 0 and codes.max() <= scheme.largest_code
        return ((scale[:, None] * (codes - zero[:, None]) - values) ** 2) @ importance

    plain = min_max_grid(values, scheme, smallest_zero)
    rule = GridRule(scheme, True, smallest_zero, shrinks(bits, "hessian"))
    searched = search_grid(values, importance, rule)
    for scale, zero in (plain, searched):
        assert torch.equal(scale.to(torch.float16).to(scale.dtype), scale)
        assert (scale >= 2.0**-14).all()
        assert (zero >= smallest_zero).all() and (zero <= scheme.largest_code).all()
        if symmetric:
            assert (zero == 2 ** (bits - 1)).all()
    assert (error(searched) <= error(plain)).all()


def test_a_group_without_negative_weights_keeps_its_highest_value():
    """GPTQ-for-LLaMa halves the scale of such a group when symmetric, and version 1 cannot store its zero."""
    values = torch.tensor([[0.0, 0.25, 0.5, 1.0]])
    scale, zero = min_max_grid(values, QuantScheme(4, None, True), smallest_zero=1)
    assert (scale.item(), zero.item()) == (pytest.approx(2 / 15, rel=1e-3), 8)
    scale, zero = min_max_grid(values, QuantScheme(2, None, False), smallest_zero=1)
    assert (scale.item(), zero.item()) == (0.5, 1)
    scale, zero = min_max_grid(values, QuantScheme(2, None, False), smallest_zero=0)
    assert (scale.item(), zero.item()) == (pytest.approx(1 / 3, rel=1e-3), 0)


def test_weights_beyond_fp16_scales_are_refused():
    with pytest.raises(NumericalError, match="too large for the fp16 scales"):
        min_max_grid(torch.tensor([[1e9, -1e9]]), QuantScheme(2, None, True), smallest_zero=0)


def test_rounding_to_nearest_written_out():
    weight = torch.tensor([[-1.0, -0.5, 0.25, 0.5, 3.0]])
    quantized = round_to_nearest(weight, QuantScheme(2, 4, False), smallest_zero=0)
    assert quantized.group_of_column.tolist() == [0, 0, 0, 0, 1]
    assert quantized.scales.tolist() == [[0.5, 1.0]]
    assert quantized.zeros.tolist() == [[2, 0]]
    assert quantized.codes.tolist() == [[0, 1, 2, 3, 3]]
