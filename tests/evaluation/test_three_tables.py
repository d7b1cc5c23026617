"""The three tables of one comparison; a cell of each is made again by other means: transformers, and lists."""

import json
import math
import random
from pathlib import Path

import pytest
import torch

from conftest import smollm2_gguf
from octavo import CalibrationSpec, Recipe, api, quantize
from octavo.conversion.from_gguf import convert_gguf
from octavo.evaluation.spec import ComparisonSpec
from octavo.records import as_json
from octavo.report.comparison import measures_of
from octavo.schemes import QuantScheme, SchemePlan
from three_texts import write_data_folder

WINDOWS, LENGTH, TOKENS = 3, 256, 200


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_folder(tmp_path_factory.mktemp("data"), most_lines=150)


def compared_models(dense: Path, folder: Path, data: Path) -> list[str | Path]:
    """Dense, LLM.int8(), classic RTN, and GPTQ with 8 and 4 bits."""
    text = CalibrationSpec("c4", samples=4, sequence_length=LENGTH, data_dir=data)
    for bits in (8, 4):
        recipe = Recipe(SchemePlan(QuantScheme(bits, 128, symmetric=False)))
        quantize(dense, folder / f"gptq-{bits}", recipe, text)
    return [dense, f"{dense}@llm.int8", f"{dense}@rtn-8", folder / "gptq-8", folder / "gptq-4"]


@pytest.fixture(scope="module")
def models(stories_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    return compared_models(stories_folder, tmp_path_factory.mktemp("models"), data)


@pytest.fixture(scope="module")
def record(models: list[str | Path], data: Path) -> dict:
    spec = ComparisonSpec(length=LENGTH, windows=WINDOWS, tokens=TOKENS, data_dir=data)
    return as_json(api.compare(models, spec, device="cpu"))


def numbers(record: dict, table: str) -> dict[str, list[float]]:
    return {measure.title: measure.numbers for measure in measures_of(record, table)}


def encode(folder: Path, text: str) -> list[int]:
    """By the tokenizers library alone; stories260K puts <s> before a text."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids


def slow_perplexity(network: torch.nn.Module, windows: list[list[int]]) -> float:
    """exp of the mean over windows of the mean of −log p, each token by itself, in float64."""
    means = []
    for window in windows:
        with torch.inference_mode():
            logits = network(torch.tensor([window])).logits[0].double()
        losses = [
            math.log(math.fsum((row - row[token]).exp().tolist()))
            for row, token in zip(logits[:-1], window[1:], strict=True)
        ]
        means.append(math.fsum(losses) / len(losses))
    return math.exp(math.fsum(means) / len(means))


def transformers_model(folder: Path) -> torch.nn.Module:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def wikitext_rows(path: Path) -> list[str]:
    return [line if line.strip() else "" for line in path.read_text().splitlines(keepends=True)]


def test_a_cell_of_the_benchmark(record: dict, stories_folder: Path, data: Path) -> None:
    """Dense on wikitext2's stand-in: a random window of 2048 of the stream, cut to 200 tokens."""
    stream = encode(stories_folder, "\n\n".join(wikitext_rows(data / "wikitext2" / "stand-in.train.txt")))
    random.seed(0)
    start = random.randint(0, len(stream) - 2048 - 1)
    expected = slow_perplexity(transformers_model(stories_folder), [stream[start : start + TOKENS]])
    cells = numbers(record, "benchmark")
    assert list(cells) == ["wikitext2-stand-in", "ptb-stand-in", "c4-sample(150 docs), 1 window", "memory (MiB)"]
    assert cells["wikitext2-stand-in"][0] == pytest.approx(expected, rel=1e-4)


def test_a_cell_of_eval(record: dict, stories_folder: Path, data: Path) -> None:
    """RTN-8 on the sample of C4: every row of a weight rounded to its own 256 steps, zero among them."""
    network = transformers_model(stories_folder)
    with torch.no_grad():
        for layer in network.model.layers:
            for linear in (module for module in layer.modules() if isinstance(module, torch.nn.Linear)):
                for row in linear.weight:
                    low, high = min(row.min().item(), 0.0), max(row.max().item(), 0.0)
                    scale = torch.tensor((high - low) / 255).half().item()
                    zero = round(-low / scale)
                    row.copy_((((row / scale).round() + zero).clamp(0, 255) - zero) * scale)
    lines = (data / "c4" / "validation-sample.jsonl").read_text().splitlines()
    documents = [json.loads(line)["text"] for line in lines]
    random.seed(0)
    windows = []
    while len(windows) < WINDOWS:
        tokens = encode(stories_folder, documents[random.randint(0, len(documents) - 1)])
        if len(tokens) > LENGTH:
            start = random.randint(0, len(tokens) - LENGTH - 1)
            windows.append(tokens[start : start + LENGTH])
    expected = slow_perplexity(network, windows)
    cells = numbers(record, "gptq")
    assert list(cells) == ["wikitext2", "ptb-stand-in", "c4-sample(150 docs), 3 windows"]
    assert cells["c4-sample(150 docs), 3 windows"][2] == pytest.approx(expected, rel=1e-4)


def test_a_cell_of_new_eval(record: dict, models: list[str | Path], stories_folder: Path, data: Path) -> None:
    """GPTQ-8 on ptb's stand-in; the file's words taken apart: four codes, and four zeros less one, in each.

    What is dense is stored in half precision.
    """
    from safetensors.torch import load_file

    network = transformers_model(stories_folder)
    tensors = load_file(Path(models[3]) / "model.safetensors")
    with torch.no_grad():
        for name, module in network.named_modules():
            if f"{name}.weight" in tensors:
                module.weight.copy_(tensors[f"{name}.weight"])
            if f"{name}.qweight" not in tensors:
                continue
            words, zero_words = tensors[f"{name}.qweight"], tensors[f"{name}.qzeros"]
            codes = words.view(torch.uint8).view(*words.shape, 4).transpose(1, 2).reshape(-1, words.shape[1])
            zeros = zero_words.view(torch.uint8).view(len(zero_words), -1).float() + 1
            groups = tensors[f"{name}.g_idx"].long()
            scales = tensors[f"{name}.scales"].float()
            columns, rows = len(groups), scales.shape[1]
            steps = codes[:columns].float() - zeros[groups][:, :rows]
            module.weight.copy_((scales[groups] * steps).t())
    lines = (data / "ptb" / "stand-in.ptb.test.txt").read_text().splitlines()
    stream = encode(stories_folder, " ".join(line.strip() for line in lines))
    windows = [stream[n * LENGTH : (n + 1) * LENGTH] for n in range(WINDOWS)]
    expected = slow_perplexity(network, windows)
    cells = numbers(record, "gptq-new")
    assert list(cells) == ["wikitext2", "ptb-stand-in", "c4-sample(150 docs), 3 windows"]
    assert cells["ptb-stand-in"][3] == pytest.approx(expected, rel=1e-4)


def test_repeated_it_gives_the_same_numbers(record: dict, models: list[str | Path], data: Path) -> None:
    spec = ComparisonSpec(("benchmark", "gptq"), ("ptb",), LENGTH, WINDOWS, TOKENS, data)
    again = as_json(api.compare(models, spec, device="cpu"))
    timed = {"median_seconds", "tokens_per_second", "first_token_seconds", "peak_bytes", "read_bandwidth"}
    timed |= {"bandwidth_fraction", "seconds"}

    def untimed(cell: dict) -> dict:
        return {
            **cell,
            "values": [{k: v for k, v in values.items() if k not in timed} for values in cell["values"]],
        }

    before = [cell for cell in record["cells"] if cell["asked"] == "ptb" and cell["table"] != "gptq-new"]
    assert [untimed(cell) for cell in again["cells"]] == [untimed(cell) for cell in before]
    assert len(again["verdicts"]) == 10


@pytest.mark.proof
def test_smollm2_on_the_stand_ins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tables of a real model: 8 bits of GPTQ lose less than those of LLM.int8() and of plain rounding."""
    data, dense = write_data_folder(tmp_path / "data"), tmp_path / "SmolLM2-135M-Instruct"
    convert_gguf(smollm2_gguf(), dense)
    models = compared_models(dense, tmp_path, data)
    record = as_json(api.compare(models, ComparisonSpec(windows=8, tokens=512, data_dir=data), device="cpu"))
    with capsys.disabled():
        from rich.console import Console

        from octavo.report.comparison import print_comparison

        print_comparison(Console(force_terminal=True, width=150), record)
    for cell in record["cells"]:
        assert cell["absent"] is None
        if cell["table"] != "benchmark":
            divergence = [values["kl_mean"] for values in cell["values"][1:]]
            int8, rtn, gptq_8, gptq_4 = divergence
            assert gptq_8 < min(int8, rtn) < gptq_4
