"""What a job wrote down: versioned JSON, and the hashes that tie it to what it speaks of."""

import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError, OctavoError, OutputError

SCHEMA_VERSION = 1
QUANTIZATION_RECORD = "octavo.json"
RUN_RECORD = "octavo-run.json"

# A record, a config or an index is text of at most a few megabytes; anything larger is not one.
LARGEST_JSON = 64 * 1024 * 1024
HASH_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class LinearRecord:
    """How one linear was quantized.

    `loss` is the squared error of its output per token, `damping` the fraction that its Hessian needed; both are
    None for a method that sees no activations.
    """

    name: str
    bits: int
    group_size: int | None
    symmetric: bool
    loss: float | None
    damping: float | None


@dataclass(frozen=True)
class QuantizationRecord:
    """The part of a quantization that is the same each time: `octavo.json`.

    `inputs` is all that the result depends on; `files` the sha256 of each file written.
    """

    inputs: dict[str, Any]
    files: dict[str, str]
    linears: list[LinearRecord]
    schema: int = SCHEMA_VERSION


@dataclass(frozen=True)
class RunRecord:
    """The part that is not: `octavo-run.json`."""

    started: str
    finished: str
    seconds: float
    seconds_of_linear: dict[str, float]
    resumed: int
    machine: dict[str, Any]
    processes: int = 1
    schema: int = SCHEMA_VERSION


@dataclass(frozen=True)
class EvaluationRecord:
    """What `octavo evaluate --json` writes: one entry of `results` per text."""

    octavo_version: str
    model: str
    model_files: dict[str, str]
    reference: str | None
    reference_files: dict[str, str] | None
    results: list[dict[str, Any]]
    machine: dict[str, Any]
    schema: int = SCHEMA_VERSION


def as_json(record: Any) -> dict[str, Any]:
    """A dataclass as the plain JSON values that reading it back would give."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(record)))
    return values


def describe_machine(device: str) -> dict[str, Any]:
    """What decides the last bits of a result besides its inputs: processor, threads, device, torch."""
    import torch

    return {
        "device": device,
        "processor": _processor_name() if device == "cpu" else torch.cuda.get_device_name(device),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _processor_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def sha256_of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of_value(value: Any) -> str:
    """Hash of a JSON value, independent of the order of its keys."""
    return sha256_of_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def sha256_of_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Hash of a file, read once; `advance` is told the number of bytes of each piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(HASH_CHUNK):
            digest.update(piece)
            if advance is not None:
                advance(len(piece))
    return digest.hexdigest()


def file_states(folder: Path) -> dict[str, str]:
    """Each file that a folder's record names: whole, changed or missing; nothing for a folder without record."""
    if not (folder / QUANTIZATION_RECORD).exists():
        return {}
    recorded = read_json(folder / QUANTIZATION_RECORD).get("files")
    if not isinstance(recorded, dict):
        raise CheckpointError(f"{folder / QUANTIZATION_RECORD} names no files; quantize the model again")
    states = {}
    for name, expected in recorded.items():
        path = folder / Path(name).name
        if not path.exists():
            states[name] = "missing"
        else:
            states[name] = "whole" if sha256_of_file(path) == expected else "changed"
    return states


def refuse_changed_files(states: dict[str, str], folder: Path) -> None:
    """CheckpointError naming the first file that is not the one its record speaks of."""
    for name, state in states.items():
        if state != "whole":
            raise CheckpointError(
                f"{folder / name} is {state}: it is not what {QUANTIZATION_RECORD} says; "
                "copy it again, or quantize the model again with --restart"
            )


def read_bounded(path: Path, limit: int, refusal: type[OctavoError]) -> bytes:
    """A file of at most `limit` bytes; a `refusal` where it is larger or cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise refusal(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise refusal(f"{path} is larger than {limit} bytes, the most that is read of such a file")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size; CheckpointError where it is anything else."""
    try:
        value = json.loads(read_bounded(path, LARGEST_JSON, CheckpointError))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no valid JSON ({error}); fetch or write it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__} where an object belongs")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_record(path: Path | None, record: Any) -> None:
    """Write a record where --json says; nothing for None."""
    if path is not None:
        write_json(path, as_json(record))


def settle(folder: Path) -> None:
    """Bring the names in a folder to the disk, so that a rename outlives a power cut, not only a kill."""
    if os.name != "posix":  # elsewhere a folder cannot be opened, and the system orders renames itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: to a temporary name, to the disk, then renamed."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        settle(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"{path} cannot be written: {error.strerror}; free space or choose another place"
        ) from error
