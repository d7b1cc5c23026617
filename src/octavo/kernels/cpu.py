"""Quantized linears on the CPU: inputs rounded to 16 bits, exact integer sums, scaled group by group.

What the native library computes is defined to the last bit, and the same on every processor: see
docs/decisions/0006-native-library.md. Against the reference, whose inputs are not rounded, outputs differ by a few
parts in a hundred thousand of their norm.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from octavo.weights import QuantizedWeight

if TYPE_CHECKING:
    from octavo.kernels._native import Matrix

NAME = "native CPU"
READ_BYTES = 3 * 2**29  # several times the largest caches


@dataclass(frozen=True)
class Prepared:
    """A weight in the layout of the native library."""

    matrix: "Matrix"


def missing_library() -> str | None:
    """None, or why the native library cannot be loaded."""
    try:
        import octavo.kernels._native  # noqa: F401
    except ImportError as error:
        return f"the native library is absent ({error}); install Octavo anew where there is a C++17 compiler"
    return None


def why_not(weight: QuantizedWeight, device: torch.device) -> str | None:
    """None, or what keeps a weight from running here: another device, or no native library."""
    return "it runs on CPUs only" if device.type != "cpu" else missing_library()


def prepare(weight: QuantizedWeight, device: torch.device, dtype: torch.dtype) -> Prepared:
    """The weight in panels of sixteen outputs, its columns ordered by group; inputs may be of any float dtype."""
    from octavo.kernels import _native

    matrix = _native.prepare_codes(
        weight.codes.contiguous(),
        weight.scales.to(torch.float16).contiguous().view(torch.int16),
        weight.zeros.contiguous(),
        weight.group_of_column.contiguous(),
        weight.scheme.bits,
    )
    return Prepared(matrix)


def matmul(inputs: Float[Tensor, "*rows in_features"], prepared: Prepared) -> Float[Tensor, "*rows out_features"]:
    """inputs @ W^T in float32, returned in the inputs' dtype; a row with NaN or Inf gives NaN."""
    from octavo.kernels import _native

    matrix = prepared.matrix
    rows = inputs.reshape(-1, matrix.columns).to(torch.float32).contiguous()
    outputs = torch.empty(rows.shape[0], matrix.outputs)
    _native.matmul(matrix, rows.data_ptr(), outputs.data_ptr(), rows.shape[0])
    return outputs.reshape(*inputs.shape[:-1], matrix.outputs).to(inputs.dtype)


def set_threads(threads: int) -> None:
    """The threads of native calls in this process, physical cores by default; to be set before the first call."""
    from octavo.kernels import _native

    _native.set_default_threads(threads)


def read_bandwidth() -> float:
    """Bytes per second at which these threads read memory: what the speed of decoding is held against."""
    from octavo.kernels import _native

    return _native.read_bandwidth(READ_BYTES)
