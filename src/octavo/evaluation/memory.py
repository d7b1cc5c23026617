"""How many bytes a model takes, by part, from its configuration alone; and what tables of 2023 called memory."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from octavo.checkpoint.formats import linear_specs
from octavo.checkpoint.tensors import TensorSpec
from octavo.evaluation.subject import Subject
from octavo.model.config import LlamaConfig
from octavo.model.load import (
    EMBEDDING,
    HEAD,
    LINEARS,
    ModelFolder,
    block_prefix,
    every_linear,
    has_bias,
    linear_shapes,
    norm_shapes,
)
from octavo.schemes import Layout, SchemePlan

HALF = 2  # bytes of a float16
PREFILL_ROWS = 512  # of a prompt, at a time

# What the tensors of a quantized linear are, by the end of their names.
PARTS = {
    "qweight": "codes",
    "weight_packed": "codes",
    "scales": "scales",
    "weight_scale": "scales",
    "qzeros": "zeros",
    "weight_zero_point": "zeros",
}

MEBIBYTE = 2**20
# PyTorch's caching allocator: sizes are multiples of 512 bytes; from 10 MiB on a block is a multiple of 2 MiB, and
# is not split for a rest of up to 1 MiB (c10/cuda/CUDACachingAllocator.cpp).
SMALLEST_BLOCK, LARGE_BLOCK, LARGE_STEP, UNSPLIT_REST = 512, 10 * MEBIBYTE, 2 * MEBIBYTE, MEBIBYTE


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model by part: codes, scales, zeros, group indices, dense weights, head, cache, activations."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def predict(config: LlamaConfig, plan: SchemePlan | None, context: int, layout: Layout = "gptq") -> Footprint:
    """What a model takes with `context` tokens in its cache; without a plan it is dense.

    Weights are counted as a file holds them and the fused kernels run them, in half precision where they are
    dense; the cache in half precision; activations for a prompt that is read in pieces.
    """
    parts: Counter[str] = Counter()
    for part, size in _tensors(config, plan, layout, linear_shapes(config)):
        parts[part] += size
    parts["cache"] = 2 * config.layers * context * config.kv_width * HALF
    rows = min(PREFILL_ROWS, context)
    widest = max(2 * config.intermediate_size, config.query_width + 2 * config.kv_width)
    parts["activations"] = rows * (3 * config.hidden_size + widest) * HALF + 4 * config.vocabulary_size
    return Footprint(dict(parts))


def predict_2023(config: LlamaConfig, plan: SchemePlan | None, context: int) -> int:
    """Bytes that GPTQ's reference code would report as max memory on a GPU, with `context` tokens in the cache.

    Read after each forward pass, so without activations: weights, with query, key and value in one where they are
    quantized; cache; each layer's own cosines and sines in float32 over all positions; each tensor rounded as the
    allocator does. Vicuna-13B: 14,840 MiB on the card with 8 bits and 8,670 with 4; here 14,835 and 8,647.
    """
    shapes = linear_shapes(config)
    if plan is not None:
        shapes["query"] = (config.query_width + 2 * config.kv_width, config.hidden_size)
        del shapes["key"], shapes["value"]
    sizes = [size for _, size in _tensors(config, plan, "gptq", shapes)]
    sizes += [context * config.kv_width * HALF] * (2 * config.layers)
    sizes += [config.context * config.head_dim * 4] * (2 * config.layers)
    return sum(map(_allocated, sizes))


def _allocated(size: int) -> int:
    """What the allocator counts for a tensor."""
    size = -(-size // SMALLEST_BLOCK) * SMALLEST_BLOCK
    block = -(-size // LARGE_STEP) * LARGE_STEP
    return block if size >= LARGE_BLOCK and block - size <= UNSPLIT_REST else size


def _tensors(
    config: LlamaConfig, plan: SchemePlan | None, layout: Layout, shapes: dict[str, tuple[int, int]]
) -> Iterator[tuple[str, int]]:
    """The part and the bytes of every tensor of the weights; `shapes` are those of a layer's linears."""
    vocabulary = config.vocabulary_size * config.hidden_size * HALF
    yield "embedding", vocabulary
    for layer in range(config.layers):
        for field, shape in shapes.items():
            yield from _linear(f"{block_prefix(layer)}.{LINEARS[field]}", shape, plan, layout)
            if has_bias(config, field):
                yield "norms and biases", shape[0] * HALF
        for (width,) in norm_shapes(config).values():
            yield "norms and biases", width * HALF
    yield "norms and biases", config.hidden_size * HALF
    if plan is not None and plan.lm_head is not None:
        for _, size in _linear(HEAD, (config.vocabulary_size, config.hidden_size), plan, layout):
            yield "head", size
    elif not config.tied_embeddings:
        yield "head", vocabulary


def _linear(
    name: str, shape: tuple[int, int], plan: SchemePlan | None, layout: Layout
) -> Iterator[tuple[str, int]]:
    scheme = None if plan is None else plan.scheme_for(name)
    if scheme is None:
        yield "dense weights", shape[0] * shape[1] * HALF
        return
    for spec in linear_specs(name, shape, scheme, layout):
        yield _part(spec), spec.bytes


def _part(spec: TensorSpec) -> str:
    return PARTS.get(spec.name.rpartition(".")[2], "group indices")


@dataclass(frozen=True)
class WeightSize:
    """Bytes of the weights of a model: all, those of the linears, and those that each token reads.

    `weights` counts the linears' parameters. The embedding is read row by row, so it counts for a token only where
    it is the head as well.
    """

    total: int
    linears: int
    per_token: int
    weights: int

    @property
    def bits_per_weight(self) -> float:
        """Of the linears, scales and zeros included."""
        return 8 * self.linears / self.weights


def stored_size(folder: ModelFolder) -> WeightSize:
    """As the folder holds them."""
    specs = folder.tensors.specs.values()
    shapes = every_linear(folder.config)
    bytes_of: Counter[str] = Counter()
    for spec in specs:
        bytes_of[spec.name.rpartition(".")[0]] += spec.bytes
    linears = {name: shape for name, shape in shapes.items() if name in bytes_of}
    total = sum(bytes_of.values())
    return WeightSize(
        total=total,
        linears=sum(bytes_of[name] for name in linears),
        per_token=total - (bytes_of[EMBEDDING] if HEAD in linears else 0),
        weights=sum(rows * columns for rows, columns in linears.values()),
    )


def baseline_size(folder: ModelFolder, subject: Subject) -> WeightSize:
    """As a baseline holds the linears of the blocks of a dense folder; the rest as it is stored."""
    stored = stored_size(folder)
    shapes = {name: shape for name, shape in every_linear(folder.config).items() if name != HEAD}
    before = sum(folder.tensors.specs[f"{name}.weight"].bytes for name in shapes)
    change = round(sum(rows * subject.bits_of_row(columns) for rows, columns in shapes.values()) / 8) - before
    return WeightSize(stored.total + change, stored.linears + change, stored.per_token + change, stored.weights)
