"""Tensors from pickled files (.pt, .pth, .bin), by way of a process that may do nothing else.

Only conversions read them: nothing else in Octavo opens a pickle.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from octavo.checkpoint.tensors import DTYPE_NAMES, TensorSpec
from octavo.errors import CheckpointError
from octavo.records import read_json

PICKLE_INDEX = "pytorch_model.bin.index.json"
SINGLE_PICKLE = "pytorch_model.bin"
SUFFIXES = (".bin", ".pt", ".pth")
LONGEST_ANSWER = 64 * 1024 * 1024  # bytes
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPE_NAMES}


class PickledFiles:
    """Files of pickled tensors, held open by the process that reads them; use as a context.

    `files` are the specs of each file by name, in the order given. Raises CheckpointError where a file is damaged,
    holds anything but tensors, or asks for more memory or time than its size warrants.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        command = [sys.executable, "-m", "octavo.conversion.pickle_process", *map(str, paths)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            self.files = [self._specs(entries) for entries in self._introduction()]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "PickledFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.kill()
        self._process.wait()

    def load(self, number: int, name: str) -> Tensor:
        """The tensor `name` of file `number`."""
        spec = self.files[number][name]
        data = bytearray(spec.bytes)
        self._pipe(self._process.stdin).write(f"{number}\t{name}\n".encode())
        self._pipe(self._process.stdin).flush()
        read = 0
        while read < len(data):
            count = self._pipe(self._process.stdout).readinto(memoryview(data)[read:])  # type: ignore[attr-defined]
            if not count:
                raise self._failed("the process that reads it ended early")
            read += count
        if not data:
            return torch.empty(spec.shape, dtype=spec.dtype)
        return torch.frombuffer(data, dtype=spec.dtype).reshape(spec.shape)

    def _introduction(self) -> list[Any]:
        line = self._pipe(self._process.stdout).readline(LONGEST_ANSWER)
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise self._failed("reading it takes more memory or time than its size warrants") from error
        if "error" in answer:
            raise self._failed(answer["error"])
        files: list[Any] = answer["files"]
        return files

    def _specs(self, entries: list[Any]) -> dict[str, TensorSpec]:
        specs = {}
        for name, dtype, shape in entries:
            if dtype not in DTYPES:
                raise self._failed(f"its tensor {name} has the unsupported dtype {dtype}")
            specs[name] = TensorSpec(name, DTYPES[dtype], tuple(shape))
        return specs

    def _failed(self, problem: str) -> CheckpointError:
        names = ", ".join(str(path) for path in self.paths)
        return CheckpointError(
            f"{names} cannot be converted: {problem}; fetch it again from a source that you trust"
        )

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None, "both pipes are asked for"
        return pipe


class PickledTensors:
    """The tensors of several pickled files as one table, like a folder of safetensors files."""

    def __init__(self, files: PickledFiles) -> None:
        self.specs: dict[str, TensorSpec] = {}
        self._files = files
        self._homes: dict[str, int] = {}
        for number, specs in enumerate(files.files):
            for name, spec in specs.items():
                if name in self.specs:
                    raise CheckpointError(f"tensor {name} stands in two of the files; remove the stale file")
                self.specs[name], self._homes[name] = spec, number

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def load(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor; CheckpointError where it is absent or of another shape."""
        if name not in self.specs:
            raise CheckpointError(f"tensor {name} is missing; fetch the checkpoint again")
        if shape is not None and self.specs[name].shape != shape:
            raise CheckpointError(
                f"tensor {name} has shape {list(self.specs[name].shape)}, but its config.json calls for "
                f"{list(shape)}"
            )
        return self._files.load(self._homes[name], name)


@contextmanager
def pickled_folder(folder: Path) -> Iterator[PickledTensors]:
    """The tensors of a folder's pickled files: those that the index names, else all that lie there."""
    with PickledFiles(pickled_paths(folder)) as files:
        yield PickledTensors(files)


def pickled_paths(folder: Path) -> list[Path]:
    """The pickled files that make up a folder's checkpoint; none where it has no such files."""
    index = folder / PICKLE_INDEX
    if index.exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise CheckpointError(f"{index} has no usable weight_map; fetch it again")
        paths = [folder / name for name in sorted(set(names.values()))]
        for path in paths:
            if path.parent != folder or not path.is_file():
                raise CheckpointError(f"{index} names {path.name}, which is not in the folder; fetch it again")
        return paths
    if (folder / SINGLE_PICKLE).is_file():
        return [folder / SINGLE_PICKLE]
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
