"""What a model folder is: shape, storage, kernels, and whether its files are the ones its record speaks of."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from octavo.checkpoint.formats import holds_codes
from octavo.kernels import dispatch
from octavo.model.load import ModelFolder, every_linear, open_folder
from octavo.records import file_states
from octavo.report.preflight import preflight_folder, preflight_values, print_preflight
from octavo.report.tables import Column, as_size, print_table
from octavo.weights import DenseWeight


def inspect_folder(path: Path, device: torch.device) -> dict[str, Any]:
    """All that `octavo inspect` shows, as JSON values; nothing but one weight of each kind is decoded."""
    folder = open_folder(path)
    config = folder.config
    specs = folder.tensors.specs.values()
    linears = _linear_shapes(folder)
    weights = sum(rows * columns for rows, columns in linears.values())
    linear_bytes = sum(spec.bytes for spec in specs if spec.name.rpartition(".")[0] in linears)
    return {
        "path": str(path),
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
        "inferred_from": [] if folder.quantization is None else list(folder.quantization.evidence),
        "linears": _kinds(folder, linears, device),
        "loads_in": preflight_values(preflight_folder(folder)),
        "files": file_states(path),
    }


def print_inspection(console: Console, inspection: dict[str, Any]) -> None:
    """The inspection as tables."""
    facts = [
        ("architecture", inspection["architecture"]),
        ("layers × hidden size", f"{inspection['layers']} × {inspection['hidden_size']}"),
        ("heads / key-value heads", f"{inspection['heads']} / {inspection['kv_heads']}"),
        ("vocabulary", f"{inspection['vocabulary_size']}"),
        ("context", f"{inspection['context']} tokens"),
        ("scheme", inspection["scheme"]),
        ("format", inspection["format"] or "dense"),
        ("size", as_size(inspection["bytes"])),
        ("of which linears", as_size(inspection["bytes_of_linears"])),
        ("bits per weight of linears", f"{inspection['bits_per_weight_of_linears']:.3f}"),
    ]
    facts += [("inferred", reason) for reason in inspection["inferred_from"]]
    print_table(console, inspection["path"], (Column("fact", number=False), Column("value", number=False)), facts)
    kinds = [
        (
            str(kind["count"]),
            kind["stored"],
            kind["kernel"],
            "; ".join(f"{name}: {why}" for name, why in kind["refusals"].items()) or "–",
        )
        for kind in inspection["linears"]
    ]
    names = ("stored", "kernel", "passed over")
    columns = (Column("linears"), *(Column(name, number=False) for name in names))
    print_table(console, "kernels", columns, kinds)
    print_preflight(console, inspection["loads_in"])
    if inspection["files"]:
        titles = (Column("file", number=False), Column("against its record", number=False))
        print_table(console, "files", titles, list(inspection["files"].items()))


def _linear_shapes(folder: ModelFolder) -> dict[str, tuple[int, int]]:
    """Every linear that has a weight of its own, which a tied head has not, by name."""
    return {
        name: shape
        for name, shape in every_linear(folder.config).items()
        if f"{name}.weight" in folder.tensors or holds_codes(name, folder.tensors)
    }


def _kinds(folder: ModelFolder, linears: dict[str, tuple[int, int]], device: torch.device) -> list[dict[str, Any]]:
    """How the linears are stored and what runs them, alike ones counted together."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name, shape in linears.items():
        stored = tuple(
            spec.shape for spec in folder.tensors.specs.values() if spec.name.rpartition(".")[0] == name
        )
        alike.setdefault((shape, stored), []).append(name)
    kinds: Counter[tuple[str, str, tuple[tuple[str, str], ...]]] = Counter()
    for (shape, _), names in alike.items():
        weight = folder.weight(names[0], shape)
        if isinstance(weight, DenseWeight):
            kinds[(str(weight.values.dtype).removeprefix("torch."), "dense", ())] += len(names)
        else:
            choice = dispatch.choose(weight, device)
            refusals = tuple(choice.refusals.items())
            kinds[(str(weight.scheme), choice.name, refusals)] += len(names)
    return [
        {"count": count, "stored": stored, "kernel": kernel, "refusals": dict(refusals)}
        for (stored, kernel, refusals), count in kinds.items()
    ]
