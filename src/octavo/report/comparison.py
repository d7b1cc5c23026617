"""A comparison record as the tables of the reference card, with what that card lacked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from octavo.evaluation.comparison import distinct_evaluations
from octavo.evaluation.spec import BENCHMARK
from octavo.report.evaluation import MEBIBYTE
from octavo.report.tables import Column, as_size, print_table, with_error

ABSENT = "–"
TITLES = {
    BENCHMARK: "--benchmark {tokens} --check: one training window of each text, token by token",
    "gptq": "--eval: held-out text",
    "gptq-new": "--new-eval --eval: held-out text",
}
DIFFERENCES = ("Δ log-ppl", "KL mean", "KL median", "KL 99 %", "same top-1")
TASKS = "tasks of lm-evaluation-harness"
TASK_DIFFERENCES = ("task", "documents", "Δ")
SIZES = ("bits per weight", "size", "tokens/s")


@dataclass(frozen=True)
class Measure:
    """A column of a table: one number per model, the best of them by `best_of`; None where the text is absent."""

    title: str
    numbers: list[float | None]
    digits: int
    best_of: Callable[..., float | None] = min

    def cells(self, emphasis: str) -> list[str]:
        """Numbers as text; the best stands where `emphasis` has {}."""
        best = self.best_of((number for number in self.numbers if number is not None), default=None)
        shown = [ABSENT if number is None else f"{number:.{self.digits}f}" for number in self.numbers]
        marked = zip(shown, self.numbers, strict=True)
        return [emphasis.format(text) if text != ABSENT and number == best else text for text, number in marked]


def print_comparison(console: Console, record: dict[str, Any]) -> None:
    """Tables first, then what is absent and why, differences to the first model, sizes, verdicts."""
    emphasis = "[bold]{}[/bold]" if console.is_terminal else "**{}**"
    for table in tables_of(record):
        measures = measures_of(record, table)
        titles = [Column(table, number=False), *(Column(measure.title) for measure in measures)]
        print_table(console, title_of(record, table), titles, table_rows(record, table, emphasis))
    titles = [Column("model", number=False), Column("text", number=False), *map(Column, DIFFERENCES)]
    if rows := difference_rows(record):
        print_table(console, f"against {record['models'][0]['name']}", titles, rows)
    if measures := task_measures(record):
        titles = [Column("model", number=False), *(Column(measure.title) for measure in measures)]
        print_table(console, TASKS, titles, rows_of(record, measures, emphasis))
        titles = [Column("model", number=False), *map(Column, TASK_DIFFERENCES)]
        print_table(console, f"tasks, against {record['models'][0]['name']}", titles, task_difference_rows(record))
    titles = [Column("model", number=False), *map(Column, SIZES)]
    print_table(console, "size and speed", titles, size_rows(record))
    for line in (*absences(record), *notes_of(record), *record["verdicts"]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def tables_of(record: dict[str, Any]) -> list[str]:
    """Names of the tables, in order."""
    return list(dict.fromkeys(cell["table"] for cell in record["cells"]))


def title_of(record: dict[str, Any], table: str) -> str:
    """What a table is, with the command of the reference that gives such numbers."""
    tokens = next((cell["length"] for cell in _cells_of(record, table) if cell["absent"] is None), "N")
    return TITLES.get(table, table).format(tokens=tokens)


def measures_of(record: dict[str, Any], table: str) -> list[Measure]:
    """A column of perplexities for each text, named as what it is; the benchmark has memory as well."""
    cells, models = _cells_of(record, table), range(len(record["models"]))
    measures = [
        Measure(cell["asked"], [None for _ in models], 4)
        if cell["absent"] is not None
        else Measure(cell["text"], [values["perplexity"] for values in cell["values"]], 4)
        for cell in cells
    ]
    present = [cell["values"] for cell in cells if cell["absent"] is None]
    if table == BENCHMARK and present:
        most = [max(values[number]["memory_bytes"] for values in present) / MEBIBYTE for number in models]
        measures.append(Measure("memory (MiB)", list(most), 2))
    return measures


def table_rows(record: dict[str, Any], table: str, emphasis: str) -> list[list[str]]:
    """A row for each model: its name, and its cells."""
    return rows_of(record, measures_of(record, table), emphasis)


def rows_of(record: dict[str, Any], measures: Sequence[Measure], emphasis: str) -> list[list[str]]:
    """A row for each model: its name, and what was measured of it."""
    columns = [measure.cells(emphasis) for measure in measures]
    return [[model["name"], *cells] for model, *cells in zip(record["models"], *columns, strict=True)]


def task_measures(record: dict[str, Any]) -> list[Measure]:
    """A column for each metric of each task; records of before there were tasks have none."""
    return [
        Measure(
            f"{entry['task']} {entry['metric']}",
            [values["value"] for values in entry["values"]],
            4,
            min if entry["higher_is_better"] is False else max,
        )
        for entry in record.get("tasks", ())
    ]


def task_difference_rows(record: dict[str, Any]) -> list[list[str]]:
    """How far each model is from the first in each metric, over the same documents."""
    return [
        [
            model["name"],
            f"{entry['task']} {entry['metric']}, {entry['shots']} shots",
            str(entry["documents"]),
            with_error(values["difference"], values["difference_standard_error"], 4),
        ]
        for number, model in enumerate(record["models"])
        for entry in record.get("tasks", ())
        for values in [entry["values"][number]]
        if number > 0 and "difference" in values
    ]


def absences(record: dict[str, Any]) -> list[str]:
    """Why a column holds nothing; once per reason."""
    reasons = [
        f"{ABSENT} {cell['asked']} ({cell['table']}): {cell['absent']}"
        for cell in record["cells"]
        if cell["absent"] is not None
    ]
    return list(dict.fromkeys(reasons))


def notes_of(record: dict[str, Any]) -> list[str]:
    """What is said of calibration on what was measured; once per text."""
    return list(dict.fromkeys(note for cell in record["cells"] for note in cell.get("notes", ())))


def difference_rows(record: dict[str, Any]) -> list[list[str]]:
    """How far each model is from the first, over each text by each protocol."""
    return [
        [
            model["name"],
            f"{cell['text']} by {cell['protocol']}, {cell['windows']} × {cell['length']}",
            with_error(values["log_perplexity_difference"], values["log_perplexity_difference_standard_error"], 5),
            with_error(values["kl_mean"], values["kl_standard_error"], 6),
            f"{values['kl_median']:.6f}",
            f"{values['kl_99_percent']:.6f}",
            f"{100 * values['top1_agreement']:.2f} %",
        ]
        for number, model in enumerate(record["models"])
        for cell in distinct_evaluations(record["cells"])
        if number > 0
        for values in [cell["values"][number]]
    ]


def size_rows(record: dict[str, Any]) -> list[list[str]]:
    """Bits per weight of the linears, bytes of all weights, and tokens per second of the benchmark."""
    benchmarks = [cell for cell in _cells_of(record, BENCHMARK) if cell["absent"] is None]
    rows = []
    for number, model in enumerate(record["models"]):
        speeds = [cell["values"][number]["tokens_per_second"] for cell in benchmarks]
        speed = f"{max(speeds):.2f}" if speeds else ABSENT
        rows.append([model["name"], f"{model['bits_per_weight']:.3f}", as_size(model["bytes"]), speed])
    return rows


def _cells_of(record: dict[str, Any], table: str) -> list[dict[str, Any]]:
    return [cell for cell in record["cells"] if cell["table"] == table]
