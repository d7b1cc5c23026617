"""Each protocol against the reference's loader, told again over the files themselves."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

from byte_tokenizer import byte_tokens, write_byte_tokenizer
from conftest import shared
from octavo.errors import CorpusError, TemplateError, UsageError
from octavo.evaluation.protocol import Span, benchmark_window, evaluation_windows
from octavo.evaluation.spec import EvaluationSpec
from octavo.model.text_windows import sha256_of_tokens
from octavo.model.tokenizer import Tokenizer, load_tokenizer

LENGTH = 60
CONTEXT = 8192
WORDS = ["market", "<unk>", "N", "the", "é", "plan", "of", "shares", "said", "–"]


def sentences(generator: random.Random, count: int) -> list[str]:
    return [" ".join(generator.choices(WORDS, k=generator.randint(3, 12))) for _ in range(count)]


def documents(generator: random.Random, count: int) -> list[str]:
    texts = ["\n".join(sentences(generator, generator.randint(1, 6))) for _ in range(count)]
    return [text if len(byte_tokens(text)) != LENGTH else text + "." for text in texts]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three texts as the hub has them, small. No document of C4 has exactly one window of tokens."""
    folder = tmp_path_factory.mktemp("data")
    generator = random.Random(0)
    for name in ("wikitext2", "ptb", "c4"):
        (folder / name).mkdir()
    for split in ("train", "test"):
        lines = [line for text in sentences(generator, 60) for line in (" \n", f" {text} \n")]
        (folder / "wikitext2" / f"{split}.txt").write_text("".join(lines))
    for split in ("train", "valid", "test"):
        lines = [f" {text} \n" for text in sentences(generator, 60)]
        (folder / "ptb" / f"ptb.{split}.txt").write_text("".join(lines))
    for name, count in (("c4-train.00000-of-01024", 50), ("c4-validation.00000-of-00008", 1200)):
        lines = [json.dumps({"text": text, "url": ""}) + "\n" for text in documents(generator, count)]
        (folder / "c4" / f"{name}.json.gz").write_bytes(gzip.compress("".join(lines).encode()))
    return folder


def wikitext2_rows(data: Path, split: str) -> list[str]:
    with (data / "wikitext2" / f"{split}.txt").open() as file:
        return [row if row.strip() else "" for row in file]


def ptb_rows(data: Path, split: str) -> list[str]:
    with (data / "ptb" / f"ptb.{split}.txt").open() as file:
        return [line.strip() for line in file]


def c4_rows(data: Path, split: str) -> list[str]:
    (path,) = (data / "c4").glob(f"c4-{split}.*")
    with gzip.open(path, "rt") as file:
        return [json.loads(line)["text"] for line in file]


def cut(tokens: list[int], length: int) -> list[list[int]]:
    return [tokens[i * length : (i + 1) * length] for i in range(len(tokens) // length)]


def c4_slices(rows: list[str], length: int) -> list[list[int]]:
    random.seed(0)
    tokens: list[int] = []
    for _ in range(256):
        while True:
            i = random.randint(0, len(rows) - 1)
            document = byte_tokens(rows[i])
            if len(document) >= length:
                break
        i = random.randint(0, len(document) - length - 1)
        tokens += document[i : i + length]
    return cut(tokens, length)


@pytest.mark.parametrize(
    ("text", "protocol", "expected"),
    [
        ("wikitext2", "gptq", lambda data: cut(byte_tokens("\n\n".join(wikitext2_rows(data, "test"))), LENGTH)),
        (
            "wikitext2",
            "gptq-new",
            lambda data: cut(byte_tokens("\n\n".join(wikitext2_rows(data, "test"))), LENGTH),
        ),
        ("ptb", "gptq", lambda data: cut(byte_tokens("\n\n".join(ptb_rows(data, "valid"))), LENGTH)),
        ("ptb", "gptq-new", lambda data: cut(byte_tokens(" ".join(ptb_rows(data, "test"))), LENGTH)),
        ("c4", "gptq", lambda data: c4_slices(c4_rows(data, "validation"), LENGTH)),
        (
            "c4",
            "gptq-new",
            lambda data: cut(byte_tokens(" ".join(c4_rows(data, "validation")[:1100]))[: 256 * LENGTH], LENGTH),
        ),
    ],
)
def test_windows_are_the_references(tokenizer: Tokenizer, data: Path, text: str, protocol: str, expected) -> None:
    result = evaluation_windows(EvaluationSpec(text, protocol, LENGTH, data_dir=data), tokenizer, CONTEXT)
    assert result.windows.dtype == torch.int64
    assert result.windows.tolist() == expected(data)
    assert (result.protocol, result.text) == (f"{protocol}@{LENGTH}", text)
    assert result.spans == (Span(1, LENGTH),) * len(result.windows)
    assert result.tokens_sha256 == sha256_of_tokens(result.windows)
    assert result.source.startswith(str(data / text))
    first = evaluation_windows(
        EvaluationSpec(text, protocol, LENGTH, windows=3, data_dir=data), tokenizer, CONTEXT
    )
    assert first.windows.tolist() == result.windows[:3].tolist()
    assert first.tokens_sha256 != result.tokens_sha256


def test_c4_new_ends_with_its_last_document(tokenizer: Tokenizer, data: Path) -> None:
    length = 1000
    expected = cut(byte_tokens(" ".join(c4_rows(data, "validation")[:1100])), length)
    assert 0 < len(expected) < 256
    result = evaluation_windows(EvaluationSpec("c4", "gptq-new", length, data_dir=data), tokenizer, CONTEXT)
    assert result.windows.tolist() == expected


def test_what_a_result_says_of_a_stream(tokenizer: Tokenizer, data: Path) -> None:
    spec = EvaluationSpec("ptb", "gptq-new", LENGTH, windows=2, data_dir=data)
    result = evaluation_windows(spec, tokenizer, CONTEXT)
    total = len(byte_tokens(" ".join(ptb_rows(data, "test"))))
    assert total % LENGTH != 0
    assert result.tokens_total == total
    assert result.description == (
        f'ptb: 60 documents joined by " ", {total:,} tokens, first 2 of {total // LENGTH} windows of {LENGTH}'
    )


def test_what_a_result_says_of_slices(tokenizer: Tokenizer, data: Path) -> None:
    result = evaluation_windows(EvaluationSpec("c4", "gptq", LENGTH, data_dir=data), tokenizer, CONTEXT)
    assert result.windows.shape == (256, LENGTH)
    assert result.tokens_total == 256 * LENGTH
    drawn = {tuple(row) for row in result.windows.tolist()}
    assert len(drawn) > 200
    assert result.description.startswith(f"c4: first 256 of 256 random windows of {LENGTH} (seed 0), from 2")
    assert result.description.endswith(" of 1,200 documents")


def test_more_windows_than_there_are_give_all(tokenizer: Tokenizer, data: Path) -> None:
    spec = EvaluationSpec("c4", "gptq-new", LENGTH, windows=10_000, data_dir=data)
    result = evaluation_windows(spec, tokenizer, CONTEXT)
    assert result.windows.shape == (256, LENGTH)
    assert result.tokens_total == 256 * LENGTH


def test_a_sample_of_c4_says_what_it_is_and_what_came_of_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "c4").mkdir()
    lines = [json.dumps({"text": "x" * size}) + "\n" for size in (100, 20, 79)]
    (tmp_path / "c4" / "mine.jsonl").write_text("".join(lines))
    slices = evaluation_windows(EvaluationSpec("c4", "gptq", 50, data_dir=tmp_path), tokenizer, CONTEXT)
    assert slices.text == "c4-sample(3 docs), 256 windows"
    assert slices.description == (
        "c4-sample(3 docs), 256 windows: first 256 of 256 random windows of 50 (seed 0), from 2 of 3 documents"
    )
    # 1 + 100 + 1 + 20 + 1 + 79 tokens
    contiguous = evaluation_windows(EvaluationSpec("c4", "gptq-new", 50, data_dir=tmp_path), tokenizer, CONTEXT)
    assert (contiguous.text, contiguous.tokens_total) == ("c4-sample(3 docs), 4 windows", 202)
    single = evaluation_windows(
        EvaluationSpec("c4", "gptq-new", 50, windows=1, data_dir=tmp_path), tokenizer, CONTEXT
    )
    assert single.text == "c4-sample(3 docs), 1 window"


def test_a_shard_of_few_documents_is_not_called_c4(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "c4").mkdir()
    line = json.dumps({"text": "x" * 99}) + "\n"
    shard = tmp_path / "c4" / "c4-validation.00000-of-00008.json.gz"
    for count, name in ((1099, "c4(1099 docs), 2 windows"), (1100, "c4")):
        shard.write_bytes(gzip.compress(line.encode() * count))
        spec = EvaluationSpec("c4", "gptq-new", 50, windows=2, data_dir=tmp_path)
        assert evaluation_windows(spec, tokenizer, CONTEXT).text == name


def test_a_file_is_plain_whatever_the_protocol(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text('{"text": "first"}\n{"text": "second"}\n')
    stream = byte_tokens("first\n\nsecond")
    for protocol in ("gptq", "gptq-new"):
        result = evaluation_windows(EvaluationSpec(str(path), protocol, 4), tokenizer, CONTEXT)
        assert (result.protocol, result.text, result.source) == ("plain", "two.jsonl", str(path))
        assert result.windows.tolist() == cut(stream, 4)
        assert (
            result.description == 'two.jsonl: 2 documents joined by "\\n\\n", 14 tokens, first 3 of 3 windows of 4'
        )


def test_a_file_of_conversations_is_chat(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    path.write_text(json.dumps({"messages": messages}) + "\n")
    result = evaluation_windows(EvaluationSpec(str(path), length=10), tokenizer, CONTEXT)
    assert result.protocol == "chat"
    assert result.windows.tolist() == cut(byte_tokens("user: Hi</s><s>assistant: Ho</s>"), 10)
    assert result.description == (
        "chat.jsonl: 1 conversation through the chat template, 25 tokens, first 2 of 2 windows of 10"
    )


def test_a_file_of_conversations_needs_a_template(tmp_path: Path) -> None:
    folder = write_byte_tokenizer(tmp_path)
    (folder / "tokenizer_config.json").write_text("{}")
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    with pytest.raises(TemplateError, match="has no chat template"):
        evaluation_windows(EvaluationSpec(str(path)), load_tokenizer(folder), CONTEXT)


def test_a_text_shorter_than_a_window_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("abc")
    result = evaluation_windows(EvaluationSpec(str(path), length=4), tokenizer, CONTEXT)
    assert result.windows.shape == (1, 4)
    assert result.description == 'short.txt: 1 document joined by "\\n\\n", 4 tokens, first 1 of 1 windows of 4'
    with pytest.raises(CorpusError, match=r"short\.txt has 4 tokens, which fill no window of 5"):
        evaluation_windows(EvaluationSpec(str(path), length=5), tokenizer, CONTEXT)


@pytest.mark.parametrize("text", ["wikitext2", "ptb", "c4"])
def test_the_benchmark_window_is_the_first_calibration_sample(
    tokenizer: Tokenizer, tmp_path: Path, text: str
) -> None:
    data = tmp_path
    generator = random.Random(1)
    long_text = [" ".join(sentences(generator, 100)) for _ in range(3)]
    (data / text).mkdir()
    if text == "c4":
        packed = gzip.compress("".join(json.dumps({"text": row}) + "\n" for row in long_text).encode())
        (data / "c4" / "c4-train.00000-of-01024.json.gz").write_bytes(packed)
    else:
        name = "train.txt" if text == "wikitext2" else "ptb.train.txt"
        (data / text / name).write_text("".join(f" {row} \n" for row in long_text))
    random.seed(0)
    if text == "c4":
        stream = byte_tokens(long_text[random.randint(0, 2)])
    else:
        rows = wikitext2_rows(data, "train") if text == "wikitext2" else ptb_rows(data, "train")
        stream = byte_tokens("\n\n".join(rows))
    start = random.randint(0, len(stream) - 2048 - 1)
    for tokens in (2048, 100):
        result = benchmark_window(text, tokenizer, tokens, data)
        assert result.windows.tolist() == [stream[start : start + tokens]]
        assert (result.protocol, result.tokens_total) == ("benchmark", tokens)
    random.seed(0)
    if text == "c4":
        random.randint(0, 2)
    start = random.randint(0, len(stream) - 2100 - 1)
    assert benchmark_window(text, tokenizer, 2100, data).windows.tolist() == [stream[start : start + 2100]]


def test_the_benchmark_window_is_drawn_long_and_then_cut(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "ptb").mkdir()
    (tmp_path / "ptb" / "ptb.train.txt").write_text("a" * 2047)
    with pytest.raises(CorpusError, match="ptb has 2048 tokens; to draw windows of 2048 takes at least 2049"):
        benchmark_window("ptb", tokenizer, 100, tmp_path)


def test_the_benchmark_window_of_a_file_is_as_short_as_asked(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("abcdef")
    assert benchmark_window(str(path), tokenizer, 6).windows.tolist() == [byte_tokens("abcdef")[:6]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"protocol": "gtpq"},
            "gtpq is no protocol; choose gptq, gptq-new, llamacpp, strided-512, lm-eval-word, or",
        ),
        ({"protocol": "gptq@"}, "gptq@ has no length behind its @; write it like gptq@4096"),
        ({"protocol": "gptq@0"}, "gptq@0 has no length behind its @"),
        ({"protocol": "gptq@many"}, "gptq@many has no length behind its @"),
        ({"protocol": "gptq@1"}, "a window of length 1 predicts nothing"),
        ({"protocol": "gptq@4096", "length": 2048}, "gptq@4096 and a length of 2048 contradict each other"),
        ({"length": 1}, "a window of length 1 predicts nothing"),
        ({"windows": 0}, "0 windows give no perplexity"),
    ],
)
def test_what_cannot_be_asked_for(fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Outside of tests nothing checks annotations, and a caller may give any name for a protocol.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UsageError, match=message):
        EvaluationSpec(**fields)


def test_a_benchmark_of_one_token_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="a benchmark of 1 tokens predicts nothing"):
        benchmark_window("ptb", tokenizer, 1)


def test_the_real_wikitext2_in_llama_tokens() -> None:
    tokenizer = load_tokenizer(shared("tokenizers/llama-32000"))
    spec = EvaluationSpec("wikitext2", data_dir=shared("corpora"))
    result = evaluation_windows(spec, tokenizer, CONTEXT)
    assert (result.tokens_total, len(result.windows)) == (341_469, 166)
    assert result.windows[0, 0] == 1
    assert int((result.windows == 1).sum()) == 1
