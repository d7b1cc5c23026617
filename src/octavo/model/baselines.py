"""A dense model run as something else: what a quantized one is compared with, without a folder of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from octavo.errors import UnsupportedModelError
from octavo.model.linear import make_int8_linear, make_linear
from octavo.model.llama import Block, Head, LlamaModel
from octavo.model.load import EMBEDDING, HEAD, LINEARS, ModelFolder, norm_shapes, open_folder
from octavo.weights import DenseWeight, QuantizedWeight, Weight


def open_dense_folder(path: Path) -> ModelFolder:
    """A model folder; UnsupportedModelError where it is quantized already."""
    folder = open_folder(path)
    if folder.quantization is not None:
        raise UnsupportedModelError(
            f"{path} is quantized already ({folder.quantization.default}); give the dense model it was made of"
        )
    return folder


@dataclass(frozen=True)
class RoundedFolder(ModelFolder):
    """A dense folder whose linears are rounded as they are read; the head stays dense."""

    rounded: Callable[[DenseWeight], QuantizedWeight]

    def weight(self, name: str, shape: tuple[int, int]) -> Weight:
        """The weight of the linear `name`, rounded."""
        weight = super().weight(name, shape)
        return self.rounded(weight) if name != HEAD and isinstance(weight, DenseWeight) else weight


def build_int8(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> LlamaModel:
    """The model of a dense folder with the linears of its blocks run by LLM.int8(); the head stays dense."""
    config, head = folder.config, folder.head_parts()
    projection = make_linear(head.projection.weight, head.projection.bias, device, dtype)
    return LlamaModel(
        config=config,
        embedding=folder.vector(f"{EMBEDDING}.weight", (config.vocabulary_size, config.hidden_size)).to(device),
        blocks=tuple(_int8_block(folder, layer, device, dtype) for layer in range(config.layers)),
        head=Head(head.norm.to(device, dtype), head.norm_epsilon, projection),
        dtype=dtype,
    )


def _int8_block(folder: ModelFolder, layer: int, device: torch.device, dtype: torch.dtype) -> Block:
    fields: dict[str, Any] = {"query_norm": None, "key_norm": None}
    fields |= {field: folder.norm(layer, field).to(device, dtype) for field in norm_shapes(folder.config)}
    for field in LINEARS:
        parts = folder.linear_parts(layer, field)
        assert isinstance(parts.weight, DenseWeight), "the folder is dense"
        fields[field] = make_int8_linear(parts.weight, parts.bias, device, dtype)
    return Block(**fields)
