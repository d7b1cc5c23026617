"""What lies between the products of a decoder layer, for calibration windows: norm, attention and gating.

`model.llama` runs the same layer linear by linear. Here linears with one input are one product, and a window is
all there is of its sequence. On the CPU the native library computes each part, as it will when the model is used.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from octavo.kernels import stages
from octavo.kernels.attention import cached_attention
from octavo.kernels.stages import Heads
from octavo.model.llama import Step, rms_norm, rotate

KEPT_BYTES = 2**28  # of activations that are kept rather than computed twice; no effect on the result


def runs_natively(tensor: Tensor) -> bool:
    """Whether the native library computes with such a tensor."""
    return stages.why_not(tensor.device, tensor.dtype) is None


def normalize(
    inputs: Float[Tensor, "rows width"], weight: Float[Tensor, " width"], epsilon: float
) -> Float[Tensor, "rows width"]:
    """Each row over its root mean square, times `weight`."""
    return (
        stages.normalize(inputs, weight, epsilon) if runs_natively(inputs) else rms_norm(inputs, weight, epsilon)
    )


def attend(
    projected: Float[Tensor, "rows projected_width"], heads: Heads, step: Step
) -> Float[Tensor, "rows query_width"]:
    """Queries, keys and values of a window, side by side, to what the output projection sees."""
    if runs_natively(projected):
        return stages.attend(projected, heads, step.rows)
    on_gpu = projected.device.type == "cuda"  # where attention has kernels for halves only
    return attend_in_torch(projected, heads, step, torch.float16 if on_gpu else projected.dtype)


def attend_in_torch(
    projected: Float[Tensor, "rows projected_width"], heads: Heads, step: Step, dtype: torch.dtype
) -> Float[Tensor, "rows query_width"]:
    """The same, defined; queries, keys and values meet in `dtype`."""
    by_head = projected.view(len(projected), -1, heads.head_dim)
    queries, keys, values = by_head.split((heads.heads, heads.kv_heads, heads.kv_heads), 1)
    if heads.query_norm is not None and heads.key_norm is not None:
        queries = rms_norm(queries, heads.query_norm, heads.norm_epsilon)
        keys = rms_norm(keys, heads.key_norm, heads.norm_epsilon)
    queries, keys = (rotate(states, step.rotary) for states in (queries, keys))
    # The window's own keys are the cache: position p lies in slot p.
    queries, keys, values = (states.to(dtype) for states in (queries, keys, values))
    attended = cached_attention(queries, keys, values, step.rows.pages, heads.window)
    return attended.flatten(1).to(projected.dtype)


def gate(gates_and_ups: Float[Tensor, "rows twice_width"]) -> Float[Tensor, "rows width"]:
    """silu(gates) * ups; each row holds both, side by side (https://arxiv.org/abs/2002.05202)."""
    return stages.gate(gates_and_ups) if runs_natively(gates_and_ups) else gate_in_torch(gates_and_ups)


def gate_in_torch(gates_and_ups: Float[Tensor, "rows twice_width"]) -> Float[Tensor, "rows width"]:
    """The same, defined."""
    gates, ups = gates_and_ups.chunk(2, -1)
    return F.silu(gates) * ups


class Kept:
    """Tensors to be gone through more than once, of which as many as fit in KEPT_BYTES are computed only once."""

    def __init__(self, compute: Callable[[int], Tensor], count: int) -> None:
        self._compute = compute
        self._count = count
        self._kept: list[Tensor] = []

    def __iter__(self) -> Iterator[Tensor]:
        yield from self._kept
        for number in range(len(self._kept), self._count):
            tensor = self._compute(number)
            if (number + 1) * tensor.nbytes <= KEPT_BYTES:
                self._kept.append(tensor)
            yield tensor
