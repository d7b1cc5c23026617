"""A loaded model that is measured, with what identifies it; and its measurements, as records hold them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from octavo.corpora import load_corpus
from octavo.errors import UsageError
from octavo.evaluation import results
from octavo.evaluation.benchmark import MemoryMeter, decode_window, first_token_seconds
from octavo.evaluation.hygiene import overlap
from octavo.evaluation.memory import WeightSize
from octavo.evaluation.protocol import EvaluationWindows, benchmark_window, evaluation_corpus, evaluation_windows
from octavo.evaluation.scoring import EvaluationObserver, compare, score
from octavo.evaluation.spec import BENCHMARK, BenchmarkSpec, EvaluationSpec
from octavo.evaluation.subject import Subject
from octavo.model.llama import LlamaModel
from octavo.model.tokenizer import Tokenizer

# What a benchmark's memory is. A GPU tells what it has allocated; a process on a CPU also holds the mapped files.
ALLOCATED = "allocated on the device, read after each token"
COUNTED = "weights as stored and cache, counted"


@dataclass(frozen=True)
class Candidate:
    """A model that is measured.

    `files` are the hashes of those that it was loaded from, `calibration` what its record says of its calibration,
    None where there was none.
    """

    subject: Subject
    files: dict[str, str]
    calibration: dict[str, Any] | None
    network: LlamaModel
    tokenizer: Tokenizer
    size: WeightSize


def refuse_other_tokenizers(candidates: list[Candidate]) -> None:
    """UsageError where models do not share a tokenizer: their predictions would be of different tokens."""
    first, *others = candidates
    for other in others:
        if other.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise UsageError(
                f"{first.subject} and {other.subject} have different tokenizers, so their predictions are of "
                "different tokens; compare models that share one"
            )


def evaluated(
    candidate: Candidate, reference: Candidate | None, spec: EvaluationSpec, observer: EvaluationObserver
) -> dict[str, Any]:
    """One entry of an evaluation record: perplexity, and with a reference how far the model is from it."""
    observer.preparing(f"reading {spec.text}")
    network = candidate.network
    windows = evaluation_windows(spec, candidate.tokenizer, network.config.context)
    notes = calibration_notes([candidate], spec, windows)
    observer.started(windows)
    started = time.perf_counter()
    if reference is None:
        losses = score(network, windows.windows, observer.scored, windows.spans)
        measured = results.perplexity_values(windows, losses)
    else:
        everyone = [network], reference.network
        (comparison,) = compare(*everyone, windows.windows, observer.scored, windows.spans)
        measured = {
            **results.perplexity_values(windows, comparison.losses),
            "reference": results.perplexity_values(windows, comparison.reference_losses),
            **results.difference_values(windows, comparison),
        }
    return {
        **results.identity(windows),
        **measured,
        "notes": notes,
        "seconds": time.perf_counter() - started,
    }


def calibration_notes(
    candidates: Sequence[Candidate], spec: EvaluationSpec, windows: EvaluationWindows
) -> list[str]:
    """What is to be said where a model may have been calibrated on what it is measured on.

    UsageError where `spec.calibration` is not the text that a model's own record names.
    """
    recorded = [(each.subject, each.calibration) for each in candidates if each.calibration is not None]
    notes = [
        f"{subject.path.name} was calibrated on {windows.text} itself: its numbers there are too good"
        for subject, calibration in recorded
        if calibration["text_sha256"] == windows.text_sha256
    ]
    if spec.calibration is None:
        return notes
    text = load_corpus(spec.calibration, "train", spec.data_dir)
    for subject, calibration in recorded:
        if calibration["text_sha256"] != text.sha256:
            raise UsageError(
                f"{subject} was calibrated on {calibration['text']}, whose hash is not that of {text.name}; "
                "give the text itself with --calibration"
            )
    return [*notes, overlap(evaluation_corpus(spec), text).sentence(windows.text, text.name)]


def benchmarked(
    candidate: Candidate,
    spec: BenchmarkSpec,
    meter: MemoryMeter,
    bandwidth: float,
    observer: EvaluationObserver,
) -> dict[str, Any]:
    """One entry of a benchmark record; the reference's three figures, and those that it lacked.

    `meter` was made before the model was loaded; `bandwidth` is what the device reads, in bytes per second.
    """
    observer.preparing(f"reading {spec.text}")
    network, context = candidate.network, candidate.network.config.context
    if spec.tokens > context:
        raise UsageError(
            f"a benchmark of {spec.tokens} tokens does not fit the model's context of {context}; "
            f"ask for at most {context} with --tokens"
        )
    windows = benchmark_window(spec.text, candidate.tokenizer, spec.tokens, spec.data_dir)
    observer.started(windows)
    (window,) = windows.windows
    decoding = decode_window(network, window, spec.check, meter)
    if decoding.loss is not None:
        observer.scored([decoding.loss])
    first_token = first_token_seconds(network, window)
    config = network.config
    cache = 2 * config.layers * config.kv_width * network.dtype.itemsize * spec.tokens
    per_token = candidate.size.per_token + cache // 2  # the cache fills up while the tokens are fed
    counted = candidate.size.total + cache
    checked = {} if decoding.loss is None else results.perplexity_values(windows, [decoding.loss])
    return {
        **results.identity(windows),
        "protocol": BENCHMARK,
        **checked,
        "median_seconds": decoding.median_seconds,
        "tokens_per_second": 1 / decoding.median_seconds,
        "first_token_seconds": first_token,
        "memory_bytes": counted if decoding.allocated is None else decoding.allocated,
        "memory_is": COUNTED if decoding.allocated is None else ALLOCATED,
        "peak_bytes": meter.peak(),
        "bytes_per_token": per_token,
        "read_bandwidth": bandwidth,
        "bandwidth_fraction": per_token / decoding.median_seconds / bandwidth,
        "seconds": sum(decoding.seconds),
    }


def free_memory(device: torch.device) -> None:
    """Give back what no tensor uses, so that the next model is measured alone."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
