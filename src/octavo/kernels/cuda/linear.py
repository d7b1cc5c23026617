"""A quantized linear on an NVIDIA GPU, by kernels in CUDA C++: the verbs of `dispatch`."""

import torch
from jaxtyping import Float
from torch import Tensor

from octavo.kernels.cuda import layout
from octavo.kernels.cuda.driver import indexed, why_not_card
from octavo.kernels.cuda.product import Prepared, by_slot, decoded, parts, with_kernels
from octavo.kernels.cuda.tuning import tuned_blocks
from octavo.weights import QuantizedWeight

NAME = "CUDA"


def why_not(weight: QuantizedWeight, device: torch.device) -> str | None:
    """None, or why these kernels cannot run a weight on a device."""
    objection = why_not_card(device)
    if objection is None and weight.scales.dtype != torch.float16:
        objection = f"its scales are {weight.scales.dtype}, not float16"
    return objection


def prepare(weight: QuantizedWeight, device: torch.device, dtype: torch.dtype) -> Prepared:
    """Lay the weight out on the device and make the kernels for inputs of `dtype` ready."""
    device = indexed(device)
    packed = layout.pack(weight, device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return with_kernels(packed, weight.shape, dtype, tuned_blocks(packed, weight.shape, dtype), processors)


def matmul(inputs: Float[Tensor, "*rows in_features"], prepared: Prepared) -> Float[Tensor, "*rows out_features"]:
    """inputs @ W^T, in the inputs' dtype, which is the one of `prepare`."""
    assert inputs.dtype == prepared.dtype, f"prepared for {prepared.dtype}, given {inputs.dtype}"
    rows = inputs.reshape(-1, prepared.shape[1])
    return _product(rows, prepared).view(*inputs.shape[:-1], prepared.shape[0])


def _product(rows: Float[Tensor, "rows in_features"], prepared: Prepared) -> Float[Tensor, "rows out_features"]:
    if len(rows) == 0:
        return rows.new_empty(0, prepared.shape[0])
    rows = by_slot(rows, prepared)
    if len(rows) <= prepared.decode_rows:
        return decoded(rows, prepared)
    sums = parts(rows, prepared)
    return sums[0].to(rows.dtype) if len(sums) == 1 else sums.sum(0).to(rows.dtype)
