"""The native solver against its definitions: equal codes, at every instruction set and thread count."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.kernels import solver
from octavo.kernels.solver import GridRule
from octavo.quantization import columns as definition
from octavo.quantization.grid import round_to_codes, shrinks
from octavo.schemes import QuantScheme

native = pytest.importorskip("octavo.kernels._native")
CPU = torch.device("cpu")


def problem(rows, columns, seed):
    """A weight, an upper factor with a positive diagonal, an order and the importance of columns."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    factor = torch.randn(columns, columns, generator=generator).triu(1) * 0.2
    factor += torch.diag(torch.rand(columns, generator=generator) + 0.5)
    importance = torch.rand(columns, generator=generator) + 0.01
    order = torch.argsort(importance, descending=True)
    return weight, factor, order, importance


def rule_of(bits, group_size, symmetric, static_groups, search="hessian", smallest_zero=0):
    scheme = QuantScheme(bits, group_size, symmetric)
    return GridRule(scheme, static_groups, smallest_zero, shrinks(bits, search))


def column_by_column(weight, factor, order, importance, rule):
    """Each error moves every later column at once; grids come from the definition, so none are searched here."""
    scheme, columns = rule.scheme, weight.shape[1]
    size = scheme.group_size or columns
    remaining, solved = weight[:, order].clone(), torch.empty_like(weight, dtype=torch.uint8)
    scales = torch.empty(len(weight), scheme.groups(columns))
    zeros = torch.empty_like(scales)
    if rule.static_groups:
        for group in range(scheme.groups(columns)):
            members = slice(group * size, (group + 1) * size)
            scales[:, group], zeros[:, group] = definition.search_grid(
                weight[:, members], importance[members], rule
            )
    for position, column in enumerate(order.tolist()):
        group = (column if rule.static_groups else position) // size
        if not rule.static_groups and position % size == 0:
            members = slice(position, position + size)
            scales[:, group], zeros[:, group] = definition.search_grid(
                remaining[:, members], importance[order[members]], rule
            )
        scale, zero = scales[:, group], zeros[:, group]
        code = round_to_codes(remaining[:, position], scale, zero, scheme)
        error = (remaining[:, position] - (code - zero) * scale) / factor[position, position]
        remaining[:, position + 1 :] -= error[:, None] * factor[position, position + 1 :]
        solved[:, column] = code.to(torch.uint8)
    return solved, scales, zeros


def assert_same(found, expected):
    for name, one, other in zip(("codes", "scales", "zeros"), found, expected, strict=True):
        assert torch.equal(one, other), f"{name} differ in {int((one != other).sum())} places"


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([None, 1, 16, 50, 128]),
    symmetric=st.booleans(),
    static_groups=st.booleans(),
    search=st.sampled_from(["hessian", "none"]),
    smallest_zero=st.sampled_from([0, 1]),
    rows=st.integers(1, 70),
    columns=st.integers(1, 128),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_codes_are_those_of_the_definition(
    bits, group_size, symmetric, static_groups, search, smallest_zero, rows, columns, seed
):
    """Within one block of columns the definition runs in the order that the native solver keeps throughout."""
    rule = rule_of(bits, group_size, symmetric, static_groups, search, smallest_zero)
    parts = problem(rows, columns, seed)
    assert_same(solver.solve_columns(*parts, rule), definition.solve_columns(*parts, rule))


@pytest.mark.parametrize("group_size", [None, 48, 128, 200])
@pytest.mark.parametrize("static_groups", [True, False])
def test_blocks_of_columns_change_no_bit(group_size, static_groups):
    rule = rule_of(4, group_size, False, static_groups)
    parts = problem(9, 333, seed=1)
    assert_same(solver.solve_columns(*parts, rule), column_by_column(*parts, rule))


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("static_groups", [True, False])
def test_every_instruction_set_and_thread_count_gives_the_same_bits(isa, threads, static_groups):
    rule = rule_of(8, 64, False, static_groups)
    weight, factor, order, importance = problem(150, 203, seed=2)
    codes = torch.zeros(150, 203, dtype=torch.uint8)
    scales, zeros = torch.zeros(150, 4), torch.zeros(150, 4)
    native_rule = native.GridRule(64, static_groups, False, 8, 0, rule.shrinks)
    hessian = native.Hessian(factor, importance, order)
    native.solve_columns(weight, hessian, native_rule, codes, scales, zeros, native.Pool(threads), isa)
    assert_same((codes, scales, zeros), solver.solve_columns(weight, factor, order, importance, rule))


def test_a_scale_beyond_fp16_is_handed_back():
    weight, factor, order, importance = problem(2, 8, seed=3)
    weight[1, 3] = 1e9
    _, scales, _ = solver.solve_columns(weight, factor, order, importance, rule_of(2, None, True, True))
    assert scales[0].isfinite().all() and scales[1].item() > 65504


def test_matrices_that_do_not_fit_are_refused():
    weight, factor, order, importance = problem(2, 8, seed=4)
    codes, scales, zeros = torch.empty(2, 8, dtype=torch.uint8), torch.empty(2, 2), torch.empty(2, 2)
    rule = native.GridRule(4, True, True, 8, 0, [1.0])
    with pytest.raises(ValueError, match="differ in shape"):
        native.solve_columns(
            weight[:, :7].contiguous(), native.Hessian(factor, importance, order), rule, codes, scales, zeros
        )
    with pytest.raises(ValueError, match="a column that does not exist"):
        native.solve_columns(weight, native.Hessian(factor, importance, order + 1), rule, codes, scales, zeros)
    with pytest.raises(ValueError, match="differ in columns"):
        native.add_gram(torch.zeros(7, 7), weight)


def rounded_columns(inputs):
    """Each column of a chunk of tokens as whole numbers of at most 4095, and what they are to be multiplied by."""
    largest = inputs.abs().amax(0)
    vanishing = largest < 2.0**-100
    factors = torch.where(vanishing, 0.0, torch.tensor(4095.0) / largest)  # a number / tensor would round twice
    codes = (inputs * factors).round()
    return codes.long(), torch.where(vanishing, 0.0, largest / 4095)


def gram_of_chunks(inputs):
    """The definition: products of whole numbers, scaled and added chunk by chunk in float32, each rounded once."""
    total = np.zeros((inputs.shape[1], inputs.shape[1]), np.float32)
    for chunk in inputs.split(128) if len(inputs) else ():
        codes, scales = rounded_columns(chunk)
        products = (codes.t() @ codes).float().numpy()
        # Longer floats hold each product whole, so that this rounds once, as a fused multiply-add does.
        scaled = (scales[:, None] * scales).numpy().astype(np.longdouble) * products
        total = (scaled + total).astype(np.float32)
    return torch.from_numpy(total)


@given(tokens=st.integers(0, 300), columns=st.integers(1, 200), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_the_gram_matrix_is_that_of_rounded_columns(tokens, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, columns, generator=generator) * torch.randn(columns, generator=generator).exp()
    before = torch.randn(columns, columns, generator=generator)
    total = (before + before.t()).contiguous()
    expected = total + gram_of_chunks(inputs)
    solver.add_gram(total, inputs)
    solver.mirror(total)
    assert torch.equal(total, expected)


@pytest.mark.parametrize(("outlier", "most"), [(1, 4e-4), (20, 1e-3)])
def test_rounded_columns_are_closer_than_bfloat16(outlier, most):
    """As vectors over the tokens of a chunk, of which one is so many times as large as the others."""
    inputs = torch.randn(128, 400, generator=torch.Generator().manual_seed(0))
    inputs[17] *= outlier

    def distances(rounded):
        return (rounded - inputs).norm(dim=0) / inputs.norm(dim=0)

    codes, scales = rounded_columns(inputs)
    assert distances(codes * scales).max() < most
    assert distances(codes * scales).mean() < distances(inputs.bfloat16().float()).mean() / 2


def test_the_largest_columns_overflow_nowhere():
    """Every product of a chunk is the largest that there is, and of one sign."""
    inputs = torch.full((2048, 70), 3.0)
    total = torch.zeros(70, 70)
    solver.add_gram(total, inputs)
    solver.mirror(total)
    torch.testing.assert_close(total, torch.full((70, 70), 2048 * 9.0), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_columns_that_are_not_finite_say_so(value):
    inputs = torch.ones(130, 70)
    inputs[3, 66] = value
    total = torch.zeros(70, 70)
    solver.add_gram(total, inputs)
    solver.mirror(total)
    assert total[66].isnan().all() and total[:, 66].isnan().all()
    assert total.isfinite().sum() == 69 * 69


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gram_matrices_are_the_same_everywhere(isa, threads):
    inputs = torch.randn(200, 150, generator=torch.Generator().manual_seed(0))
    total, expected = torch.zeros(150, 150), torch.zeros(150, 150)
    solver.add_gram(expected, inputs)
    native.add_gram(total, inputs, native.Pool(threads), isa)
    assert torch.equal(total.triu(), expected.triu())


def test_it_says_what_it_does_not_solve():
    assert solver.why_not(CPU, torch.float32) is None
    for device, dtype in ((CPU, torch.float64), (torch.device("meta"), torch.float32)):
        assert solver.why_not(device, dtype) == "it solves in float32, on CPUs only"
