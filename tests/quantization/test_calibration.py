"""Calibration windows against the reference's loaders, told again over files in the real layout."""

import gzip
import hashlib
import json
import random
from pathlib import Path

import pytest
import torch

from byte_tokenizer import byte_tokens, write_byte_tokenizer
from conftest import shared
from octavo.errors import CorpusError, UsageError
from octavo.model.text_windows import sha256_of_tokens
from octavo.model.tokenizer import Tokenizer, load_tokenizer
from octavo.quantization.calibration import calibration_tokens
from octavo.quantization.recipe import CalibrationSpec

ROWS = ["", " = A title = \n", "", *[f" Sentence {k} of <unk> and N , é . \n" for k in range(40)]]
DOCUMENTS = [f"Document {k}: " + "lorem ipsum " * k for k in range(30)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("wikitext2", "ptb", "c4"):
        (tmp_path / name).mkdir()
    (tmp_path / "wikitext2" / "train.txt").write_text("".join(row or " \n" for row in ROWS))
    (tmp_path / "ptb" / "ptb.train.txt").write_text("".join(f" {row.strip()} \n" for row in ROWS))
    shard = "".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS)
    (tmp_path / "c4" / "c4-train.00000-of-01024.json.gz").write_bytes(gzip.compress(shard.encode()))
    return tmp_path


def reference_stream_windows(text: str, samples: int, length: int, seed: int) -> list[list[int]]:
    tokens = byte_tokens(text)
    random.seed(seed)
    starts = [random.randint(0, len(tokens) - length - 1) for _ in range(samples)]
    return [tokens[start : start + length] for start in starts]


def reference_c4_windows(samples: int, length: int, seed: int) -> list[list[int]]:
    random.seed(seed)
    windows = []
    for _ in range(samples):
        while True:
            i = random.randint(0, len(DOCUMENTS) - 1)
            tokens = byte_tokens(DOCUMENTS[i])
            if len(tokens) >= length:
                break
        i = random.randint(0, len(tokens) - length - 1)
        windows.append(tokens[i : i + length])
    return windows


@pytest.mark.parametrize("seed", [0, 1, 2023])
@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("wikitext2", lambda *draw: reference_stream_windows("\n\n".join(ROWS), *draw)),
        ("ptb", lambda *draw: reference_stream_windows("\n\n".join(row.strip() for row in ROWS), *draw)),
        ("c4", reference_c4_windows),
    ],
)
def test_samples_are_the_references(tokenizer: Tokenizer, data: Path, text: str, reference, seed: int) -> None:
    spec = CalibrationSpec(text, samples=20, sequence_length=100, seed=seed, data_dir=data)
    calibration = calibration_tokens(spec, tokenizer)
    assert calibration.tokens.dtype == torch.int64
    assert calibration.tokens.tolist() == reference(20, 100, seed)
    assert calibration.text == text
    path = Path(calibration.source)
    assert path.is_relative_to(data / text)
    assert calibration.text_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert calibration.tokens_sha256 == sha256_of_tokens(calibration.tokens)


def test_the_defaults_are_the_references() -> None:
    spec = CalibrationSpec()
    assert (spec.text, spec.samples, spec.sequence_length, spec.seed, spec.data_dir) == ("c4", 128, 2048, 0, None)


def test_files_of_documents_are_one_stream(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS))
    calibration = calibration_tokens(CalibrationSpec(str(path), samples=9, sequence_length=64), tokenizer)
    assert calibration.tokens.tolist() == reference_stream_windows("\n\n".join(DOCUMENTS), 9, 64, 0)
    assert (calibration.text, calibration.source) == ("mine.jsonl", str(path))


def test_files_of_conversations_go_through_the_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "sharegpt.json"
    turns = [{"from": "human", "value": "How are you?"}, {"from": "gpt", "value": "Well, and you?"}]
    path.write_text(json.dumps([{"conversations": turns}] * 3))
    calibration = calibration_tokens(CalibrationSpec(str(path), samples=7, sequence_length=20), tokenizer)
    rendered = "<s>user: How are you?</s><s>assistant: Well, and you?</s>" * 3
    assert calibration.tokens.tolist() == reference_stream_windows(rendered.removeprefix("<s>"), 7, 20, 0)


def test_a_text_that_is_too_short_says_by_how_much(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("too short")
    with pytest.raises(
        CorpusError, match=r"short\.txt has 10 tokens; to draw windows of 2048 takes at least 2049"
    ):
        calibration_tokens(CalibrationSpec(str(path)), tokenizer)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"samples": 0}, "0 calibration samples are too few"), ({"sequence_length": 0}, "length of 0 is too short")],
)
def test_what_cannot_be_asked_for(fields: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CalibrationSpec("c4", **fields)


def test_real_texts_in_llama_tokens() -> None:
    tokenizer = load_tokenizer(shared("tokenizers/llama-32000"))
    spec = CalibrationSpec(str(shared("corpora/calibration/tinystories.txt")), samples=4, sequence_length=256)
    first, second = calibration_tokens(spec, tokenizer), calibration_tokens(spec, tokenizer)
    assert first.tokens.shape == (4, 256)
    assert first.tokens_sha256 == second.tokens_sha256
    assert "Lily" in tokenizer.decode(first.tokens.flatten().tolist())
