"""Meta's releases to folders: every split, the order of rows, and what does not fit together."""

import json

import pytest
import torch

from conftest import shared
from octavo.conversion.destination import ConversionOutput
from octavo.conversion.request import ConversionRequest, convert
from octavo.errors import CheckpointError, TokenizerError, UsageError
from octavo.model.load import open_folder

HIDDEN, INNER, HEADS, LAYERS, VOCABULARY = 64, 96, 8, 2, 32000
HEAD_DIM = HIDDEN // HEADS


def silent(name, done, total):
    pass


def whole_tensors(kv_heads):
    """A network under Meta's names."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator).half()

    tensors = {
        "tok_embeddings.weight": random(VOCABULARY, HIDDEN),
        "norm.weight": random(HIDDEN),
        "output.weight": random(VOCABULARY, HIDDEN),
        "rope.freqs": random(HEAD_DIM // 2),
    }
    for layer in range(LAYERS):
        prefix = f"layers.{layer}"
        tensors |= {
            f"{prefix}.attention.wq.weight": random(HIDDEN, HIDDEN),
            f"{prefix}.attention.wk.weight": random(kv_heads * HEAD_DIM, HIDDEN),
            f"{prefix}.attention.wv.weight": random(kv_heads * HEAD_DIM, HIDDEN),
            f"{prefix}.attention.wo.weight": random(HIDDEN, HIDDEN),
            f"{prefix}.feed_forward.w1.weight": random(INNER, HIDDEN),
            f"{prefix}.feed_forward.w2.weight": random(HIDDEN, INNER),
            f"{prefix}.feed_forward.w3.weight": random(INNER, HIDDEN),
            f"{prefix}.attention_norm.weight": random(HIDDEN),
            f"{prefix}.ffn_norm.weight": random(HIDDEN),
        }
    return tensors


def split(name, tensor, parts, embedding_rows):
    """A tensor as Meta's model parallelism lays it on devices."""
    if name == "tok_embeddings.weight":
        return tensor.chunk(parts, 0 if embedding_rows else 1)
    if "wo." in name or "w2." in name:
        return tensor.chunk(parts, 1)
    if "norm" in name or name == "rope.freqs":
        return [tensor] * parts
    return tensor.chunk(parts, 0)


def write_original(folder, parts, kv_heads=HEADS, embedding_rows=False, **params):
    folder.mkdir(exist_ok=True)
    tensors = whole_tensors(kv_heads)
    for part in range(parts):
        slices = {name: split(name, t, parts, embedding_rows)[part].clone() for name, t in tensors.items()}
        torch.save(slices, folder / f"consolidated.{part:02d}.pth")
    values = {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "norm_eps": 1e-6, "vocab_size": -1, **params}
    if kv_heads != HEADS:
        values["n_kv_heads"] = kv_heads
    (folder / "params.json").write_text(json.dumps(values))
    model = shared("tokenizers/llama-32000/tokenizer.model")
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    return tensors


def permuted(weight, heads):
    """The rows of one head after the other: those of even number, then those of odd number."""
    rows = []
    for head in weight.split(weight.shape[0] // heads):
        rows += [head[0::2], head[1::2]]
    return torch.cat(rows)


def expected(tensors, kv_heads):
    found = {
        "model.embed_tokens.weight": tensors["tok_embeddings.weight"],
        "model.norm.weight": tensors["norm.weight"],
        "lm_head.weight": tensors["output.weight"],
    }
    for layer in range(LAYERS):
        theirs, ours = f"layers.{layer}", f"model.layers.{layer}"
        found |= {
            f"{ours}.self_attn.q_proj.weight": permuted(tensors[f"{theirs}.attention.wq.weight"], HEADS),
            f"{ours}.self_attn.k_proj.weight": permuted(tensors[f"{theirs}.attention.wk.weight"], kv_heads),
            f"{ours}.self_attn.v_proj.weight": tensors[f"{theirs}.attention.wv.weight"],
            f"{ours}.self_attn.o_proj.weight": tensors[f"{theirs}.attention.wo.weight"],
            f"{ours}.mlp.gate_proj.weight": tensors[f"{theirs}.feed_forward.w1.weight"],
            f"{ours}.mlp.down_proj.weight": tensors[f"{theirs}.feed_forward.w2.weight"],
            f"{ours}.mlp.up_proj.weight": tensors[f"{theirs}.feed_forward.w3.weight"],
            f"{ours}.input_layernorm.weight": tensors[f"{theirs}.attention_norm.weight"],
            f"{ours}.post_attention_layernorm.weight": tensors[f"{theirs}.ffn_norm.weight"],
        }
    return found


def converted(source, out, **options):
    convert(ConversionRequest(source, ConversionOutput(out, **options)), silent)
    return open_folder(out)


@pytest.mark.parametrize(("parts", "embedding_rows"), [(1, False), (2, True), (4, False), (8, True)])
def test_every_split_gives_the_whole(tmp_path, parts, embedding_rows):
    tensors = write_original(tmp_path / "in", parts, HEADS, embedding_rows)
    folder = converted(tmp_path / "in", tmp_path / "out", max_shard_size=5_000_000)
    wanted = expected(tensors, HEADS)
    assert set(folder.tensors.specs) == set(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(folder.tensors.load(name), tensor), name
    assert len(list((tmp_path / "out").glob("model-*"))) > 1
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def test_grouped_queries_are_turned_by_their_own_heads(tmp_path):
    tensors = write_original(tmp_path / "in", 2, kv_heads=2)
    folder = converted(tmp_path / "in", tmp_path / "out")
    assert folder.config.kv_heads == 2
    name = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(folder.tensors.load(name), expected(tensors, 2)[name])


@pytest.mark.parametrize(
    ("params", "context", "theta"),
    [
        ({}, 2048, 10000.0),
        ({"norm_eps": 1e-5}, 4096, 10000.0),
        ({"rope_theta": 1_000_000.0}, 16384, 1e6),
        ({"rope_theta": 500000.0, "norm_eps": 1e-5}, 8192, 5e5),
        ({"rope_theta": 500000.0, "norm_eps": 1e-5, "use_scaled_rope": True}, 131072, 5e5),
    ],
)
def test_releases_are_told_apart(tmp_path, params, context, theta):
    write_original(tmp_path / "in", 1, **params)
    config = converted(tmp_path / "in", tmp_path / "out").config
    assert (config.context, config.rope_theta) == (context, theta)
    assert config.intermediate_size == INNER and config.vocabulary_size == VOCABULARY
    assert config.rope_scaling.type == ("llama3" if params.get("use_scaled_rope") else "default")


def damage(folder, part, change):
    path = folder / f"consolidated.{part:02d}.pth"
    tensors = torch.load(path, weights_only=True)
    change(tensors)
    torch.save(tensors, path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("layers.1.ffn_norm.weight"), "disagree on the tensor layers.1.ffn_norm.weight"),
        (lambda t: t.update({"extra": torch.ones(1)}), "disagree on the tensor extra"),
        (lambda t: t.update({"norm.weight": torch.ones(3).half()}), r"norm.weight .* has shape \[3\]"),
        (lambda t: t["norm.weight"].add_(1), "the files disagree on the tensor norm.weight"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, change, sentence):
    write_original(tmp_path / "in", 2)
    damage(tmp_path / "in", 1, change)
    with pytest.raises(CheckpointError, match=sentence):
        converted(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_what_is_missing_is_named(tmp_path):
    write_original(tmp_path / "in", 1)
    (tmp_path / "in" / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(TokenizerError, match="is not SentencePiece's; Llama 3's"):
        converted(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "tokenizer.model").unlink()
    with pytest.raises(TokenizerError, match=r"has no tokenizer.model"):
        converted(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "consolidated.00.pth").unlink()
    with pytest.raises(CheckpointError, match="fetch the weights too"):
        converted(tmp_path / "in", tmp_path / "out")
    request = ConversionRequest(tmp_path / "in", ConversionOutput(tmp_path / "out"), target="gptq")
    with pytest.raises(UsageError, match="becomes a dense folder"):
        convert(request, silent)
