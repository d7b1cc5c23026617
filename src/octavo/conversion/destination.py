"""The folder that a conversion writes: claimed while empty, and given what a model needs beside its weights."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import OutputError
from octavo.model.load import CARRIED_FILES

DEFAULT_SHARD_SIZE = 5 * 10**9  # bytes


@dataclass(frozen=True)
class ConversionOutput:
    """Where the result goes, and in files of at most how many bytes."""

    folder: Path
    max_shard_size: int = DEFAULT_SHARD_SIZE


def claim(folder: Path) -> None:
    """Make an output folder; OutputError where it cannot be made or is not empty."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror}; choose another place") from error
    if occupied:
        raise OutputError(f"{folder} is not empty; empty it or choose another place")


def carry_files(source: Path, folder: Path) -> None:
    """Copy the tokenizer and its kind, as they are."""
    for name in CARRIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
