"""The Hessian of a linear's output error: the mean of x^T x over the tokens that reach it.

Linears that see the same input share one. Windows are summed in runs, and runs in pairs, pairs in pairs: a tree
that depends on the number of windows alone. So however many processes share them, the result is the same to the
last bit.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from octavo.errors import NumericalError
from octavo.kernels import solver as native
from octavo.quantization import on_gpu

Matrix = Float[Tensor, "in_features in_features"]


@dataclass(frozen=True)
class Run:
    """Calibration windows that are summed one after another: how many, and which run of all it is."""

    number: int
    windows: int


@dataclass(frozen=True)
class PartialSum:
    """x^T x over `tokens` tokens of 2^level runs, the `index`-th so many; perhaps of one triangle only."""

    level: int
    index: int
    tokens: int
    total: Matrix


def partial_sums(inputs: Iterable[Float[Tensor, "_ in_features"]], runs: Iterable[Run]) -> list[PartialSum]:
    """Sums over neighbouring runs, of which `inputs` are the windows; as few as the tree allows."""
    windows = iter(inputs)
    sums: list[PartialSum] = []
    for run in runs:
        append(sums, _sum_of(run, islice(windows, run.windows)))
    return sums


def append(sums: list[PartialSum], new: PartialSum) -> None:
    """Put the sum of the next runs behind those before it; the two halves of a larger one become that one."""
    while sums and sums[-1].level == new.level and new.index % 2:
        left = sums.pop()
        new = PartialSum(left.level + 1, left.index // 2, left.tokens + new.tokens, left.total.add_(new.total))
    sums.append(new)


def mean_of(sums: list[PartialSum], name: str) -> Matrix:
    """The mean of x^T x over the tokens of all sums; `name` is for the message when it is not finite."""
    total, tokens = sums[0].total, sum(part.tokens for part in sums)
    for part in sums[1:]:
        total.add_(part.total)
    if native.why_not(total.device, total.dtype) is None:
        native.mirror(total)
    # No product of two columns is larger than both of their squares.
    if not torch.isfinite(total.diagonal()).all():
        raise NumericalError(
            f"the inputs of {name} hold NaN or Inf; the model overflows here, quantize from another copy of it"
        )
    return total.div_(tokens)


def _sum_of(run: Run, windows: Iterable[Float[Tensor, "_ in_features"]]) -> PartialSum:
    """x^T x over the windows of a run; on a CPU where the native library is, of one triangle."""
    total: Tensor | None = None
    tokens = 0
    for window in windows:
        if total is None:
            total = window.new_zeros(window.shape[1], window.shape[1])
            is_native = native.why_not(window.device, window.dtype) is None
        if is_native:
            native.add_gram(total, window)
        elif window.device.type == "cuda":
            on_gpu.add_gram(total, window)
        else:
            total.addmm_(window.t(), window)
        tokens += len(window)
    assert total is not None, "a run has at least one window"
    return PartialSum(0, run.number, tokens, total)
