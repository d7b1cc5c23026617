"""Kernels for NVIDIA GPUs in Triton: a linear, a whole decoder layer, or the head; compiled at first use.

The verbs are those that `kernels.dispatch` and `kernels.blocks` describe. Triton is imported when the first weight
is prepared, not before.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from octavo.kernels.blocks import BlockParts, BlockShape, HeadParts, LayerCache, LinearParts, Rows
from octavo.kernels.triton_gpu.card import place_on, why_not_on
from octavo.kernels.triton_gpu.layout import why_not_packed, why_not_together
from octavo.weights import QuantizedWeight

if TYPE_CHECKING:
    from octavo.kernels.triton_gpu.block import PreparedBlock, PreparedHead
    from octavo.kernels.triton_gpu.product import Product

NAME = "Triton"
HEAD_MULTIPLE = 16
WIDEST_HEAD = 256
WIDEST_ROW = 32768  # one program normalizes a row
DTYPES = (torch.float16, torch.bfloat16)


def why_not(weight: QuantizedWeight, device: torch.device) -> str | None:
    """Why these kernels do not multiply a weight on a device; None where they do."""
    return why_not_on(device) or why_not_packed(weight)


def prepare(weight: QuantizedWeight, device: torch.device, dtype: torch.dtype) -> "Product":
    """The weight in the order in which the kernels read it."""
    from octavo.kernels.triton_gpu.block import packed_product

    return packed_product([LinearParts(weight)], place_on(device, dtype))


def matmul(inputs: Float[Tensor, "*rows in_features"], prepared: "Product") -> Float[Tensor, "*rows out_features"]:
    """inputs @ W^T in the inputs' dtype, summed in float32."""
    from octavo.kernels.triton_gpu.product import finished
    from octavo.kernels.triton_gpu.rows import gathered

    rows = inputs.reshape(-1, inputs.shape[-1]).contiguous()
    results = finished(gathered(rows, prepared.weight.column_of_slot), prepared)
    return results.view(*inputs.shape[:-1], -1)


def why_not_block(parts: BlockParts, shape: BlockShape, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these kernels do not run a decoder layer; None where they do."""
    return (
        why_not_on(device)
        or _why_not_dtype(dtype)
        or _why_not_shape(parts, shape)
        or _why_not_linears("query, key and value", [parts.query, parts.key, parts.value])
        or _why_not_linears("output", [parts.output])
        or _why_not_linears("gate and up", [parts.gate, parts.up])
        or _why_not_linears("down", [parts.down])
    )


def prepare_block(
    parts: BlockParts, shape: BlockShape, device: torch.device, dtype: torch.dtype
) -> "PreparedBlock":
    """The layer in the kernels' layouts."""
    from octavo.kernels.triton_gpu import block

    return block.prepare_block(parts, shape, place_on(device, dtype))


def run_block(
    hidden: Float[Tensor, "rows hidden_size"], rows: Rows, cache: LayerCache, prepared: "PreparedBlock"
) -> Float[Tensor, "rows hidden_size"]:
    """The layer's output, its keys and values written to `cache`; eight launches for one row per sequence."""
    from octavo.kernels.triton_gpu import block

    return block.run_block(hidden, rows, cache, prepared)


def why_not_head(parts: HeadParts, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these kernels do not run the head; None where they do."""
    return why_not_on(device) or _why_not_dtype(dtype) or _why_not_linears("head", [parts.projection])


def prepare_head(parts: HeadParts, device: torch.device, dtype: torch.dtype) -> "PreparedHead":
    """The final norm and the projection in the kernels' layouts."""
    from octavo.kernels.triton_gpu import block

    return block.prepare_head(parts, place_on(device, dtype))


def run_head(
    hidden: Float[Tensor, "rows hidden_size"], prepared: "PreparedHead"
) -> Float[Tensor, "rows vocabulary"]:
    """Logits of each row."""
    from octavo.kernels.triton_gpu import block

    return block.run_head(hidden, prepared)


def _why_not_dtype(dtype: torch.dtype) -> str | None:
    if dtype in DTYPES:
        return None
    return f"it computes in float16 or bfloat16, not in {str(dtype).removeprefix('torch.')}"


def _why_not_shape(parts: BlockParts, shape: BlockShape) -> str | None:
    if shape.coded_cache:
        return "they keep keys and values in the dtype that they compute in, not in 8 bits"
    if shape.head_dim % HEAD_MULTIPLE or shape.head_dim > WIDEST_HEAD:
        return f"heads of {shape.head_dim} are no multiple of {HEAD_MULTIPLE} up to {WIDEST_HEAD}"
    if len(parts.attention_norm) > WIDEST_ROW:
        return f"rows of {len(parts.attention_norm)} are wider than {WIDEST_ROW}"
    return None


def _why_not_linears(name: str, parts: Sequence[LinearParts]) -> str | None:
    """The first objection to running linears as one product."""
    weights = [part.weight for part in parts]
    objections = [why_not_packed(weight) for weight in weights if isinstance(weight, QuantizedWeight)]
    objection = why_not_together(weights) or next(filter(None, objections), None)
    return None if objection is None else f"{name}: {objection}"
