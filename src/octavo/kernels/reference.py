"""The definition of a quantized linear: dequantize, then matmul.

It runs on every device and every weight, and each faster kernel is tested against it. What it prepares is the
dequantized weight, so it costs the memory of a dense model.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from octavo.weights import QuantizedWeight, dequantize

NAME = "reference"


@dataclass(frozen=True)
class Prepared:
    """A dequantized weight."""

    values: Float[Tensor, "out_features in_features"]


def why_not(weight: QuantizedWeight, device: torch.device) -> str | None:
    """None: the reference takes every weight on every device."""
    return None


def prepare(weight: QuantizedWeight, device: torch.device, dtype: torch.dtype) -> Prepared:
    """Dequantize in float32, once, to the dtype of the inputs to come."""
    return Prepared(dequantize(weight).to(device, dtype))


def matmul(inputs: Float[Tensor, "*rows in_features"], prepared: Prepared) -> Float[Tensor, "*rows out_features"]:
    """inputs @ W^T, in the inputs' dtype."""
    return inputs @ prepared.values.t()
