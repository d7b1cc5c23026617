"""A model folder to a model, or to one decoder block at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from octavo.checkpoint.configuration import FileQuantization, read_quantization
from octavo.checkpoint.formats import TensorSource, holds_codes, load_linear
from octavo.checkpoint.inference import infer_quantization
from octavo.checkpoint.tensors import TensorFolder
from octavo.errors import CheckpointError, NumericalError
from octavo.kernels import dispatch
from octavo.kernels.blocks import BlockParts, BlockShape, HeadParts, LinearParts
from octavo.model.config import LlamaConfig, read_config
from octavo.model.linear import Linear, make_linear
from octavo.model.llama import Block, FusedBlock, FusedHead, Head, LlamaModel
from octavo.schemes import QuantScheme
from octavo.weights import DenseWeight, QuantizedWeight, Weight

Progress = Callable[[int, int], None]  # is told how many layers are ready, and of how many

EMBEDDING = "model.embed_tokens"
FINAL_NORM = "model.norm"
HEAD = "lm_head"
# Buffers that checkpoints of 2023 carry and that the configuration says better.
IGNORED_SUFFIX = ".rotary_emb.inv_freq"

# What a folder needs besides its weights, so that it can be used where it goes.
CARRIED_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
)

# Field of Block: name within a decoder layer.
LINEARS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
}


def block_prefix(layer: int) -> str:
    return f"model.layers.{layer}"


def linear_shapes(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of each linear of a decoder layer, by field of Block."""
    hidden, mlp = config.hidden_size, config.intermediate_size
    return {
        "query": (config.query_width, hidden),
        "key": (config.kv_width, hidden),
        "value": (config.kv_width, hidden),
        "output": (hidden, config.query_width),
        "gate": (mlp, hidden),
        "up": (mlp, hidden),
        "down": (hidden, mlp),
    }


def every_linear(config: LlamaConfig) -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of each linear of a model by name, the head included."""
    shapes = {
        f"{block_prefix(layer)}.{LINEARS[field]}": shape
        for layer in range(config.layers)
        for field, shape in linear_shapes(config).items()
    }
    return {**shapes, HEAD: (config.vocabulary_size, config.hidden_size)}


def norm_shapes(config: LlamaConfig) -> dict[str, tuple[int]]:
    """Shapes of the norms of a decoder layer, by field of Block."""
    shapes = {"attention_norm": (config.hidden_size,), "mlp_norm": (config.hidden_size,)}
    if config.query_key_norm:
        shapes |= {"query_norm": (config.head_dim,), "key_norm": (config.head_dim,)}
    return shapes


def has_bias(config: LlamaConfig, field: str) -> bool:
    """Whether the linear `field` of a decoder layer adds a bias."""
    if field == "output":
        return config.output_bias
    return config.attention_bias and field in ("query", "key", "value")


@dataclass(frozen=True)
class ModelFolder:
    """An opened model folder: its configuration, how its linears are stored, and its tensors, none read yet."""

    path: Path
    config: LlamaConfig
    quantization: FileQuantization | None
    tensors: TensorSource

    def weight(self, name: str, shape: tuple[int, int]) -> Weight:
        """The weight of the linear `name`, quantized where the folder holds its codes."""
        if f"{name}.weight" in self.tensors:
            return DenseWeight(finite(self.tensors.load(f"{name}.weight", shape), f"{name}.weight"))
        if self.quantization is None or not holds_codes(name, self.tensors):
            raise CheckpointError(f"tensor {name}.weight is missing from {self.path}; fetch the checkpoint again")
        return load_linear(name, shape, self.tensors, self.quantization)

    def head_weight(self) -> Weight:
        """The weight of the output head: the embedding where they are tied and no other is stored."""
        shape = (self.config.vocabulary_size, self.config.hidden_size)
        if self.config.tied_embeddings and not holds_codes(HEAD, self.tensors):
            return DenseWeight(self.vector(f"{EMBEDDING}.weight", shape))
        return self.weight(HEAD, shape)

    def vector(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor that is never quantized: a norm, a bias, the embedding."""
        return finite(self.tensors.load(name, shape), name)

    def linear_parts(self, layer: int, field: str) -> LinearParts:
        """One linear of a decoder layer."""
        name, shape = f"{block_prefix(layer)}.{LINEARS[field]}", linear_shapes(self.config)[field]
        if has_bias(self.config, field):
            return LinearParts(self.weight(name, shape), self.vector(f"{name}.bias", shape[:1]))
        # Checkpoints of March 2023 hold biases of zero for linears that have none.
        if f"{name}.bias" in self.tensors and self.vector(f"{name}.bias", shape[:1]).any():
            raise self.misplaced(f"{name}.bias")
        return LinearParts(self.weight(name, shape))

    def norm(self, layer: int, field: str) -> Tensor:
        """One norm of a decoder layer."""
        name = f"{block_prefix(layer)}.{NORMS[field]}.weight"
        return self.vector(name, norm_shapes(self.config)[field])

    def block_parts(self, layer: int) -> BlockParts:
        """One decoder layer."""
        fields: dict[str, Any] = {"query_norm": None, "key_norm": None}
        fields |= {field: self.norm(layer, field) for field in norm_shapes(self.config)}
        fields |= {field: self.linear_parts(layer, field) for field in LINEARS}
        return BlockParts(**fields)

    def head_parts(self) -> HeadParts:
        """The final norm and the output head."""
        norm = self.vector(f"{FINAL_NORM}.weight", (self.config.hidden_size,))
        return HeadParts(norm, self.config.norm_epsilon, LinearParts(self.head_weight()))

    def block(self, layer: int, device: torch.device, dtype: torch.dtype) -> Block:
        """One decoder layer, ready to run part by part; no more than one of its linears is held as stored."""
        fields: dict[str, Any] = {"query_norm": None, "key_norm": None}
        fields |= {field: self.norm(layer, field).to(device, dtype) for field in norm_shapes(self.config)}
        for field in LINEARS:
            fields[field] = _linear(self.linear_parts(layer, field), device, dtype)
        return Block(**fields)

    def schemes(self) -> dict[str, QuantScheme]:
        """The scheme of each quantized linear; of those whose tensors have the same shapes, one is decoded."""
        stored: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
        for spec in self.tensors.specs.values():
            name, _, suffix = spec.name.rpartition(".")
            stored.setdefault(name, []).append((suffix, spec.shape))
        known: dict[tuple[tuple[str, tuple[int, ...]], ...], QuantScheme] = {}
        schemes = {}
        for name, shape in every_linear(self.config).items():
            if not holds_codes(name, self.tensors):
                continue
            kind = tuple(sorted(stored[name]))
            if kind not in known:
                weight = self.weight(name, shape)
                assert isinstance(weight, QuantizedWeight), "a linear that holds codes is no dense one"
                known[kind] = weight.scheme
            schemes[name] = known[kind]
        return schemes

    def misplaced(self, name: str) -> CheckpointError:
        """What to raise for a tensor that the network has no place for."""
        return CheckpointError(
            f"{self.path} holds the tensor {name}, for which a {self.config.architecture} of {self.config.layers} "
            "layers has no place; its config.json belongs to another model"
        )

    def expected_tensors(self) -> Iterator[str]:
        """Names of the modules whose tensors a folder of this configuration holds."""
        yield from (EMBEDDING, FINAL_NORM, HEAD)
        for layer in range(self.config.layers):
            for field in norm_shapes(self.config):
                yield f"{block_prefix(layer)}.{NORMS[field]}"
            for name in LINEARS.values():
                yield f"{block_prefix(layer)}.{name}"


def open_folder(path: Path) -> ModelFolder:
    """Open a model folder and check that it holds no tensor that the network has no place for."""
    return place_tensors(path, TensorFolder(path))


def place_tensors(path: Path, tensors: TensorSource) -> ModelFolder:
    """The model whose configuration lies in the folder `path`, with tensors from wherever they come."""
    config = read_config(path)
    quantization = read_quantization(path) or infer_quantization(tensors, every_linear(config))
    folder = ModelFolder(path, config, quantization, tensors)
    expected = set(folder.expected_tensors())
    for name in tensors.specs:
        if name.rpartition(".")[0] not in expected and not name.endswith(IGNORED_SUFFIX):
            raise folder.misplaced(name)
    return folder


def load_model(
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    block_kernels: Sequence[ModuleType] = dispatch.BLOCK_KERNELS,
    progress: Progress | None = None,
    coded_cache: bool = False,
) -> LlamaModel:
    """The whole model of a folder; see `build_model`."""
    return build_model(open_folder(path), device, dtype, block_kernels, progress, coded_cache)


def build_model(
    folder: ModelFolder,
    device: torch.device,
    dtype: torch.dtype,
    block_kernels: Sequence[ModuleType] = dispatch.BLOCK_KERNELS,
    progress: Progress | None = None,
    coded_cache: bool = False,
) -> LlamaModel:
    """The whole model of an opened folder, each layer built at once as what it is.

    Layers that none of `block_kernels` runs whole are run part by part. `progress` hears of each
    layer that is ready. `coded_cache`: for a cache in 8 bits.
    """
    config = folder.config

    def block(layer: int) -> Block | FusedBlock:
        shape = block_shape(config, layer, coded_cache)
        built = _load_block(folder, layer, shape, block_kernels, device, dtype)
        if progress is not None:
            progress(layer + 1, config.layers)
        return built

    vocabulary = (config.vocabulary_size, config.hidden_size)
    return LlamaModel(
        config=config,
        embedding=folder.vector(f"{EMBEDDING}.weight", vocabulary).to(device),
        blocks=tuple(block(layer) for layer in range(config.layers)),
        head=_load_head(folder, block_kernels, device, dtype),
        dtype=dtype,
        coded_cache=coded_cache,
    )


def _load_block(
    folder: ModelFolder,
    layer: int,
    shape: BlockShape,
    kernels: Sequence[ModuleType],
    device: torch.device,
    dtype: torch.dtype,
) -> Block | FusedBlock:
    """A decoder layer, whole where a kernel takes it."""
    if not kernels:
        return folder.block(layer, device, dtype)
    parts = folder.block_parts(layer)
    choice = dispatch.choose_block(kernels, parts, shape, device, dtype)
    kernel = choice.kernel
    if kernel is None:
        return folder.block(layer, device, dtype)
    prepared = kernel.prepare_block(parts, shape, device, dtype)
    return FusedBlock(
        lambda hidden, rows, cache: kernel.run_block(hidden, rows, cache, prepared), kernel.NAME, choice.refusals
    )


def _load_head(
    folder: ModelFolder, kernels: Sequence[ModuleType], device: torch.device, dtype: torch.dtype
) -> Head | FusedHead:
    """The final norm and the projection to logits."""
    parts = folder.head_parts()
    choice = dispatch.choose_head(kernels, parts, device, dtype)
    kernel = choice.kernel
    if kernel is None:
        return Head(parts.norm.to(device, dtype), parts.norm_epsilon, _linear(parts.projection, device, dtype))
    prepared = kernel.prepare_head(parts, device, dtype)
    return FusedHead(lambda hidden: kernel.run_head(hidden, prepared), kernel.NAME, choice.refusals)


def block_shape(config: LlamaConfig, layer: int, coded_cache: bool = False) -> BlockShape:
    """What a kernel must know of a decoder layer beside its weights."""
    return BlockShape(config.head_dim, config.norm_epsilon, config.windows[layer], coded_cache)


def _linear(parts: LinearParts, device: torch.device, dtype: torch.dtype) -> Linear:
    return make_linear(parts.weight, parts.bias, device, dtype)


def finite(tensor: Tensor, name: str) -> Tensor:
    """The tensor, if all of it is finite."""
    if not torch.isfinite(tensor).all():
        raise NumericalError(f"tensor {name} holds NaN or Inf; the checkpoint is damaged, fetch it again")
    return tensor
