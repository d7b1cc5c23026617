"""A linear layer, built from a weight that knows what it is."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from octavo.kernels import dispatch
from octavo.weights import DenseWeight, Weight

Matmul = Callable[[Tensor], Tensor]

OUTLIER = 6.0  # LLM.int8()'s threshold


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


def make_int8_linear(
    weight: DenseWeight, bias: Float[Tensor, " out_features"] | None, device: torch.device, dtype: torch.dtype
) -> Linear:
    """A dense weight run by LLM.int8() (https://arxiv.org/abs/2208.07339), as bitsandbytes loads it in 8 bits.

    Rows of the weight and rows of the inputs become int8, absmax / 127 apart. Input columns in which any row of
    the call reaches OUTLIER stay as they are, and meet the weight's codes times their scale; so what a row gives
    depends on the rows beside it.
    """
    codes, scales = _int8_rows(weight.values.to(device).float())
    placed_bias = None if bias is None else bias.to(device, dtype)

    def matmul(inputs: Float[Tensor, "*rows in_features"]) -> Float[Tensor, "*rows out_features"]:
        rows = inputs.flatten(0, -2).float()
        outliers = (rows.abs() >= OUTLIER).any(0)
        row_codes, row_scales = _int8_rows(rows.masked_fill(outliers, 0))
        # Whole numbers of at most 127 in float32: as exact as the rest, and on every device.
        products = row_codes.float() @ codes.float().t() * row_scales * scales.t()
        products += rows[:, outliers] @ (codes[:, outliers] * scales).t()
        return products.to(dtype).view(*inputs.shape[:-1], -1)

    return Linear(matmul, placed_bias, "LLM.int8()", {})


def _int8_rows(
    values: Float[Tensor, "rows columns"],
) -> tuple[Int8[Tensor, "rows columns"], Float[Tensor, "rows 1"]]:
    """Each row over its largest magnitude, in steps of 1 / 127; a row of zeros has the scale 1 / 127."""
    largest = values.abs().amax(1, keepdim=True)
    scales = torch.where(largest == 0, 1, largest) / 127
    return (values / scales).round().to(torch.int8), scales
