"""A dense model run as something else: what a quantized one is compared with, without a folder of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from octavo.errors import UnsupportedModelError
from octavo.kernels.blocks import LinearParts
from octavo.model.linear import Linear, make_linear
from octavo.model.llama import Block, Head, LlamaModel
from octavo.model.load import EMBEDDING, LINEARS, ModelFolder, norm_shapes, open_folder

LinearMaker = Callable[[LinearParts], Linear]


def open_dense_folder(path: Path) -> ModelFolder:
    """A model folder; UnsupportedModelError where it is quantized already."""
    folder = open_folder(path)
    if folder.quantization is not None:
        raise UnsupportedModelError(
            f"{path} is quantized already ({folder.quantization.default}); baselines start from the dense model"
        )
    return folder


def build_baseline(folder: ModelFolder, device: torch.device, dtype: torch.dtype, make: LinearMaker) -> LlamaModel:
    """The model of a dense folder, each linear of its blocks made by `make`; the head stays dense."""
    config, head = folder.config, folder.head_parts()
    projection = make_linear(head.projection.weight, head.projection.bias, device, dtype)
    return LlamaModel(
        config=config,
        embedding=folder.vector(f"{EMBEDDING}.weight", (config.vocabulary_size, config.hidden_size)).to(device),
        blocks=tuple(_block(folder, layer, device, dtype, make) for layer in range(config.layers)),
        head=Head(head.norm.to(device, dtype), head.norm_epsilon, projection),
        dtype=dtype,
    )


def _block(folder: ModelFolder, layer: int, device: torch.device, dtype: torch.dtype, make: LinearMaker) -> Block:
    fields: dict[str, Any] = {"query_norm": None, "key_norm": None}
    fields |= {field: folder.norm(layer, field).to(device, dtype) for field in norm_shapes(folder.config)}
    fields |= {field: make(folder.linear_parts(layer, field)) for field in LINEARS}
    return Block(**fields)
