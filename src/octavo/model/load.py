"""A model folder to a model, or to one decoder block at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from octavo.checkpoint.formats import SUFFIXES, FileQuantization, decode_linear, read_quantization
from octavo.checkpoint.tensors import TensorFolder
from octavo.errors import CheckpointError, NumericalError
from octavo.model.config import LlamaConfig, read_config
from octavo.model.linear import Linear, make_linear
from octavo.model.llama import Block, LlamaModel
from octavo.weights import DenseWeight, Weight

EMBEDDING = "model.embed_tokens"
FINAL_NORM = "model.norm"
HEAD = "lm_head"
# Buffers that checkpoints of 2023 carry and that the configuration says better.
IGNORED_SUFFIX = ".rotary_emb.inv_freq"

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
    tensors: TensorFolder

    def weight(self, name: str, shape: tuple[int, int]) -> Weight:
        """The weight of the linear `name`, quantized where the folder holds its codes."""
        if f"{name}.weight" in self.tensors:
            return DenseWeight(finite(self.tensors.load(f"{name}.weight", shape), f"{name}.weight"))
        if self.quantization is None or f"{name}.qweight" not in self.tensors:
            raise CheckpointError(f"tensor {name}.weight is missing from {self.path}; fetch the checkpoint again")
        parts = {f"{name}.{suffix}": self.tensors.load(f"{name}.{suffix}") for suffix in SUFFIXES}
        return decode_linear(name, parts, shape, self.quantization)

    def head_weight(self) -> Weight:
        """The weight of the output head: the embedding where they are tied and no other is stored."""
        shape = (self.config.vocabulary_size, self.config.hidden_size)
        if self.config.tied_embeddings and f"{HEAD}.qweight" not in self.tensors:
            return DenseWeight(self.vector(f"{EMBEDDING}.weight", shape))
        return self.weight(HEAD, shape)

    def vector(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor that is never quantized: a norm, a bias, the embedding."""
        return finite(self.tensors.load(name, shape), name)

    def linear(self, layer: int, field: str, device: torch.device, dtype: torch.dtype) -> Linear:
        """One linear of a decoder layer, ready to run."""
        name, shape = f"{block_prefix(layer)}.{LINEARS[field]}", linear_shapes(self.config)[field]
        bias = self.vector(f"{name}.bias", shape[:1]) if has_bias(self.config, field) else None
        return make_linear(self.weight(name, shape), bias, device, dtype)

    def block(self, layer: int, device: torch.device, dtype: torch.dtype) -> Block:
        """One decoder layer, ready to run."""

        def norm(field: str) -> Tensor:
            name = f"{block_prefix(layer)}.{NORMS[field]}.weight"
            return self.vector(name, norm_shapes(self.config)[field]).to(device, dtype)

        def linear(field: str) -> Linear:
            return self.linear(layer, field, device, dtype)

        return Block(
            attention_norm=norm("attention_norm"),
            query=linear("query"),
            key=linear("key"),
            value=linear("value"),
            output=linear("output"),
            query_norm=norm("query_norm") if self.config.query_key_norm else None,
            key_norm=norm("key_norm") if self.config.query_key_norm else None,
            mlp_norm=norm("mlp_norm"),
            gate=linear("gate"),
            up=linear("up"),
            down=linear("down"),
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
    config = read_config(path)
    folder = ModelFolder(path, config, read_quantization(path), TensorFolder(path))
    expected = set(folder.expected_tensors())
    for name in folder.tensors.specs:
        if name.rpartition(".")[0] not in expected and not name.endswith(IGNORED_SUFFIX):
            raise CheckpointError(
                f"{path} holds the tensor {name}, for which a {config.architecture} of {config.layers} layers "
                "has no place; its config.json belongs to another model"
            )
    return folder


def load_model(path: Path, device: torch.device, dtype: torch.dtype) -> LlamaModel:
    """The whole model of a folder, each layer built at once as what it is."""
    folder = open_folder(path)
    config = folder.config
    vocabulary = (config.vocabulary_size, config.hidden_size)
    embedding = folder.vector(f"{EMBEDDING}.weight", vocabulary).to(device, dtype)
    return LlamaModel(
        config=config,
        embedding=embedding,
        blocks=tuple(folder.block(layer, device, dtype) for layer in range(config.layers)),
        norm=folder.vector(f"{FINAL_NORM}.weight", (config.hidden_size,)).to(device, dtype),
        head=make_linear(folder.head_weight(), None, device, dtype),
    )


def finite(tensor: Tensor, name: str) -> Tensor:
    """The tensor, if all of it is finite."""
    if not torch.isfinite(tensor).all():
        raise NumericalError(f"tensor {name} holds NaN or Inf; the checkpoint is damaged, fetch it again")
    return tensor
