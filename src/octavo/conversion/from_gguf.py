"""GGUF to a Hugging Face folder: config, weights under Hugging Face's names, and the tokenizer.

This is llama.cpp's own conversion read backwards (https://github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py).
What a file says and config.json could not is refused by name.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from octavo.checkpoint.gguf import GgufFile, read_gguf
from octavo.checkpoint.tensors import TensorSpec, write_checkpoint
from octavo.conversion.destination import DEFAULT_SHARD_SIZE, claim
from octavo.conversion.gguf_tokenizer import rebuild_tokenizer
from octavo.conversion.rotary import halves
from octavo.errors import CheckpointError, NumericalError, UnsupportedModelError, UsageError
from octavo.model.config import LlamaConfig, RopeScaling, config_from_values
from octavo.model.load import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LINEARS,
    NORMS,
    block_prefix,
    has_bias,
    linear_shapes,
    norm_shapes,
)
from octavo.records import write_json

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Hugging Face's class by llama.cpp's architecture; Mistral's files call themselves llama.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

# The fields of a network that are understood here; any other could change what it computes.
NETWORK_FIELDS = frozenset(
    {
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "tensor_data_layout",  # only in files of 2023, and then it names the order of rows that all files have
        "vocab_size",  # the token list says it too, and is held against the embedding
    }
)

# Tensors of a decoder layer, by field of Block.
BLOCK_TENSORS = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
HEAD_TENSOR = "output.weight"  # absent where the embedding serves as the head

# Llama 3 stretches its rotary frequencies by a tensor of factors; all of its releases share these three numbers.
ROPE_FACTORS = "rope_freqs.weight"
LLAMA3_CONTEXT = 8192
LLAMA3_LOW_FREQUENCY = 1.0
LLAMA3_HIGH_FREQUENCY = 4.0


@dataclass(frozen=True)
class _Weight:
    """A tensor by Hugging Face's name and by GGUF's.

    `rotary_heads` is the number of heads whose rows are interleaved for llama.cpp's rotary embedding, mostly 0.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    rotary_heads: int = 0


def convert_gguf(
    source: Path,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write the model in the file `source` to `folder`, new or empty, as Hugging Face's libraries load it.

    float32 is the default because it holds each dequantized weight exactly: the sum `scale * code + minimum` is
    seldom a float16 number, and rounding it moved the perplexity of SmolLM2-135M by 0.001. `progress` is told the
    name of each tensor, how many are done by then, and how many there are. config.json is written last: a folder
    without it is no model.

    Raises CheckpointError where the file is damaged, UnsupportedModelError where it is no plain LLaMA,
    TokenizerError where its tokenizer cannot be rebuilt, NumericalError where a weight is no finite number in
    `dtype`, OutputError where `folder` is not empty or cannot be written.
    """
    if dtype not in DTYPES:
        raise UsageError(f"weights cannot be written as {dtype}; choose {', '.join(map(str, DTYPES))}")
    file = read_gguf(source)
    _refuse_other_networks(file)
    tokenizer = rebuild_tokenizer(file)
    values = _config_values(file, tokenizer.vocabulary_size, dtype) | tokenizer.token_ids
    weights = {weight.name: weight for weight in _checked_weights(file, config_from_values(values, source))}
    numbers = {name: number for number, name in enumerate(weights, start=1)}

    def load(name: str) -> Tensor:
        tensor = _load(file, weights[name], dtype)
        if progress is not None:
            progress(name, numbers[name], len(weights))
        return tensor

    claim(folder)
    specs = [TensorSpec(weight.name, dtype, weight.shape) for weight in weights.values()]
    write_checkpoint(folder, specs, load, max_shard_size)
    write_json(folder / "tokenizer.json", tokenizer.json)
    length = {"model_max_length": values["max_position_embeddings"]}
    write_json(folder / "tokenizer_config.json", tokenizer.config | length)
    ends = {"eos_token_id": list(tokenizer.end_ids)} if tokenizer.end_ids else {}
    write_json(folder / "generation_config.json", tokenizer.token_ids | ends)
    write_json(folder / "config.json", values)


def _refuse_other_networks(file: GgufFile) -> None:
    architecture = file.require("general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"{file.path} has the architecture {architecture}; converted are {' and '.join(ARCHITECTURES)}"
        )
    if file.get("split.count", int, 1) > 1:
        raise UnsupportedModelError(
            f"{file.path} is one part of several; merge them with llama-gguf-split --merge"
        )
    for key in file.metadata:
        prefix, _, field = key.partition(".")
        if prefix == architecture and field not in NETWORK_FIELDS:
            raise UnsupportedModelError(f"{file.path} has the field {key}, which no plain {architecture} has")


def _config_values(file: GgufFile, vocabulary_size: int, dtype: torch.dtype) -> dict[str, Any]:
    """What config.json says, but for the ids of special tokens."""
    architecture = file.require("general.architecture", str)
    hidden_size = file.require(_key(file, "embedding_length"), int)
    heads = file.require(_key(file, "attention.head_count"), int)
    head_dim = file.get(_key(file, "attention.key_length"), int, hidden_size // max(heads, 1))
    for key in (_key(file, "attention.value_length"), _key(file, "rope.dimension_count")):
        if file.get(key, int, head_dim) != head_dim:
            raise UnsupportedModelError(f"{key} in {file.path} is not the width of a head, {head_dim}")
    theta = _decimal(file.get(_key(file, "rope.freq_base"), float, 10000.0))
    return {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "vocab_size": vocabulary_size,
        "hidden_size": hidden_size,
        "intermediate_size": file.require(_key(file, "feed_forward_length"), int),
        "num_hidden_layers": file.require(_key(file, "block_count"), int),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get(_key(file, "attention.head_count_kv"), int, heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": file.require(_key(file, "context_length"), int),
        "rms_norm_eps": _decimal(file.require(_key(file, "attention.layer_norm_rms_epsilon"), float)),
        "rope_theta": theta,
        "rope_scaling": _rope_scaling(file, theta, head_dim),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": HEAD_TENSOR not in file.tensors,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _key(file: GgufFile, field: str) -> str:
    """The name of a field of the network, which begins with that of the architecture."""
    return f"{file.require('general.architecture', str)}.{field}"


def _decimal(value: float) -> float:
    """The shortest decimal number that is this float32: 1e-05, where the file's nearest is 9.99999974e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any] | None:
    factor = file.get(_key(file, "rope.scaling.factor"), float, None)
    kind = file.get(
        _key(file, "rope.scaling.type"), str, "linear"
    )  # llama.cpp's default too, where there is a factor
    has_factors = ROPE_FACTORS in file.tensors
    if kind not in ("none", "linear", "yarn") or (has_factors and factor is not None):
        raise UnsupportedModelError(f"{file.path} scales its rotary embedding as {kind}, which is not converted")
    if has_factors:
        return _llama3_scaling(file, theta, head_dim)
    if kind == "none" or factor is None:
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": _decimal(factor)}
    if kind == "yarn":
        context = file.require(_key(file, "rope.scaling.original_context_length"), int)
        scaling["original_max_position_embeddings"] = context
    return scaling


def _llama3_scaling(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """The settings from which the tensor of factors was computed; it is computed again to be sure of them."""
    factors = file.load(ROPE_FACTORS)
    scaling = RopeScaling(
        "llama3", factors.max().item(), LLAMA3_CONTEXT, LLAMA3_LOW_FREQUENCY, LLAMA3_HIGH_FREQUENCY
    )
    # The shape comes first: a width of a head that no tensor confirms may be absurd.
    as_llama3 = factors.shape == (head_dim // 2,) and torch.allclose(
        factors, llama3_factors(theta, head_dim, scaling), rtol=1e-4
    )
    if not as_llama3:
        raise UnsupportedModelError(f"{ROPE_FACTORS} in {file.path} does not scale frequencies as Llama 3 does")
    return {
        "rope_type": "llama3",
        "factor": _decimal(scaling.factor),
        "low_freq_factor": LLAMA3_LOW_FREQUENCY,
        "high_freq_factor": LLAMA3_HIGH_FREQUENCY,
        "original_max_position_embeddings": LLAMA3_CONTEXT,
    }


def llama3_factors(theta: float, head_dim: int, scaling: RopeScaling) -> Float32[Tensor, " pairs"]:
    """By what each frequency is divided: `factor` for slow ones, 1 for fast ones, in between by their turns."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2) / head_dim)
    turns = scaling.original_context * frequencies / (2 * math.pi)
    slow, quick = scaling.low_frequency_factor, scaling.high_frequency_factor
    fast = ((turns - slow) / (quick - slow)).clamp(0, 1)
    return 1 / ((1 - fast) / scaling.factor + fast)


def _llama_weights(config: LlamaConfig) -> Iterator[_Weight]:
    vocabulary = (config.vocabulary_size, config.hidden_size)
    modules = LINEARS | NORMS
    shapes: dict[str, tuple[int, ...]] = {**linear_shapes(config), **norm_shapes(config)}
    # llama.cpp turns neighbouring rows of llama, and halves of a head of the other architectures.
    interleaved = config.architecture == "LlamaForCausalLM"
    rotary_heads = {"query": config.heads, "key": config.kv_heads} if interleaved else {}
    yield _Weight(f"{EMBEDDING}.weight", "token_embd.weight", vocabulary)
    for layer in range(config.layers):
        for field, source in BLOCK_TENSORS.items():
            name, stored = f"{block_prefix(layer)}.{modules[field]}.weight", f"blk.{layer}.{source}.weight"
            yield _Weight(name, stored, shapes[field], rotary_heads.get(field, 0))
            if has_bias(config, field):
                yield _Weight(
                    f"{block_prefix(layer)}.{modules[field]}.bias", f"blk.{layer}.{source}.bias", shapes[field][:1]
                )
    yield _Weight(f"{FINAL_NORM}.weight", "output_norm.weight", (config.hidden_size,))
    if not config.tied_embeddings:
        yield _Weight(f"{HEAD}.weight", HEAD_TENSOR, vocabulary)


def _checked_weights(file: GgufFile, config: LlamaConfig) -> list[_Weight]:
    """The weights of the network, each of them in the file, and the file without any other."""
    weights = []
    for weight in _llama_weights(config):
        shape = file.tensor(weight.source).shape
        if shape != weight.shape:
            raise CheckpointError(
                f"tensor {weight.source} of {file.path} has shape {list(shape)}, where its metadata calls for "
                f"{list(weight.shape)}; fetch the file again"
            )
        weights.append(weight)
    unknown = file.tensors.keys() - {weight.source for weight in weights} - {ROPE_FACTORS}
    if unknown:
        raise UnsupportedModelError(f"{file.path} has the tensor {min(unknown)}, which no plain LLaMA has")
    return weights


def _load(file: GgufFile, weight: _Weight, dtype: torch.dtype) -> Float[Tensor, "..."]:
    values = file.load(weight.source)
    if weight.rotary_heads:
        values = halves(values, weight.rotary_heads)
    converted = values.to(dtype)
    if not converted.isfinite().all():
        raise NumericalError(f"tensor {weight.source} of {file.path} is too large for {dtype}; choose float32")
    return converted
