"""`make demo`: a real model, quantized to 8 and 4 bits, measured against itself, answering a question.

SmolLM2-135M-Instruct comes from a Python package, the texts from another (scripts/fetch): no model hub is needed.
Calibration and evaluation use different articles of the same encyclopedia; `--dataset wikitext2` evaluates on the
published test set instead, from OCTAVO_DATA or the hub.
"""

import argparse
import re
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import octavo
from octavo.conversion.from_gguf import convert_gguf
from octavo.evaluation.metrics import mean_over_windows, perplexity
from octavo.evaluation.protocol import evaluation_windows
from octavo.evaluation.scoring import Comparison, compare
from octavo.records import RUN_RECORD, read_json
from octavo.report.progress import ConversionProgress, EvaluationProgress, QuantizationProgress
from octavo.report.tables import Column, as_size, print_table, with_error

ROOT = Path(__file__).parent.parent
CACHE, DEMO = ROOT / ".cache", ROOT / "demo"
DENSE = DEMO / "smollm2-135m"
QUESTION = "What is the capital of France, and what is it known for?"
CALIBRATION_SAMPLES, SEQUENCE_LENGTH, WINDOWS = 8, 512, 8

EIGHT, FOUR = (octavo.QuantScheme(bits, 128, symmetric=True) for bits in (8, 4))
NEAREST = {"method": "rtn", "act_order": "none", "scale_search": "none"}


@dataclass(frozen=True)
class Variant:
    """A way to store the model, and the folder of the result."""

    name: str
    folder: str
    recipe: octavo.Recipe


VARIANTS = (
    Variant("GPTQ 8-bit-128g", "gptq-8bit-128g", octavo.Recipe(octavo.SchemePlan(EIGHT))),
    Variant("RTN 8-bit-128g", "rtn-8bit-128g", octavo.Recipe(octavo.SchemePlan(EIGHT), **NEAREST)),
    Variant("GPTQ 4-bit-128g", "gptq-4bit-128g", octavo.Recipe(octavo.SchemePlan(FOUR))),
    Variant("RTN 4-bit-128g", "rtn-4bit-128g", octavo.Recipe(octavo.SchemePlan(FOUR), **NEAREST)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", help="evaluate on this text instead of the demo's own", default=None)
    dataset = parser.parse_args().dataset
    console, errors = Console(), Console(stderr=True)
    started = time.perf_counter()
    DEMO.mkdir(exist_ok=True)
    calibration, evaluation = split_articles(CACHE / "wiki.utf8")
    if not (DENSE / "config.json").exists():
        with ConversionProgress(errors) as progress:
            convert_gguf(CACHE / "smollm2.gguf", DENSE, progress=progress)
    for variant in VARIANTS:
        console.print(f"\n[bold]{variant.name}[/bold]")
        spec = octavo.CalibrationSpec(str(calibration), CALIBRATION_SAMPLES, SEQUENCE_LENGTH)
        with QuantizationProgress(errors, DEMO / variant.folder) as progress:
            octavo.quantize(DENSE, DEMO / variant.folder, variant.recipe, spec, observer=progress)
    console.print("\n[bold]Evaluation[/bold]")
    show(console, *measure(dataset or str(evaluation), errors))
    answer(console)
    console.print(f"\n{time.perf_counter() - started:.0f} seconds in all; the models are in {DEMO}")


def split_articles(source: Path) -> tuple[Path, Path]:
    """Every fourth article for evaluation, the others for calibration; none is in both."""
    articles = re.findall(r"<doc .*?</doc>\n?", source.read_text(encoding="utf-8"), re.DOTALL)
    parts = {"evaluation": articles[::4], "calibration": [a for n, a in enumerate(articles) if n % 4]}
    for name, chosen in parts.items():
        (DEMO / f"{name}.txt").write_text("".join(chosen), encoding="utf-8")
    return DEMO / "calibration.txt", DEMO / "evaluation.txt"


def measure(text: str, errors: Console) -> tuple[str, list[Comparison]]:
    """All variants beside the dense model, over the same windows in one pass; what was read, and the results."""
    dense = octavo.load(DENSE)
    variants = [octavo.load(DEMO / variant.folder).network for variant in VARIANTS]
    spec = octavo.EvaluationSpec(text, length=SEQUENCE_LENGTH, windows=WINDOWS)
    windows = evaluation_windows(spec, dense.tokenizer, dense.network.config.context)
    with EvaluationProgress(errors) as progress:
        progress.started(windows)
        return windows.description, compare(variants, dense.network, windows.windows, progress.scored)


def show(console: Console, description: str, comparisons: list[Comparison]) -> None:
    """The dense model first, then what each variant changed."""
    reference = perplexity(comparisons[0].reference_losses)
    rows = [("dense", with_error(reference.value, reference.standard_error, 3), "0", "100 %", size(DENSE), "")]
    for variant, comparison in zip(VARIANTS, comparisons, strict=True):
        result = perplexity(comparison.losses)
        divergence = mean_over_windows(comparison.divergence.view(len(comparison.losses), -1).mean(1).tolist())
        rows.append(
            (
                variant.name,
                with_error(result.value, result.standard_error, 3),
                with_error(divergence.value, divergence.standard_error, 5),
                f"{100 * comparison.agreement.double().mean():.1f} %",
                size(DEMO / variant.folder),
                f"{read_json(DEMO / variant.folder / RUN_RECORD)['seconds']:.0f}",
            )
        )
    titles = ("model", "perplexity", "KL to dense", "same top-1", "size on disk", "seconds to quantize")
    columns = [Column(title, number=title != "model") for title in titles]
    console.print()
    print_table(console, f"SmolLM2-135M-Instruct on {description}", columns, rows)


def size(folder: Path) -> str:
    return as_size(sum(path.stat().st_size for path in folder.glob("*.safetensors")))


def answer(console: Console) -> None:
    """The 8-bit model speaks."""
    model = octavo.load(DEMO / VARIANTS[0].folder)
    console.print(f"\n[bold]{QUESTION}[/bold]")
    for piece in model.chat([octavo.Message("user", QUESTION)], max_new_tokens=120):
        console.print(piece, end="", markup=False, highlight=False)
    console.print()


if __name__ == "__main__":
    main()
