"""What a model card says, section by section, in Markdown."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.corpora import STANDS_IN
from octavo.evaluation.comparison import distinct_evaluations
from octavo.evaluation.spec import BENCHMARK
from octavo.report.comparison import (
    DIFFERENCES,
    SIZES,
    TASK_DIFFERENCES,
    absences,
    difference_rows,
    measures_of,
    notes_of,
    rows_of,
    size_rows,
    table_rows,
    tables_of,
    task_difference_rows,
    task_measures,
    title_of,
)
from octavo.report.tables import as_markdown, as_size
from octavo.schemes import QuantScheme

SIGNATURE = "<!-- written by octavo card -->"

PICTURES = {
    "plots/error-per-layer.png": "Squared error of each linear's output per token, by layer",
    "plots/kl-divergence.png": "KL divergence to the reference, by position",
}


@dataclass(frozen=True)
class CardSource:
    """What a card says, read and checked; with each comparison stands the model's position in it."""

    name: str
    base_model: str
    license: str | None
    quantization: dict[str, Any]
    run: dict[str, Any]
    comparisons: list[tuple[dict[str, Any], int]]
    loads: Sequence[dict[str, Any]]

    @property
    def inputs(self) -> dict[str, Any]:
        """All that the quantization depended on."""
        inputs: dict[str, Any] = self.quantization["inputs"]
        return inputs

    @property
    def scheme(self) -> QuantScheme:
        """That of all linears without a rule of their own."""
        return QuantScheme(**self.inputs["recipe"]["plan"]["default"])


def card_of(source: CardSource, pictures: Sequence[str]) -> str:
    """The whole file; `pictures` are the paths of those that there are."""
    sections = [
        f"---\n{metadata(source)}\n---\n{SIGNATURE}",
        f"# {source.name}\n\n{_summary(source)}",
        *(_results(record) for record, _ in source.comparisons),
        "\n\n".join(f"![{PICTURES[picture]}]({picture})" for picture in pictures),
        _quantization(source),
        _provenance(source),
        _loading(source),
        _running(source),
        _limits(source),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def metadata(source: CardSource) -> str:
    """The YAML that the hub reads, with each perplexity of this model as a result."""
    from huggingface_hub import EvalResult, ModelCardData

    scheme = source.scheme
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=_published(cell["asked"]),
            dataset_name=cell["text"],
            metric_type="perplexity",
            metric_name=f"perplexity by {cell['protocol']}, {cell['windows']} × {cell['length']} tokens",
            metric_value=cell["values"][position]["perplexity"],
        )
        for record, position in source.comparisons
        for cell in distinct_evaluations(record["cells"])
    ]
    yaml: str = ModelCardData(
        base_model=source.base_model,
        base_model_relation="quantized",
        license=source.license,
        pipeline_tag="text-generation",
        tags=["octavo", source.inputs["recipe"]["method"], f"{scheme.bits}-bit", "quantized"],
        model_name=source.name,
        eval_results=results or None,
    ).to_yaml()
    return yaml.strip()


def _summary(source: CardSource) -> str:
    method = source.inputs["recipe"]["method"].upper()
    size = next(record["models"][position] for record, position in source.comparisons)
    return (
        f"[{source.base_model}](https://huggingface.co/{source.base_model}) in {source.scheme}, quantized by "
        f"{method} with Octavo {source.inputs['octavo']}: {size['bits_per_weight']:.3f} bits per weight of the "
        f"linears, {as_size(size['bytes'])} of weights. Every number below comes from a record whose hashes are "
        "those of these files."
    )


def _results(record: dict[str, Any]) -> str:
    """The tables of one comparison, and what may be said of them."""
    parts = ["## Results"]
    for table in tables_of(record):
        titles = [f"`{table}`", *(measure.title for measure in measures_of(record, table))]
        rows = table_rows(record, table, "**{}**")
        parts.append(f"{_sentence(title_of(record, table))} Lower is better.\n\n{as_markdown(titles, rows)}")
    reference = record["models"][0]["name"]
    if rows := difference_rows(record):
        titles = ["model", "text", *DIFFERENCES]
        parts.append(f"Against {reference}, over the same windows:\n\n{as_markdown(titles, rows)}")
    if measures := task_measures(record):
        titles = ["model", *(measure.title for measure in measures)]
        parts.append(f"By lm-evaluation-harness:\n\n{as_markdown(titles, rows_of(record, measures, '**{}**'))}")
        rows = task_difference_rows(record)
        table = as_markdown(["model", *TASK_DIFFERENCES], rows)
        parts.append(f"Against {reference}, over the same documents:\n\n{table}")
    parts.append(as_markdown(["model", *SIZES], size_rows(record)))
    said = (*absences(record), *notes_of(record), *record["verdicts"])
    parts.append(_list(re.sub(r"(?<!\S)/\S*/", "", line) for line in said))  # where files lay concerns nobody
    return "\n\n".join(part for part in parts if part)


def _quantization(source: CardSource) -> str:
    """How the weights were made."""
    recipe, calibration, run = source.inputs["recipe"], source.inputs["calibration"], source.run
    lines = [
        f"Scheme {source.scheme}, layout `{source.inputs['layout']}`; method {recipe['method']}, act-order "
        f"{recipe['act_order']}, damping {recipe['damping']}, scale search {recipe['scale_search']}."
    ]
    if calibration is not None:
        lines.append(
            f"Calibrated on {calibration['samples']} windows of {calibration['sequence_length']} tokens of "
            f"{calibration['text']} (text `{calibration['text_sha256'][:16]}`, tokens "
            f"`{calibration['tokens_sha256'][:16]}`)."
        )
    lines.append(f"It took {run['seconds']:.0f} seconds on {_machine(run['machine'])}.")
    return f"## Quantization\n\n{_list(lines)}"


def _provenance(source: CardSource) -> str:
    """How each number was made: command, text, samples, machine, versions, hashes."""
    parts = ["## How each number was made"]
    for record, _ in source.comparisons:
        parts.append(f"```\n{_command(record)}\n```")
        parts.append(f"Octavo {record['octavo_version']} on {_machine(record['machine'])}.")
        rows = [
            [
                cell["table"],
                cell["description"],
                _published(cell["source"]),
                f"`{cell['text_sha256'][:16]}`",
                f"`{cell['tokens_sha256'][:16]}`",
            ]
            for cell in record["cells"]
            if cell["absent"] is None
        ]
        parts.append(as_markdown(["table", "windows", "text from", "its sha256", "sha256 of the tokens"], rows))
    parts.append(
        "± is one standard error over windows; differences are judged by the 95 % interval of Student's t over "
        "paired windows. A benchmark is one window of a training text, and has no error bar."
    )
    files = [[f"`{name}`", f"`{digest}`"] for name, digest in source.quantization["files"].items()]
    parts.append(f"The files of this model:\n\n{as_markdown(['file', 'sha256'], files)}")
    return "\n\n".join(parts)


def _command(record: dict[str, Any]) -> str:
    """The command line that gives such a record again."""
    spec = record["spec"]
    words = ["octavo compare"]
    words += [model["name"] for model in record["models"]]
    words += ["--protocol", ",".join(spec["tables"]), "--dataset", ",".join(map(_published, spec["texts"]))]
    for flag in ("windows", "length"):
        words += [] if spec[flag] is None else [f"--{flag}", str(spec[flag])]
    words += ["--tokens", str(spec["tokens"])] if BENCHMARK in spec["tables"] else []
    if spec.get("tasks"):
        words += ["--tasks", ",".join(map(_published, spec["tasks"]))]
        words += [] if spec["documents"] is None else ["--documents", str(spec["documents"])]
    return " ".join([*words, "--json", "record.json"])


def _loading(source: CardSource) -> str:
    rows = [
        [
            each["engine"],
            ", ".join(str(degree) for degree in each["tensor_parallel"]) or "no",
            each["objection"] or "–",
        ]
        for each in source.loads
    ]
    table = as_markdown(["engine", "loads on so many devices", "what stands against it"], rows)
    return f"## Where it loads\n\nBy the rules of each engine; not tried.\n\n{table}"


def _running(source: CardSource) -> str:
    commands = ["pip install octavo", f'octavo generate ./{source.name} --prompt "Once upon a time"']
    if any(each["engine"].startswith("vLLM") and each["tensor_parallel"] for each in source.loads):
        commands.append(f"vllm serve ./{source.name}")
    lines = "\n".join(commands)
    return f"## How to run it\n\n```\n{lines}\n```"


def _limits(source: CardSource) -> str:
    """What these numbers do not say."""
    lines = [
        "Perplexity and KL divergence measure how far the text that the model predicts has moved, not how well it "
        "follows instructions or keeps to facts; what limits the original limits this model.",
        "Error bars say how far another draw of such text would move a number, not what another text would give.",
    ]
    present = [cell for record, _ in source.comparisons for cell in record["cells"] if cell["absent"] is None]
    if any(STANDS_IN in cell["text"] for cell in present):
        lines.append("A text named a stand-in is not the published one; such numbers compare with no others.")
    return f"## Limits\n\n{_list(lines)}"


def _published(source: str) -> str:
    """A text as others may look for it: where a file lay on this machine is nobody's concern."""
    return source.rpartition("/")[2] if source.startswith(("/", ".")) else source


def _machine(machine: dict[str, Any]) -> str:
    return (
        f"{machine['processor']} ({machine['device']}, {machine['instructions']}, threads: {machine['threads']}, "
        f"torch {machine['torch']})"
    )


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _sentence(title: str) -> str:
    """A title of a table as a sentence; flags in it are code."""
    command, colon, rest = title.partition(": ")
    return f"`{command}`{colon}{rest}." if colon else f"`{title}`."
