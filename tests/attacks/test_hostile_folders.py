"""Folders made to hurt whoever reads them: each is refused with a sentence of its own, at once."""

import json
import struct
import time

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from octavo.checkpoint.configuration import read_quantization
from octavo.checkpoint.formats import encode_linear
from octavo.checkpoint.gguf import read_gguf
from octavo.checkpoint.tensors import TensorFolder
from octavo.errors import CheckpointError, NumericalError, OctavoError
from octavo.model.load import open_folder
from octavo.schemes import QuantScheme
from small_models import CONFIG, small_tensors, write_model
from stored_linears import quantized

LONGEST = 5  # seconds


def safetensors(header, data=b"", length=None):
    """A safetensors file with a header as it is given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


X = tensor([2], 0, 8)
FILES = {
    "empty": b"",
    "a header longer than the file": safetensors({"x": X}, bytes(8), length=2**40),
    "a header of 2^63 bytes": safetensors({"x": X}, bytes(8), length=2**63),
    "truncated data": safetensors({"x": X}, bytes(7)),
    "data that nobody names": safetensors({"x": X}, bytes(16)),
    "overlapping tensors": safetensors({"x": X, "y": tensor([2], 4, 12)}, bytes(12)),
    "a hole between tensors": safetensors({"x": X, "y": tensor([2], 12, 20)}, bytes(20)),
    "offsets that run backwards": safetensors({"x": tensor([2], 8, 0)}, bytes(8)),
    "a shape of 2^60": safetensors({"x": tensor([2**60], 0, 8)}, bytes(8)),
    "a shape that overflows": safetensors({"x": tensor([2**32, 2**32, 2**32], 0, 8)}, bytes(8)),
    "a shape below zero": safetensors({"x": tensor([-2], 0, 8)}, bytes(8)),
    "another size than its shape": safetensors({"x": tensor([3], 0, 8)}, bytes(8)),
    "an unknown dtype": safetensors({"x": tensor([2], 0, 8, "F99")}, bytes(8)),
    "no JSON": safetensors(b"{" * 64, bytes(8)),
    "deep JSON": safetensors(b'{"x":' * 10**5 + b"1" + b"}" * 10**5, bytes(8)),
    "a name that stands there twice": safetensors(
        json.dumps({"x": X}).encode()[:-1] + b", " + json.dumps({"x": tensor([2], 8, 16)}).encode()[1:], bytes(16)
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_safetensors_files_that_contradict_themselves(tmp_path, kind):
    (tmp_path / "model.safetensors").write_bytes(FILES[kind])
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=r"model.safetensors is truncated or no safetensors file .*fetch"):
        TensorFolder(tmp_path)
    assert time.monotonic() - started < LONGEST


def test_an_index_that_leads_out_of_the_folder(tmp_path):
    inside, outside = tmp_path / "model", tmp_path / "secret"
    for folder in (inside, outside):
        folder.mkdir()
    save_file({"x": torch.zeros(1)}, outside / "x.safetensors")
    index = inside / "model.safetensors.index.json"
    for named in ("../secret/x.safetensors", str(outside / "x.safetensors"), "a/../x.safetensors", "..", ""):
        index.write_text(json.dumps({"weight_map": {"x": named}}))
        with pytest.raises(CheckpointError, match="not a file of the folder itself"):
            TensorFolder(inside)
    index.write_text('{"weight_map": {"x": "x.safetensors"}}')
    (inside / "x.safetensors").symlink_to(outside / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x.safetensors, a link that leads out of the folder"):
        TensorFolder(inside)


def test_the_links_of_the_hub_s_cache_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"x": torch.zeros(1)}, blobs / "0123")
    (snapshot / "x.safetensors").symlink_to("../../blobs/0123")
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"x": "x.safetensors"}}')
    assert TensorFolder(snapshot).load("x").tolist() == [0]


@pytest.mark.parametrize(
    "values",
    [
        {"vocab_size": "61"},
        {"vocab_size": 2**60},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 1.5},
        {"rms_norm_eps": "small"},
        {"rms_norm_eps": float("nan")},
        {"rope_theta": []},
        {"architectures": 7},
        {"rope_scaling": [1]},
        {"hidden_size": True},
        {"quantization_config": "gptq"},
        {"quantization_config": {"bits": 10**400, "group_size": 128}},
        {"quantization_config": {"quant_method": {"a": 1}}},
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": [1]}},
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"a": 1}}},
        {"quantization_config": {"quant_method": "awq", "bits": 4, "version": 3}},
    ],
    ids=str,
)
def test_configurations_with_wrong_types(tmp_path, values):
    write_model(tmp_path, **values)
    with pytest.raises(OctavoError) as refused:
        open_folder(tmp_path)
    assert "config.json" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("suffix", "damage", "sentence"),
    [
        ("scales", lambda t: t.fill_(float("nan")), "scales do not fit"),
        ("scales", lambda t: t.fill_(float("inf")), "scales do not fit"),
        ("scales", lambda t: t.to(torch.int32), "scales is a 2-dimensional tensor of torch.int32"),
        ("g_idx", lambda t: t.fill_(2**31 - 1), "points outside its"),
        ("qweight", lambda t: t.flatten(), "qweight of shape"),
        ("qzeros", lambda t: t.flatten(), "qzeros do not fit"),
    ],
)
def test_quantized_tensors_that_are_not_sound(tmp_path, suffix, damage, sentence):
    tensors = small_tensors()
    name = "model.layers.1.mlp.up_proj"
    tensors |= encode_linear(name, quantized(70, 48, QuantScheme(8, 16, True)), "gptq")
    del tensors[f"{name}.weight"]
    tensors[f"{name}.{suffix}"] = damage(tensors[f"{name}.{suffix}"]).contiguous()
    block = {"quant_method": "gptq", "bits": 8, "group_size": 16, "sym": True, "desc_act": False}
    write_model(tmp_path, tensors, quantization_config=block)
    with pytest.raises(CheckpointError, match=sentence):
        open_folder(tmp_path).linear_parts(1, "up")


def test_a_dense_weight_with_nan(tmp_path):
    tensors = small_tensors()
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    write_model(tmp_path, tensors)
    with pytest.raises(NumericalError, match="holds NaN or Inf"):
        open_folder(tmp_path).linear_parts(1, "up")


def test_names_of_strangers_break_no_line_and_steer_no_terminal(tmp_path):
    """A tensor may be called anything; a message is one line of what can be printed."""
    name = "a\n\x1b[2J\u2028b\N{LATIN SMALL LETTER E WITH ACUTE}"
    header = {name: {"dtype": "F8_E5M2", "shape": [1], "data_offsets": [0, 1]}}
    (tmp_path / "model.safetensors").write_bytes(safetensors(header, b"x"))
    with pytest.raises(CheckpointError) as refused:
        TensorFolder(tmp_path)
    assert r"tensor a\n\x1b[2J\u2028bé in " in str(refused.value)
    assert str(refused.value).isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
quantization_changes = st.dictionaries(
    st.sampled_from(
        ["quant_method", "bits", "group_size", "sym", "checkpoint_format", "config_groups", "version"]
    ),
    json_values | st.sampled_from(["gptq", "awq", "compressed-tensors", 4, 8, 128]),
    max_size=7,
)


@given(quantization=quantization_changes | json_values)
@settings(max_examples=150, deadline=None)
def test_any_quantization_config_is_read_or_refused(tmp_path_factory, quantization):
    folder = tmp_path_factory.mktemp("config")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": quantization}))
    try:
        read_quantization(folder)
    except OctavoError as refused:
        assert "config.json" in str(refused) and "\n" not in str(refused)


@given(data=st.binary(max_size=300), header=st.dictionaries(st.text(max_size=4), json_values, max_size=3))
@example(data=b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, header={})
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory, data, header):
    folder = tmp_path_factory.mktemp("bytes")
    path = folder / "model.safetensors"
    for content in (data, safetensors(header, data)):
        path.write_bytes(content)
        for read, source in ((TensorFolder, folder), (read_gguf, path)):
            try:
                read(source)
            except OctavoError as refused:
                assert str(path) in str(refused) or str(folder) in str(refused)
