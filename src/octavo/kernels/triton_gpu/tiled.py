"""Products of quantized weights inside a layer: CUDA C++ multiplies, Triton's kernels do all the rest.

The weight is held once, in the layout of `kernels.cuda`, which serves any number of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int32
from torch import Tensor

from octavo.kernels.cuda import layout
from octavo.kernels.cuda.compiler import find_nvrtc
from octavo.kernels.cuda.driver import indexed
from octavo.kernels.cuda.product import (
    WIDE_ROWS,
    Prepared,
    decoded,
    expanded,
    parts,
    with_kernels,
)
from octavo.kernels.cuda.tuning import tuned_blocks
from octavo.kernels.triton_gpu.card import Card, Place
from octavo.kernels.triton_gpu.product import Ends, Sums, end
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight


@dataclass(frozen=True)
class TiledProduct:
    """A weight in tiles, with its kernels, and what ends its product: y = x W^T + bias.

    Outputs of a `gated` product are pairs (gate, up), of which silu(gate) * up comes out.
    """

    weight: Prepared
    bias: Float[Tensor, " outputs"] | None
    card: Card

    @property
    def slots(self) -> int:
        return self.weight.width

    @property
    def column_of_slot(self) -> Int32[Tensor, " slots"] | None:
        return self.weight.order


def why_not_tiled(place: Place) -> str | None:
    """Why weights are not multiplied by CUDA C++ there; None where they are."""
    if place.device.type != "cuda":
        return f"it runs on NVIDIA GPUs, not on {place.device.type}"
    if place.dtype not in (torch.float16, torch.bfloat16):
        return "it multiplies few rows of 16-bit numbers only"
    if find_nvrtc() is None:
        return "NVRTC, the compiler that CUDA builds of torch bring, is not installed"
    return None


def tiled_product(
    weights: Sequence[QuantizedWeight],
    bias: Float[Tensor, " outputs"] | None,
    place: Place,
    rows: Int[Tensor, " outputs"] | None = None,
    gated: bool = False,
) -> TiledProduct:
    """Linears with one input and one grouping as one product, of `rows` of their outputs, where -1 is zero."""
    device = indexed(place.device)
    weight = _stacked(weights, device, rows)
    packed, processors = layout.pack(weight, device), place.card.processors
    blocks = tuned_blocks(packed, weight.shape, place.dtype)
    prepared = with_kernels(packed, weight.shape, place.dtype, blocks, processors, gated)
    return TiledProduct(prepared, bias, place.card)


def summed_later(inputs: Float[Tensor, "rows slots"], product: TiledProduct) -> Sums:
    """The product, for a kernel that adds it up as it reads it."""
    if len(inputs) <= product.weight.decode_rows:
        return Sums(decoded(inputs, product.weight)[None], product.bias)
    return Sums(parts(inputs, product.weight), product.bias)


def finished(
    inputs: Float[Tensor, "rows slots"],
    product: TiledProduct,
    residual: Float[Tensor, "rows results"] | None = None,
) -> Float[Tensor, "rows results"]:
    """residual + x W^T + bias, gated where the product is, in the inputs' dtype."""
    weight = product.weight
    if len(inputs) <= weight.decode_rows and product.bias is None:
        return decoded(inputs, weight, residual)
    if len(inputs) > WIDE_ROWS and product.bias is None and residual is not None:
        return torch.addmm(residual, inputs, expanded(weight, weight.width).t())
    width = weight.shape[0] // 2 if weight.gated else weight.shape[0]
    results = torch.empty(len(inputs), width, dtype=inputs.dtype, device=inputs.device)
    end(parts(inputs, weight), weight.gated, Ends(product.bias, residual, results), product.card)
    return results


def _stacked(
    weights: Sequence[QuantizedWeight], device: torch.device, rows: Int[Tensor, " outputs"] | None
) -> QuantizedWeight:
    """Weights below one another, in the bits of the widest; an output -1 has scales of zero."""
    codes, scales, zeros = (
        torch.cat([getattr(weight, name).to(device) for weight in weights])
        for name in ("codes", "scales", "zeros")
    )
    if rows is not None:
        rows = rows.to(device)
        codes, zeros = codes[rows.clamp(min=0)], zeros[rows.clamp(min=0)]
        scales = F.pad(scales, (0, 0, 0, 1))[rows]  # -1 picks the row behind the last
    first = weights[0].scheme
    bits = max(weight.scheme.bits for weight in weights)
    symmetric = all(weight.scheme.symmetric for weight in weights)
    scheme = QuantScheme(bits, first.group_size, symmetric)
    return QuantizedWeight(codes, scales, zeros, weights[0].group_of_column, scheme)
