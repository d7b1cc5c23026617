"""The Hessian of a linear's output error: the mean of x^T x over the tokens that reach it.

Linears that see the same input share one.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from octavo.errors import NumericalError
from octavo.kernels import solver as native
from octavo.quantization import on_gpu


def hessian_of(
    inputs: Iterable[Float[Tensor, "tokens in_features"]], name: str
) -> Float[Tensor, "in_features in_features"]:
    """Mean of x^T x over all tokens of all samples; `name` is for the message when it is not finite."""
    total: Tensor | None = None
    tokens = 0
    for sample in inputs:
        if total is None:
            total = sample.new_zeros(sample.shape[1], sample.shape[1])
            is_native = native.why_not(sample.device, sample.dtype) is None
        if is_native:
            native.add_gram(total, sample)
        elif sample.device.type == "cuda":
            on_gpu.add_gram(total, sample)
        else:
            total.addmm_(sample.t(), sample)
        tokens += len(sample)
    assert total is not None, "a Hessian needs at least one sample"
    if is_native:
        native.mirror(total)
    # No product of two columns is larger than both of their squares.
    if not torch.isfinite(total.diagonal()).all():
        raise NumericalError(
            f"the inputs of {name} hold NaN or Inf; the model overflows here, quantize from another copy of it"
        )
    return total.div_(tokens)
