"""A linear layer, built from a weight that knows what it is."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from octavo.kernels import dispatch
from octavo.weights import DenseWeight, Weight

Matmul = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Linear:
    """y = x W^T + b; `kernel` names what computes the product, `refusals` why faster kernels do not."""

    matmul: Matmul
    bias: Float[Tensor, " out_features"] | None
    kernel: str
    refusals: dict[str, str]

    def __call__(self, inputs: Float[Tensor, "*rows in_features"]) -> Float[Tensor, "*rows out_features"]:
        outputs = self.matmul(inputs)
        return outputs if self.bias is None else outputs + self.bias


def make_linear(
    weight: Weight, bias: Float[Tensor, " out_features"] | None, device: torch.device, dtype: torch.dtype
) -> Linear:
    """The layer for a weight on a device, for inputs of `dtype`."""
    placed_bias = None if bias is None else bias.to(device, dtype)
    if isinstance(weight, DenseWeight):
        transposed = weight.values.to(device, dtype).t()
        return Linear(lambda inputs: inputs @ transposed, placed_bias, "dense", {})
    choice = dispatch.choose(weight, device)
    kernel = choice.kernel
    assert kernel is not None, "the reference kernel never objects"
    prepared = kernel.prepare(weight, device, dtype)
    return Linear(lambda inputs: kernel.matmul(inputs, prepared), placed_bias, kernel.NAME, choice.refusals)
