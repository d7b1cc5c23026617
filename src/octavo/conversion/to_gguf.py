"""A model folder to a GGUF file for llama.cpp, from the quantized weights themselves.

Names, fields and the order of rows are those of llama.cpp's own conversion (convert_hf_to_gguf.py).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from octavo.checkpoint.gguf import Value
from octavo.checkpoint.gguf_blocks import fills_blocks, q4_0, q4_1, q8_0
from octavo.checkpoint.gguf_writer import GgufSpec, write_gguf
from octavo.checkpoint.tensors import Progress, tensor_bytes
from octavo.conversion.from_gguf import BLOCK_TENSORS, HEAD_TENSOR, ROPE_FACTORS, llama3_factors
from octavo.conversion.rotary import interleaved_rows
from octavo.conversion.to_gguf_tokenizer import tokenizer_fields
from octavo.errors import OutputError, UnsupportedModelError
from octavo.model.config import LlamaConfig
from octavo.model.load import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LINEARS,
    NORMS,
    ModelFolder,
    block_prefix,
    every_linear,
    has_bias,
    norm_shapes,
)
from octavo.schemes import QuantScheme
from octavo.weights import DenseWeight, QuantizedWeight, dequantize

ARCHITECTURES = {"LlamaForCausalLM": "llama", "MistralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
DENSE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
BLOCKS: dict[str, Callable[[QuantizedWeight], np.ndarray]] = {"Q8_0": q8_0, "Q4_0": q4_0, "Q4_1": q4_1}
# `general.file_type` of llama.cpp by the type of most tensors.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
QUANTIZATION_VERSION = 2  # of ggml's blocks


@dataclass(frozen=True)
class _Source:
    """A tensor of the file and where it comes from. `exact`: what the blocks hold is what the folder holds."""

    name: str
    encoding: str
    shape: tuple[int, ...]
    rotary_heads: int = 0
    exact: bool = True


def export_gguf(folder: ModelFolder, path: Path, progress: Progress) -> list[str]:
    """Write the model of `folder` into the file `path`; in sentences, what of it could not be exact.

    Symmetric codes go into Q4_0 (2 to 4 bits) or Q8_0 (8 bits) and keep their values to the bit. Asymmetric ones
    of 2 to 4 bits go into Q4_1, whose minimum is rounded to float16. Others, and columns in order of activation,
    are dequantized and rounded to Q8_0; rows that do not fill blocks of 32 are dequantized to float16.

    Raises UnsupportedModelError for what llama.cpp does not run, TokenizerError for a tokenizer that it does not
    know, OutputError where the file exists or cannot be written.
    """
    _refuse_unfit(folder.config)
    if path.exists():
        raise OutputError(f"{path} exists; remove it or choose another name")
    sources = _sources(folder)
    specs = [GgufSpec(name, source.encoding, source.shape) for name, source in sources.items()]
    factors = _rope_factors(folder.config)
    if factors is not None:
        specs.append(GgufSpec(ROPE_FACTORS, "F32", tuple(factors.shape)))
    common, _ = Counter(source.encoding for source in sources.values() if len(source.shape) == 2).most_common(1)[0]
    metadata = {**_fields(folder, common), **tokenizer_fields(folder)}

    def load(name: str) -> np.ndarray:
        if factors is not None and name == ROPE_FACTORS:
            return np.frombuffer(tensor_bytes(factors), np.uint8)
        return _bytes(folder, sources[name])

    write_gguf(path, metadata, specs, load, progress)
    return _notes(sources, folder)


def _refuse_unfit(config: LlamaConfig) -> None:
    if config.architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{config.architecture} is not written as GGUF; written are {', '.join(ARCHITECTURES)}"
        )
    if any(window is not None and window < config.context for window in config.windows):
        raise UnsupportedModelError("the model has a sliding window, which llama.cpp does not know of in a llama")
    if config.output_bias or config.rope_scaling.type == "dynamic":
        raise UnsupportedModelError("the model has a bias of its output projection or dynamic rotary scaling")


def _sources(folder: ModelFolder) -> dict[str, _Source]:
    """Where each tensor of the file comes from, by llama.cpp's name."""
    config, schemes = folder.config, folder.schemes()
    vocabulary = (config.vocabulary_size, config.hidden_size)
    turned = ARCHITECTURES[config.architecture] == "llama"
    heads = {"query": config.heads, "key": config.kv_heads} if turned else {}
    shapes = every_linear(config)

    def linear(name: str, rotary_heads: int = 0) -> _Source:
        shape = shapes[name]
        if name not in schemes:
            return _Source(name, DENSE[folder.tensors.specs[f"{name}.weight"].dtype], shape, rotary_heads)
        encoding, exact = _encoding(
            schemes[name], shape, folder.quantization is not None and folder.quantization.ordered
        )
        return _Source(name, encoding, shape, rotary_heads, exact)

    def dense(name: str, shape: tuple[int, ...]) -> _Source:
        return _Source(name, "F32" if len(shape) == 1 else DENSE[folder.tensors.specs[name].dtype], shape)

    sources = {"token_embd.weight": dense(f"{EMBEDDING}.weight", vocabulary)}
    for layer in range(config.layers):
        for field, theirs in BLOCK_TENSORS.items():
            stored = f"blk.{layer}.{theirs}"
            if field in norm_shapes(config):
                name = f"{block_prefix(layer)}.{NORMS[field]}.weight"
                sources[f"{stored}.weight"] = dense(name, norm_shapes(config)[field])
                continue
            name = f"{block_prefix(layer)}.{LINEARS[field]}"
            sources[f"{stored}.weight"] = linear(name, heads.get(field, 0))
            if has_bias(config, field):
                sources[f"{stored}.bias"] = replace(
                    dense(f"{name}.bias", shapes[name][:1]), rotary_heads=heads.get(field, 0)
                )
    sources["output_norm.weight"] = dense(f"{FINAL_NORM}.weight", (config.hidden_size,))
    if not config.tied_embeddings or HEAD in schemes:
        sources[HEAD_TENSOR] = linear(HEAD)
    return sources


def _encoding(scheme: QuantScheme, shape: tuple[int, int], ordered: bool) -> tuple[str, bool]:
    """The type that holds a quantized linear, and whether it holds it exactly."""
    if shape[1] % 32:
        return "F16", False
    if ordered or not fills_blocks(shape[1], scheme.group_size):
        return "Q8_0", False
    if scheme.bits == 8:
        return "Q8_0", scheme.symmetric
    return ("Q4_0", True) if scheme.symmetric else ("Q4_1", False)


def _bytes(folder: ModelFolder, source: _Source) -> np.ndarray:
    """What the file holds of a tensor."""
    if len(source.shape) == 1 or source.name not in every_linear(folder.config):
        values = folder.vector(source.name, source.shape)
        values = values.float() if len(source.shape) == 1 else values
        return np.frombuffer(tensor_bytes(_turned(values, source)), np.uint8)
    weight = folder.weight(source.name, (source.shape[0], source.shape[1]))
    if isinstance(weight, DenseWeight):
        return np.frombuffer(tensor_bytes(_turned(weight.values, source)), np.uint8)
    turned = replace(
        weight,
        codes=_turned(weight.codes, source),
        scales=_turned(weight.scales, source),
        zeros=_turned(weight.zeros, source),
    )
    if source.exact or source.encoding == "Q4_1":
        return BLOCKS[source.encoding](turned)
    values = dequantize(turned)
    if source.encoding == "F16":
        return np.frombuffer(tensor_bytes(values.half()), np.uint8)
    from gguf import GGMLQuantizationType, quantize

    rounded: np.ndarray = quantize(values.numpy(), GGMLQuantizationType[source.encoding])
    return rounded


def _turned(values: Tensor, source: _Source) -> Tensor:
    """Rows in the order that llama.cpp's rotary embedding wants."""
    if not source.rotary_heads:
        return values
    return values[interleaved_rows(values.shape[0], source.rotary_heads)].contiguous()


def _fields(folder: ModelFolder, common: str) -> dict[str, Value]:
    config = folder.config
    architecture = ARCHITECTURES[config.architecture]
    scaling = config.rope_scaling
    fields: dict[str, Value] = {
        "context_length": config.context,
        "embedding_length": config.hidden_size,
        "block_count": config.layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
        "vocab_size": config.vocabulary_size,
    }
    if scaling.type in ("linear", "yarn"):
        fields |= {"rope.scaling.type": scaling.type, "rope.scaling.factor": scaling.factor}
    if scaling.type == "yarn":
        fields["rope.scaling.original_context_length"] = scaling.original_context
    return {
        "general.architecture": architecture,
        "general.name": folder.path.resolve().name,
        "general.file_type": FILE_TYPES[common],
        "general.quantization_version": QUANTIZATION_VERSION,
        **{f"{architecture}.{field}": value for field, value in fields.items()},
    }


def _rope_factors(config: LlamaConfig) -> Tensor | None:
    """Llama 3's stretching of the rotary frequencies, which GGUF holds as a tensor."""
    if config.rope_scaling.type != "llama3":
        return None
    return llama3_factors(config.rope_theta, config.head_dim, config.rope_scaling)


def _notes(sources: dict[str, _Source], folder: ModelFolder) -> list[str]:
    """What of the quantized linears is not to the bit what the folder holds."""
    rounded = Counter(source.encoding for source in sources.values() if not source.exact)
    words = {
        "Q4_1": "are asymmetric: Q4_1 keeps their codes and scales, and rounds each minimum to float16",
        "Q8_0": "cannot be exact in Q8_0 (asymmetric 8 bits, columns in order of activation, or groups that are "
        "no multiple of 32): they were dequantized and rounded again",
        "F16": "have rows that do not fill blocks of 32: they were dequantized to float16",
    }
    exact = sum(source.exact for source in sources.values() if source.name in folder.schemes())
    notes = [f"{count} linears {words[encoding]}" for encoding, count in sorted(rounded.items())]
    return [f"{exact} linears hold their values exactly", *notes] if folder.schemes() else notes
