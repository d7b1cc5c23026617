"""The output folder while it is being written: what is done, and how to go on after a kill.

Which tensors go into which shard is known before the first is solved, so each finished unit (the embedding, a
decoder block, the head) is appended to its shard at once. Then the hidden states that enter the next block are
saved, then the journal is replaced. A kill at any moment leaves a journal that speaks of bytes on the disk:
whatever came after them is cut off, and the job goes on as if it had never stopped.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from octavo.checkpoint.tensors import PARTIAL, ShardWriter, TensorSpec
from octavo.errors import CheckpointError, OutputError, ResumeError
from octavo.records import (
    QUANTIZATION_RECORD,
    RUN_RECORD,
    LinearRecord,
    QuantizationRecord,
    as_json,
    read_json,
    sha256_of_file,
    write_json,
)

WORK_FOLDER = ".octavo"  # inside the output folder, gone when the job is done
JOURNAL = "journal.json"

Shards = dict[str, list[TensorSpec]]
Samples = list[Float[Tensor, "tokens hidden_size"]]


@dataclass(frozen=True)
class Progress:
    """What the journal holds. `offset` is the length of the shard under way, None before its first unit."""

    inputs: dict[str, Any]
    started: str
    units: int = 0
    tensors: int = 0
    files: dict[str, str] = field(default_factory=dict)
    offset: int | None = None
    hidden_hash: str | None = None
    linears: list[LinearRecord] = field(default_factory=list)
    seconds: float = 0.0
    seconds_of_linear: dict[str, float] = field(default_factory=dict)
    resumed: int = 0


@dataclass(frozen=True)
class Unit:
    """A piece of the job that is done or not: its tensors, the states that leave it, and what was learned."""

    tensors: Mapping[str, Tensor]
    hidden: Samples
    linears: Sequence[LinearRecord]
    seconds: float
    seconds_of_linear: Mapping[str, float]


class Journal:
    """An output folder under way; `progress` is what its journal says."""

    def __init__(self, folder: Path, shards: Shards, progress: Progress) -> None:
        self.folder = folder
        self.progress = progress
        self._work = folder / WORK_FOLDER
        self._shards = shards
        self._order = [(file, spec) for file, specs in shards.items() for spec in specs]
        self._writer: ShardWriter | None = None

    def record(self, unit: Unit) -> None:
        """Write a unit: its tensors, then its hidden states, then the journal that speaks of both."""
        before, after = self.progress.tensors, self.progress.tensors + len(unit.tensors)
        writer = self._shard_under_way()
        for _, spec in self._order[before:after]:
            writer.write(spec.name, unit.tensors[spec.name])
        file = self._order[before][0]
        files, offset = self.progress.files, None
        if after == len(self._order) or self._order[after][0] != file:
            files = {**files, file: writer.finish()}
            self._writer = None
        else:
            offset = writer.flush()
        former_hidden = self._hidden_path()
        progress = replace(
            self.progress,
            units=self.progress.units + 1,
            tensors=after,
            files=files,
            offset=offset,
            linears=[*self.progress.linears, *unit.linears],
            seconds=self.progress.seconds + unit.seconds,
            seconds_of_linear={**self.progress.seconds_of_linear, **unit.seconds_of_linear},
        )
        self._save(replace(progress, hidden_hash=self._save_hidden(progress.units, unit.hidden)))
        former_hidden.unlink(missing_ok=True)

    def hidden(self) -> Samples:
        """The hidden states that leave the last unit done."""
        from safetensors.torch import load_file

        path = self._hidden_path()
        if self.progress.hidden_hash is None:
            return []
        if not path.exists() or sha256_of_file(path) != self.progress.hidden_hash:
            raise CheckpointError(f"{path} is missing or damaged, so the job cannot go on; use --restart")
        states = load_file(path)
        return [states[name].clone() for name in sorted(states)]

    def close(self) -> None:
        """Let go of the files; the job can be continued."""
        if self._writer is not None:
            self._writer.close()

    def finish(self) -> None:
        """Remove what only an unfinished job needs."""
        shutil.rmtree(self._work)

    def _shard_under_way(self) -> ShardWriter:
        if self._writer is None:
            file = self._order[self.progress.tensors][0]
            path = self.folder / file
            if self.progress.offset is not None and path.exists():
                # Killed between naming a shard and writing so in the journal: it is not finished after all.
                path.replace(path.with_name(path.name + PARTIAL))
            self._writer = ShardWriter(path, self._shards[file], self.progress.offset)
        return self._writer

    def _hidden_path(self) -> Path:
        return self._work / f"hidden-{self.progress.units:05d}.safetensors"

    def _save_hidden(self, units: int, samples: Samples) -> str | None:
        if not samples:
            return None
        specs = [
            TensorSpec(f"sample.{number:06d}", sample.dtype, tuple(sample.shape))
            for number, sample in enumerate(samples)
        ]
        writer = ShardWriter(self._work / f"hidden-{units:05d}.safetensors", specs)
        try:
            for spec, sample in zip(specs, samples, strict=True):
                writer.write(spec.name, sample)
            return writer.finish()
        finally:
            writer.close()

    def _save(self, progress: Progress) -> None:
        write_json(self._work / JOURNAL, as_json(progress))
        self.progress = progress


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other jobs out of an output folder; OutputError where one is at work there."""
    from filelock import FileLock, Timeout

    (folder / WORK_FOLDER).mkdir(exist_ok=True)
    lock = FileLock(folder / WORK_FOLDER / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(f"another process is writing {folder}; wait for it, or choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def open_journal(folder: Path, shards: Shards, inputs: dict[str, Any], started: str) -> Journal:
    """Begin in an empty folder, or go on where a job with the same inputs was killed."""
    path = folder / WORK_FOLDER / JOURNAL
    if not path.exists():
        return Journal(folder, shards, Progress(inputs, started))
    values = read_json(path)
    try:
        linears = [LinearRecord(**linear) for linear in values.pop("linears")]
        progress = Progress(**values, linears=linears)
    except (KeyError, TypeError) as error:
        raise ResumeError(f"{path} was written by another version of Octavo; use --restart") from error
    refuse_other_inputs(folder, progress.inputs, inputs)
    return Journal(folder, shards, replace(progress, resumed=progress.resumed + 1))


def finished_record(folder: Path, inputs: dict[str, Any]) -> QuantizationRecord | None:
    """The record of a folder where this very job is done already, its files checked; None where it is not."""
    path = folder / QUANTIZATION_RECORD
    if not path.exists() or (folder / WORK_FOLDER / JOURNAL).exists():
        return None
    values = read_json(path)
    try:
        record = record_from(values)
    except (KeyError, TypeError) as error:
        raise ResumeError(f"{path} was written by another version of Octavo; use --restart") from error
    refuse_other_inputs(folder, record.inputs, inputs)
    for name, expected in record.files.items():
        if not (folder / name).exists() or sha256_of_file(folder / name) != expected:
            raise CheckpointError(f"{folder / name} is missing or not what {path} says; use --restart")
    return record


def record_from(values: dict[str, Any]) -> QuantizationRecord:
    """A record as its JSON says it; KeyError or TypeError where it says something else."""
    linears = [LinearRecord(**linear) for linear in values["linears"]]
    return QuantizationRecord(inputs=values["inputs"], files=values["files"], linears=linears)


def refuse_other_inputs(folder: Path, former: dict[str, Any], now: dict[str, Any]) -> None:
    """ResumeError naming the first input that changed since a job was started."""
    before, after = _flatten(former), _flatten(now)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            raise ResumeError(
                f"{folder} was made with {name} = {before.get(name)}, now it is {after.get(name)}; "
                "choose another folder, restore the former, or use --restart to begin anew"
            )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        parts = (_flatten(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items())
        return {name: item for part in parts for name, item in part.items()}
    return {prefix: value}


def prepare_folder(folder: Path, restart: bool) -> None:
    """Make the output folder, or see that it is ours; with `restart`, empty it of what we wrote."""
    if not folder.exists():
        folder.mkdir(parents=True)
        return
    ours = (folder / QUANTIZATION_RECORD).exists() or (folder / WORK_FOLDER).is_dir()
    if not folder.is_dir() or (any(folder.iterdir()) and not ours):
        raise OutputError(f"{folder} holds something that Octavo did not write; choose a new or empty folder")
    if restart and ours:
        _remove_written(folder)


def _remove_written(folder: Path) -> None:
    """Remove a former job's files, and no others."""
    record = folder / QUANTIZATION_RECORD
    named = list(read_json(record).get("files", {})) if record.exists() else []
    shards = [path.name for path in folder.glob("model*.safetensors*")]
    for name in {*named, *shards, QUANTIZATION_RECORD, RUN_RECORD}:
        if Path(name).name == name:
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)
