"""Pickled files: tensors come out as they went in, and nothing else comes out at all."""

import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from octavo.checkpoint.tensors import TensorSpec
from octavo.conversion.pickles import PickledFiles, PickledTensors, pickled_paths
from octavo.errors import CheckpointError

LONGEST = 60  # seconds: starting torch in the other process takes three of them on a machine that is idle

TENSORS = {
    "half": torch.arange(6).half().reshape(2, 3),
    "words": torch.tensor([1, -2, 3], dtype=torch.int32)[::2],
    "brain": torch.tensor([[1.5]], dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(0.25),
    "turned": torch.arange(6.0).reshape(2, 3).t(),
}


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_come_out_as_they_went_in(tmp_path, zipped):
    torch.save(TENSORS, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    torch.save({"other": torch.ones(2)}, tmp_path / "b.bin")
    with PickledFiles([tmp_path / "a.pt", tmp_path / "b.bin"]) as files:
        assert files.files[1] == {"other": TensorSpec("other", torch.float32, (2,))}
        table = PickledTensors(files)
        for name, tensor in TENSORS.items():
            found = table.load(name, tuple(tensor.shape))
            assert found.dtype == tensor.dtype and torch.equal(found, tensor)
        with pytest.raises(CheckpointError, match=r"tensor half has shape \[2, 3\]"):
            table.load("half", (3, 2))
        with pytest.raises(CheckpointError, match="tensor absent is missing"):
            table.load("absent")


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for name in ("a.pt", "b.pt"):
        torch.save({"x": torch.ones(1)}, tmp_path / name)
    with (
        PickledFiles([tmp_path / "a.pt", tmp_path / "b.pt"]) as files,
        pytest.raises(CheckpointError, match="stands in two of the files"),
    ):
        PickledTensors(files)


class Program:
    """Unpickled by an ordinary reader, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def zip_of(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def write_program(path):
    torch.save({"x": Program(path.with_name("touched"))}, path)


def write_raw_program(path):
    path.write_bytes(pickle.dumps(Program(path.with_name("touched"))))


def write_bomb(path):
    """A hundred megabytes of zeros in a hundred kilobytes."""
    zip_of(path, {"archive/data.pkl": b"", "archive/data/0": bytes(10**8)}, zipfile.ZIP_DEFLATED)


def write_larger_than_itself(path):
    """A directory that tells another size than the entry has."""
    torch.save({"x": torch.zeros(100)}, path)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    while at >= 0:
        data[at + 20 : at + 28] = struct.pack("<II", 2**30, 2**30)
        at = data.find(b"PK\x01\x02", at + 4)
    path.write_bytes(bytes(data))


def write_expanded(path):
    """Four bytes, said to be 2^40 numbers."""
    torch.save({"x": torch.zeros(1).expand(2**40)}, path)


def write_list(path):
    torch.save([torch.zeros(1)], path)


def write_nested(path):
    torch.save({"model": {"x": torch.zeros(1)}}, path)


def write_deep(path):
    """A pickle of many levels: an unbounded reader overflows its stack."""
    path.write_bytes(b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b".")


HOSTILE = {
    write_program: "it is damaged, or asks for more than tensors",
    write_raw_program: "it is damaged, or asks for more than tensors",
    write_bomb: "its entry archive/data.pkl is compressed, which torch does not do",
    write_larger_than_itself: "larger than the file|damaged",
    write_expanded: "its tensor x is larger than what is stored of it",
    write_list: "it holds a list where a table of tensors belongs",
    write_nested: "its entry 'model' is no named tensor",
    write_deep: "damaged|more memory or time",
}


@pytest.mark.parametrize("write", HOSTILE, ids=lambda write: write.__name__)
def test_hostile_files_are_refused_in_words_and_in_time(tmp_path, write):
    path = tmp_path / "hostile.pt"
    write(path)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=HOSTILE[write]) as refused:
        PickledFiles([path])
    assert str(path) in str(refused.value) and str(refused.value).endswith("from a source that you trust")
    assert time.monotonic() - started < LONGEST
    assert not (tmp_path / "touched").exists()


def test_no_file_makes_the_process_take_all_memory(tmp_path):
    path = tmp_path / "small.pt"
    path.write_bytes(bytes(1000))
    program = (
        "import sys; from pathlib import Path; from octavo.conversion import pickle_process as reader\n"
        "import torch; reader.limit_process([Path(sys.argv[1])])\n"
        "torch.zeros(2**28); print('a gigabyte')\n"
        "bytearray(reader.MEMORY_BESIDE_THE_FILES)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert done.stdout == "a gigabyte\n" and done.stderr.endswith("MemoryError\n")


def test_truncated_files_are_refused(tmp_path):
    torch.save(TENSORS, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        PickledFiles([tmp_path / "a.pt"])


def test_the_process_ends_with_its_context(tmp_path):
    torch.save(TENSORS, tmp_path / "a.pt")
    with PickledFiles([tmp_path / "a.pt"]) as files:
        process = files._process
    assert process.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_which_files_are_read(tmp_path):
    for name in ("pytorch_model-00001.bin", "other.bin", "tokenizer.model", "x.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in pickled_paths(tmp_path)] == ["other.bin", "pytorch_model-00001.bin"]
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "pytorch_model-00001.bin"}}))
    assert [path.name for path in pickled_paths(tmp_path)] == ["pytorch_model-00001.bin"]
    for named in ("../secret.bin", "absent.bin"):
        index.write_text(json.dumps({"weight_map": {"x": named}}))
        with pytest.raises(CheckpointError, match="which is not in the folder"):
            pickled_paths(tmp_path)
    index.write_text('{"weight_map": [1]}')
    with pytest.raises(CheckpointError, match="no usable weight_map"):
        pickled_paths(tmp_path)
