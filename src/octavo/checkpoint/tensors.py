"""Named tensors of a model folder: read by mmap, written as shards that are whole or absent.

Reading is the safetensors library's. Writing is our own, after the format's specification
(https://github.com/huggingface/safetensors#format), because the library wants every tensor of a file in memory:
a shard here is written tensor by tensor, hashed in the same pass, and can be continued after a kill.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from octavo.errors import CheckpointError, OutputError
from octavo.records import HASH_CHUNK, read_json, settle, write_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PARTIAL = ".partial"
HEADER_ALIGNMENT = 8  # bytes; a mapped tensor must start at a multiple of its element size

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


Progress = Callable[
    [str, int, int], None
]  # the name of what was written, how many are done, and how many there are


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor before it is read or written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFolder:
    """The tensors of a folder's safetensors files, by name; nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.specs: dict[str, TensorSpec] = {}
        self._files: dict[str, Any] = {}
        for path in tensor_files(folder):
            self._open(path)
        self._check_against_index()

    def _open(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is truncated or no safetensors file ({error}); fetch or write it again"
            ) from error
        for name in file.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
            if name in self.specs:
                raise CheckpointError(
                    f"tensor {name} stands in {path.name} and in another file of {self.folder}; "
                    "remove the stale file"
                )
            view: Any = file.get_slice(name)
            if view.get_dtype() not in DTYPES:
                raise CheckpointError(f"tensor {name} in {path} has the unsupported dtype {view.get_dtype()}")
            self.specs[name] = TensorSpec(name, DTYPES[view.get_dtype()], tuple(view.get_shape()))
            self._files[name] = file

    def _check_against_index(self) -> None:
        index = self.folder / INDEX_FILE
        if index.exists() and not (self.folder / SINGLE_FILE).exists():
            missing = sorted(set(read_json(index)["weight_map"]) - set(self.specs))
            if missing:
                raise CheckpointError(f"tensor {missing[0]} is in {index} but in none of its shards")

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def load(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor, backed by the mapped file; CheckpointError where it is absent or of another shape."""
        if name not in self.specs:
            raise CheckpointError(f"tensor {name} is missing from {self.folder}; fetch the checkpoint again")
        found = self.specs[name].shape
        if shape is not None and found != shape:
            raise CheckpointError(
                f"tensor {name} in {self.folder} has shape {list(found)}, but its config.json "
                f"calls for {list(shape)}"
            )
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a folder's checkpoint.

    `model.safetensors`, else what the index names, else every safetensors file that is there: many published
    checkpoints name theirs after the model.
    """
    if not folder.is_dir():
        origin = " that octavo convert makes of it" if folder.suffix == ".gguf" else ""
        raise CheckpointError(f"{folder} is no folder; give the path of a model folder{origin}")
    if (folder / SINGLE_FILE).exists():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    if not index.exists():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise CheckpointError(
                f"{folder} holds no safetensors file; octavo convert makes such a folder from other formats"
            )
        return found
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index} has no usable weight_map; fetch it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or name in ("", ".."):
            raise CheckpointError(f"{index} names {name!r}, which is not a file of the folder itself")
        if not (folder / name).exists():
            raise CheckpointError(f"shard {name} is missing from {folder}; fetch it again")
        if _leads_outside(folder / name):
            raise CheckpointError(
                f"{index} names {name}, a link that leads out of the folder; copy the file instead"
            )
    return [folder / name for name in names]


def _leads_outside(path: Path) -> bool:
    """Whether a file is a link to elsewhere; the hub's cache keeps its files in `blobs`, beside `snapshots`."""
    home, target = path.parent.resolve(), path.resolve().parent
    blobs = home.parent.parent / "blobs"
    return target != home and not (home.parent.name == "snapshots" and target == blobs)


class ShardWriter:
    """One safetensors file, written tensor by tensor under a temporary name.

    `specs` fixes the order. After a kill, `resume_at` (a number that `flush` returned) drops what came later.
    """

    def __init__(self, path: Path, specs: Sequence[TensorSpec], resume_at: int | None = None) -> None:
        self.path = path
        self._partial = path.with_name(path.name + PARTIAL)
        self._offsets = list(_offsets(specs))
        self._expected = iter(specs)
        self._digest = hashlib.sha256()
        self._file: IO[bytes]
        try:
            if resume_at is None:
                self._file = self._partial.open("wb")
                self._write(safetensors_header(specs))
            else:
                self._continue(specs, resume_at)
        except OSError as error:
            raise _cannot_write(path, error) from error

    def _continue(self, specs: Sequence[TensorSpec], resume_at: int) -> None:
        header = safetensors_header(specs)
        with self._partial.open("rb") as file:
            remaining = resume_at
            while piece := file.read(min(HASH_CHUNK, remaining)):
                self._digest.update(piece)
                remaining -= len(piece)
            file.seek(0)
            if remaining or file.read(len(header)) != header:
                raise CheckpointError(f"{self._partial} is not what the journal says; start again with --restart")
        self._file = self._partial.open("r+b")
        self._file.truncate(resume_at)
        self._file.seek(resume_at)
        for (_, end), _spec in zip(self._offsets, specs, strict=True):
            if len(header) + end > resume_at:
                break
            next(self._expected)

    def write(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor; it must be the one that the specs foresee."""
        expected = next(self._expected)
        assert (name, tensor.dtype, tuple(tensor.shape)) == (expected.name, expected.dtype, expected.shape)
        try:
            self._write(tensor_bytes(tensor))
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)

    def flush(self) -> int:
        """Bring what was written to the disk; the file's length so far, in bytes."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        return self._file.tell()

    def finish(self) -> str:
        """Give the file its name, now that it is whole; its sha256."""
        assert next(self._expected, None) is None, "a shard is finished when all its tensors are written"
        self.flush()
        self._file.close()
        self._partial.replace(self.path)
        settle(self.path.parent)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Let go of the file without finishing it."""
        self._file.close()


def safetensors_header(specs: Sequence[TensorSpec]) -> bytes:
    """The header of a safetensors file: its length in 8 bytes, little-endian, then JSON padded with spaces."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for spec, (start, end) in zip(specs, _offsets(specs), strict=True):
        entries[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _offsets(specs: Sequence[TensorSpec]) -> Iterator[tuple[int, int]]:
    end = 0
    for spec in specs:
        start, end = end, end + spec.bytes
        yield start, end


def tensor_bytes(tensor: Tensor) -> bytes | memoryview:
    """The elements of a tensor in row-major order, little-endian."""
    stored = tensor.detach().cpu().contiguous()
    # A dimension of one element may keep any stride, which a view as bytes would trip over.
    elements = stored.as_strided((stored.numel(),), (1,)).view(torch.uint8).numpy()
    return memoryview(elements)  # type: ignore[arg-type]


def in_order(unit: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The tensors of a unit as they stand in a file: those of wider elements first, so that all are aligned."""
    return sorted(unit, key=lambda spec: (-spec.dtype.itemsize, spec.name))


def plan_shards(units: Sequence[Sequence[TensorSpec]], max_shard_size: int) -> dict[str, list[TensorSpec]]:
    """Which file holds which tensors, in the order of writing.

    A unit (a decoder block, say) is never split. Within one, wide elements come first so that each tensor is
    aligned; a unit whose length breaks the alignment of the next closes its file, since the format allows no
    holes.
    """
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for unit in units:
        ordered = in_order(unit)
        size = sum(spec.bytes for spec in ordered)
        aligned = filled % ordered[0].dtype.itemsize == 0
        if filled and (filled + size > max_shard_size or not aligned):
            shards.append([])
            filled = 0
        shards[-1] += ordered
        filled += size
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": specs
        for number, specs in enumerate(shards, start=1)
    }


def write_index(folder: Path, shards: dict[str, list[TensorSpec]]) -> None:
    """The index that sharded checkpoints carry; a single file needs none."""
    if set(shards) == {SINGLE_FILE}:
        return
    write_json(
        folder / INDEX_FILE,
        {
            "metadata": {"total_size": sum(spec.bytes for specs in shards.values() for spec in specs)},
            "weight_map": {spec.name: file for file, specs in shards.items() for spec in specs},
        },
    )


def write_checkpoint(
    folder: Path,
    specs: Sequence[TensorSpec],
    load: Callable[[str], Tensor],
    max_shard_size: int,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Stream tensors into a folder, one in memory at a time; the sha256 of each file written."""
    widest_first = sorted(specs, key=lambda spec: -spec.dtype.itemsize)
    units = {spec.name: [spec] for spec in widest_first}
    return write_units(folder, units, lambda name: {name: load(name)}, max_shard_size, progress)


def write_units(
    folder: Path,
    units: Mapping[str, Sequence[TensorSpec]],
    load: Callable[[str], Mapping[str, Tensor]],
    max_shard_size: int,
    progress: Progress | None = None,
) -> dict[str, str]:
    """Stream units of tensors into a folder, one unit in memory at a time; the sha256 of each file written.

    `progress` is told the name of each unit, how many are done by then, and how many there are.
    """
    shards = plan_shards(list(units.values()), max_shard_size)
    home = {spec.name: file for file, specs in shards.items() for spec in specs}
    hashes: dict[str, str] = {}
    writer: ShardWriter | None = None
    try:
        for number, (unit, specs) in enumerate(units.items(), start=1):
            path = folder / home[specs[0].name]
            if writer is None or writer.path != path:
                if writer is not None:
                    hashes[writer.path.name] = writer.finish()
                writer = ShardWriter(path, shards[path.name])
            tensors = load(unit)
            for spec in in_order(specs):
                writer.write(spec.name, tensors[spec.name])
            del tensors  # before the next ones are loaded
            if progress is not None:
                progress(unit, number, len(units))
        if writer is not None:
            hashes[writer.path.name] = writer.finish()
    finally:
        if writer is not None:
            writer.close()
    write_index(folder, shards)
    return hashes


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} cannot be written: {error.strerror}; free space or choose another place")
