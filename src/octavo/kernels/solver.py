"""GPTQ's inner loops on the CPU, in the native library: the sum of x^T x, and the codes of a weight.

The definitions are `quantization.hessian` and `quantization.columns`; the tests write out how the sum rounds its
inputs. What is computed here is the same, to the last bit, on every processor and with any number of threads.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from octavo.kernels.cpu import missing_library
from octavo.schemes import QuantScheme

NAME = "native CPU"
PANEL = 64  # columns of a Gram matrix that are computed together, down to the diagonal


@dataclass(frozen=True)
class GridRule:
    """How the groups of a weight are formed and their grids found.

    `static_groups`: groups are as stored, and their grids come from the weight as it is; else they are formed in
    solving order, from the weight as it is by then. `smallest_zero` is the least that the file can store.
    `shrinks` are the parts of a group's range to try, the whole first.
    """

    scheme: QuantScheme
    static_groups: bool
    smallest_zero: int
    shrinks: tuple[float, ...]


Grids = Float[Tensor, "rows groups"]


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """None, or what keeps tensors of a device and dtype from being solved here."""
    if device.type != "cpu" or dtype != torch.float32:
        return "it solves in float32, on CPUs only"
    return missing_library()


def add_gram(total: Float[Tensor, "columns columns"], inputs: Float[Tensor, "tokens columns"]) -> None:
    """Add x^T x to `total`, of which only what lies on and above the diagonal is meant; float32.

    Columns are rounded to 12 bits and a sign, 128 tokens at a time (native/cpu/gram.h); one that holds NaN or Inf
    makes its row and column NaN.
    """
    from octavo.kernels import _native

    _native.add_gram(total.numpy(), inputs.contiguous().numpy())


def mirror(total: Float[Tensor, "columns columns"]) -> None:
    """Copy what lies above the diagonal below it, in place."""
    for start in range(0, len(total), PANEL):
        end = start + PANEL
        total[start:end, start:end] = total[start:end, start:end].triu() + total[start:end, start:end].triu(1).t()
        total[end:, start:end] = total[start:end, end:].t()


def solve_columns(
    weight: Float[Tensor, "rows columns"],
    factor: Float[Tensor, "columns columns"],
    order: Int64[Tensor, " columns"],
    importance: Float[Tensor, " columns"],
    rule: GridRule,
) -> tuple[UInt8[Tensor, "rows columns"], Grids, Grids]:
    """Codes, scales and zeros of a float32 weight; see `quantization.columns.solve_columns`.

    A scale beyond the range of fp16 comes back as it is, or as NaN.
    """
    from octavo.kernels import _native

    scheme, columns = rule.scheme, weight.shape[1]
    codes = torch.empty_like(weight, dtype=torch.uint8, memory_format=torch.contiguous_format)
    scales, zeros = (weight.new_empty(len(weight), scheme.groups(columns)) for _ in range(2))
    native_rule = _native.GridRule(
        group_size=scheme.group_size or columns,
        static_groups=rule.static_groups,
        symmetric=scheme.symmetric,
        bits=scheme.bits,
        smallest_zero=rule.smallest_zero,
        shrinks=rule.shrinks,
    )
    hessian = _native.Hessian(factor.contiguous().numpy(), importance.contiguous().numpy(), order.numpy())
    results = (codes.numpy(), scales.numpy(), zeros.numpy())
    _native.solve_columns(weight.contiguous().numpy(), hessian, native_rule, *results)
    return codes, scales, zeros
