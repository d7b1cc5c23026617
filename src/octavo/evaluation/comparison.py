"""Several models side by side: the cells of the tables, and what may be said of each pair of models."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from octavo import __version__
from octavo.errors import CorpusError
from octavo.evaluation import results
from octavo.evaluation.benchmark import MemoryMeter
from octavo.evaluation.candidate import Candidate, benchmarked, calibration_notes, refuse_other_tokenizers
from octavo.evaluation.metrics import Estimate, paired_difference, windows_needed
from octavo.evaluation.protocol import evaluation_windows
from octavo.evaluation.scoring import EvaluationObserver, compare
from octavo.evaluation.spec import BENCHMARK, ComparisonSpec, EvaluationSpec
from octavo.evaluation.tasks import ask_tasks
from octavo.records import describe_machine

Cell = dict[str, Any]


def benchmarked_texts(
    candidate: Candidate, spec: ComparisonSpec, meter: MemoryMeter, bandwidth: float, observer: EvaluationObserver
) -> list[Cell]:
    """The benchmark of one model over each text, or why the text is absent; run while no other model is loaded."""
    cells: list[Cell] = []
    for each in spec.benchmarks():
        try:
            cells.append(benchmarked(candidate, each, meter, bandwidth, observer))
        except CorpusError as error:
            cells.append({"absent": str(error)})
    return cells


def compared(
    candidates: Sequence[Candidate],
    spec: ComparisonSpec,
    benchmarks: Sequence[Sequence[Cell]],
    observer: EvaluationObserver,
) -> results.ComparisonRecord:
    """The record of a comparison; `benchmarks` are those of each model, differences are to the first.

    UsageError where the models do not share a tokenizer.
    """
    refuse_other_tokenizers(list(candidates))
    cells = [
        _benchmark_cell(text, of_models)
        for text, of_models in zip(spec.texts, zip(*benchmarks, strict=True), strict=False)
    ]
    cells += [_evaluation_cell(candidates, each, observer) for each in spec.evaluations()]
    tasks = ask_tasks(candidates, spec.tasks, spec.documents, observer) if spec.tasks else []
    names = short_names([str(candidate.subject) for candidate in candidates])
    models = [
        {
            "name": name,
            "path": str(candidate.subject.path),
            "method": candidate.subject.method,
            "files": candidate.files,
            "bytes": candidate.size.total,
            "bits_per_weight": candidate.size.bits_per_weight,
        }
        for name, candidate in zip(names, candidates, strict=True)
    ]
    machine = describe_machine(str(candidates[0].network.device))
    asked = {**asdict(spec), "data_dir": None if spec.data_dir is None else str(spec.data_dir)}
    said = list(verdicts(names, cells))
    return results.ComparisonRecord(__version__, asked, models, cells, tasks, said, machine)


def short_names(subjects: Sequence[str]) -> list[str]:
    """The last parts of paths, where they tell the models apart; else the paths."""
    short = [subject.rstrip("/").rpartition("/")[2] for subject in subjects]
    return short if len(set(short)) == len(short) else list(subjects)


def verdicts(names: Sequence[str], cells: Sequence[Cell]) -> Iterator[str]:
    """One sentence for each pair of models, of all cells that have more than one window."""
    for first, second in combinations(range(len(names)), 2):
        findings = [_finding(cell, first, second) for cell in distinct_evaluations(cells)]
        if findings:
            yield f"{names[second]} against {names[first]}: {'; '.join(findings)}."


def distinct_evaluations(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of protocols that hold something, each text once: wikitext2 is the same for gptq and gptq-new."""
    chosen: dict[str, Cell] = {}
    for cell in cells:
        if cell["table"] != BENCHMARK and cell["absent"] is None:
            chosen.setdefault(cell["tokens_sha256"], cell)
    return list(chosen.values())


def _finding(cell: Cell, first: int, second: int) -> str:
    """What one text says of two models: whether the 95 % interval of their difference leaves out zero."""
    values = cell["values"]
    difference = paired_difference(values[second]["losses"], values[first]["losses"], values[first]["weights"])
    where = f"{cell['text']} by {cell['protocol']}"
    if all(one == other for one, other in zip(values[second]["losses"], values[first]["losses"], strict=True)):
        return f"the same losses on {where}"
    interval = difference.interval()
    if interval is None:
        return f"undecided on {where} (Δ = {difference.value:+.5f} over one window, which shows no error bar)"
    shown = f"Δ = {difference.value:+.5f} ± {difference.standard_error:.5f}"
    if interval[0] <= 0 <= interval[1]:
        return f"indistinguishable on {where} at this sample size ({shown}, {_needed(difference)})"
    return f"{'better' if difference.value < 0 else 'worse'} on {where} ({shown})"


def _needed(difference: Estimate) -> str:
    needed = windows_needed(difference)
    if needed is None:
        return "no number of windows would show a difference of zero"
    return f"{difference.windows} windows measured, {needed:,} needed to see it"


def _benchmark_cell(text: str, of_models: Sequence[Cell]) -> Cell:
    absent = next((cell["absent"] for cell in of_models if "absent" in cell), None)
    if absent is not None:
        return {"table": BENCHMARK, "asked": text, "absent": absent}
    return {"table": BENCHMARK, "asked": text, "absent": None, **_shared(of_models[0]), "values": list(of_models)}


def _shared(cell: Cell) -> Cell:
    """What is said of the text, which all models share."""
    keys = ("text", "protocol", "description", "source", "text_sha256", "tokens_sha256", "windows", "length")
    return {key: cell[key] for key in keys}


def _evaluation_cell(candidates: Sequence[Candidate], spec: EvaluationSpec, observer: EvaluationObserver) -> Cell:
    """All models over one text by one protocol."""
    reference, *others = candidates
    observer.preparing(f"reading {spec.text}")
    try:
        windows = evaluation_windows(spec, reference.tokenizer, reference.network.config.context)
    except CorpusError as error:
        return {"table": spec.protocol, "asked": spec.text, "absent": str(error)}
    notes = calibration_notes(candidates, spec, windows)
    observer.started(windows)
    networks = [candidate.network for candidate in others]
    comparisons = compare(networks, reference.network, windows.windows, observer.scored, windows.spans)
    values = [results.perplexity_values(windows, comparisons[0].reference_losses)]
    values += [
        {
            **results.perplexity_values(windows, comparison.losses),
            **results.difference_values(windows, comparison),
        }
        for comparison in comparisons
    ]
    return {
        "table": spec.protocol,
        "asked": spec.text,
        "absent": None,
        **results.identity(windows),
        "notes": notes,
        "values": values,
    }
