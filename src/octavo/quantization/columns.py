"""Codes of a weight, one column after another: the definition, and the path of every device but the CPU.

Rounding a column leaves an error; the columns not yet rounded are moved to make up for it. `kernels.solver` does
the same in native code.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from octavo.kernels.solver import GridRule
from octavo.quantization.grid import Grid, round_to_codes, search_grid
from octavo.weights import sequential_groups

NAME = "torch"
BLOCK_COLUMNS = 128  # columns between two updates of the whole rest; no effect on the result

Grids = Float[Tensor, "rows groups"]


def solve_columns(
    weight: Float[Tensor, "rows columns"],
    factor: Float[Tensor, "columns columns"],
    order: Int64[Tensor, " columns"],
    importance: Float[Tensor, " columns"],
    rule: GridRule,
) -> tuple[UInt8[Tensor, "rows columns"], Grids, Grids]:
    """Codes, scales and zeros of a weight, in its dtype and as stored.

    `order` is the order of solving, `factor` the upper R with H^-1 = R^T R in that order, `importance` the
    diagonal of H as stored.
    """
    scheme, (rows, columns) = rule.scheme, weight.shape
    group_size = scheme.group_size or columns
    groups = group_of_position(order, rule).tolist()
    scales = weight.new_empty(scheme.groups(columns), rows)
    zeros = torch.empty_like(scales)
    if rule.static_groups:
        parts = zip(weight.split(group_size, 1), importance.split(group_size), strict=True)
        for group, (values, part_importance) in enumerate(parts):
            scales[group], zeros[group] = search_grid(values, part_importance, rule)
    # One row per column in solving order: what a step reads and writes is then contiguous.
    remaining = weight.t()[order].contiguous()
    ordered_importance = importance[order]
    codes = torch.empty(columns, rows, dtype=torch.uint8, device=weight.device)
    for start, end in _blocks(columns, None if rule.static_groups else group_size):
        errors = remaining.new_empty(end - start, rows)
        for column in range(start, end):
            group = groups[column]
            if not rule.static_groups and column % group_size == 0:
                members = slice(column, column + group_size)
                grid: Grid = search_grid(remaining[members].t(), ordered_importance[members], rule)
                scales[group], zeros[group] = grid
            code = round_to_codes(remaining[column], scales[group], zeros[group], scheme)
            codes[column] = code
            rounded = (code - zeros[group]) * scales[group]
            error = (remaining[column] - rounded) / factor[column, column]
            remaining[column + 1 : end] -= factor[column, column + 1 : end, None] * error
            errors[column - start] = error
        remaining[end:].addmm_(factor[start:end, end:].t(), errors, alpha=-1)
    stored = torch.empty_like(codes)
    stored[order] = codes
    return stored.t().contiguous(), scales.t().contiguous(), zeros.t().contiguous()


def group_of_position(order: Int64[Tensor, " columns"], rule: GridRule) -> Int64[Tensor, " columns"]:
    """The group of each column, in solving order."""
    groups = sequential_groups(len(order), rule.scheme.group_size).to(order.device).long()
    return groups[order] if rule.static_groups else groups


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
