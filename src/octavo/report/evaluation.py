"""An evaluation record as a table."""

from typing import Any

from rich.console import Console

from octavo.records import EvaluationRecord
from octavo.report.tables import Column, print_table, with_error

COLUMNS = (Column("text", number=False), Column("protocol", number=False), Column("windows"), Column("perplexity"))
REFERENCE_COLUMNS = (
    Column("reference"),
    Column("Δ log-ppl"),
    Column("KL mean"),
    Column("KL median"),
    Column("KL 99 %"),
    Column("same top-1"),
)


def print_evaluation(console: Console, record: EvaluationRecord) -> None:
    """One row per text; standard errors are over windows."""
    columns, title = list(COLUMNS), record.model
    if record.reference is not None:
        columns, title = [*COLUMNS, *REFERENCE_COLUMNS], f"{record.model} against {record.reference}"
    print_table(console, title, columns, [_row(result) for result in record.results])


def _row(result: dict[str, Any]) -> list[str]:
    cells = [
        result["text"],
        result["protocol"],
        f"{result['windows']} × {result['length']}",
        with_error(result["perplexity"], result["perplexity_standard_error"], 4),
    ]
    if "reference" not in result:
        return cells
    return [
        *cells,
        with_error(result["reference"]["perplexity"], result["reference"]["perplexity_standard_error"], 4),
        with_error(result["log_perplexity_difference"], result["log_perplexity_difference_standard_error"], 5),
        with_error(result["kl_mean"], result["kl_standard_error"], 6),
        f"{result['kl_median']:.6f}",
        f"{result['kl_99_percent']:.6f}",
        f"{100 * result['top1_agreement']:.2f} %",
    ]
