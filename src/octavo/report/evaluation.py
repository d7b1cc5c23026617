"""Evaluation and benchmark records for people."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from octavo.evaluation.comparison import verdicts
from octavo.evaluation.results import BenchmarkRecord
from octavo.records import EvaluationRecord
from octavo.report.tables import Column, as_size, print_table, with_error

COLUMNS = (
    Column("text", number=False),
    Column("protocol", number=False),
    Column("windows"),
    Column("scored", number=False),
    Column("perplexity"),
)
REFERENCE_COLUMNS = (
    Column("reference"),
    Column("Δ log-ppl"),
    Column("KL mean"),
    Column("KL median"),
    Column("KL 99 %"),
    Column("same top-1"),
)

# What a convention counts of a window; where nothing is said, all tokens but the first.
SCORED = {
    "llamacpp": "second half",
    "strided-512": "what is new, 512 tokens on",
    "lm-eval-word": "pages, per word",
}
MEBIBYTE = 2**20


def print_evaluation(console: Console, record: EvaluationRecord) -> None:
    """One row per text and protocol; standard errors are over windows."""
    columns, title = list(COLUMNS), record.model
    if record.reference is not None:
        columns, title = [*COLUMNS, *REFERENCE_COLUMNS], f"{record.model} against {record.reference}"
    print_table(console, title, columns, [_row(result) for result in record.results])
    for line in (*_notes(record), *_verdicts(record)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_benchmark(console: Console, record: BenchmarkRecord) -> None:
    """The figures of each window, first those that the reference printed, under its names."""
    titles = (Column("figure", number=False), Column("value"))
    for result in record.results:
        where = f"{result['text']}: one training window of {result['length']} tokens"
        if result["text"].startswith("c4"):
            where += ", which is calibration sample 0 of every model calibrated on c4 with seed 0"
        print_table(console, record.model, titles, [("window", where), *_figures(result)])


def as_mebibytes(size: int | None) -> str:
    """Bytes in MiB; – where the system does not tell."""
    return "–" if size is None else f"{size / MEBIBYTE:.2f}"


def _notes(record: EvaluationRecord) -> list[str]:
    return list(dict.fromkeys(note for result in record.results for note in result["notes"]))


def _verdicts(record: EvaluationRecord) -> Iterator[str]:
    """What may be said of the model against its reference."""
    if record.reference is None:
        return iter(())
    cells = [
        {**result, "table": result["protocol"], "absent": None, "values": [result["reference"], result]}
        for result in record.results
    ]
    return verdicts([record.reference, record.model], cells)


def _figures(result: dict[str, Any]) -> list[tuple[str, str]]:
    checked = [("PPL", f"{result['perplexity']}")] if "perplexity" in result else []
    return [
        ("Median", f"{result['median_seconds']} s per token"),
        *checked,
        (f"max memory (MiB), {result['memory_is']}", as_mebibytes(result["memory_bytes"])),
        ("true peak of memory (MiB), loading included", as_mebibytes(result["peak_bytes"])),
        ("tokens per second", f"{result['tokens_per_second']:.2f}"),
        ("time to first token of a prompt of that length", f"{result['first_token_seconds']:.3f} s"),
        ("read per token", as_size(result["bytes_per_token"])),
        ("read bandwidth of the device", f"{as_size(round(result['read_bandwidth']))}/s"),
        ("share of it", f"{100 * result['bandwidth_fraction']:.1f} %"),
    ]


def _row(result: dict[str, Any]) -> list[str]:
    cells = [
        result["text"],
        result["protocol"],
        f"{result['windows']} × {result['length']}",
        SCORED.get(result["protocol"].partition("@")[0], "all but the first token"),
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
