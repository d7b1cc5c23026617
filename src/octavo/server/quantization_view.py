"""A model's storage as the page shows it: scheme, sizes, the error of each layer, where it loads, its card."""

import re
from pathlib import Path
from typing import Any

from octavo.checkpoint.tensors import tensor_files
from octavo.errors import CheckpointError
from octavo.model.load import every_linear, open_folder
from octavo.records import QUANTIZATION_RECORD, RUN_RECORD, read_bounded, read_json
from octavo.report.preflight import preflight_folder, preflight_values
from octavo.server.markdown import rendered

CARD = "README.md"
LARGEST_CARD = 2**20
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def stored_bytes(folder: Path) -> int | None:
    """The size of a model's tensor files; None where there are none, or no folder."""
    try:
        return sum(path.stat().st_size for path in tensor_files(folder))
    except (CheckpointError, OSError):
        return None


def view_of(path: Path) -> dict[str, Any]:
    """All of it as JSON values; of the tensors one of each kind is decoded.

    What only a record says (`linears`, `recipe`, `run`) is None for a folder that Octavo did not quantize.
    """
    folder = open_folder(path)
    config, specs = folder.config, folder.tensors.specs.values()
    shapes = every_linear(config)
    linear_bytes = sum(spec.bytes for spec in specs if spec.name.rpartition(".")[0] in shapes)
    stored = {spec.name.rpartition(".")[0] for spec in specs}
    weights = sum(rows * columns for name, (rows, columns) in shapes.items() if name in stored)
    return {
        "architecture": config.architecture,
        "layers": config.layers,
        "hidden_size": config.hidden_size,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "vocabulary_size": config.vocabulary_size,
        "context": config.context,
        "scheme": "dense" if folder.quantization is None else str(folder.quantization.default),
        "format": None if folder.quantization is None else folder.quantization.dialect,
        "bytes": sum(spec.bytes for spec in specs),
        "bytes_of_linears": linear_bytes,
        "bits_per_weight_of_linears": 8 * linear_bytes / weights,
        "loads_in": preflight_values(preflight_folder(folder)),
        **_recorded(path),
        "card": _card(path / CARD),
    }


def _recorded(path: Path) -> dict[str, Any]:
    """What the quantization wrote down of itself."""
    if not (path / QUANTIZATION_RECORD).exists():
        return {"linears": None, "recipe": None, "calibration": None, "files": None, "run": None}
    record = read_json(path / QUANTIZATION_RECORD)
    inputs = record.get("inputs", {})
    run = read_json(path / RUN_RECORD) if (path / RUN_RECORD).exists() else {}
    return {
        "linears": record.get("linears"),
        "recipe": inputs.get("recipe"),
        "calibration": inputs.get("calibration"),
        "files": record.get("files"),
        "run": {name: run.get(name) for name in ("started", "seconds", "machine")} if run else None,
    }


def _card(path: Path) -> str | None:
    """The model card as HTML, without the metadata at its top."""
    if not path.exists():
        return None
    text = read_bounded(path, LARGEST_CARD, CheckpointError).decode("utf-8", "replace")
    return rendered(FRONT_MATTER.sub("", text.replace("\r\n", "\n"), count=1))
