"""A whole decoder layer, or the head, in a few launches: one new row of each sequence, or the rows of a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
from jaxtyping import Float, Int
from torch import Tensor

from octavo.kernels.attention import cached_attention
from octavo.kernels.blocks import BlockParts, BlockShape, HeadParts, LayerCache, LinearParts, Rows
from octavo.kernels.triton_gpu import product as packed
from octavo.kernels.triton_gpu import tiled
from octavo.kernels.triton_gpu.attention import Sight, newest_attention
from octavo.kernels.triton_gpu.card import Place
from octavo.kernels.triton_gpu.heads import HeadForm, HeadInputs, settled_queries
from octavo.kernels.triton_gpu.layout import NONE, pack
from octavo.kernels.triton_gpu.product import Product, Sums
from octavo.kernels.triton_gpu.rows import Norm, gathered, normalized
from octavo.kernels.triton_gpu.tiled import TiledProduct, tiled_product, why_not_tiled
from octavo.weights import QuantizedWeight

FEWEST_HALF = 16  # places of half a head that a product needs

AnyProduct = Product | TiledProduct  # quantized weights in tiles, where the card and the dtype allow


@dataclass(frozen=True)
class PreparedBlock:
    """A decoder layer in the kernels' layouts."""

    attention_norm: Norm
    mlp_norm: Norm
    query_norm: Float[Tensor, " head_dim"] | None
    key_norm: Float[Tensor, " head_dim"] | None
    epsilon: float  # of the norms of heads
    queries_keys_values: AnyProduct
    output: AnyProduct
    gate_up: AnyProduct
    down: AnyProduct
    heads: HeadForm
    sight: Sight


@dataclass(frozen=True)
class PreparedHead:
    """The final norm and the projection to logits."""

    norm: Norm
    projection: AnyProduct


def product_of(
    parts: Sequence[LinearParts], place: Place, rows: Int[Tensor, " outputs"] | None = None, gated: bool = False
) -> AnyProduct:
    """Linears with one input as one product, of `rows` of their outputs in turn, where -1 is an output of zero."""
    quantized = [part.weight for part in parts if isinstance(part.weight, QuantizedWeight)]
    bias = _bias_of(parts, place, rows)
    if len(quantized) == len(parts) and why_not_tiled(place) is None:
        return tiled_product(quantized, bias, place, rows, gated)
    return packed_product(parts, place, rows, gated)


def packed_product(
    parts: Sequence[LinearParts], place: Place, rows: Int[Tensor, " outputs"] | None = None, gated: bool = False
) -> Product:
    """The same for Triton's own products."""
    weight = pack([part.weight for part in parts], place.device, place.dtype, rows)
    return Product(weight, _bias_of(parts, place, rows), gated, place.card)


def _bias_of(
    parts: Sequence[LinearParts], place: Place, rows: Int[Tensor, " outputs"] | None
) -> Float[Tensor, " outputs"] | None:
    """The biases of linears, of `rows` of them in turn; None where there is none."""
    if all(part.bias is None for part in parts):
        return None
    biases = [torch.zeros(part.weight.shape[0]) if part.bias is None else part.bias for part in parts]
    bias = torch.cat([bias.to(place.device, place.dtype) for bias in biases])
    return bias if rows is None else F.pad(bias, (0, 1))[rows.to(place.device)]


def prepare_block(parts: BlockParts, shape: BlockShape, place: Place) -> PreparedBlock:
    """Pack a layer: queries, keys and values as one product, gate and up as another.

    Outputs of gate and up alternate, in the order of down's slots, so that what comes out of them needs no gather.
    """
    attention_inputs = product_of([parts.query, parts.key, parts.value], place)
    output, down = product_of([parts.output], place), product_of([parts.down], place)
    pairs = _pairs(down, parts.gate.weight.shape[0])
    gate_up = product_of([parts.gate, parts.up], place, pairs, gated=True)
    return PreparedBlock(
        attention_norm=_norm(parts.attention_norm, shape.norm_epsilon, attention_inputs, place),
        mlp_norm=_norm(parts.mlp_norm, shape.norm_epsilon, gate_up, place),
        query_norm=None if parts.query_norm is None else parts.query_norm.to(place.device, place.dtype),
        key_norm=None if parts.key_norm is None else parts.key_norm.to(place.device, place.dtype),
        epsilon=shape.norm_epsilon,
        queries_keys_values=attention_inputs,
        output=output,
        gate_up=gate_up,
        down=down,
        heads=HeadForm(
            heads=parts.query.weight.shape[0] // shape.head_dim,
            kv_heads=parts.key.weight.shape[0] // shape.head_dim,
            head_dim=shape.head_dim,
            half_block=max(FEWEST_HALF, triton.next_power_of_2(shape.head_dim // 2)),
            splits=1,
        ),
        sight=Sight(shape.window, output.slots, output.column_of_slot, place.card),
    )


def run_block(
    hidden: Float[Tensor, "rows hidden_size"], rows: Rows, cache: LayerCache, block: PreparedBlock
) -> Float[Tensor, "rows hidden_size"]:
    """The layer's output; its keys and values are in the cache."""
    _, inputs = normalized(hidden, block.attention_norm)
    attended = _attended(_summed_later(inputs, block.queries_keys_values), rows, cache, block)
    hidden, inputs = normalized(hidden, block.mlp_norm, _summed_later(attended, block.output))
    return _finished(_finished(inputs, block.gate_up), block.down, hidden)


def prepare_head(parts: HeadParts, place: Place) -> PreparedHead:
    """Pack the projection to logits."""
    projection = product_of([parts.projection], place)
    return PreparedHead(_norm(parts.norm, parts.norm_epsilon, projection, place), projection)


def run_head(hidden: Float[Tensor, "rows hidden_size"], head: PreparedHead) -> Float[Tensor, "rows vocabulary"]:
    """Logits of each row."""
    _, inputs = normalized(hidden, head.norm)
    return _finished(inputs, head.projection)


def _summed_later(inputs: Float[Tensor, "rows slots"], product: AnyProduct) -> Sums:
    """A product for a kernel that adds it up as it reads it."""
    if isinstance(product, Product):
        return packed.summed_later(inputs, product)
    return tiled.summed_later(inputs, product)


def _finished(
    inputs: Float[Tensor, "rows slots"],
    product: AnyProduct,
    residual: Float[Tensor, "rows results"] | None = None,
) -> Float[Tensor, "rows results"]:
    """residual + x W^T + bias, gated where the product is."""
    if isinstance(product, Product):
        return packed.finished(inputs, product, residual)
    return tiled.finished(inputs, product, residual)


def _attended(sums: Sums, rows: Rows, cache: LayerCache, block: PreparedBlock) -> Float[Tensor, "rows slots"]:
    """What the heads saw, by slot of the output projection."""
    inputs = HeadInputs(
        sums=sums,
        query_norm=block.query_norm,
        key_norm=block.key_norm,
        epsilon=block.epsilon,
        angles=rows.angles,
        temperature=rows.temperature,
    )
    form, sight = block.heads._replace(splits=len(sums.parts)), block.sight
    if rows.pages.most_rows == 1:
        return newest_attention(inputs, rows, cache, form, sight)
    queries = settled_queries(inputs, rows, cache, form)
    attended = cached_attention(queries, cache.keys, cache.values, rows.pages, sight.window)
    return gathered(attended.flatten(1).contiguous(), sight.column_of_slot)


def _pairs(down: AnyProduct, width: int) -> Int[Tensor, " outputs"]:
    """For each slot of down, the row of gate and the row of up, of `width` rows each, that make its input."""
    gate = torch.arange(width) if down.column_of_slot is None else down.column_of_slot.cpu().long()
    up = torch.where(gate == NONE, NONE, gate + width)
    return torch.stack((gate, up), 1).flatten()


def _norm(weight: Tensor, epsilon: float, product: AnyProduct, place: Place) -> Norm:
    """A norm that stores what it makes in the slots of a product."""
    placed = weight.to(place.device, place.dtype)
    return Norm(placed, epsilon, product.slots, product.column_of_slot, place.card)
