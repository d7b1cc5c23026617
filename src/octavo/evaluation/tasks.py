"""Tasks of lm-evaluation-harness (the extra `tasks`), asked of models in this process.

A task is named as the harness names it (`arc_easy`, `lambada_openai`), or is a YAML file in its format. It fetches
the texts of its tasks from the Hugging Face hub; https://github.com/EleutherAI/lm-evaluation-harness.
"""

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from octavo.errors import CheckpointError, CorpusError, UsageError
from octavo.evaluation.candidate import Candidate
from octavo.evaluation.metrics import mean_over_windows, paired_difference
from octavo.evaluation.scoring import EvaluationObserver
from octavo.records import read_bounded

LARGEST_TASK = 2**20  # bytes of a YAML file
STANDARD_ERROR = "_stderr"

Results = dict[str, Any]


def require_harness() -> None:
    """UsageError where the harness is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise UsageError("tasks need lm-evaluation-harness; pip install octavo[tasks]") from error


def ask_tasks(
    candidates: Sequence[Candidate], tasks: Sequence[str], limit: int | None, observer: EvaluationObserver
) -> list[dict[str, Any]]:
    """One entry for each task and metric: the value of each model with its standard error, over documents.

    `limit` keeps the first so many documents of each task. Differences to the first model are paired by document,
    where a metric has a number for each. UsageError for a task that the harness does not know, CorpusError where
    its texts cannot be read.
    """
    from lm_eval.tasks import TaskManager

    chosen = [task_of(name) for name in tasks]
    names = [task for task in chosen if isinstance(task, str)]
    manager = TaskManager(include_defaults=bool(names))  # it reads ten thousand files to know its own
    for name in names:
        if name not in manager.all_tasks:
            raise UsageError(f"lm-evaluation-harness has no task {name}; lm_eval ls tasks lists those it has")
    asked = {"tasks": chosen, "limit": limit, "task_manager": manager}
    answers = [_answers(candidate, asked, observer) for candidate in candidates]
    entries = []
    for task, metrics in answers[0]["results"].items():
        for metric in metrics:
            if "," in metric and STANDARD_ERROR not in metric and isinstance(metrics[metric], Real):
                entries.append(_entry(answers, task, metric))
    return entries


def task_of(name: str) -> str | dict[str, Any]:
    """A task as the harness takes it: a name that it knows, or what a YAML file says.

    Tags that would run code of it are refused. The harness renders a task's templates outside of any sandbox, so
    a file of a stranger is to be read before it is used.
    """
    if not name.endswith((".yaml", ".yml")):
        return name
    import yaml

    try:
        values = yaml.safe_load(read_bounded(Path(name), LARGEST_TASK, CheckpointError))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{name} is no task that can be read without running code of it ({reason})") from error
    if not isinstance(values, dict) or "task" not in values:
        raise UsageError(
            f"{name} has no field `task`; write it as lm-evaluation-harness's guide to new tasks says"
        )
    return values


def _answers(candidate: Candidate, asked: dict[str, Any], observer: EvaluationObserver) -> Results:
    """What the harness says of one model; CorpusError where it cannot read the texts of a task."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its library
    from lm_eval.evaluator import simple_evaluate

    from octavo.evaluation.harness import HarnessModel

    observer.preparing(f"asking {candidate.subject}")
    model = HarnessModel(candidate.network, candidate.tokenizer, observer.asked)
    unseeded = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed"))  # those of this process
    try:
        answers: Results = simple_evaluate(model, **asked, bootstrap_iters=0, **unseeded)
    except (OSError, HTTPError, DatasetsError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise CorpusError(f"the texts of the tasks cannot be read ({reason}); try again online") from error
    return answers


def _entry(answers: Sequence[Results], task: str, metric: str) -> dict[str, Any]:
    """A metric of a task, which the harness calls `metric,filter`."""
    name, _, chosen_filter = metric.partition(",")
    documents = [_by_document(answer, task, name, chosen_filter) for answer in answers]
    first = answers[0]
    values = []
    for answer, numbers in zip(answers, documents, strict=True):
        entry: dict[str, Any] = {"value": float(answer["results"][task][metric])}
        if numbers is not None:
            entry["standard_error"] = mean_over_windows(numbers).standard_error
        if numbers is not None and documents[0] is not None:
            paired = paired_difference(numbers, documents[0])
            entry |= {"difference": paired.value, "difference_standard_error": paired.standard_error}
        values.append(entry)
    return {
        "task": task,
        "metric": name,
        "filter": chosen_filter,
        "version": first["versions"].get(task),
        "shots": first["n-shot"].get(task),
        "documents": first["n-samples"][task]["effective"],
        "higher_is_better": first["higher_is_better"].get(task, {}).get(name),
        "values": values,
    }


def _by_document(answer: Results, task: str, metric: str, chosen_filter: str) -> list[float] | None:
    """The number of each document; None for a metric that is no mean of such."""
    samples = [each for each in answer["samples"].get(task, ()) if each["filter"] == chosen_filter]
    numbers = [each.get(metric) for each in sorted(samples, key=lambda each: each["doc_id"])]
    if not numbers or not all(isinstance(number, Real) for number in numbers):
        return None
    return [float(number) for number in numbers]
