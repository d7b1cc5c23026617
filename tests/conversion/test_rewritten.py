"""Model folders written anew: every dialect into every other, dequantized, and what cannot be."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.checkpoint.formats import encode_linear
from octavo.conversion.destination import ConversionOutput
from octavo.conversion.request import ConversionRequest, convert
from octavo.errors import CheckpointError, OutputError, UsageError
from octavo.model.load import open_folder
from octavo.schemes import QuantScheme
from octavo.weights import dequantize
from small_models import small_tensors, write_model
from stored_linears import in_random_order, quantized, same

SHAPES = {
    name.removesuffix(".weight"): tuple(tensor.shape)
    for name, tensor in small_tensors().items()
    if "_proj" in name
}


def silent(name, done, total):
    pass


def write_quantized(folder, scheme, layout="gptq", ordered=False, smallest_zero=1):
    """A folder of random quantized linears, without a configuration of them; the linears by name."""
    tensors = {name: tensor for name, tensor in small_tensors().items() if "_proj" not in name}
    weights = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        weight = quantized(*shape, scheme, seed=number, smallest_zero=smallest_zero)
        weights[name] = in_random_order(weight) if ordered else weight
        tensors |= encode_linear(name, weights[name], layout)
    write_model(folder, tensors)
    return weights


def declare(folder, layout, scheme, desc_act=False):
    block = {"bits": scheme.bits, "group_size": scheme.group_size or -1, "sym": scheme.symmetric}
    block |= {"desc_act": desc_act, "checkpoint_format": layout}
    (folder / "quantize_config.json").write_text(json.dumps(block))


@pytest.mark.parametrize("target", ["gptq", "gptq_v2", "compressed-tensors"])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_layouts_hold_the_same_weights(tmp_path, layout, target, symmetric):
    scheme = QuantScheme(8, 32, symmetric)
    weights = write_quantized(tmp_path / "in", scheme, layout)
    declare(tmp_path / "in", layout, scheme)
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    output = ConversionOutput(tmp_path / "out", max_shard_size=20_000)
    convert(ConversionRequest(tmp_path / "in", output, target=target), silent)
    folder = open_folder(tmp_path / "out")
    assert folder.quantization.dialect == target and folder.quantization.default == scheme
    for name, weight in weights.items():
        assert same(folder.weight(name, SHAPES[name]), weight)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    assert torch.equal(folder.tensors.load("model.norm.weight"), small_tensors()["model.norm.weight"])
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert (tmp_path / "out" / "quantize_config.json").exists() == (target != "compressed-tensors")


def test_what_was_inferred_is_said_and_then_declared(tmp_path):
    write_quantized(tmp_path / "in", QuantScheme(8, 16, True), ordered=True)
    notes = convert(ConversionRequest(tmp_path / "in", ConversionOutput(tmp_path / "out")), silent)
    assert notes[1] == "inferred: groups of 16: that many columns share an entry of g_idx"
    block = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (block["bits"], block["group_size"], block["desc_act"], block["sym"]) == (8, 16, True, True)
    assert open_folder(tmp_path / "out").quantization.evidence == ()


def test_dequantized_folders_are_ordinary_dense_models(tmp_path):
    weights = write_quantized(tmp_path / "in", QuantScheme(8, 32, False), "gptq_v2", ordered=True)
    declare(tmp_path / "in", "gptq_v2", QuantScheme(8, 32, False), desc_act=True)
    convert(ConversionRequest(tmp_path / "in", ConversionOutput(tmp_path / "out"), target="dense"), silent)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert set(tensors) == set(small_tensors())
    for name, weight in weights.items():
        assert torch.equal(tensors[f"{name}.weight"], dequantize(weight).half())
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_a_linear_that_differs_becomes_a_rule(tmp_path):
    scheme, other = QuantScheme(8, 16, True), QuantScheme(2, 16, True)
    weights = write_quantized(tmp_path / "in", scheme)
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    name, dense = "model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"
    weights[name] = quantized(*SHAPES[name], other)
    tensors |= encode_linear(name, weights[name], "gptq")
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(dense)}
    tensors[f"{dense}.weight"] = small_tensors()[f"{dense}.weight"]
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    convert(ConversionRequest(tmp_path / "in", ConversionOutput(tmp_path / "out"), target="gptq_v2"), silent)
    block = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert block["bits"] == 8
    assert block["dynamic"] == {
        r"+:(.*\.)?model\.layers\.1\.mlp\.down_proj$": {"bits": 2, "group_size": 16, "sym": True},
        r"-:(.*\.)?model\.layers\.2\.mlp\.down_proj$": {},
    }
    assert same(open_folder(tmp_path / "out").weight(name, SHAPES[name]), weights[name])


def test_what_the_target_cannot_hold_is_refused(tmp_path):
    write_quantized(tmp_path / "three", QuantScheme(3, 32, True))
    declare(tmp_path / "three", "gptq", QuantScheme(3, 32, True))
    write_quantized(tmp_path / "ordered", QuantScheme(8, 32, True), ordered=True)
    write_quantized(tmp_path / "zero", QuantScheme(4, 32, False), "gptq_v2", smallest_zero=0)
    declare(tmp_path / "zero", "gptq_v2", QuantScheme(4, 32, False))
    write_model(tmp_path / "dense")
    for source, target, error, sentence in [
        ("three", "compressed-tensors", UsageError, "holds 4 or 8 bits, not 3"),
        ("ordered", "compressed-tensors", UsageError, "order of activation"),
        ("zero", "gptq", CheckpointError, "cannot store; write it as gptq_v2"),
        ("dense", "gptq", UsageError, "is dense, so it has no layout to change"),
        ("absent", None, UsageError, "does not exist"),
    ]:
        output = ConversionOutput(tmp_path / f"out-{source}")
        with pytest.raises(error, match=sentence):
            convert(ConversionRequest(tmp_path / source, output, target=target), silent)
        assert not (output.folder / "config.json").exists()
    with pytest.raises(OutputError, match="is not empty"):
        convert(ConversionRequest(tmp_path / "three", ConversionOutput(tmp_path / "zero")), silent)


def test_a_linear_unlike_its_like_is_refused(tmp_path):
    """The schemes are read off one linear of each shape; this one claims a symmetry that it lacks."""
    scheme = QuantScheme(8, 32, True)
    write_quantized(tmp_path / "in", scheme)
    declare(tmp_path / "in", "gptq", scheme)
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.qzeros"] += 1
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"up_proj is 8-bit-32g asymmetric, unlike the other linears"):
        convert(ConversionRequest(tmp_path / "in", ConversionOutput(tmp_path / "out")), silent)


def test_a_pickled_checkpoint_becomes_a_folder_of_today(tmp_path):
    """GPTQ-for-LLaMa's `--save`: one .pt file of a state_dict, and a configuration that says nothing of it."""
    weights = write_quantized(tmp_path / "in", QuantScheme(8, 16, False), ordered=True)
    file = tmp_path / "in" / "model.safetensors"
    torch.save(load_file(file), tmp_path / "in" / "vicuna-8bit-16g.pt")
    file.unlink()
    with pytest.raises(CheckpointError, match="octavo convert makes such a folder"):
        open_folder(tmp_path / "in")
    convert(ConversionRequest(tmp_path / "in", ConversionOutput(tmp_path / "out")), silent)
    folder = open_folder(tmp_path / "out")
    for name, weight in weights.items():
        assert same(folder.weight(name, SHAPES[name]), weight)
