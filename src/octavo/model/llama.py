"""The LLaMA network: plain functions over frozen weights, one file.

Norm, rotary, attention, gated MLP, block, model. Mistral and Qwen differ by fields of `LlamaConfig`. Rows of
several sequences share each call (`Batch`); what a row sees of its past goes through `kernels.attention`.

A decoder layer is a `Block`, run here part by part, or a `FusedBlock`, which a kernel runs whole; what is here is
the definition of both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from octavo.kernels.attention import cached_attention, write_cache
from octavo.kernels.blocks import CodedLayerCache, LayerCache, Rows
from octavo.model.config import LlamaConfig
from octavo.model.kv_cache import Batch, KVCache
from octavo.model.linear import Linear

Hidden = Float[Tensor, "rows hidden_size"]


@dataclass(frozen=True)
class Block:
    """The weights of one decoder layer."""

    attention_norm: Float[Tensor, " hidden_size"]
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    query_norm: Float[Tensor, " head_dim"] | None
    key_norm: Float[Tensor, " head_dim"] | None
    mlp_norm: Float[Tensor, " hidden_size"]
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class FusedBlock:
    """A decoder layer that one kernel runs whole; `refusals` say why faster kernels do not."""

    run: Callable[[Tensor, Rows, LayerCache | CodedLayerCache], Tensor]
    kernel: str
    refusals: dict[str, str]


@dataclass(frozen=True)
class Head:
    """The final norm and the projection to logits."""

    norm: Float[Tensor, " hidden_size"]
    norm_epsilon: float
    projection: Linear

    def __call__(self, hidden: Hidden) -> Float[Tensor, "rows vocabulary"]:
        return self.projection(rms_norm(hidden, self.norm, self.norm_epsilon))


@dataclass(frozen=True)
class FusedHead:
    """The final norm and the projection, run by one kernel; `refusals` say why faster kernels do not."""

    run: Callable[[Tensor], Tensor]
    kernel: str
    refusals: dict[str, str]

    def __call__(self, hidden: Hidden) -> Float[Tensor, "rows vocabulary"]:
        return self.run(hidden)


@dataclass(frozen=True)
class Rotary:
    """Cosine and sine of each row's rotation; the same in every layer."""

    cosine: Float[Tensor, "rows 1 head_dim"]
    sine: Float[Tensor, "rows 1 head_dim"]

    def to(self, dtype: torch.dtype) -> "Rotary":
        return Rotary(self.cosine.to(dtype), self.sine.to(dtype))


@dataclass(frozen=True)
class Step:
    """What all layers of one forward pass share."""

    config: LlamaConfig
    rows: Rows
    cache: KVCache

    @cached_property
    def rotary(self) -> Rotary:
        """In float32, computed for the first layer that asks; fused layers make their own."""
        doubled = torch.cat((self.rows.angles, self.rows.angles), -1)[:, None, :]
        return Rotary(doubled.cos() * self.rows.temperature, doubled.sin() * self.rows.temperature)


@dataclass(frozen=True)
class LlamaModel:
    """A whole network on one device; `dtype` is what it computes in, whatever its weights are stored in.

    `coded_cache` says that its blocks were chosen for a cache in 8 bits.
    """

    config: LlamaConfig
    embedding: Float[Tensor, "vocabulary hidden_size"]
    blocks: tuple[Block | FusedBlock, ...]
    head: Head | FusedHead
    dtype: torch.dtype
    coded_cache: bool = False

    @property
    def device(self) -> torch.device:
        return self.embedding.device


def forward(
    model: LlamaModel, batch: Batch, cache: KVCache, logits_for: Int[Tensor, " chosen"] | None = None
) -> Float[Tensor, "chosen vocabulary"]:
    """Logits of the rows `logits_for`, or of all; keys and values of all rows are in the cache afterwards."""
    hidden = hidden_states(model, batch, cache)
    return model.head(hidden if logits_for is None else hidden[logits_for])


def hidden_states(model: LlamaModel, batch: Batch, cache: KVCache) -> Hidden:
    """The states that the head turns into logits, one per row."""
    hidden = F.embedding(batch.tokens, model.embedding).to(model.dtype)
    step = make_step(model.config, batch, cache)
    for layer, block in enumerate(model.blocks):
        hidden = run_block(block, layer, hidden, step)
    return hidden


def make_step(config: LlamaConfig, batch: Batch, cache: KVCache) -> Step:
    """What the layers need to know of a batch."""
    angles = batch.positions.float()[:, None] * inverse_frequencies(config, batch)
    rows = Rows(angles, config.rope_scaling.attention_factor, batch.write_slots, batch.pages)
    return Step(config, rows, cache)


def run_block(block: Block | FusedBlock, layer: int, hidden: Hidden, step: Step) -> Hidden:
    """One decoder layer: attention, then the gated MLP, each added to what came in."""
    if isinstance(block, FusedBlock):
        return block.run(hidden, step.rows, step.cache.layer(layer))
    inputs = rms_norm(hidden, block.attention_norm, step.config.norm_epsilon)
    hidden = hidden + block.output(attend(block, layer, inputs, step))
    inputs = rms_norm(hidden, block.mlp_norm, step.config.norm_epsilon)
    return hidden + block.down(gated(block, inputs))


def attend(block: Block, layer: int, inputs: Hidden, step: Step) -> Float[Tensor, "rows query_width"]:
    """Attention up to, but without, the output projection."""
    heads = (len(inputs), -1, step.config.head_dim)
    queries, keys = block.query(inputs).view(heads), block.key(inputs).view(heads)
    if block.query_norm is not None and block.key_norm is not None:
        queries = rms_norm(queries, block.query_norm, step.config.norm_epsilon)
        keys = rms_norm(keys, block.key_norm, step.config.norm_epsilon)
    rotary = step.rotary.to(inputs.dtype)
    cached_keys, cached_values = step.cache.keys[layer], step.cache.values[layer]
    write_cache(cached_keys, rotate(keys, rotary), step.rows.write_slots)
    write_cache(cached_values, block.value(inputs).view(heads), step.rows.write_slots)
    attended = cached_attention(
        rotate(queries, rotary), cached_keys, cached_values, step.rows.pages, step.config.windows[layer]
    )
    return attended.flatten(1)


def gated(block: Block, inputs: Hidden) -> Float[Tensor, "rows intermediate_size"]:
    """SwiGLU up to, but without, the down projection (https://arxiv.org/abs/2002.05202)."""
    return F.silu(block.gate(inputs)) * block.up(inputs)


def rms_norm(inputs: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Each vector over its root mean square, in float32, times `weight` (https://arxiv.org/abs/1910.07467)."""
    wide = inputs.float()
    normalized = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * normalized.to(inputs.dtype)


def rotate(vectors: Float[Tensor, "rows heads head_dim"], rotary: Rotary) -> Float[Tensor, "rows heads head_dim"]:
    """Rotate the pairs (d, d + head_dim / 2) of each head, the order of Hugging Face checkpoints.

    Rotary position embedding, https://arxiv.org/abs/2104.09864.
    """
    first, second = vectors.chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return vectors * rotary.cosine + turned * rotary.sine


def inverse_frequencies(config: LlamaConfig, batch: Batch) -> Float[Tensor, "*rows half_head"]:
    """Radians per position of each pair; one row for all, or one per row where they depend on its sequence."""
    scaling, device = config.rope_scaling, batch.positions.device
    exponents = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
    plain = 1.0 / config.rope_theta**exponents
    match scaling.type:
        case "default":
            return plain
        case "linear":
            return plain / scaling.factor
        case "dynamic":
            return 1.0 / _dynamic_base(config, batch)[:, None] ** exponents
        case "llama3":
            return _llama3_frequencies(config, plain)
        case "yarn":
            return _yarn_frequencies(config, plain)


def _dynamic_base(config: LlamaConfig, batch: Batch) -> Float[Tensor, " rows"]:
    """NTK-aware base of each row's sequence, growing once it is longer than the trained context."""
    scaling, rows = config.rope_scaling, len(batch.positions)
    counts = batch.pages.row_starts.diff()
    lengths = torch.repeat_interleave(batch.pages.lengths, counts, output_size=rows)
    stretch = lengths.clamp(min=scaling.original_context).float() / scaling.original_context
    exponent = config.head_dim / (config.head_dim - 2)
    return config.rope_theta * (scaling.factor * stretch - (scaling.factor - 1)) ** exponent


def _llama3_frequencies(config: LlamaConfig, plain: Tensor) -> Tensor:
    """Llama 3.1: long waves are stretched, short ones kept, those between blended."""
    scaling = config.rope_scaling
    turns = scaling.original_context * plain / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (kept + (1 - kept) / scaling.factor)


def _yarn_frequencies(config: LlamaConfig, plain: Tensor) -> Tensor:
    """YaRN: a linear ramp over the dimensions between stretched and kept (https://arxiv.org/abs/2309.00071)."""
    scaling, width = config.rope_scaling, config.head_dim

    def dimension_of(turns: float) -> float:
        period = scaling.original_context / (turns * 2 * math.pi)
        return width * math.log(period) / (2 * math.log(config.rope_theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.whole_dimensions:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = high - low if high != low else 0.001
    stretched = ((torch.arange(width // 2, device=plain.device).float() - low) / span).clamp(0, 1)
    return plain * (stretched / scaling.factor + (1 - stretched))
