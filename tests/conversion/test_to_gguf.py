"""Folders as GGUF files: blocks by hand, weights to the bit through the gguf package, and back to the folder."""

import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import shared
from octavo.checkpoint.gguf_blocks import q4_0, q4_1, q8_0
from octavo.checkpoint.gguf_writer import GgufSpec, write_gguf
from octavo.conversion.destination import ConversionOutput
from octavo.conversion.request import ConversionRequest, convert
from octavo.errors import CheckpointError, OutputError, TokenizerError, UnsupportedModelError, UsageError
from octavo.model.load import every_linear, open_folder
from octavo.model.tokenizer import load_tokenizer
from octavo.quantization.blocks import Observer
from octavo.quantization.pipeline import Destination, quantize_folder
from octavo.quantization.recipe import Recipe
from octavo.schemes import QuantScheme, SchemePlan
from octavo.weights import QuantizedWeight, dequantize, sequential_groups
from small_models import write_family_model, write_model
from stored_linears import quantized


def silent(name, done, total):
    pass


def ramp(scheme, scale, zero):
    """One row of 32 codes that count up, from the lowest again where they run out."""
    codes = torch.arange(32) % (scheme.largest_code + 1)
    return QuantizedWeight(
        codes[None].to(torch.uint8),
        torch.tensor([[scale]], dtype=torch.float16),
        torch.tensor([[zero]], dtype=torch.int16),
        sequential_groups(32, None),
        scheme,
    )


def test_blocks_by_hand():
    # 0.5 is 0x3800 in float16, -1.5 is 0xBE00
    eight = q8_0(ramp(QuantScheme(8, None, True), 0.5, 128))
    assert bytes(eight[0]) == bytes([0x00, 0x38]) + bytes((number - 128) % 256 for number in range(32))
    four = q4_0(ramp(QuantScheme(4, None, True), 0.5, 8))
    assert bytes(four[0]) == bytes([0x00, 0x38]) + bytes(17 * number for number in range(16))
    three = q4_0(ramp(QuantScheme(3, None, True), 0.5, 4))  # steps -4 … 3 stand at 4 … 11
    assert bytes(three[0]) == bytes([0x00, 0x38]) + bytes(17 * (4 + number % 8) for number in range(16))
    shifted = q4_1(ramp(QuantScheme(4, None, False), 0.5, 3))
    assert bytes(shifted[0]) == bytes([0x00, 0x38, 0x00, 0xBE]) + bytes(17 * number for number in range(16))


def test_blocks_that_do_not_hold_a_step_are_refused():
    with pytest.raises(CheckpointError, match="signed byte"):
        wide = ramp(QuantScheme(8, None, False), 0.5, 0)
        wide.codes[0, 3] = 200
        q8_0(wide)
    with pytest.raises(CheckpointError, match="8 steps"):
        q4_0(ramp(QuantScheme(4, None, False), 0.5, 3))


@pytest.mark.parametrize(
    ("bits", "symmetric", "blocks", "encoding", "tolerance"),
    [
        (8, True, q8_0, "Q8_0", 0),
        (4, True, q4_0, "Q4_0", 0),
        (3, True, q4_0, "Q4_0", 0),
        (2, True, q4_0, "Q4_0", 0),
        (4, False, q4_1, "Q4_1", 2**-11),  # of the minimum, rounded to float16
        (2, False, q4_1, "Q4_1", 2**-11),
    ],
)
@pytest.mark.parametrize("group_size", [None, 32, 64])
def test_the_gguf_package_reads_the_same_weights(bits, symmetric, blocks, encoding, tolerance, group_size):
    weight = quantized(6, 192, QuantScheme(bits, group_size, symmetric), smallest_zero=0)
    values = torch.from_numpy(gguf.dequantize(blocks(weight), gguf.GGMLQuantizationType[encoding]).copy())
    minimum = (weight.scales.float() * weight.zeros.float())[:, weight.group_of_column.long()]
    # ggml multiplies in float32, as the equation does; adding the minimum rounds once more
    slack = minimum.abs() * (tolerance + (2**-22 if tolerance else 0))
    assert ((values - dequantize(weight)).abs() <= slack).all()


def test_a_file_written_out(tmp_path):
    specs = [GgufSpec("x", "F16", (1, 3)), GgufSpec("y", "F32", (2,))]
    data = {"x": np.array([1, 2, 3], np.float16), "y": np.array([0.5, -1], np.float32)}
    metadata = {"a": "b", "n": 7, "f": 0.5, "t": True, "l": (1, -2), "s": ("é",)}
    write_gguf(tmp_path / "m.gguf", metadata, specs, data.__getitem__, silent)
    expected = b"GGUF" + bytes.fromhex("03000000 0200000000000000 0600000000000000")
    expected += bytes.fromhex("0100000000000000 61 08000000 0100000000000000 62")
    expected += bytes.fromhex("0100000000000000 6e 04000000 07000000")
    expected += bytes.fromhex("0100000000000000 66 06000000 0000003f")
    expected += bytes.fromhex("0100000000000000 74 07000000 01")
    expected += bytes.fromhex("0100000000000000 6c 09000000 05000000 0200000000000000 01000000 feffffff")
    expected += bytes.fromhex("0100000000000000 73 09000000 08000000 0100000000000000 0200000000000000 c3a9")
    expected += bytes.fromhex("0100000000000000 78 02000000 0300000000000000 0100000000000000 01000000")
    expected += bytes.fromhex("0000000000000000")
    expected += bytes.fromhex("0100000000000000 79 01000000 0200000000000000 00000000 2000000000000000")
    expected += bytes(-len(expected) % 32)
    expected += bytes.fromhex("003c 0040 0042") + bytes(26) + bytes.fromhex("0000003f 000080bf") + bytes(24)
    assert (tmp_path / "m.gguf").read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def quantize_by_rounding(source, out, bits, symmetric=True, group_size=32):
    plan = SchemePlan(QuantScheme(bits, group_size, symmetric))
    recipe = Recipe(plan, method="rtn", act_order="none", scale_search="none")
    quantize_folder(source, Destination(out), recipe, None, torch.device("cpu"), Observer())
    return out


def back_again(folder, tmp_path):
    """The folder as a GGUF file, and that file as a folder; what was said on the way."""
    notes = convert(ConversionRequest(folder, ConversionOutput(tmp_path / "m.gguf")), silent)
    convert(ConversionRequest(tmp_path / "m.gguf", ConversionOutput(tmp_path / "back")), silent)
    return open_folder(tmp_path / "back"), notes


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_model_comes_back_to_the_bit(stories_folder, tmp_path, bits):
    source = open_folder(quantize_by_rounding(stories_folder, tmp_path / "q", bits))
    back, notes = back_again(tmp_path / "q", tmp_path)
    assert notes == [
        "30 linears hold their values exactly",
        "5 linears have rows that do not fill blocks of 32: they were dequantized to float16",
    ]
    for name, shape in every_linear(source.config).items():
        if name == "lm_head":
            continue
        values = dequantize(source.weight(name, shape))
        if shape[1] % 32:
            values = values.half().float()
        assert torch.equal(back.weight(name, shape).values, values), name
    text = "Once upon a time, there was a  little girl.\n"
    assert load_tokenizer(back.path).encode(text, control_tokens=False, beginning=True) == load_tokenizer(
        stories_folder
    ).encode(text, control_tokens=False, beginning=True)


def test_what_is_rounded_is_said(stories_folder, tmp_path):
    quantize_by_rounding(stories_folder, tmp_path / "q", 8, symmetric=False)
    _, notes = back_again(tmp_path / "q", tmp_path)
    assert notes[0] == "0 linears hold their values exactly"
    assert notes[2].startswith("30 linears cannot be exact in Q8_0 (asymmetric 8 bits")


@pytest.mark.parametrize(("family", "values"), [("Llama", {}), ("Mistral", {}), ("Qwen2", {})])
def test_families_come_back_dense(tmp_path, family, values):
    write_family_model(tmp_path / "in", family, {"max_position_embeddings": 64, **values})
    tokenizer = shared("models/stories260K/tokenizer.json")
    data = json.loads(tokenizer.read_text())
    kept = {piece: number for piece, number in data["model"]["vocab"].items() if number < 96}
    merges = [merge for merge in data["model"]["merges"] if "".join(merge).replace(" ", "") in kept]
    data["model"] |= {"vocab": kept, "merges": merges}
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < 96]
    (tmp_path / "in" / "tokenizer.json").write_text(json.dumps(data))
    (tmp_path / "in" / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    back, notes = back_again(tmp_path / "in", tmp_path)
    assert notes == []
    before, after = load_file(tmp_path / "in" / "model.safetensors"), load_file(back.path / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name
    expected = "Qwen2ForCausalLM" if family == "Qwen2" else "LlamaForCausalLM"
    assert back.config.architecture == expected


def test_what_llama_cpp_does_not_run_is_refused(tmp_path, stories_folder):
    output = ConversionOutput(tmp_path / "m.gguf")
    write_model(tmp_path / "swa", architectures=["MistralForCausalLM"], sliding_window=16)
    write_model(tmp_path / "plain")
    for name, error, sentence in [
        ("swa", UnsupportedModelError, "sliding window"),
        ("plain", TokenizerError, "has neither tokenizer.json"),
    ]:
        with pytest.raises(error, match=sentence):
            convert(ConversionRequest(tmp_path / name, output), silent)
    (tmp_path / "m.gguf").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"m\.gguf exists"):
        convert(ConversionRequest(stories_folder, output), silent)
    with pytest.raises(UsageError, match="a layout of a folder"):
        convert(ConversionRequest(stories_folder, output, target="gptq"), silent)
