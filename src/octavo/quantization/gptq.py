"""GPTQ: codes that keep a linear's output, one column after another (https://arxiv.org/abs/2210.17323).

Rounding column i of W leaves an error; the columns not yet rounded are moved to make up for it, in the way that
the inverse Hessian says is best. With H^-1 = R^T R, R upper triangular, row i of R holds just the factors that
the definition, inverting the Hessian of the remaining columns anew each time, would give. The slow definition is
in the tests.

Two departures from GPTQ-for-LLaMa, both knowing: later groups inside a block take their scales from the
*updated* weights, and columns that no activation reaches are rounded, not zeroed.
"""

from dataclasses import dataclass
from types import ModuleType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from octavo.errors import NumericalError
from octavo.kernels import solver as native
from octavo.kernels.cuda import solver as cuda
from octavo.kernels.solver import GridRule
from octavo.quantization import columns
from octavo.quantization.grid import min_max_grid, refuse_large, round_to_codes, shrinks
from octavo.quantization.recipe import ActOrder, Recipe
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight, dequantize, sequential_groups

SOLVER_VERSION = 3  # raised whenever the same inputs would give other codes
LARGEST_DAMPING = 10.0
DIRECT_INVERSE = 128  # columns of a triangle that is inverted in one go

SOLVERS: tuple[ModuleType, ...] = (cuda, native)  # in order of preference, before the definition

Matrix = Float[Tensor, "in_features in_features"]


@dataclass(frozen=True)
class FactoredHessian:
    """A Hessian made ready for solving; linears with the same input share it.

    `order` is the order of solving, `factor` the upper R with (H + damping)^-1 = R^T R in that order, `damping`
    the fraction that made H positive definite.
    """

    hessian: Matrix
    order: Int[Tensor, " in_features"]
    factor: Matrix
    damping: float


def factor_hessian(hessian: Matrix, damping: float, act_order: ActOrder) -> FactoredHessian:
    """Order and factor a Hessian; the damping is raised tenfold as often as the factorization needs."""
    diagonal = hessian.diagonal()
    unreached = diagonal == 0
    if act_order == "none":
        order = torch.arange(len(diagonal), device=hessian.device)
    else:
        order = torch.argsort(diagonal, descending=True, stable=True)
    mean = diagonal.mean().clamp(min=torch.finfo(hessian.dtype).tiny)
    while damping <= LARGEST_DAMPING:
        factor = _inverse_factor(hessian, damping * mean + unreached, order)
        if factor is not None:
            return FactoredHessian(hessian, order, factor, damping)
        damping *= 10
    raise NumericalError(
        f"the Hessian cannot be factored even with damping {LARGEST_DAMPING}; use more calibration samples"
    )


def _inverse_factor(
    hessian: Matrix, added: Float[Tensor, " in_features"], order: Int[Tensor, " in_features"]
) -> Matrix | None:
    """The upper R with (H + diag(added))^-1 = R^T R in a given order; None where that is not positive definite.

    Read backwards, H = U U^T with U upper is a Cholesky factorization, and R is the inverse of U. So one
    factorization and one triangular inverse do, where three factorizations are usual.
    """
    backwards = order.flip(0)
    matrix = hessian[backwards][:, backwards]
    matrix.diagonal().add_(added[backwards])
    lower, failed = torch.linalg.cholesky_ex(matrix)
    del matrix  # at 13,824 columns each of these takes 764 MB
    # A row that holds NaN or Inf has it on the diagonal, too, which is made of the whole row.
    if failed or not torch.isfinite(lower.diagonal()).all():
        return None
    return _inverse_of_lower(lower).flip(0, 1)


def _inverse_of_lower(lower: Matrix) -> Matrix:
    """The inverse of a lower triangular matrix, by halves: a third of the work of solving for the identity."""
    size = len(lower)
    if size <= DIRECT_INVERSE:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        direct: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
        return direct
    half = size // 2
    inverse = torch.zeros_like(lower)
    first = inverse[:half, :half] = _inverse_of_lower(lower[:half, :half])
    second = inverse[half:, half:] = _inverse_of_lower(lower[half:, half:])
    torch.mm(second, lower[half:, :half] @ first, out=inverse[half:, :half])
    inverse[half:, :half].neg_()
    return inverse


def solve(
    weight: Float[Tensor, "out_features in_features"],
    factored: FactoredHessian,
    scheme: QuantScheme,
    recipe: Recipe,
    smallest_zero: int,
) -> QuantizedWeight:
    """GPTQ codes of a weight, solved in the weight's dtype by `solver_for` its device."""
    static = recipe.act_order == "static"
    rule = GridRule(scheme, static, smallest_zero, shrinks(scheme.bits, recipe.scale_search))
    solve_columns = solver_for(weight.device, weight.dtype).solve_columns
    codes, scales, zeros = solve_columns(
        weight, factored.factor, factored.order, factored.hessian.diagonal(), rule
    )
    refuse_large(scales)
    groups = torch.empty_like(factored.order)
    groups[factored.order] = columns.group_of_position(factored.order, rule)
    return QuantizedWeight(
        codes=codes,
        scales=scales.to(torch.float16),
        zeros=zeros.to(torch.int16),
        group_of_column=groups.to(torch.int32),
        scheme=scheme,
    )


def solver_for(device: torch.device, dtype: torch.dtype) -> ModuleType:
    """What solves columns there: the first fast solver that can, else the definition."""
    return next((solver for solver in SOLVERS if solver.why_not(device, dtype) is None), columns)


def round_to_nearest(
    weight: Float[Tensor, "out_features in_features"], scheme: QuantScheme, smallest_zero: int
) -> QuantizedWeight:
    """Each weight to the nearest point of its group's min-max grid, without regard to activations."""
    group_of_column = sequential_groups(weight.shape[1], scheme.group_size).to(weight.device)
    grids = [min_max_grid(part, scheme, smallest_zero) for part in _split(weight, scheme.group_size)]
    scales, zeros = (torch.stack(parts, 1) for parts in zip(*grids, strict=True))
    groups = group_of_column.long()
    return QuantizedWeight(
        codes=round_to_codes(weight, scales[:, groups], zeros[:, groups], scheme).to(torch.uint8),
        scales=scales.to(torch.float16),
        zeros=zeros.to(torch.int16),
        group_of_column=group_of_column,
        scheme=scheme,
    )


def row_errors(
    weight: Float[Tensor, "out_features in_features"], quantized: QuantizedWeight, hessian: Matrix
) -> Float[Tensor, " out_features"]:
    """Squared error of each output per token, in float64: the diagonal of D H D^T, D the change of the weight."""
    change = weight - dequantize(quantized, weight.dtype)
    return ((change @ hessian) * change).sum(1, dtype=torch.float64)


def output_error(
    weight: Float[Tensor, "out_features in_features"], quantized: QuantizedWeight, hessian: Matrix
) -> float:
    """Squared error of the linear's output per token."""
    return float(row_errors(weight, quantized, hessian).sum())


def _split(weight: Tensor, group_size: int | None) -> list[Tensor]:
    return list(weight.split(group_size or weight.shape[1], 1))
