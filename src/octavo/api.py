"""What Python users call: quantize, load, evaluate. Paths in, records out; nothing is printed."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from octavo import __version__
from octavo.checkpoint.tensors import tensor_files
from octavo.errors import UsageError
from octavo.evaluation.metrics import mean_over_windows, paired_difference, perplexity, summarize
from octavo.evaluation.protocol import EvaluationWindows, evaluation_windows
from octavo.evaluation.scoring import Comparison, EvaluationObserver, Progress, compare, score
from octavo.evaluation.spec import EvaluationSpec
from octavo.model.chat import Message, encode_chat, template_for
from octavo.model.config import read_config
from octavo.model.llama import LlamaModel
from octavo.model.load import load_model
from octavo.model.tokenizer import TextStream, Tokenizer, load_tokenizer
from octavo.quantization.blocks import Observer
from octavo.quantization.calibration import calibration_tokens
from octavo.quantization.pipeline import Destination, quantize_folder
from octavo.quantization.recipe import CalibrationSpec, Recipe
from octavo.records import (
    EvaluationRecord,
    QuantizationRecord,
    describe_machine,
    file_states,
    refuse_changed_files,
    sha256_of_file,
)
from octavo.runtime.generation import generate_tokens, text_of, until_stop
from octavo.runtime.params import SamplingParams

DEFAULT_NEW_TOKENS = 256


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer, ready to write."""

    path: Path
    network: LlamaModel
    tokenizer: Tokenizer

    def generate(
        self,
        prompt: str,
        params: SamplingParams = SamplingParams(),
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Continue a raw prompt, in which control tokens may be spelled out; pieces of text as they settle."""
        tokens = self.tokenizer.encode(prompt, control_tokens=True, beginning=True)
        return self._stream(tokens, params, max_new_tokens, stop)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams = SamplingParams(),
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Answer a conversation through the model's chat template; pieces of text as they settle."""
        return self._stream(
            encode_chat(messages, template_for(self.tokenizer), self.tokenizer), params, max_new_tokens, stop
        )

    def _stream(
        self, tokens: Sequence[int], params: SamplingParams, max_new_tokens: int, stop: Sequence[str]
    ) -> Iterator[str]:
        new_tokens = generate_tokens(self.network, tokens, params, max_new_tokens, self.tokenizer.eos_ids)
        return until_stop(text_of(new_tokens, TextStream(self.tokenizer)), stop)


def load(path: str | Path, device: str = "auto") -> LoadedModel:
    """Load a model folder, dense or quantized. `device` is auto, cpu, cuda or cuda:N."""
    folder, place = Path(path), choose_device(device)
    return LoadedModel(folder, load_model(folder, place, compute_dtype(place)), load_tokenizer(folder))


def quantize(
    model: str | Path,
    out: str | Path | Destination,
    recipe: Recipe = Recipe(),
    calibration: CalibrationSpec = CalibrationSpec(),
    device: str = "auto",
    observer: Observer | None = None,
) -> QuantizationRecord:
    """Quantize the model folder `model` into `out`; its record.

    Run again after a kill, it goes on where it was. `calibration` is not read by a recipe that needs none.
    """
    source, place = Path(model), choose_device(device)
    destination = out if isinstance(out, Destination) else Destination(Path(out))
    read_config(source)  # a path that is no model is refused before a text is fetched for it
    listening = observer or Observer()
    tokens = None
    if recipe.method == "gptq":
        listening.preparing(f"reading {calibration.text}")
        tokens = calibration_tokens(calibration, load_tokenizer(source))
    return quantize_folder(source, destination, recipe, tokens, place, listening)


def evaluate(
    model: str | Path,
    specs: Sequence[EvaluationSpec] = (EvaluationSpec(),),
    reference: str | Path | None = None,
    device: str = "auto",
    observer: EvaluationObserver | None = None,
) -> EvaluationRecord:
    """Perplexity of a model on each text; with a `reference` also how far its predictions are from it.

    UsageError where the two models do not share a tokenizer.
    """
    listening = observer or EvaluationObserver()
    folders = [Path(folder) for folder in (model, reference) if folder is not None]
    hashes, loaded = [], []
    for folder in folders:
        listening.preparing(f"loading {folder}")
        hashes.append(_hashes(folder))
        loaded.append(load(folder, device))
    subject, other = loaded[0], loaded[1] if reference is not None else None
    if other is not None and other.tokenizer.fingerprint != subject.tokenizer.fingerprint:
        raise UsageError(
            f"{subject.path} and {other.path} have different tokenizers, so their predictions are of different "
            "tokens; compare models that share one"
        )
    results = []
    for spec in specs:
        listening.preparing(f"reading {spec.text}")
        windows = evaluation_windows(spec, subject.tokenizer)
        listening.started(windows)
        results.append(_evaluated(subject, other, windows, listening.scored))
    return EvaluationRecord(
        octavo_version=__version__,
        model=str(model),
        model_files=hashes[0],
        reference=None if reference is None else str(reference),
        reference_files=None if reference is None else hashes[1],
        results=results,
        machine=describe_machine(str(subject.network.device)),
    )


def choose_device(name: str) -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name} is no device; choose auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"{name} is not supported; choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"{name} is not here: torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu"
        )
    return device


def compute_dtype(device: torch.device) -> torch.dtype:
    """What the network computes in: float32 on a CPU, half precision on a GPU."""
    return torch.float32 if device.type == "cpu" else torch.float16


def _evaluated(
    subject: LoadedModel, other: LoadedModel | None, windows: EvaluationWindows, progress: Progress
) -> dict[str, Any]:
    """One entry of an evaluation record."""
    started = time.perf_counter()
    if other is None:
        measured = _perplexity_values(score(subject.network, windows.windows, progress))
    else:
        (comparison,) = compare([subject.network], other.network, windows.windows, progress)
        measured = {
            **_perplexity_values(comparison.losses),
            "reference": _perplexity_values(comparison.reference_losses),
            **_difference_values(comparison),
        }
    return {
        "text": windows.text,
        "protocol": windows.protocol,
        "description": windows.description,
        "source": windows.source,
        "text_sha256": windows.text_sha256,
        "tokens_sha256": windows.tokens_sha256,
        "windows": windows.windows.shape[0],
        "length": windows.windows.shape[1],
        **measured,
        "seconds": time.perf_counter() - started,
    }


def _perplexity_values(losses: list[float]) -> dict[str, Any]:
    result = perplexity(losses)
    return {
        "perplexity": result.value,
        "perplexity_standard_error": result.standard_error,
        "losses": losses,
    }


def _difference_values(comparison: Comparison) -> dict[str, Any]:
    """How far a model is from its reference; error bars are over windows."""
    windows = len(comparison.losses)
    paired = paired_difference(comparison.losses, comparison.reference_losses)
    divergence = summarize(comparison.divergence)
    per_window = mean_over_windows(comparison.divergence.view(windows, -1).mean(1).tolist())
    return {
        "log_perplexity_difference": paired.value,
        "log_perplexity_difference_standard_error": paired.standard_error,
        "kl_mean": divergence.mean,
        "kl_standard_error": per_window.standard_error,
        "kl_median": divergence.median,
        "kl_99_percent": divergence.percentile_99,
        "top1_agreement": float(comparison.agreement.double().mean()),
    }


def _hashes(folder: Path) -> dict[str, str]:
    """What was measured, by hash; CheckpointError where it is not what the folder's own record says."""
    refuse_changed_files(file_states(folder), folder)
    return {path.name: sha256_of_file(path) for path in [folder / "config.json", *tensor_files(folder)]}
