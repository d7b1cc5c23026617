"""What a weight is: dense, or codes on a grid with `w = scale * (code - zero)`.

These are the nouns that every other room speaks of. A quantized weight has one form in memory; the layouts of
files live in `checkpoint.formats`, those of kernels in `kernels`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int16, Int32, UInt8
from torch import Tensor

from octavo.schemes import QuantScheme


@dataclass(frozen=True)
class DenseWeight:
    """A weight stored as it is."""

    values: Float[Tensor, "out_features in_features"]

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)"""
        return self.values.shape[0], self.values.shape[1]


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes, and the grid they stand on.

    `scales` hold exactly the file's values: fp16, normal, finite. `zeros` are the true zeros: our solver gives
    0 … 2^bits - 1, old files may hold -1 … 2^bits.
    """

    codes: UInt8[Tensor, "out_features in_features"]
    scales: Float[Tensor, "out_features groups"]
    zeros: Int16[Tensor, "out_features groups"]
    group_of_column: Int32[Tensor, " in_features"]
    scheme: QuantScheme

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)"""
        return self.codes.shape[0], self.codes.shape[1]


Weight = DenseWeight | QuantizedWeight


def dequantize(
    weight: QuantizedWeight, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "out_features in_features"]:
    """`w[n, k] = scales[n, g] * (codes[n, k] - zeros[n, g])`, `g = group_of_column[k]`, computed in `dtype`."""
    group = weight.group_of_column.long()
    steps = weight.codes.to(dtype) - weight.zeros.to(dtype)[:, group]
    return weight.scales.to(dtype)[:, group] * steps


def sequential_groups(in_features: int, group_size: int | None) -> Int32[Tensor, " in_features"]:
    """`group_of_column` of neighbouring columns: 0, 0, …, 1, 1, …"""
    return (torch.arange(in_features) // (group_size or max(in_features, 1))).to(torch.int32)
