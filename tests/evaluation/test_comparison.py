"""What may be said of two models, and how often it is true."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from byte_tokenizer import write_byte_tokenizer
from conftest import shared
from octavo import api
from octavo.errors import UnsupportedModelError, UsageError
from octavo.evaluation.comparison import short_names, verdicts
from octavo.evaluation.metrics import mean_over_windows
from octavo.evaluation.spec import ComparisonSpec
from octavo.records import as_json
from small_models import small_tensors, write_model

GOLDEN = Path(__file__).parent.parent / "golden" / "window-losses.json"


def cell(*losses: list[float], text: str = "t", **more: Any) -> dict[str, Any]:
    return {
        "table": "gptq",
        "text": text,
        "protocol": "gptq",
        "tokens_sha256": text,
        "absent": None,
        "values": [{"losses": each, "weights": [1.0] * len(each)} for each in losses],
        **more,
    }


def test_verdicts_by_hand() -> None:
    base = [1.0, 2.0, 3.0, 4.0]
    worse = [loss + step for loss, step in zip(base, (0.1, 0.11, 0.09, 0.1), strict=True)]
    noisy = [loss + step for loss, step in zip(base, (0.1, -0.1, 0.1, -0.05), strict=True)]
    assert list(verdicts(["A", "B"], [cell(base, worse)])) == [
        "B against A: worse on t by gptq (Δ = +0.10000 ± 0.00408)."
    ]
    assert list(verdicts(["A", "B"], [cell(worse, base), cell([1.0], [2.0], text="u")])) == [
        "B against A: better on t by gptq (Δ = -0.10000 ± 0.00408); "
        "undecided on u by gptq (Δ = +1.00000 over one window, which shows no error bar)."
    ]
    # Mean 0.0125, s = 0.1031: t(n − 1) · s / √n falls below the mean at n = 264.
    assert list(verdicts(["A", "B"], [cell(base, noisy)])) == [
        "B against A: indistinguishable on t by gptq at this sample size "
        "(Δ = +0.01250 ± 0.05154, 4 windows measured, 264 needed to see it)."
    ]
    assert list(verdicts(["A", "B"], [cell(base, list(base))])) == ["B against A: the same losses on t by gptq."]


def test_a_verdict_counts_a_text_once_and_no_benchmark() -> None:
    same = cell([1.0, 2.0], [1.0, 2.0])
    cells = [
        {**same, "table": "benchmark"},
        same,
        {**same, "table": "gptq-new"},
        {"table": "gptq", "absent": "no ptb"},
    ]
    assert list(verdicts(["A", "B", "C"], [cell([1.0], [1.0], [1.0], table="benchmark")])) == []
    assert list(verdicts(["A", "B"], cells)) == ["B against A: the same losses on t by gptq."]


def test_names_are_short_where_they_differ() -> None:
    assert short_names(["a/x", "b/y@rtn-8"]) == ["x", "y@rtn-8"]
    assert short_names(["a/x", "b/x"]) == ["a/x", "b/x"]


@pytest.mark.parametrize("windows", [8, 40, 148])
def test_intervals_hold_the_truth_as_often_as_they_say(windows: int) -> None:
    """Resamples of real differences: a model in 4 and one in 8 bits, against the dense one, window by window.

    The text is all there is, so its mean is the truth; a resample is what one would have measured.
    """
    golden = json.loads(GOLDEN.read_text())
    generator = numpy.random.default_rng(windows)
    for name in ("4-bit", "8-bit"):
        differences = numpy.subtract(golden[name], golden["dense"])
        truth, held = float(differences.mean()), 0
        for _ in range(4000):
            interval = mean_over_windows(generator.choice(differences, windows).tolist()).interval()
            assert interval is not None
            held += interval[0] <= truth <= interval[1]
        assert 0.93 <= held / 4000 <= 0.97, (name, held / 4000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model whose vocabulary holds the byte tokenizer's 259 ids."""
    tensors = small_tensors()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name].repeat(5, 1)[:259] * (1 + tensors[name].repeat(5, 1)[:259])
    write_byte_tokenizer(tmp_path / "model")
    return write_model(tmp_path / "model", tensors, vocab_size=259)


@pytest.fixture
def spec(tmp_path: Path) -> ComparisonSpec:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 30)
    return ComparisonSpec(texts=(str(path),), length=50, windows=4, tokens=20)


def test_a_model_against_itself_differs_by_exactly_zero(
    folder: Path, spec: ComparisonSpec, tmp_path: Path
) -> None:
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    record = as_json(api.compare([folder, copy, f"{folder}@fp32"], spec, device="cpu"))
    evaluated = [cell for cell in record["cells"] if cell["table"] == "gptq"]
    for values in evaluated[0]["values"][1:]:
        assert values["log_perplexity_difference"] == 0
        assert values["log_perplexity_difference_standard_error"] == 0
        assert (values["kl_mean"], values["kl_99_percent"], values["top1_agreement"]) == (0, 0, 1)
    assert [sentence.partition(": ")[2] for sentence in record["verdicts"]] == [
        "the same losses on text.txt by plain."
    ] * 3


def test_the_check_of_a_benchmark_is_a_window_of_the_evaluation(folder: Path, spec: ComparisonSpec) -> None:
    """A file of one window: its only draw is the whole of it, but for the last token."""
    path = Path(spec.texts[0])
    path.write_text("a" * 30)
    record = as_json(api.compare([folder, f"{folder}@rtn-4"], replace(spec, length=30, tokens=30), device="cpu"))
    benchmark, evaluation = record["cells"][:2]
    for one, other in zip(benchmark["values"], evaluation["values"], strict=True):
        assert one["perplexity"] == pytest.approx(other["perplexity"], rel=1e-5)


def test_what_is_absent_says_why_and_nothing_takes_its_place(
    folder: Path, spec: ComparisonSpec, tmp_path: Path
) -> None:
    spec = replace(spec, texts=(*spec.texts, "ptb"), data_dir=tmp_path)
    (tmp_path / "ptb").mkdir()
    record = as_json(api.compare([folder, f"{folder}@rtn-8"], spec, device="cpu"))
    absent = [cell for cell in record["cells"] if cell["asked"] == "ptb"]
    assert [cell["table"] for cell in absent] == ["benchmark", "gptq", "gptq-new"]
    for cell, file in zip(absent, ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"), strict=True):
        assert file in cell["absent"] and "values" not in cell


def test_baselines_are_what_they_say(folder: Path, spec: ComparisonSpec, tmp_path: Path) -> None:
    """Rounding while loading gives the losses of a folder that was rounded and written, to the last bit."""
    from octavo import Destination, QuantScheme, Recipe, SchemePlan, quantize

    scheme = QuantScheme(4, 16, symmetric=False)
    recipe = Recipe(SchemePlan(scheme), "rtn", "none", 0.01, "none")
    quantize(folder, Destination(tmp_path / "rounded", "gptq_v2"), recipe)
    models = [tmp_path / "rounded", f"{folder}@rtn-4-16g", f"{folder}@llm.int8", f"{folder}@bf16"]
    record = as_json(api.compare(models, replace(spec, tables=("gptq",)), device="cpu"))
    rounded, same, int8, bf16 = (values["losses"] for values in record["cells"][0]["values"])
    assert same == rounded
    assert int8 not in (rounded, bf16)
    bits = [model["bits_per_weight"] for model in record["models"]]
    assert bits[3] == 16 and 4 < bits[1] < bits[2] < 16


def test_what_cannot_be_compared(folder: Path, spec: ComparisonSpec, tmp_path: Path) -> None:
    import shutil

    for models in ([folder], [folder, folder], []):
        with pytest.raises(UsageError, match="two models or more, each given once"):
            api.compare(models, spec, device="cpu")
    other = shutil.copytree(folder, tmp_path / "other")
    words = json.loads((other / "tokenizer.json").read_text())
    words["model"]["vocab"] = {word: (number + 1) % 256 for word, number in words["model"]["vocab"].items()}
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(
        UsageError, match="have different tokenizers, so their predictions are of different tokens"
    ):
        api.compare([folder, other], replace(spec, tables=("gptq",)), device="cpu")
    with pytest.raises(UsageError, match="needs at least one text, and one table or task"):
        replace(spec, tables=())
    with pytest.raises(UsageError, match="a benchmark of 1 tokens predicts nothing"):
        replace(spec, tokens=1)
    with pytest.raises(UsageError, match="mine is no protocol"):
        replace(spec, tables=("mine",))
    with pytest.raises(UsageError, match="a benchmark of 500 tokens does not fit the model's context of 128"):
        api.benchmark(folder, [api.BenchmarkSpec(spec.texts[0], 500)], device="cpu")
    with pytest.raises(UnsupportedModelError, match=r"quantized already .* give the dense model it was made of"):
        from octavo import Recipe, quantize

        quantize(folder, tmp_path / "eight", Recipe(method="rtn", act_order="none", scale_search="none"))
        api.evaluate(f"{tmp_path / 'eight'}@rtn-8", device="cpu")


def test_the_benchmark_s_figures_fit_together(folder: Path, spec: ComparisonSpec) -> None:
    record = api.benchmark(folder, [api.BenchmarkSpec(spec.texts[0], 40)], device="cpu")
    (result,) = record.results
    assert result["tokens_per_second"] == 1 / result["median_seconds"]
    cache = 2 * 3 * 24 * 4 * 40
    embedding = 259 * 48 * 2
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert result["memory_bytes"] == pytest.approx(weights + cache, abs=6000)  # the file has a header
    assert result["bytes_per_token"] == result["memory_bytes"] - embedding - cache // 2
    share = result["bytes_per_token"] / result["median_seconds"] / result["read_bandwidth"]
    assert result["bandwidth_fraction"] == pytest.approx(share)
    assert result["perplexity"] == math.exp(result["losses"][0])
    assert (result["protocol"], result["windows"], result["length"]) == ("benchmark", 1, 40)
    unchecked = api.benchmark(folder, [api.BenchmarkSpec(spec.texts[0], 40, check=False)], device="cpu")
    assert "perplexity" not in unchecked.results[0]


def test_the_golden_losses_are_those_of_the_models_they_name() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert len(golden["dense"]) == len(golden["4-bit"]) == len(golden["8-bit"]) == 263
    text = shared("corpora/calibration/tinystories.txt")
    from octavo import EvaluationSpec

    model = shared("models/stories260K")
    record = api.evaluate(model, [EvaluationSpec(str(text), length=512, windows=2)], device="cpu")
    assert record.results[0]["losses"] == pytest.approx(golden["dense"][:2], rel=1e-5)


def test_calibration_on_what_is_measured_is_said(folder: Path, spec: ComparisonSpec, tmp_path: Path) -> None:
    from octavo import CalibrationSpec, EvaluationSpec, quantize

    measured, other = spec.texts[0], tmp_path / "other.txt"
    other.write_text("Quite other words, none of which the fox has ever jumped over or even seen before. " * 20)
    quantize(folder, tmp_path / "on-it", calibration=CalibrationSpec(measured, 2, 20))
    quantize(folder, tmp_path / "on-another", calibration=CalibrationSpec(str(other), 2, 20))
    itself = EvaluationSpec(measured, length=50, windows=2)
    (result,) = api.evaluate(tmp_path / "on-it", [itself], device="cpu").results
    assert result["notes"] == ["on-it was calibrated on text.txt itself: its numbers there are too good"]
    asked = replace(itself, calibration=measured)
    (result,) = api.evaluate(tmp_path / "on-it", [asked], device="cpu").results
    assert result["notes"][1].startswith("100.00 % of the runs of 13 words of text.txt stand in text.txt")
    asked = replace(itself, calibration=str(other))
    (result,) = api.evaluate(tmp_path / "on-another", [asked], device="cpu").results
    assert result["notes"] == [
        "0.00 % of the runs of 13 words of text.txt stand in other.txt, on which the model was calibrated"
    ]
    with pytest.raises(UsageError, match=r"was calibrated on text\.txt, whose hash is not that of other\.txt"):
        api.evaluate(tmp_path / "on-it", [asked], device="cpu")
    models = [folder, tmp_path / "on-it"]
    record = as_json(api.compare(models, replace(spec, tables=("gptq",)), device="cpu"))
    assert len(record["cells"][0]["notes"]) == 1
