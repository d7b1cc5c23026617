"""What a kernel is given that runs a whole decoder layer, or the head: plain tensors, no model.

Such a kernel is a module with `NAME` and, beside the verbs of a linear (see `dispatch`), these:

- `why_not_block(parts, shape, device, dtype)`: None, or why it cannot run this layer;
- `prepare_block(parts, shape, device, dtype)`: the layer in the kernel's own layout;
- `run_block(hidden, rows, cache, prepared)`: the layer's output, its keys and values written to `cache`, which is
  a `CodedLayerCache` where the shape says `coded_cache`;
- `why_not_head(parts, device, dtype)`, `prepare_head(parts, device, dtype)`, `run_head(hidden, prepared)`: the
  same for the final norm and the projection to logits.

`hidden` and what comes back are of `dtype`; nothing is compiled, tuned or synchronized outside the `prepare`
verbs. The functions of `model.llama` are the slow twins.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from octavo.kernels.attention import CodedHeads, SequencePages
from octavo.weights import Weight


@dataclass(frozen=True)
class LinearParts:
    """A linear as its file has it."""

    weight: Weight
    bias: Float[Tensor, " out_features"] | None = None


@dataclass(frozen=True)
class BlockParts:
    """A decoder layer as its file has it."""

    attention_norm: Float[Tensor, " hidden_size"]
    query: LinearParts
    key: LinearParts
    value: LinearParts
    output: LinearParts
    query_norm: Float[Tensor, " head_dim"] | None
    key_norm: Float[Tensor, " head_dim"] | None
    mlp_norm: Float[Tensor, " hidden_size"]
    gate: LinearParts
    up: LinearParts
    down: LinearParts


@dataclass(frozen=True)
class BlockShape:
    """What the weights of a decoder layer do not say.

    `window` is the positions a row sees, None for all; `coded_cache` says whether keys and values are cached in 8
    bits.
    """

    head_dim: int
    norm_epsilon: float
    window: int | None
    coded_cache: bool = False


@dataclass(frozen=True)
class HeadParts:
    """The final norm and the projection to logits, as their file has them."""

    norm: Float[Tensor, " hidden_size"]
    norm_epsilon: float
    projection: LinearParts


@dataclass(frozen=True)
class Rows:
    """What the layers of one forward pass must know of the rows that pass through them.

    `angles`, float32, are the rotation of each row's pairs (d, d + head_dim / 2) in radians; `temperature` scales
    rotated queries and keys. `write_slots` say where each row's key and value go.
    """

    angles: Float[Tensor, "rows half_head"]
    temperature: float
    write_slots: Int[Tensor, " rows"]
    pages: SequencePages


@dataclass(frozen=True)
class LayerCache:
    """The keys and values of one layer."""

    keys: Float[Tensor, "slots kv_heads head_dim"]
    values: Float[Tensor, "slots kv_heads head_dim"]


@dataclass(frozen=True)
class CodedLayerCache:
    """The same in 8 bits, for layers whose shape says `coded_cache`."""

    keys: CodedHeads
    values: CodedHeads
