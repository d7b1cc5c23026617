"""Shards: written bytes, alignment, continuation after a kill, and folders that are not sound."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from octavo.checkpoint.tensors import (
    ShardWriter,
    TensorFolder,
    TensorSpec,
    plan_shards,
    write_checkpoint,
)
from octavo.errors import CheckpointError, OutputError
from octavo.records import sha256_of_file


def specs_of(tensors):
    return [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


def test_bytes_written_out(tmp_path):
    writer = ShardWriter(tmp_path / "a.safetensors", [TensorSpec("x", torch.int16, (2, 1))])
    writer.write("x", torch.tensor([[1], [-2]], dtype=torch.int16))
    digest = writer.finish()
    header = b'{"__metadata__":{"format":"pt"},"x":{"dtype":"I16","shape":[2,1],"data_offsets":[0,4]}}'
    header += b" " * (-len(header) % 8)
    expected = len(header).to_bytes(8, "little") + header + bytes([1, 0, 0xFE, 0xFF])
    assert (tmp_path / "a.safetensors").read_bytes() == expected
    assert digest == sha256_of_file(tmp_path / "a.safetensors")


TENSORS = {
    "wide": torch.arange(12, dtype=torch.int32).reshape(3, 4),
    "half": torch.tensor([0.5, -1.0, 2.0], dtype=torch.float16),
    "brain": torch.tensor([[1.5]], dtype=torch.bfloat16),
    "scalar": torch.tensor(3.25),
    "empty": torch.zeros(0, 4),
}


def test_the_library_reads_what_we_write(tmp_path):
    write_checkpoint(tmp_path, specs_of(TENSORS), TENSORS.__getitem__, max_shard_size=10**9)
    loaded = load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded[name], tensor)


def test_we_read_what_the_library_writes(tmp_path):
    save_file(TENSORS, tmp_path / "weights-of-2023.safetensors")
    folder = TensorFolder(tmp_path)
    for name, tensor in TENSORS.items():
        assert folder.specs[name] == TensorSpec(name, tensor.dtype, tuple(tensor.shape))
        assert torch.equal(folder.load(name), tensor)


def test_shards_and_their_index(tmp_path):
    hashes = write_checkpoint(tmp_path, specs_of(TENSORS), TENSORS.__getitem__, max_shard_size=50)
    assert len(hashes) > 1
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(hashes)
    folder = TensorFolder(tmp_path)
    assert all(torch.equal(folder.load(name), tensor) for name, tensor in TENSORS.items())


@given(
    sizes=st.lists(
        st.lists(
            st.tuples(st.sampled_from([torch.float16, torch.int32]), st.integers(1, 9)), min_size=1, max_size=4
        ),
        min_size=1,
        max_size=6,
    ),
    limit=st.integers(1, 80),
)
@settings(deadline=None)
def test_planned_tensors_are_aligned_and_units_whole(sizes, limit):
    units = [
        [TensorSpec(f"{u}.{t}", dtype, (count,)) for t, (dtype, count) in enumerate(unit)]
        for u, unit in enumerate(sizes)
    ]
    shards = plan_shards(units, limit)
    home = {spec.name: file for file, specs in shards.items() for spec in specs}
    assert home.keys() == {spec.name for unit in units for spec in unit}
    for unit in units:
        assert len({home[spec.name] for spec in unit}) == 1
    for specs in shards.values():
        start = 0
        for spec in specs:
            assert start % spec.dtype.itemsize == 0
            start += spec.bytes
        assert start <= limit or len({spec.name.split(".")[0] for spec in specs}) == 1


@given(kill_after=st.integers(0, 4), garbage=st.binary(max_size=30))
@settings(deadline=None)
def test_a_killed_shard_is_continued_to_the_same_bytes(tmp_path_factory, kill_after, garbage):
    folder = tmp_path_factory.mktemp("shard")
    tensors = {name: tensor for name, tensor in TENSORS.items() if tensor.numel()}
    specs = specs_of(tensors)

    def write(writer, names):
        for name in names:
            writer.write(name, TENSORS[name])

    names = list(tensors)
    whole = ShardWriter(folder / "whole.safetensors", specs)
    write(whole, names)
    digest = whole.finish()

    killed = ShardWriter(folder / "killed.safetensors", specs)
    write(killed, names[:kill_after])
    offset = killed.flush()
    killed.close()
    with (folder / "killed.safetensors.partial").open("ab") as file:
        file.write(garbage)
    assert not (folder / "killed.safetensors").exists()
    continued = ShardWriter(folder / "killed.safetensors", specs, resume_at=offset)
    write(continued, names[kill_after:])
    assert continued.finish() == digest
    assert (folder / "killed.safetensors").read_bytes() == (folder / "whole.safetensors").read_bytes()


def saved(folder, **tensors):
    save_file(tensors or {"x": torch.zeros(100)}, folder / "model.safetensors")


def test_a_truncated_file_is_named(tmp_path):
    saved(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=r"model.safetensors is truncated"):
        TensorFolder(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write_checkpoint(tmp_path, specs_of(TENSORS), TENSORS.__getitem__, max_shard_size=50)
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(CheckpointError, match=r"shard model-00002-of-0000\d.safetensors is missing"):
        TensorFolder(tmp_path)


def test_a_tensor_missing_from_its_shards_is_named(tmp_path):
    write_checkpoint(tmp_path, specs_of(TENSORS), TENSORS.__getitem__, max_shard_size=50)
    index = tmp_path / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["lost"] = values["weight_map"]["wide"]
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="tensor lost is in"):
        TensorFolder(tmp_path)


def test_an_index_that_points_outside_is_refused(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../secret.safetensors"}}')
    with pytest.raises(CheckpointError, match="not a file of the folder itself"):
        TensorFolder(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="remove the stale file"):
        TensorFolder(tmp_path)


def test_a_wrong_shape_and_a_missing_tensor_are_named(tmp_path):
    saved(tmp_path, x=torch.zeros(2, 3))
    folder = TensorFolder(tmp_path)
    with pytest.raises(CheckpointError, match=r"tensor x .* has shape \[2, 3\].* calls for \[3, 2\]"):
        folder.load("x", (3, 2))
    with pytest.raises(CheckpointError, match="tensor y is missing"):
        folder.load("y")


def test_a_folder_without_weights_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="octavo convert"):
        TensorFolder(tmp_path)
    with pytest.raises(CheckpointError, match="is no folder"):
        TensorFolder(tmp_path / "absent")


def test_a_full_disk_is_one_sentence(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "model.safetensors.partial").symlink_to("/dev/full")
    writer = ShardWriter(tmp_path / "model.safetensors", specs_of(TENSORS))
    with pytest.raises(OutputError, match=r"model.safetensors cannot be written: No space left"):
        writer.flush()
    with pytest.raises(OSError, match="No space left"):
        writer.close()
