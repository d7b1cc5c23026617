"""GGUF files to model folders: weights to the bit, configurations, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Encoding
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from conftest import shared, smollm2_gguf
from octavo.conversion.from_gguf import convert_gguf
from octavo.errors import (
    CheckpointError,
    NumericalError,
    OctavoError,
    OutputError,
    TokenizerError,
    UnsupportedModelError,
    UsageError,
)
from octavo.model.config import read_config

HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 64, 96, 4, 2, 16, 2
TOKENS = ["<|end|>", "<|start|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "aa"]

FIELDS: dict[str, Any] = {
    "llama.block_count": LAYERS,
    "llama.context_length": 512,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 50000.0,
    "llama.rope.dimension_count": HEAD_DIM,
    "llama.vocab_size": len(TOKENS),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3] + [1] * 257,
    "tokenizer.ggml.merges": ["a a"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.chat_template": "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}",
}
# Shapes by GGUF's names, with the names that the folder must have.
BLOCK = {
    "attn_norm": ("input_layernorm", (HIDDEN,)),
    "attn_q": ("self_attn.q_proj", (HEADS * HEAD_DIM, HIDDEN)),
    "attn_k": ("self_attn.k_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "attn_v": ("self_attn.v_proj", (KV_HEADS * HEAD_DIM, HIDDEN)),
    "attn_output": ("self_attn.o_proj", (HIDDEN, HEADS * HEAD_DIM)),
    "ffn_norm": ("post_attention_layernorm", (HIDDEN,)),
    "ffn_gate": ("mlp.gate_proj", (INNER, HIDDEN)),
    "ffn_up": ("mlp.up_proj", (INNER, HIDDEN)),
    "ffn_down": ("mlp.down_proj", (HIDDEN, INNER)),
}
TENSORS = {
    "token_embd.weight": ("model.embed_tokens.weight", (len(TOKENS), HIDDEN)),
    "output_norm.weight": ("model.norm.weight", (HIDDEN,)),
    "output.weight": ("lm_head.weight", (len(TOKENS), HIDDEN)),
} | {
    f"blk.{layer}.{theirs}.weight": (f"model.layers.{layer}.{ours}.weight", shape)
    for layer in range(LAYERS)
    for theirs, (ours, shape) in BLOCK.items()
}
ORIGINAL_NAMES = {theirs: ours for theirs, (ours, _) in TENSORS.items()}


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's conversion puts them: 0, half, 1, half + 1, … of each head."""
    rows = []
    for head in np.split(weight, heads):
        half = len(head) // 2
        rows += [row for pair in zip(head[:half], head[half:], strict=True) for row in pair]
    return np.stack(rows)


def random_weights() -> dict[str, np.ndarray]:
    """Weights in Hugging Face's order of rows, by GGUF's names."""
    generator = np.random.default_rng(0)
    return {name: generator.normal(0, 0.3, shape).astype(np.float32) for name, (_, shape) in TENSORS.items()}


def as_stored(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights as a GGUF file has them."""
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}
    return {
        name: interleave(weight, heads[kind]) if (kind := name.split(".")[-2]) in heads else weight
        for name, weight in weights.items()
    }


def write_gguf(
    path: Path, fields: dict[str, Any], tensors: dict[str, np.ndarray], encoding: Encoding = Encoding.F32
) -> Path:
    """A GGUF file; matrices in `encoding`, vectors in float32, None leaves a field out."""
    writer = gguf.GGUFWriter(path, fields.get("general.architecture", "llama"))
    for key, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None and key != "general.architecture":
            writer.add_string(key, value)
    for name, tensor in tensors.items():
        kind = encoding if tensor.ndim == 2 else Encoding.F32
        writer.add_tensor(name, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def model_file(folder: Path, encoding: Encoding = Encoding.F32, without: str = "", **fields: Any) -> Path:
    """The small model, with some llama fields changed (dots as two underscores) and one tensor left out."""
    changes = {f"llama.{name.replace('__', '.')}": value for name, value in fields.items()}
    tensors = {name: tensor for name, tensor in as_stored(random_weights()).items() if name != without}
    return write_gguf(folder / "model.gguf", FIELDS | changes, tensors, encoding)


def written_json(folder: Path, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / name).read_text())
    return value


# Weights


def test_weights_come_back_to_the_bit(tmp_path: Path) -> None:
    convert_gguf(model_file(tmp_path), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == set(ORIGINAL_NAMES.values())
    for name, weight in random_weights().items():
        assert torch.equal(written[ORIGINAL_NAMES[name]], torch.from_numpy(weight)), name


@pytest.mark.parametrize(
    "encoding",
    [Encoding.F16, Encoding.BF16, Encoding.Q8_0, Encoding.Q5_0, Encoding.Q5_1, Encoding.Q4_0, Encoding.Q4_1],
    ids=lambda encoding: encoding.name,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dequantized_weights_in_each_dtype(tmp_path: Path, encoding: Encoding, dtype: torch.dtype) -> None:
    convert_gguf(model_file(tmp_path, encoding), tmp_path / "out", dtype=dtype)
    written = load_file(tmp_path / "out" / "model.safetensors")
    weight = random_weights()["blk.1.attn_k.weight"]
    # A row is dequantized by itself, so that it does not matter whether rows are interleaved before or after.
    expected = torch.from_numpy(gguf.dequantize(gguf.quantize(weight, encoding), encoding).copy()).to(dtype)
    assert torch.equal(written["model.layers.1.self_attn.k_proj.weight"], expected)
    assert {tensor.dtype for tensor in written.values()} == {dtype}
    assert written_json(tmp_path / "out", "config.json")["torch_dtype"] == str(dtype).removeprefix("torch.")


def test_transformers_computes_the_same(tmp_path: Path) -> None:
    convert_gguf(model_file(tmp_path), tmp_path / "out")
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=1e-5,
        rope_theta=50000.0,
    )
    original = LlamaForCausalLM(config).eval()
    weights = {ORIGINAL_NAMES[name]: torch.from_numpy(weight) for name, weight in random_weights().items()}
    original.load_state_dict(weights)
    converted, info = LlamaForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(converted(tokens).logits, original(tokens).logits)


def test_tied_embeddings(tmp_path: Path) -> None:
    convert_gguf(model_file(tmp_path, without="output.weight"), tmp_path / "out")
    assert read_config(tmp_path / "out").tied_embeddings
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    _, info = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info


def test_shards_and_progress(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    source = model_file(tmp_path)
    convert_gguf(source, tmp_path / "out", max_shard_size=50_000, progress=lambda *news: heard.append(news))
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    written: dict[str, Tensor] = {}
    for shard in shards:
        written |= load_file(shard)
    assert written.keys() == set(ORIGINAL_NAMES.values())
    assert [number for _, number, _ in heard] == list(range(1, len(TENSORS) + 1))
    assert {name for name, _, _ in heard} == set(ORIGINAL_NAMES.values())
    assert {total for _, _, total in heard} == {len(TENSORS)}
    _, info = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info


# Configuration and tokenizer


def test_config(tmp_path: Path) -> None:
    convert_gguf(model_file(tmp_path), tmp_path / "out")
    assert written_json(tmp_path / "out", "config.json") == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 259,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-05,
        "rope_theta": 50000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 0,
    }
    assert written_json(tmp_path / "out", "generation_config.json") == {"bos_token_id": 1, "eos_token_id": [0]}


def test_fields_that_older_files_leave_out(tmp_path: Path) -> None:
    left_out = {"vocab_size": None, "rope__freq_base": None, "rope__dimension_count": None}
    convert_gguf(model_file(tmp_path, **left_out), tmp_path / "out")
    assert read_config(tmp_path / "out").rope_theta == 10000.0
    assert read_config(tmp_path / "out").head_dim == HEAD_DIM


def test_tokenizer_loads_in_transformers(tmp_path: Path) -> None:
    convert_gguf(model_file(tmp_path), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|start|>", "<|end|>")
    assert tokenizer.model_max_length == 512
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert chat == "<|start|>a<|end|>"
    assert tokenizer(chat).input_ids == [1, TOKENS.index("a"), 0]
    assert tokenizer("aaa").input_ids == [TOKENS.index("aa"), TOKENS.index("a")]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope__scaling__type": "none", "rope__scaling__factor": 2.0}, None),
        ({"rope__scaling__type": "linear"}, None),
        ({"rope__scaling__factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"rope__scaling__type": "linear", "rope__scaling__factor": 0.1, "rope__scaling__finetuned": True},
            {"rope_type": "linear", "factor": 0.1},
        ),
        (
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 128,
            },
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        ),
    ],
)
def test_rope_scaling(tmp_path: Path, fields: dict[str, Any], expected: dict[str, Any] | None) -> None:
    convert_gguf(model_file(tmp_path, **fields), tmp_path / "out")
    assert written_json(tmp_path / "out", "config.json")["rope_scaling"] == expected
    assert read_config(tmp_path / "out").rope_scaling.type == (expected["rope_type"] if expected else "default")


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def with_rope_factors(folder: Path, scaling: dict[str, Any], changes: dict[str, Any] | None = None) -> Path:
    """The small model with the tensor by which transformers' own function scales each frequency."""
    context = {"max_position_embeddings": 131072, "head_dim": HEAD_DIM}
    config = LlamaConfig(rope_theta=500000.0, rope_scaling=dict(scaling), **context)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 500000.0 ** (torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    tensors = as_stored(random_weights()) | {"rope_freqs.weight": (plain / scaled).numpy()}
    fields = FIELDS | {"llama.rope.freq_base": 500000.0, "llama.context_length": 131072} | (changes or {})
    return write_gguf(folder / "model.gguf", fields, tensors)


def test_llama3_scaling_is_read_off_its_factors(tmp_path: Path) -> None:
    convert_gguf(with_rope_factors(tmp_path, LLAMA3), tmp_path / "out")
    assert written_json(tmp_path / "out", "config.json")["rope_scaling"] == LLAMA3


@pytest.mark.parametrize("change", [{"high_freq_factor": 8.0}, {"original_max_position_embeddings": 4096}])
def test_other_factors_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"rope_freqs\.weight in .* does not scale frequencies as Llama 3"
    ):
        convert_gguf(with_rope_factors(tmp_path, LLAMA3 | change), tmp_path / "out")


# What is refused, and what is left behind


def extra_tensor(folder: Path) -> Path:
    tensors = as_stored(random_weights()) | {"blk.0.attn_q.bias": np.zeros(HIDDEN, np.float32)}
    return write_gguf(folder / "model.gguf", FIELDS, tensors)


def long_vocabulary(folder: Path) -> Path:
    tokenizer = {"tokenizer.ggml.tokens": [*TOKENS, "more"], "tokenizer.ggml.token_type": [1] * 260}
    return write_gguf(folder / "model.gguf", FIELDS | tokenizer, as_stored(random_weights()))


def too_large_for_float16(folder: Path) -> Path:
    weights = as_stored(random_weights())
    weights["output_norm.weight"][3] = 70000.0
    return write_gguf(folder / "model.gguf", FIELDS, weights)


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (
            lambda f: write_gguf(f / "model.gguf", {"general.architecture": "gemma"}, {}),
            UnsupportedModelError,
            "gemma",
        ),
        (lambda f: model_file(f, expert_count=8), UnsupportedModelError, r"has the field llama\.expert_count"),
        (extra_tensor, UnsupportedModelError, r"has the tensor blk\.0\.attn_q\.bias"),
        (lambda f: model_file(f, rope__dimension_count=8), UnsupportedModelError, "rope.dimension_count in .* 16"),
        (lambda f: model_file(f, attention__value_length=8), UnsupportedModelError, "value_length in .* 16"),
        (
            lambda f: model_file(f, rope__scaling__type="longrope", rope__scaling__factor=2.0),
            UnsupportedModelError,
            "scales its rotary embedding as longrope",
        ),
        (
            lambda f: model_file(f, rope__scaling__type="new"),
            UnsupportedModelError,
            "scales its rotary embedding as new",
        ),
        (
            lambda f: with_rope_factors(f, LLAMA3, {"llama.rope.scaling.factor": 2.0}),
            UnsupportedModelError,
            "scales its rotary embedding as linear",
        ),
        (
            lambda f: with_rope_factors(
                f, LLAMA3, {"llama.attention.key_length": 2**31, "llama.rope.dimension_count": 2**31}
            ),
            UnsupportedModelError,
            r"rope_freqs\.weight in .* does not scale frequencies as Llama 3",
        ),
        (
            lambda f: write_gguf(f / "model.gguf", FIELDS | {"split.count": 2}, {}),
            UnsupportedModelError,
            "is one part of several; merge them with llama-gguf-split --merge",
        ),
        (
            lambda f: model_file(f, without="output_norm.weight"),
            CheckpointError,
            r"output_norm\.weight is missing from",
        ),
        (lambda f: model_file(f, block_count=3), CheckpointError, r"blk\.2\.attn_norm\.weight is missing from"),
        (lambda f: model_file(f, block_count=2**32 - 1), CheckpointError, "num_hidden_layers in .* is 4294967295"),
        (
            lambda f: model_file(f, attention__head_count=0, rope__dimension_count=None),
            CheckpointError,
            "num_attention_heads in .* is 0",
        ),
        (
            lambda f: model_file(f, attention__head_count=3, rope__dimension_count=None),
            CheckpointError,
            "3 heads over 2 key/value heads",
        ),
        (lambda f: model_file(f, feed_forward_length=32), CheckpointError, r"has shape \[96, 64\], .* \[32, 64\]"),
        (lambda f: model_file(f, context_length="512"), CheckpointError, "context_length in .* is of type str"),
        (
            lambda f: model_file(f, context_length=None),
            CheckpointError,
            r"lacks the metadata field llama\.context_len",
        ),
        (long_vocabulary, CheckpointError, r"token_embd\.weight .* has shape \[259, 64\], .* \[260, 64\]"),
        (
            lambda f: write_gguf(f / "model.gguf", FIELDS | {"tokenizer.ggml.pre": "viking"}, {}),
            TokenizerError,
            "pre-tokenizer 'viking'",
        ),
    ],
)
def test_what_is_no_plain_llama_is_refused_and_nothing_written(
    tmp_path: Path, write: Callable[[Path], Path], error: type[OctavoError], message: str
) -> None:
    with pytest.raises(error, match=message):
        convert_gguf(write(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dtype_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"torch\.int8; choose torch\.float32, torch\.float16, torch\.bfloat16"):
        convert_gguf(model_file(tmp_path), tmp_path / "out", dtype=torch.int8)


def test_a_weight_that_float16_cannot_hold(tmp_path: Path) -> None:
    source = too_large_for_float16(tmp_path)
    with pytest.raises(
        NumericalError, match=r"output_norm\.weight .* too large for torch\.float16; choose float32"
    ):
        convert_gguf(source, tmp_path / "half", dtype=torch.float16)
    assert not (tmp_path / "half" / "config.json").exists()
    convert_gguf(source, tmp_path / "whole")
    assert load_file(tmp_path / "whole" / "model.safetensors")["model.norm.weight"][3] == 70000.0


def test_an_occupied_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    with pytest.raises(OutputError, match="out is not empty; empty it or choose another place"):
        convert_gguf(model_file(tmp_path), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="out cannot be made: File exists; choose another place"):
        convert_gguf(model_file(tmp_path), tmp_path / "out")


def test_a_killed_conversion_is_no_model(tmp_path: Path) -> None:
    def kill(name: str, number: int, total: int) -> None:
        if number == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_gguf(model_file(tmp_path), tmp_path / "out", progress=kill)
    with pytest.raises(CheckpointError, match=r"holds no config\.json, so it is no model folder"):
        read_config(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))


# A real model


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct, converted."""
    folder = tmp_path_factory.mktemp("smollm2")
    convert_gguf(smollm2_gguf(), folder, dtype=torch.float16)
    return folder


def test_smollm2_weights(smollm2: Path) -> None:
    model, info = LlamaForCausalLM.from_pretrained(smollm2, output_loading_info=True)
    assert not any(info.values()), info
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008


def test_smollm2_tokens_of_wikitext(smollm2: Path) -> None:
    text = shared("corpora/wikitext2/test.txt").read_text()
    rows = ["" if line == " \n" else line for line in text.splitlines(keepends=True)]
    assert len(AutoTokenizer.from_pretrained(smollm2)("\n\n".join(rows), verbose=False).input_ids) == 304_978


def test_smollm2_chat(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    messages = [{"role": "user", "content": "Hello, 123 ½!"}, {"role": "assistant", "content": "Hi.<|endoftext|>"}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello, 123 ½!<|im_end|>\n"
        "<|im_start|>assistant\nHi.<|endoftext|><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = tokenizer(chat).input_ids
    assert [token for token in ids if token < 17] == [1, 2, 1, 2, 1, 0, 2, 1]
    # "Hello" "," "Ġ" "1" "2" "3" "Ġ" "Â½" "!": digits and fractions stand alone
    assert ids[24:33] == [19556, 28, 216, 33, 34, 35, 216, 16738, 17]
    assert tokenizer.decode(ids) == chat
