"""A card from records: what it says, that the hub takes it, and what is refused."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import shared
from octavo import CalibrationSpec, api, quantize
from octavo.errors import CheckpointError, OutputError, UsageError
from octavo.evaluation.spec import ComparisonSpec
from octavo.records import as_json, sha256_of_file
from octavo.report import card
from octavo.report.card import CardSpec, files_to_publish, write_card
from octavo.report.tables import as_markdown

LOADS = [
    {"engine": "vLLM, GPU", "tensor_parallel": [1, 2], "objection": None, "rule": "r"},
    {"engine": "llama.cpp", "tensor_parallel": [], "objection": "it reads GGUF | only", "rule": "r"},
]


@pytest.fixture(scope="module")
def made(stories_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base model and its license, the quantized model, and their comparison."""
    work = tmp_path_factory.mktemp("card")
    shutil.copytree(stories_folder, work / "base")
    (work / "base" / "README.md").write_text("---\nlicense: mit\n---\n# Stories\n")
    text = str(shared("corpora/calibration/tinystories.txt"))
    quantize(work / "base", work / "stories-8bit", calibration=CalibrationSpec(text, 4, 128))
    spec = ComparisonSpec(("benchmark", "gptq"), (text, "ptb"), 128, 4, 30, work)
    (work / "ptb").mkdir()
    record = api.compare([work / "base", work / "stories-8bit"], spec, device="cpu")
    (work / "record.json").write_text(json.dumps(as_json(record)))
    return work


@pytest.fixture
def spec(made: Path, tmp_path: Path) -> CardSpec:
    folder = shutil.copytree(made / "stories-8bit", tmp_path / "stories-8bit")
    return CardSpec(folder, "karpathy/tinyllamas", (made / "record.json",), made / "base")


def numbers(value: Any) -> set[float]:
    """Every number of a record."""
    if isinstance(value, dict):
        return set().union(*map(numbers, value.values()))
    if isinstance(value, list):
        return set().union(*map(numbers, value))
    return {float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else set()


def test_the_hub_reads_its_metadata(spec: CardSpec, made: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(write_card(spec, LOADS))
    assert card.data.base_model == "karpathy/tinyllamas"
    assert card.data.to_dict()["base_model_relation"] == "quantized"
    assert card.data.license == "mit"
    assert card.data.tags == ["octavo", "gptq", "8-bit", "quantized"]
    record = json.loads((made / "record.json").read_text())
    (result,) = card.data.eval_results
    assert result.metric_value == record["cells"][2]["values"][1]["perplexity"]
    assert (result.dataset_name, result.metric_type) == ("tinystories.txt", "perplexity")
    assert result.metric_name == "perplexity by plain, 4 × 128 tokens"


def test_every_perplexity_and_divergence_comes_from_the_record(spec: CardSpec, made: Path) -> None:
    text = write_card(spec, LOADS).read_text()
    known = numbers(json.loads((made / "record.json").read_text()))
    tables = text[text.index("## Results") : text.index("## Quantization")]
    shown = re.findall(r"(?<![\w.])\d+\.\d{4,}", tables)
    assert len(shown) == 12
    for number in shown:
        digits = len(number.partition(".")[2])
        assert any(f"{abs(value):.{digits}f}" == number for value in known), number


def test_it_says_how_each_number_was_made(spec: CardSpec, made: Path) -> None:
    text = write_card(spec, LOADS).read_text()
    record = json.loads((made / "record.json").read_text())
    assert (
        "octavo compare base stories-8bit --protocol benchmark,gptq --dataset tinystories.txt,ptb "
        "--windows 4 --length 128 --tokens 30 --json record.json"
    ) in text
    assert f"`{record['cells'][2]['tokens_sha256'][:16]}`" in text
    assert record["machine"]["processor"] in text and f"torch {record['machine']['torch']}" in text
    for name, digest in json.loads((spec.folder / "octavo.json").read_text())["files"].items():
        assert f"| `{name}` | `{digest}` |" in text
    assert "- – ptb (gptq): the validation split of ptb is missing" in text
    assert "Calibrated on 4 windows of 128 tokens of tinystories.txt" in text
    assert "- stories-8bit was calibrated on tinystories.txt itself: its numbers there are too good" in text
    assert "| llama.cpp | no | it reads GGUF \\| only |" in text and "| vLLM, GPU | 1, 2 | – |" in text
    assert "vllm serve ./stories-8bit" in text
    assert str(made) not in text


def test_tasks_have_their_tables_and_their_place_in_the_command(spec: CardSpec, tmp_path: Path) -> None:
    record = json.loads(spec.records[0].read_text())
    record["spec"] |= {"tasks": ["arc_easy", "/home/me/mine.yaml"], "documents": 40}
    values = [
        {"value": 0.5, "standard_error": 0.08, "difference": 0.0, "difference_standard_error": 0.0},
        {"value": 0.475, "standard_error": 0.08, "difference": -0.025, "difference_standard_error": 0.03},
    ]
    about = {"task": "arc_easy", "metric": "acc", "shots": 0, "documents": 40, "higher_is_better": True}
    record["tasks"] = [{**about, "values": values}]
    path = tmp_path / "with-tasks.json"
    path.write_text(json.dumps(record))
    text = write_card(replace(spec, records=(path,)), LOADS).read_text()
    assert "| base | **0.5000** |\n| stories-8bit | 0.4750 |" in text
    assert "| stories-8bit | arc_easy acc, 0 shots | 40 | -0.0250 ± 0.0300 |" in text
    assert "--tokens 30 --tasks arc_easy,mine.yaml --documents 40 --json record.json" in text


def test_the_pictures_are_pictures_and_stand_in_the_text(spec: CardSpec) -> None:
    from PIL import Image

    text = write_card(spec, LOADS).read_text()
    pictures = re.findall(r"!\[.+\]\((plots/[\w-]+\.png)\)", text)
    assert pictures == ["plots/error-per-layer.png", "plots/kl-divergence.png"]
    for picture in pictures:
        with Image.open(spec.folder / picture) as image:
            assert image.format == "PNG" and image.size == (960, 540)
            assert len(image.convert("RGB").getcolors(2**20) or []) > 20  # axes alone have fewer


def test_a_picture_of_a_former_card_is_not_taken_over(spec: CardSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    write_card(spec, LOADS)
    monkeypatch.setattr(card, "_histograms", lambda source: {})
    assert "kl-divergence.png" not in write_card(spec, LOADS).read_text()


def test_written_again_it_is_the_same(spec: CardSpec) -> None:
    first = write_card(spec, LOADS).read_bytes()
    assert write_card(spec, LOADS).read_bytes() == first


def test_a_record_of_other_weights_is_refused(spec: CardSpec, made: Path, tmp_path: Path) -> None:
    record = json.loads((made / "record.json").read_text())
    record["models"][1]["files"]["model.safetensors"] = "0" * 64
    other = tmp_path / "other.json"
    other.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"other\.json was made for other weights than those of"):
        write_card(CardSpec(spec.folder, "a/b", (other,)), LOADS)
    other.write_text("{}")
    with pytest.raises(CheckpointError, match=r"other\.json is no record of octavo compare"):
        write_card(CardSpec(spec.folder, "a/b", (other,)), LOADS)
    with pytest.raises(CheckpointError, match=r"absent\.json cannot be read"):
        write_card(CardSpec(spec.folder, "a/b", (tmp_path / "absent.json",)), LOADS)
    assert not (spec.folder / "README.md").exists()


def test_changed_weights_are_refused(spec: CardSpec) -> None:
    path = spec.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is changed"):
        write_card(spec, LOADS)


def test_what_else_is_refused(spec: CardSpec, made: Path, stories_folder: Path) -> None:
    with pytest.raises(UsageError, match="a card needs a record; run octavo compare"):
        CardSpec(spec.folder, "a/b", ())
    with pytest.raises(CheckpointError, match=r"has no octavo\.json; cards are for what Octavo has quantized"):
        write_card(CardSpec(stories_folder, "a/b", spec.records), LOADS)
    with pytest.raises(CheckpointError, match=r"is not the model that was quantized: its config\.json is another"):
        write_card(CardSpec(spec.folder, "a/b", spec.records, spec.folder), LOADS)
    (spec.folder / "README.md").write_text("# By hand\n")
    with pytest.raises(OutputError, match=r"README\.md was not written by octavo card; move it away first"):
        write_card(spec, LOADS)


def test_a_base_folder_without_a_card_gives_no_license(spec: CardSpec, made: Path, tmp_path: Path) -> None:
    base = shutil.copytree(made / "base", tmp_path / "base")
    (base / "README.md").unlink()
    text = write_card(CardSpec(spec.folder, "a/b", spec.records, base), LOADS).read_text()
    assert "\nlicense:" not in text


def test_a_table_in_markdown() -> None:
    assert as_markdown(["a", "b"], [["1", "x|y"]]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |"


def test_what_is_published(spec: CardSpec) -> None:
    folder = spec.folder
    with pytest.raises(CheckpointError, match=r"has no README\.md; octavo card writes one$"):
        files_to_publish(folder)
    write_card(spec, LOADS)
    (folder / "notes.txt").write_text("mine")
    expected = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"notes.txt"}
    files = files_to_publish(folder)
    assert set(files) == expected and len(files) == len(expected)
    assert {"README.md", "octavo.json", "model.safetensors", "plots/kl-divergence.png"} <= set(files)


def test_a_card_of_other_weights_is_not_published(spec: CardSpec) -> None:
    card = write_card(spec, LOADS)
    record = spec.folder / "octavo.json"
    (spec.folder / "config.json").write_text((spec.folder / "config.json").read_text() + " ")
    with pytest.raises(CheckpointError, match=r"config\.json is changed"):
        files_to_publish(spec.folder)
    values = json.loads(record.read_text())
    values["files"]["config.json"] = sha256_of_file(spec.folder / "config.json")
    record.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"README\.md is of other weights .* octavo card$"):
        files_to_publish(spec.folder)
    assert card.exists()


def test_the_command_pushes(spec: CardSpec, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """What huggingface_hub does with it is tested with models by name."""
    from octavo import cli
    from octavo.model import hub

    asked: list[Any] = []
    monkeypatch.setattr(hub, "publish", lambda *words: asked.append(words) or "https://hub/leaves/small")
    write_card(spec, LOADS)
    monkeypatch.setattr(sys, "argv", ["octavo", "push", str(spec.folder), "leaves/small", "--private"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert asked == [(spec.folder, files_to_publish(spec.folder), "leaves/small", True)]
    assert capsys.readouterr().out == "https://hub/leaves/small\n"
