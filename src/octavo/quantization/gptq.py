"""GPTQ: codes that keep a linear's output, one column after another (https://arxiv.org/abs/2210.17323).

Rounding column i of W leaves an error; the columns not yet rounded are moved to make up for it, in the way that
the inverse Hessian says is best. With H^-1 = R^T R, R upper triangular, row i of R holds just the factors that
the definition, inverting the Hessian of the remaining columns anew each time, would give. The slow definition is
in the tests.

Two departures from GPTQ-for-LLaMa, both knowing: later groups inside a block take their scales from the
*updated* weights, and columns that no activation reaches are rounded, not zeroed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from octavo.errors import NumericalError
from octavo.quantization.grid import Grid, min_max_grid, round_to_codes, search_grid
from octavo.quantization.recipe import ActOrder, Recipe
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight, dequantize, sequential_groups

SOLVER_VERSION = 1  # raised whenever the same inputs would give other codes
BLOCK_COLUMNS = 128  # columns between two updates of the whole rest; no effect on the result
LARGEST_DAMPING = 10.0

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
    if failed or not torch.isfinite(lower).all():
        return None
    identity = torch.eye(len(order), dtype=hessian.dtype, device=hessian.device)
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse.flip(0, 1)


def solve(
    weight: Float[Tensor, "out_features in_features"],
    factored: FactoredHessian,
    scheme: QuantScheme,
    recipe: Recipe,
    smallest_zero: int,
) -> QuantizedWeight:
    """GPTQ codes of a weight, solved in the weight's dtype."""
    rows, columns = weight.shape
    importance = factored.hessian.diagonal()
    if recipe.act_order == "static":
        groups = sequential_groups(columns, scheme.group_size).to(weight.device)[factored.order].long()
        scales, zeros = _group_grids(weight, importance, scheme, recipe, smallest_zero)
        column_blocks = _blocks(columns, None)
    else:
        groups = sequential_groups(columns, scheme.group_size).to(weight.device).long()
        scales = weight.new_empty(scheme.groups(columns), rows)
        zeros = torch.empty_like(scales)
        column_blocks = _blocks(columns, scheme.group_size)
    # One row per column in solving order: what a step reads and writes is then contiguous.
    remaining = weight.t()[factored.order].contiguous()
    ordered_importance = importance[factored.order]
    codes = torch.empty(columns, rows, dtype=torch.uint8, device=weight.device)
    for start, end in column_blocks:
        errors = remaining.new_empty(end - start, rows)
        for column in range(start, end):
            group = int(groups[column])
            if recipe.act_order != "static" and column % (scheme.group_size or columns) == 0:
                members = slice(column, column + (scheme.group_size or columns))
                scales[group], zeros[group] = _group_grid(
                    remaining[members].t(), ordered_importance[members], scheme, recipe, smallest_zero
                )
            code = round_to_codes(remaining[column], scales[group], zeros[group], scheme)
            codes[column] = code
            rounded = (code - zeros[group]) * scales[group]
            error = (remaining[column] - rounded) / factored.factor[column, column]
            remaining[column + 1 : end].addr_(factored.factor[column, column + 1 : end], error, alpha=-1)
            errors[column - start] = error
        remaining[end:].addmm_(factored.factor[start:end, end:].t(), errors, alpha=-1)
    back = torch.argsort(factored.order)
    return QuantizedWeight(
        codes=codes[back].t().contiguous(),
        scales=scales.t().to(torch.float16).contiguous(),
        zeros=zeros.t().to(torch.int16).contiguous(),
        group_of_column=groups[back].to(torch.int32),
        scheme=scheme,
    )


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


def output_error(
    weight: Float[Tensor, "out_features in_features"], quantized: QuantizedWeight, hessian: Matrix
) -> float:
    """Squared error of the linear's output per token: trace(D H D^T) with D the change of the weight."""
    change = weight - dequantize(quantized, weight.dtype)
    return float(((change @ hessian) * change).sum(dtype=torch.float64))


def _blocks(columns: int, group_size: int | None) -> Iterator[tuple[int, int]]:
    """Runs of about BLOCK_COLUMNS columns; a group never starts inside one unless it also ends there.

    So whenever a group starts, all its columns have received every earlier update.
    """
    period = group_size or columns
    if period < BLOCK_COLUMNS:
        period = BLOCK_COLUMNS // period * period
    for first in range(0, columns, period):
        last = min(first + period, columns)
        for start in range(first, last, BLOCK_COLUMNS):
            yield start, min(start + BLOCK_COLUMNS, last)


def _split(weight: Tensor, group_size: int | None) -> list[Tensor]:
    return list(weight.split(group_size or weight.shape[1], 1))


def _group_grids(
    weight: Tensor, importance: Tensor, scheme: QuantScheme, recipe: Recipe, smallest_zero: int
) -> tuple[Float[Tensor, "groups rows"], Float[Tensor, "groups rows"]]:
    """Scales and zeros of all groups, in stored order."""
    weights = _split(weight, scheme.group_size)
    importances = importance.split(scheme.group_size or len(importance))
    grids = [
        _group_grid(part, part_importance, scheme, recipe, smallest_zero)
        for part, part_importance in zip(weights, importances, strict=True)
    ]
    scales, zeros = zip(*grids, strict=True)
    return torch.stack(scales), torch.stack(zeros)


def _group_grid(
    values: Tensor, importance: Tensor, scheme: QuantScheme, recipe: Recipe, smallest_zero: int
) -> Grid:
    if recipe.scale_search == "none":
        return min_max_grid(values, scheme, smallest_zero)
    return search_grid(values, importance, scheme, smallest_zero)
