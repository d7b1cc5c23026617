"""A delta added to its base: to the bit, whatever the files, and with the right special tokens."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import shared
from octavo.conversion.destination import ConversionOutput
from octavo.conversion.request import ConversionRequest, convert
from octavo.errors import CheckpointError, NumericalError
from octavo.model.tokenizer import load_tokenizer
from small_models import CONFIG, small_tensors

VOCABULARY = 32000


def silent(name, done, total):
    pass


def tensors_of(seed, vocabulary=VOCABULARY):
    """A network with LLaMA's vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(t.shape, generator=generator).half() for name, t in small_tensors().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.randn(vocabulary, 48, generator=generator).half()
    return tensors


def write_part(folder, tensors, pickled=False, vocabulary=VOCABULARY, **config):
    folder.mkdir()
    if pickled:
        names = sorted(tensors)
        halves = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
        for file, kept in halves.items():
            torch.save({name: tensors[name] for name in kept}, folder / file)
        weight_map = {name: file for file, kept in halves.items() for name in kept}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": vocabulary, **config}))
    for path in shared("tokenizers/llama-32000").iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


def applied(base, delta, out, **options):
    convert(ConversionRequest(delta, ConversionOutput(out, **options), base), silent)
    return out


@pytest.mark.parametrize("pickled", [True, False])
def test_the_sum_is_exact(tmp_path, pickled):
    base, delta = tensors_of(1), tensors_of(2)
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}
    # decapoda's conversion of the base gave special tokens the wrong ids
    write_part(tmp_path / "base", base | frequencies, pickled, bos_token_id=0, eos_token_id=1)
    write_part(tmp_path / "delta", delta, bos_token_id=0, eos_token_id=1)
    out = applied(tmp_path / "base", tmp_path / "delta", tmp_path / "out", max_shard_size=4_000_000)
    shards = sorted(out.glob("model-*.safetensors"))
    assert len(shards) > 1
    found = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert found.keys() == base.keys()
    for name in base:
        assert torch.equal(found[name], base[name] + delta[name]), name


def test_special_tokens_are_those_of_version_1_1(tmp_path):
    write_part(tmp_path / "base", tensors_of(1), bos_token_id=0, eos_token_id=1)
    (tmp_path / "base" / "special_tokens_map.json").write_text('{"bos_token": "", "eos_token": ""}')
    write_part(tmp_path / "delta", tensors_of(2), bos_token_id=1, eos_token_id=2)
    out = applied(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    tokenizer = load_tokenizer(out)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.unk_id) == (1, (2,), 0)
    assert tokenizer.encode("</s>", control_tokens=True, beginning=True) == [1, 2]
    config = json.loads((out / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["torch_dtype"]) == (1, 2, "float16")


@pytest.mark.parametrize(
    ("change", "vocabulary", "error", "sentence"),
    [
        (lambda t: t.pop("model.norm.weight"), VOCABULARY, CheckpointError, "model.norm.weight is in only one"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(3).half()}),
            VOCABULARY,
            CheckpointError,
            r"model.norm.weight has shape \[48\] in .* and \[3\]",
        ),
        (lambda t: t["model.norm.weight"].fill_(6e4), VOCABULARY, NumericalError, "no finite float16"),
        (lambda t: t, VOCABULARY + 1, CheckpointError, "Vicuna version 0 has one more, use version 1.1"),
    ],
)
def test_what_does_not_belong_together(tmp_path, change, vocabulary, error, sentence):
    base, delta = tensors_of(1), tensors_of(2, vocabulary)
    base["model.norm.weight"].fill_(6e4)
    change(delta)
    write_part(tmp_path / "base", base)
    write_part(tmp_path / "delta", delta, vocabulary=vocabulary)
    with pytest.raises(error, match=sentence):
        applied(tmp_path / "base", tmp_path / "delta", tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()
