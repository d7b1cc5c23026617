"""Where a model folder will load, as a table: its facts, put to the rules of `checkpoint.preflight`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from octavo.checkpoint.configuration import FileQuantization
from octavo.checkpoint.preflight import CheckpointFacts, FusedLinears, Verdict, preflight
from octavo.checkpoint.tensors import INDEX_FILE, SINGLE_FILE
from octavo.model.load import HEAD, LINEARS, ModelFolder, block_prefix, every_linear, open_folder
from octavo.report.tables import Column, print_table

# Fields of Block that engines fuse, and what of them each device holds a part of.
FUSED = (
    (("query", "key", "value"), "outputs"),
    (("output",), "inputs"),
    (("gate", "up"), "outputs"),
    (("down",), "inputs"),
)


def preflight_folder(folder: ModelFolder) -> list[Verdict]:
    """What each engine makes of a folder; one weight of each kind is decoded."""
    return preflight(_facts(folder))


def preflight_values(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """The verdicts as JSON values."""
    return [
        {
            "engine": verdict.engine,
            "tensor_parallel": list(verdict.degrees),
            "objection": verdict.objection,
            "rule": verdict.source,
        }
        for verdict in verdicts
    ]


def print_preflight_of(console: Console, folder: Path) -> None:
    """Where the folder that was just written will load."""
    print_preflight(console, preflight_values(preflight_folder(open_folder(folder))))


def print_preflight(console: Console, values: Sequence[dict[str, Any]]) -> None:
    """A row for each engine: whether it loads the folder, on how many devices, why not, and whose rule that is."""
    rows = [
        (
            value["engine"],
            _loads(value["tensor_parallel"]),
            value["objection"] or "–",
            value["rule"] or "–",
        )
        for value in values
    ]
    columns = tuple(Column(title, number=False) for title in ("engine", "loads", "what stands against it", "rule"))
    print_table(console, "where it loads", columns, rows)


def _loads(degrees: Sequence[int]) -> str:
    if not degrees:
        return "no"
    return "yes" if list(degrees) == [1] else f"on {', '.join(map(str, degrees))} devices"


def _facts(folder: ModelFolder) -> CheckpointFacts:
    quantization = folder.quantization
    shapes, schemes = every_linear(folder.config), folder.schemes()
    linears = []
    for layer in range(folder.config.layers):
        for fields, split in FUSED:
            names = tuple(f"{block_prefix(layer)}.{LINEARS[field]}" for field in fields)
            linears.append(
                FusedLinears(
                    names,
                    tuple(shapes[name] for name in names),
                    tuple(schemes.get(name) for name in names),
                    "outputs" if split == "outputs" else "inputs",
                )
            )
    if HEAD in schemes:
        linears.append(FusedLinears((HEAD,), (shapes[HEAD],), (schemes[HEAD],), "outputs"))
    return CheckpointFacts(
        dialect=None if quantization is None else quantization.dialect,
        declared=quantization is not None and not quantization.evidence,
        outdated=None if quantization is None else _outdated(folder, quantization),
        ordered=quantization is not None and quantization.ordered,
        standard_names=any((folder.path / name).exists() for name in (SINGLE_FILE, INDEX_FILE)),
        heads=folder.config.heads,
        linears=tuple(linears),
    )


def _outdated(folder: ModelFolder, quantization: FileQuantization) -> str | None:
    """What marks a layout from before April 2023."""
    if quantization.dialect != "gptq":
        return None
    for spec in folder.tensors.specs.values():
        name, _, suffix = spec.name.rpartition(".")
        if suffix == "zeros":
            return f"{spec.name} is float"
        if suffix == "scales" and str(spec.dtype) == "torch.float32":
            return f"{spec.name} is float32"
        if suffix == "qweight" and f"{name}.g_idx" not in folder.tensors:
            return f"{name} has no g_idx"
    return None
