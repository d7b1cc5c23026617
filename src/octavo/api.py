"""What Python users call: quantize, load, evaluate. Models in, records out; nothing is printed.

A model is a folder, or a repository of the Hugging Face hub: `org/name`, or `org/name@revision`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from octavo import __version__
from octavo.checkpoint.tensors import tensor_files
from octavo.errors import UsageError
from octavo.evaluation.benchmark import MemoryMeter, read_bandwidth
from octavo.evaluation.candidate import Candidate, benchmarked, evaluated, free_memory, refuse_other_tokenizers
from octavo.evaluation.comparison import benchmarked_texts, compared
from octavo.evaluation.memory import baseline_size, stored_size
from octavo.evaluation.results import BenchmarkRecord, ComparisonRecord
from octavo.evaluation.scoring import EvaluationObserver
from octavo.evaluation.spec import BenchmarkSpec, ComparisonSpec, EvaluationSpec
from octavo.evaluation.subject import Subject, parse_subject
from octavo.evaluation.tasks import require_harness
from octavo.model.baselines import RoundedFolder, build_int8, open_dense_folder
from octavo.model.chat import Message, encode_chat, template_for
from octavo.model.hub import find_model
from octavo.model.llama import LlamaModel
from octavo.model.load import ModelFolder, build_model, load_model, open_folder
from octavo.model.tokenizer import TextStream, Tokenizer, load_tokenizer
from octavo.quantization.blocks import Observer
from octavo.quantization.calibration import calibration_tokens
from octavo.quantization.gptq import round_to_nearest
from octavo.quantization.pipeline import Destination, quantize_folder
from octavo.quantization.recipe import CalibrationSpec, Recipe
from octavo.records import (
    QUANTIZATION_RECORD,
    EvaluationRecord,
    QuantizationRecord,
    describe_machine,
    file_states,
    read_json,
    refuse_changed_files,
    sha256_of_file,
)
from octavo.runtime.generation import generate_tokens, text_of, until_stop
from octavo.runtime.params import SamplingParams
from octavo.weights import DenseWeight, QuantizedWeight

DEFAULT_NEW_TOKENS = 256
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    """Load a model, dense or quantized. `device` is auto, cpu, cuda or cuda:N."""
    place = choose_device(device)
    folder = find_model(path)
    return LoadedModel(folder, load_model(folder, place, compute_dtype(place)), load_tokenizer(folder))


def quantize(
    model: str | Path,
    out: str | Path | Destination,
    recipe: Recipe = Recipe(),
    calibration: CalibrationSpec = CalibrationSpec(),
    device: str = "auto",
    observer: Observer | None = None,
) -> QuantizationRecord:
    """Quantize `model` into the folder `out`; its record.

    Run again after a kill, it goes on where it was. `calibration` is not read by a recipe that needs none.
    """
    place = choose_device(device)
    source = find_model(model)
    destination = out if isinstance(out, Destination) else Destination(Path(out))
    open_dense_folder(source)  # what cannot be quantized is refused before a text is fetched for it
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

    Either may be `MODEL@BASELINE`, a dense model run as a baseline (see `Subject`). UsageError where the two do
    not share a tokenizer.
    """
    listening, place = observer or EvaluationObserver(), choose_device(device)
    subject = _candidate(parse_subject(model), place, listening)
    other = None if reference is None else _candidate(parse_subject(reference), place, listening)
    if other is not None:
        refuse_other_tokenizers([other, subject])
    return EvaluationRecord(
        octavo_version=__version__,
        model=str(model),
        model_files=subject.files,
        reference=None if reference is None else str(reference),
        reference_files=None if other is None else other.files,
        results=[evaluated(subject, other, spec, listening) for spec in specs],
        machine=describe_machine(str(place)),
    )


def benchmark(
    model: str | Path,
    specs: Sequence[BenchmarkSpec] = (BenchmarkSpec(),),
    device: str = "auto",
    observer: EvaluationObserver | None = None,
) -> BenchmarkRecord:
    """Speed and memory of a model that is fed one window of each text token by token, and its loss there."""
    listening, place = observer or EvaluationObserver(), choose_device(device)
    bandwidth = read_bandwidth(place)
    meter = MemoryMeter(place)
    subject = _candidate(parse_subject(model), place, listening)
    return BenchmarkRecord(
        octavo_version=__version__,
        model=str(model),
        model_files=subject.files,
        results=[benchmarked(subject, spec, meter, bandwidth, listening) for spec in specs],
        machine=describe_machine(str(place)),
    )


def compare(
    models: Sequence[str | Path],
    spec: ComparisonSpec = ComparisonSpec(),
    device: str = "auto",
    observer: EvaluationObserver | None = None,
) -> ComparisonRecord:
    """Several models side by side; KL divergence, agreement and differences are to the first.

    UsageError for fewer than two models, or models that do not share a tokenizer.
    """
    listening, place = observer or EvaluationObserver(), choose_device(device)
    subjects = [parse_subject(model) for model in models]
    if len(set(subjects)) < max(2, len(subjects)):
        raise UsageError("a comparison takes two models or more, each given once")
    if spec.tasks:
        require_harness()
    bandwidth = read_bandwidth(place)
    benchmarks: list[list[dict[str, Any]]] = []
    for subject in subjects if spec.benchmarks() else ():
        meter = MemoryMeter(place)
        candidate = _candidate(subject, place, listening)
        benchmarks.append(benchmarked_texts(candidate, spec, meter, bandwidth, listening))
        del candidate
        free_memory(place)
    candidates = [_candidate(subject, place, listening) for subject in subjects]
    return compared(candidates, spec, benchmarks, listening)


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


def _candidate(subject: Subject, device: torch.device, observer: EvaluationObserver) -> Candidate:
    """A model that is to be measured, its files checked against their record."""
    observer.preparing(f"loading {subject}")
    path = find_model(subject.path)
    files = _hashes(path)
    if subject.method is None:
        network = load_model(path, device, compute_dtype(device))
        size = stored_size(open_folder(path))
    else:
        folder = open_dense_folder(path)
        network, size = _baseline(subject, folder, device), baseline_size(folder, subject)
    record = path / QUANTIZATION_RECORD
    calibration = read_json(record)["inputs"]["calibration"] if record.exists() else None
    return Candidate(subject, files, calibration, network, load_tokenizer(path), size)


def _baseline(subject: Subject, folder: ModelFolder, device: torch.device) -> LlamaModel:
    """A dense model in another precision, or with its linears made by another method."""
    if subject.method in PRECISIONS:
        return load_model(folder.path, device, PRECISIONS[subject.method])
    dtype, scheme = compute_dtype(device), subject.rounding
    if scheme is None:
        return build_int8(folder, device, dtype)

    def rounded(weight: DenseWeight) -> QuantizedWeight:
        return round_to_nearest(weight.values.to(device, torch.float32), scheme, smallest_zero=0)

    parts = (folder.path, folder.config, folder.quantization, folder.tensors)
    return build_model(RoundedFolder(*parts, rounded), device, dtype)


def _hashes(folder: Path) -> dict[str, str]:
    """What was measured, by hash; CheckpointError where it is not what the folder's own record says."""
    refuse_changed_files(file_states(folder), folder)
    return {path.name: sha256_of_file(path) for path in [folder / "config.json", *tensor_files(folder)]}
