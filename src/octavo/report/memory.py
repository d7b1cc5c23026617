"""What memory a model takes, by part, and whether it fits: from a folder, or from a config.json alone."""

from pathlib import Path
from typing import Any

from rich.console import Console

from octavo.checkpoint.configuration import read_quantization
from octavo.errors import UsageError
from octavo.evaluation.memory import Footprint, predict, predict_2023
from octavo.model.config import LlamaConfig, read_config
from octavo.report.tables import Column, print_table
from octavo.schemes import QuantScheme, SchemePlan

CONFIG = "config.json"
MEBIBYTE = 2**20


def memory_values(model: Path, context: int, scheme: QuantScheme | None, available: int | None) -> dict[str, Any]:
    """The prediction as JSON values; no weight is read.

    `model` is a folder or its config.json; `scheme` is what a dense model would be quantized to. `available` bytes
    are put to the sum of the parts.
    """
    folder = model.parent if model.name == CONFIG else model
    config, quantization = read_config(folder), read_quantization(folder)
    if not 1 <= context <= config.context:
        raise UsageError(
            f"{context} tokens lie outside the model's context of {config.context}; ask for 1 or more"
        )
    if scheme is not None and quantization is not None:
        raise UsageError(f"{model} is quantized already ({quantization.default}); leave out --bits")
    chosen = quantization.default if quantization is not None else scheme
    plan = None if chosen is None else SchemePlan(chosen)
    footprint = predict(config, plan, context)
    return {
        "scheme": "dense" if chosen is None else str(chosen),
        "context": context,
        "parts": footprint.parts,
        "total": footprint.total,
        "as_in_2023": predict_2023(config, plan, context),
        "available": available,
        "largest_context": None if available is None else _largest_context(config, plan, available),
    }


def print_memory(console: Console, values: dict[str, Any]) -> None:
    """The parts in MiB, their sum, the sum as tables of 2023 count it, and the verdict."""
    rows = [(part, _mebibytes(size)) for part, size in values["parts"].items()]
    rows += [("sum", _mebibytes(values["total"])), ("as tables of 2023 count", _mebibytes(values["as_in_2023"]))]
    titles = (Column("part", number=False), Column("MiB"))
    print_table(console, f"memory, {values['scheme']}, {values['context']} tokens of context", titles, rows)
    if values["available"] is not None:
        console.print(_verdict(values), highlight=False, markup=False, soft_wrap=True)


def _verdict(values: dict[str, Any]) -> str:
    needed = f"{_mebibytes(values['total'])} MiB of {_mebibytes(values['available'])}"
    if values["total"] <= values["available"]:
        return f"It fits: {needed}; the longest context that fits is {values['largest_context']} tokens."
    if values["largest_context"] == 0:
        return f"It does not fit: {needed}, and no shorter context would."
    return f"It does not fit: {needed}; a context of {values['largest_context']} tokens would."


def _largest_context(config: LlamaConfig, plan: SchemePlan | None, available: int) -> int:
    """The most tokens that the model's context and the memory allow; 0 where not even one fits."""

    def fits(context: int) -> bool:
        footprint: Footprint = predict(config, plan, context)
        return footprint.total <= available

    low, high = 0, config.context
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _mebibytes(size: int) -> str:
    return f"{size / MEBIBYTE:,.1f}"
