"""What lies between the products of a decoder layer, natively, for quantization, which stops at each product.

Norm, attention over whole sequences, and gating, as `kernels.cpu_blocks` computes them inside its one call. The
definitions are in `quantization.forward`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from octavo.kernels.blocks import Rows
from octavo.kernels.cpu import missing_library
from octavo.kernels.cpu_blocks import step_of


@dataclass(frozen=True)
class Heads:
    """How a layer attends.

    `window` is the positions that a row sees, None for all; a norm is None where the layer has none.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    query_norm: Float[Tensor, " head_dim"] | None
    key_norm: Float[Tensor, " head_dim"] | None
    norm_epsilon: float


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """None, or what keeps tensors of a device and dtype from being computed here."""
    if device.type != "cpu" or dtype != torch.float32:
        return "it computes in float32, on CPUs only"
    return missing_library()


def normalize(
    inputs: Float[Tensor, "rows width"], weight: Float[Tensor, " width"], epsilon: float
) -> Float[Tensor, "rows width"]:
    """Each row over its root mean square, times `weight`."""
    from octavo.kernels import _native

    outputs = torch.empty_like(inputs)
    _native.normalize(inputs.numpy(), weight.numpy(), epsilon, outputs.numpy())
    return outputs


def attend(
    projected: Float[Tensor, "rows projected_width"], heads: Heads, rows: Rows
) -> Float[Tensor, "rows query_width"]:
    """Attention of rows that are whole sequences; each holds its queries, keys and values, side by side."""
    from octavo.kernels import _native

    rule = _native.HeadRule(
        heads.heads,
        heads.kv_heads,
        heads.head_dim,
        heads.window or 0,
        None if heads.query_norm is None else heads.query_norm.numpy(),
        None if heads.key_norm is None else heads.key_norm.numpy(),
        heads.norm_epsilon,
    )
    outputs = projected.new_empty(len(projected), heads.heads * heads.head_dim)
    _native.attend(projected.numpy(), step_of(rows), rule, outputs.numpy())
    return outputs


def gate(gates_and_ups: Float[Tensor, "rows twice_width"]) -> Float[Tensor, "rows width"]:
    """silu(gates) * ups; each row holds both, side by side."""
    from octavo.kernels import _native

    outputs = gates_and_ups.new_empty(len(gates_and_ups), gates_and_ups.shape[1] // 2)
    _native.gate(gates_and_ups.numpy(), outputs.numpy())
    return outputs
