"""GPTQ's column loop on an NVIDIA GPU, by kernels in CUDA C++: a launch for all grids, then one per 128 columns.

The definition is `quantization.columns`; `kernels.solver` is the same for CPUs. What is computed is the same every
time on one card, and differs from the definition as float32 sums in another order do.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int32, Int64, UInt8
from torch import Tensor

from octavo.kernels.cuda.driver import Function, indexed, load, why_not_card
from octavo.kernels.cuda.units import (
    COLUMNS,
    COLUMNS_THREADS,
    MOST_COLUMNS,
    SEARCH,
    SEARCH_ROWS,
    SEARCH_THREADS,
    ColumnsArguments,
    SearchArguments,
)
from octavo.kernels.solver import GridRule, Grids

NAME = "CUDA"


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """None, or what keeps tensors of a device and dtype from being solved here."""
    if dtype != torch.float32:
        return "it solves in float32"
    return why_not_card(device)


@dataclass(frozen=True)
class _Solving:
    """A weight under way: columns in the order of solving, and what is known of them; grids are [groups, rows]."""

    remaining: Float32[Tensor, "columns rows"]
    factor: Float32[Tensor, "columns columns"]
    groups: Int32[Tensor, " columns"]
    scales: Float32[Tensor, "groups rows"]
    zeros: Float32[Tensor, "groups rows"]
    codes: UInt8[Tensor, "columns rows"]
    errors: Float32[Tensor, "block rows"]
    rule: GridRule


def solve_columns(
    weight: Float[Tensor, "rows columns"],
    factor: Float[Tensor, "columns columns"],
    order: Int64[Tensor, " columns"],
    importance: Float[Tensor, " columns"],
    rule: GridRule,
) -> tuple[UInt8[Tensor, "rows columns"], Grids, Grids]:
    """Codes, scales and zeros of a float32 weight; see `quantization.columns.solve_columns`.

    A scale beyond the range of fp16 comes back as infinity or NaN.
    """
    device, (rows, columns) = indexed(weight.device), weight.shape
    search, solve = load(SEARCH, SEARCH_THREADS, device), load(COLUMNS, COLUMNS_THREADS, device)
    group_size = rule.scheme.group_size or columns
    place = order if rule.static_groups else torch.arange(columns, device=order.device)
    scales = torch.empty(rule.scheme.groups(columns), rows, dtype=torch.float32, device=weight.device)
    solving = _Solving(
        remaining=weight.t()[order].contiguous(),
        factor=factor.contiguous(),
        groups=(place // group_size).to(torch.int32),
        scales=scales,
        zeros=torch.empty_like(scales),
        codes=torch.empty(columns, rows, dtype=torch.uint8, device=weight.device),
        errors=scales.new_empty(MOST_COLUMNS, rows),
        rule=rule,
    )
    importance = importance.contiguous()
    if rule.static_groups:
        _search(search, weight.contiguous(), importance, solving, 0)
    ordered = importance[order]
    for first, last in _blocks(columns, None if rule.static_groups else group_size):
        if not rule.static_groups and first % group_size == 0:
            members = slice(first, first + group_size)
            _search(search, solving.remaining[members].t(), ordered[members], solving, first // group_size)
        _solve_block(solve, solving, first, last)
    stored = torch.empty_like(solving.codes)
    stored[order] = solving.codes
    return stored.t().contiguous(), solving.scales.t().contiguous(), solving.zeros.t().contiguous()


def _blocks(columns: int, group_size: int | None) -> Iterator[tuple[int, int]]:
    """Runs of at most MOST_COLUMNS columns; each starts in the group in which it ends, where there is a size."""
    period = group_size or columns
    for start in range(0, columns, period):
        end = min(start + period, columns)
        for first in range(start, end, MOST_COLUMNS):
            yield first, min(first + MOST_COLUMNS, end)


def _search(
    search: Function,
    values: Float[Tensor, "rows members"],
    importance: Float[Tensor, " members"],
    solving: _Solving,
    first_group: int,
) -> None:
    """The grids of columns, from a group on."""
    rule, (rows, columns) = solving.rule, values.shape
    scheme, group_size = rule.scheme, rule.scheme.group_size or columns
    shrinks = torch.tensor(rule.shrinks, dtype=torch.float32, device=values.device)
    arguments = SearchArguments(
        values.data_ptr(),
        *values.stride(),
        importance.data_ptr(),
        solving.scales[first_group].data_ptr(),
        solving.zeros[first_group].data_ptr(),
        shrinks.data_ptr(),
        len(shrinks),
        rows,
        columns,
        group_size,
        scheme.largest_code,
        rule.smallest_zero,
        scheme.middle if scheme.symmetric else -1,
    )
    search.launch((-(-rows // SEARCH_ROWS), -(-columns // group_size)), arguments)


def _solve_block(solve: Function, solving: _Solving, first: int, last: int) -> None:
    """Codes of a block of columns; their errors are moved to all columns behind them."""
    columns, rows = solving.remaining.shape
    arguments = ColumnsArguments(
        solving.remaining.data_ptr(),
        solving.factor.data_ptr(),
        solving.groups.data_ptr(),
        solving.scales.data_ptr(),
        solving.zeros.data_ptr(),
        solving.codes.data_ptr(),
        solving.errors.data_ptr(),
        rows,
        columns,
        first,
        last - first,
        solving.rule.scheme.largest_code,
    )
    solve.launch((-(-rows // COLUMNS_THREADS), 1), arguments)
    errors = solving.errors[: last - first]
    solving.remaining[last:].addmm_(solving.factor[first:last, last:].t(), errors, alpha=-1)
