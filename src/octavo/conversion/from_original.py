"""LLaMA as Meta released it (consolidated.*.pth and params.json) to a Hugging Face folder.

Each file holds a slice of every matrix, for as many devices as there are files. Slices are joined one tensor at a
time. Source: transformers, `convert_llama_weights_to_hf.py`, and Meta's `llama/model.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from octavo.checkpoint.tensors import Progress, TensorSpec, write_checkpoint
from octavo.conversion.destination import ConversionOutput, carry_files, claim
from octavo.conversion.pickles import PickledFiles
from octavo.conversion.rotary import halves
from octavo.errors import CheckpointError, TokenizerError, UnsupportedModelError
from octavo.model.config import LlamaConfig, config_from_values
from octavo.model.load import EMBEDDING, FINAL_NORM, HEAD, LINEARS, NORMS, block_prefix, linear_shapes, norm_shapes
from octavo.records import read_bounded, read_json, write_json

PARAMS = "params.json"
TOKENIZER = "tokenizer.model"
LARGEST_TOKENIZER = 64 * 1024 * 1024  # bytes
TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
}
FREQUENCIES = "rope.freqs"  # a buffer that the configuration says better

# Meta's names by field of Block, and along which dimension devices split them; None is whole on each.
BLOCK_TENSORS: dict[str, tuple[str, int | None]] = {
    "query": ("attention.wq", 0),
    "key": ("attention.wk", 0),
    "value": ("attention.wv", 0),
    "output": ("attention.wo", 1),
    "gate": ("feed_forward.w1", 0),
    "down": ("feed_forward.w2", 1),
    "up": ("feed_forward.w3", 0),
    "attention_norm": ("attention_norm", None),
    "mlp_norm": ("ffn_norm", None),
}

# The context that params.json does not say, by what tells the releases apart: the base of the rotary embedding.
CODE_LLAMA_THETA, LLAMA3_THETA = 1_000_000.0, 500_000.0
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class _Joined:
    """A tensor by Meta's name, how its slices are joined, and the heads whose rows are to be reordered."""

    source: str
    shape: tuple[int, ...]
    dimension: int | None
    rotary_heads: int = 0


def convert_original(source: Path, output: ConversionOutput, progress: Progress) -> None:
    """Write the model in the folder `source` as Hugging Face's libraries load it; weights keep their dtype.

    Raises CheckpointError where files are damaged or do not fit together, UnsupportedModelError for a variant that
    is no plain LLaMA, TokenizerError where tokenizer.model is not SentencePiece's, OutputError where the folder is
    not empty or cannot be written.
    """
    paths = sorted(source.glob("consolidated.*.pth"))
    if not paths:
        raise CheckpointError(f"{source} has {PARAMS} but no consolidated.*.pth; fetch the weights too")
    tokens = _special_tokens(source)
    with PickledFiles(paths) as files:
        values = _config_values(source, files, tokens)
        config = config_from_values(values, source / PARAMS)
        tensors = _tensors(config, files)
        _refuse_others(source, files, tensors)
        specs = [
            TensorSpec(name, files.files[0][joined.source].dtype, joined.shape) for name, joined in tensors.items()
        ]

        def load(name: str) -> Tensor:
            return _join(files, tensors[name])

        claim(output.folder)
        write_checkpoint(output.folder, specs, load, output.max_shard_size, progress)
    carry_files(_tokenizer_file(source).parent, output.folder)
    length = {"model_max_length": values["max_position_embeddings"]}
    write_json(output.folder / "tokenizer_config.json", TOKENIZER_CONFIG | length)
    write_json(output.folder / "generation_config.json", tokens)
    write_json(output.folder / "config.json", values)


def _tokenizer_file(source: Path) -> Path:
    """Meta put it beside the folders of all sizes, later into each."""
    for folder in (source, source.parent):
        if (folder / TOKENIZER).is_file():
            return folder / TOKENIZER
    raise TokenizerError(f"{source} has no {TOKENIZER}, nor has the folder above it; copy it there")


def _special_tokens(source: Path) -> dict[str, int]:
    """Ids of BOS and EOS, which SentencePiece's file knows."""
    import sentencepiece

    path = _tokenizer_file(source)
    data = read_bounded(path, LARGEST_TOKENIZER, TokenizerError)
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise TokenizerError(
            f"{path} is not SentencePiece's; Llama 3's is not converted: fetch the folder from Hugging Face"
        ) from error
    return {"bos_token_id": pieces.bos_id(), "eos_token_id": pieces.eos_id()}


def _config_values(source: Path, files: PickledFiles, tokens: dict[str, int]) -> dict[str, Any]:
    params = read_json(source / PARAMS)
    if params.get("moe") or params.get("vision_chunk_size"):
        raise UnsupportedModelError(f"{source / PARAMS} describes more than a plain LLaMA")
    parts = len(files.files)
    whole = {}
    for name in ("layers.0.feed_forward.w1.weight", "output.weight"):
        if name not in files.files[0] or len(files.files[0][name].shape) != 2:
            raise CheckpointError(f"{files.paths[0]} lacks the matrix {name}; fetch it again")
        whole[name] = files.files[0][name].shape[0] * parts
    theta = params.get("rope_theta", 10000.0)
    scaled = params.get("use_scaled_rope", False) is True
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": whole["output.weight"],
        "hidden_size": params.get("dim"),
        "intermediate_size": whole["layers.0.feed_forward.w1.weight"],
        "num_hidden_layers": params.get("n_layers"),
        "num_attention_heads": params.get("n_heads"),
        "num_key_value_heads": params.get("n_kv_heads") or params.get("n_heads"),
        "hidden_act": "silu",
        "max_position_embeddings": _context(theta, params.get("norm_eps"), scaled),
        "rms_norm_eps": params.get("norm_eps"),
        "rope_theta": theta,
        "rope_scaling": LLAMA3_SCALING if scaled else None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": str(files.files[0]["output.weight"].dtype).removeprefix("torch."),
        **tokens,
    }


def _context(theta: Any, norm_epsilon: Any, scaled: bool) -> int:
    """2048 for LLaMA, 4096 for Llama 2, which has another epsilon; later releases differ by the rotary base."""
    if scaled:
        return 131072
    if theta == LLAMA3_THETA:
        return 8192
    if theta == CODE_LLAMA_THETA:
        return 16384
    return 4096 if norm_epsilon == 1e-5 else 2048


def _tensors(config: LlamaConfig, files: PickledFiles) -> dict[str, _Joined]:
    """The tensors of the network by Hugging Face's name."""
    vocabulary = (config.vocabulary_size, config.hidden_size)
    modules = LINEARS | NORMS
    shapes: dict[str, tuple[int, ...]] = {**linear_shapes(config), **norm_shapes(config)}
    rotary_heads = {"query": config.heads, "key": config.kv_heads}
    embedding = files.files[0].get("tok_embeddings.weight")
    # LLaMA split the embedding by columns, Llama 3 by rows.
    by_rows = embedding is not None and embedding.shape[-1] == config.hidden_size
    tensors = {
        f"{EMBEDDING}.weight": _Joined("tok_embeddings.weight", vocabulary, 0 if by_rows else 1),
        f"{FINAL_NORM}.weight": _Joined("norm.weight", (config.hidden_size,), None),
        f"{HEAD}.weight": _Joined("output.weight", vocabulary, 0),
    }
    for layer in range(config.layers):
        for field, (name, dimension) in BLOCK_TENSORS.items():
            tensors[f"{block_prefix(layer)}.{modules[field]}.weight"] = _Joined(
                f"layers.{layer}.{name}.weight", shapes[field], dimension, rotary_heads.get(field, 0)
            )
    return tensors


def _refuse_others(source: Path, files: PickledFiles, tensors: dict[str, _Joined]) -> None:
    """CheckpointError where a file has not exactly the slices of these tensors."""
    for path, specs in zip(files.paths, files.files, strict=True):
        known = {joined.source for joined in tensors.values()}
        strange = sorted((specs.keys() ^ known) - {FREQUENCIES})
        if strange:
            raise CheckpointError(
                f"{path} and {source / PARAMS} disagree on the tensor {strange[0]}; fetch both again"
            )
        for joined in tensors.values():
            expected = list(joined.shape)
            if joined.dimension is not None:
                expected[joined.dimension] //= len(files.files)
            spec = specs[joined.source]
            if list(spec.shape) != expected or not spec.dtype.is_floating_point:
                raise CheckpointError(
                    f"tensor {spec.name} of {path} has shape {list(spec.shape)} of {spec.dtype}, expected "
                    f"floating point of {expected}"
                )


def _join(files: PickledFiles, joined: _Joined) -> Float[Tensor, "..."]:
    """A whole tensor from the slices of all files."""
    slices = [files.load(number, joined.source) for number in range(len(files.files))]
    if joined.dimension is None:
        if any(not torch.equal(slices[0], other) for other in slices[1:]):
            raise CheckpointError(f"the files disagree on the tensor {joined.source}; fetch them again")
        return slices[0]
    whole = torch.cat(slices, joined.dimension)
    return halves(whole, joined.rotary_heads) if joined.rotary_heads else whole
