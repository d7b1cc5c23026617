"""The process that reads pickled tensors: `python -m octavo.conversion.pickle_process FILE …`.

A pickle is a program. Torch's own reader with `weights_only` runs none of it but the making of tensors; here it
runs in a process that may take only so much memory and processor time, and that speaks to its parent in plain
bytes: first a line of JSON with the name, dtype and shape of each tensor by file, or with what is wrong; then, for
each line `number<TAB>name` that it is sent, the bytes of that tensor.
"""

import json
import resource
import sys
import zipfile
from pathlib import Path
from typing import Any

from octavo.checkpoint.tensors import tensor_bytes

MEMORY_BESIDE_THE_FILES = 3 * 2**30  # bytes that may be written to; torch itself takes a part of them
SECONDS_AT_LEAST = 60
BYTES_PER_SECOND = 20 * 10**6  # of a slow disk
MOST_ENTRIES = 2**16


def main(paths: list[Path]) -> None:
    """Serve the tensors of the files until the parent closes the pipe."""
    limit_process(paths)
    try:
        for path in paths:
            refuse_compressed(path)
        tables = [load_table(path) for path in paths]
    except (ValueError, OSError, MemoryError) as error:
        answer({"error": str(error) or type(error).__name__})
        return
    answer({"files": [describe(table) for table in tables]})
    for line in sys.stdin:
        number, _, name = line.rstrip("\n").partition("\t")
        sys.stdout.buffer.write(tensor_bytes(tables[int(number)][name]))
        sys.stdout.buffer.flush()


def limit_process(paths: list[Path]) -> None:
    """Take a limit of memory and of time from the size of the files."""
    size = sum(path.stat().st_size for path in paths)
    memory = MEMORY_BESIDE_THE_FILES + 2 * size
    seconds = SECONDS_AT_LEAST + 4 * size // BYTES_PER_SECOND
    # Not the whole address space: a torch with CUDA maps gigabytes of libraries into that.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes to its pipe only


def refuse_compressed(path: Path) -> None:
    """ValueError for a zip file that grows when it is read: torch stores its tensors as they are."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if len(entries) > MOST_ENTRIES:
        raise ValueError(f"it holds {len(entries)} entries, where {MOST_ENTRIES} is the most that is plausible")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its entry {entry.filename} is compressed, which torch does not do")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its entries are larger than the file")


def load_table(path: Path) -> dict[str, Any]:
    """The tensors of a file by name; ValueError where it holds anything else."""
    import pickle

    import torch

    try:
        mapped = zipfile.is_zipfile(path)  # files of before 2020 are no zip files, and are read into memory
        table = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("it is damaged, or asks for more than tensors") from error
    if not isinstance(table, dict):
        raise ValueError(f"it holds a {type(table).__name__} where a table of tensors belongs")
    for name, tensor in table.items():
        if not isinstance(name, str) or "\t" in name or "\n" in name or not isinstance(tensor, torch.Tensor):
            raise ValueError(f"its entry {name!r:.80} is no named tensor")
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise ValueError(f"its tensor {name} is larger than what is stored of it")
    return table


def describe(table: dict[str, Any]) -> list[tuple[str, str, list[int]]]:
    """Name, dtype and shape of each tensor."""
    return [(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in table.items()]


def answer(value: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main([Path(path) for path in sys.argv[1:]])
