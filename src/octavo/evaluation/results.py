"""What of a measurement goes into a record: JSON values with the names that tables and cards read."""

from dataclasses import dataclass
from typing import Any

import numpy
from jaxtyping import Float64
from torch import Tensor

from octavo.evaluation.metrics import mean_over_windows, paired_difference, perplexity, summarize
from octavo.evaluation.protocol import EvaluationWindows
from octavo.evaluation.scoring import Comparison
from octavo.records import SCHEMA_VERSION

# The histogram of KL divergence, in powers of ten.
LEAST, MOST, BINS_PER_DECADE = -8, 2, 4


def identity(windows: EvaluationWindows) -> dict[str, Any]:
    """Which text was measured, by what convention, over how many windows."""
    return {
        "text": windows.text,
        "protocol": windows.protocol,
        "description": windows.description,
        "source": windows.source,
        "text_sha256": windows.text_sha256,
        "tokens_sha256": windows.tokens_sha256,
        "windows": windows.windows.shape[0],
        "length": windows.windows.shape[1],
    }


def perplexity_values(windows: EvaluationWindows, losses: list[float]) -> dict[str, Any]:
    """Perplexity with its error bar, and what it was taken from: losses in nats per unit, and their weights."""
    unit_losses = windows.unit_losses(losses)
    result = perplexity(unit_losses, windows.weights)
    return {
        "perplexity": result.value,
        "perplexity_standard_error": result.standard_error,
        "losses": unit_losses,
        "weights": windows.weights,
    }


def difference_values(windows: EvaluationWindows, comparison: Comparison) -> dict[str, Any]:
    """How far a model is from its reference; error bars are over windows."""
    paired = paired_difference(
        windows.unit_losses(comparison.losses),
        windows.unit_losses(comparison.reference_losses),
        windows.weights,
    )
    divergence = summarize(comparison.divergence)
    return {
        "log_perplexity_difference": paired.value,
        "log_perplexity_difference_standard_error": paired.standard_error,
        "kl_mean": divergence.mean,
        "kl_standard_error": mean_over_windows(comparison.window_divergences()).standard_error,
        "kl_median": divergence.median,
        "kl_99_percent": divergence.percentile_99,
        "kl_histogram": histogram(comparison.divergence),
        "top1_agreement": float(comparison.agreement.double().mean()),
    }


def histogram(divergence: Float64[Tensor, " positions"]) -> dict[str, Any]:
    """How many positions lie in each interval between `edges`; what lies outside is in the first or the last."""
    edges = [10 ** (step / BINS_PER_DECADE) for step in range(LEAST * BINS_PER_DECADE, MOST * BINS_PER_DECADE + 1)]
    inside = divergence.clamp(edges[0], edges[-1]).numpy()
    counts, _ = numpy.histogram(inside, edges)
    return {"edges": edges, "counts": counts.tolist()}


@dataclass(frozen=True)
class BenchmarkRecord:
    """What `octavo benchmark --json` writes: one entry of `results` per text."""

    octavo_version: str
    model: str
    model_files: dict[str, str]
    results: list[dict[str, Any]]
    machine: dict[str, Any]
    schema: int = SCHEMA_VERSION


@dataclass(frozen=True)
class ComparisonRecord:
    """What `octavo compare --json` writes.

    `spec` is what was asked for; `models` are what was compared, the reference first; each of `cells` is a table
    and a text, with one entry of `values` per model, or the reason why it is `absent`; each of `tasks` is a metric
    of a task, likewise; `verdicts` are sentences.
    """

    octavo_version: str
    spec: dict[str, Any]
    models: list[dict[str, Any]]
    cells: list[dict[str, Any]]
    tasks: list[dict[str, Any]]
    verdicts: list[str]
    machine: dict[str, Any]
    schema: int = SCHEMA_VERSION
