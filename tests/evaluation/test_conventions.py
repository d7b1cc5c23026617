"""The conventions of other tools against those tools' own rules, told again token by token."""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from byte_tokenizer import byte_tokens, write_byte_tokenizer
from octavo.errors import CorpusError, UsageError
from octavo.evaluation.protocol import EvaluationWindows, evaluation_windows
from octavo.evaluation.results import perplexity_values
from octavo.evaluation.spec import LINE_UP, EvaluationSpec
from octavo.model.tokenizer import Tokenizer, load_tokenizer

CONTEXT = 8192
WORDS = ["tower", "of", "the", "@-@", "year", ",", "and", "é", "( old )", "<unk>", "."]

# What is predicted: a token, and all that the model sees before it.
Prediction = tuple[tuple[int, ...], int]


def page(generator: random.Random, title: str, paragraphs: int) -> str:
    lines = [f" = {title} = \n", " \n"]
    for _ in range(paragraphs):
        lines += [f" {' '.join(generator.choices(WORDS, k=generator.randint(20, 60)))} \n", " \n"]
    return "".join([*lines, " = = A part = = \n", " \n", " The end . \n"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def raw() -> str:
    generator = random.Random(3)
    return " \n" + " \n \n".join(page(generator, title, 12) for title in ("One", "Two", "Three"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, raw: str) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name in ("wikitext2", "ptb"):
        (folder / name).mkdir()
    (folder / "wikitext2" / "test.txt").write_text(raw)
    (folder / "ptb" / "ptb.valid.txt").write_text(" no it was n't\n the n <unk> N\n" * 30)
    return folder


def windows_of(data: Path, tokenizer: Tokenizer, protocol: str, **more: object) -> EvaluationWindows:
    return evaluation_windows(EvaluationSpec("wikitext2", protocol, data_dir=data, **more), tokenizer, CONTEXT)


def predictions(result: EvaluationWindows) -> Iterator[Prediction]:
    for window, span in zip(result.windows.tolist(), result.spans, strict=True):
        for place in range(span.first, span.end):
            yield tuple(window[:place]), window[place]


def plain_tokens(text: str) -> list[int]:
    """Control tokens spelled out stay text, as llama.cpp reads a file."""
    return [1, *(3 + byte for byte in text.encode())]


@pytest.mark.parametrize("length", [64, 65])
def test_llamacpp_scores_the_second_half_behind_a_fresh_start_token(
    tokenizer: Tokenizer, data: Path, raw: str, length: int
) -> None:
    tokens = plain_tokens(raw)
    expected = []
    for chunk in range(len(tokens) // length):
        window = tokens[chunk * length : (chunk + 1) * length]
        window[0] = 1
        # Logits from place length / 2 on predict the token after them.
        expected += [(tuple(window[: j + 1]), window[j + 1]) for j in range(length // 2, length - 1)]
    result = windows_of(data, tokenizer, f"llamacpp@{length}")
    assert list(predictions(result)) == expected
    assert result.weights == [1.0] * (len(tokens) // length)
    assert result.protocol == f"llamacpp@{length}"


def test_llamacpp_puts_no_start_token_where_the_tokenizer_has_none(tmp_path: Path, data: Path, raw: str) -> None:
    folder = write_byte_tokenizer(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": False}))
    result = windows_of(data, load_tokenizer(folder), "llamacpp@64")
    assert result.windows[0].tolist() == plain_tokens(raw)[1:65]
    assert result.windows[1].tolist() == plain_tokens(raw)[65:129]


def test_llamacpp_reads_ptb_as_its_file(tokenizer: Tokenizer, data: Path) -> None:
    spec = EvaluationSpec("ptb", "llamacpp@32", data_dir=data)
    result = evaluation_windows(spec, tokenizer, CONTEXT)
    assert result.windows[0].tolist() == plain_tokens(" no it was n't \n the n <unk> N \n")[:32]


def transformers_guide(tokens: list[int], max_length: int, stride: int) -> Iterator[tuple[list[Prediction], int]]:
    """Each window's labels that are not −100, shifted, and the number that its mean loss is multiplied by."""
    previous_end = 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + max_length, len(tokens))
        inputs = tokens[begin:end]
        labels = [-100] * (len(inputs) - (end - previous_end)) + inputs[-(end - previous_end) :]
        valid = [
            (tuple(inputs[:place]), inputs[place]) for place in range(1, len(inputs)) if labels[place] != -100
        ]
        yield valid, sum(label != -100 for label in labels) - 1
        previous_end = end
        if end == len(tokens):
            return


@pytest.mark.parametrize("length", [512, 600, 1024])
def test_strided_windows_are_those_of_transformers_guide(
    tokenizer: Tokenizer, data: Path, raw: str, length: int
) -> None:
    rows = [row if row.strip() else "" for row in raw.splitlines(keepends=True)]
    tokens = byte_tokens("\n\n".join(rows))
    expected = list(transformers_guide(tokens, length, 512))
    assert len(expected) > 3
    result = windows_of(data, tokenizer, "strided-512", length=length)
    assert list(predictions(result)) == [each for valid, _ in expected for each in valid]
    assert result.weights == [weight for _, weight in expected]
    two = windows_of(data, tokenizer, "strided-512", length=length, windows=2)
    assert two.windows.tolist() == result.windows[:2].tolist() and two.spans == result.spans[:2]


def test_a_stride_longer_than_the_window_is_refused(tokenizer: Tokenizer, data: Path) -> None:
    with pytest.raises(UsageError, match="windows of 511 tokens would leave gaps; ask for at least 512"):
        windows_of(data, tokenizer, "strided-512", length=511)


def harness_windows(tokens: list[int], prefix: int, longest: int) -> Iterator[tuple[list[int], list[int]]]:
    """lm-evaluation-harness's rolling windows with a context of one: (input, what its last places predict)."""
    predicted = min(longest, len(tokens))
    yield [prefix, *tokens[: predicted - 1]], tokens[:predicted]
    while predicted < len(tokens):
        end = predicted + min(len(tokens) - predicted, longest)
        yield tokens[end - longest - 1 : end - 1], tokens[predicted:end]
        predicted = end


@pytest.mark.parametrize("length", [50, 97, 100_000])
def test_pages_are_predicted_as_the_harness_does(tokenizer: Tokenizer, raw: str, data: Path, length: int) -> None:
    starts = [raw.index(f" = {title} = \n") for title in ("One", "Two", "Three")]
    # The text in front of the first heading is blank and no page.
    pages = [raw[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    pages[:2] = [page.removesuffix("\n") for page in pages[:2]]
    expected: list[Prediction] = []
    for text in pages:
        ordinary = text.replace(" @-@ ", "-").replace(" . ", ". ").replace(" , ", ", ")
        for spaced, joined in (("( ", "("), (" )", ")"), ("= =", "=="), (" \n", "\n"), ("\n ", "\n")):
            ordinary = ordinary.replace(spaced, joined)
        for inputs, predicted in harness_windows(byte_tokens(ordinary)[1:], 1, length):
            skipped = len(inputs) - len(predicted)
            expected += [(tuple(inputs[: skipped + n + 1]), token) for n, token in enumerate(predicted)]
    spec = EvaluationSpec("wikitext2", "lm-eval-word", length, data_dir=data)
    result = evaluation_windows(spec, tokenizer, 100_000)
    got = list(predictions(result))
    assert len(got) == len(expected)
    assert got == expected


def test_the_perplexity_of_pages_is_per_word(tokenizer: Tokenizer, raw: str, data: Path) -> None:
    result = windows_of(data, tokenizer, "lm-eval-word", length=50)
    generator = random.Random(0)
    losses = [generator.uniform(0, 3) for _ in result.spans]
    total = sum(loss * (span.end - span.first) for loss, span in zip(losses, result.spans, strict=True))
    # Each page's words, and an empty piece at either end; the first two pages end in the middle of a blank line.
    words = len(raw.split()) + 2 * 3
    assert sum(result.weights) == pytest.approx(words)
    assert perplexity_values(result, losses)["perplexity"] == pytest.approx(math.exp(total / words))


@pytest.mark.parametrize("protocol", LINE_UP)
def test_every_convention_of_the_line_up_says_what_it_did(tokenizer: Tokenizer, data: Path, protocol: str) -> None:
    spec = EvaluationSpec("wikitext2", protocol.replace("4096", "1024"), windows=2, data_dir=data)
    result = evaluation_windows(spec, tokenizer, CONTEXT)
    assert result.protocol.startswith(protocol.partition("@")[0])
    assert len(result.windows) == len(result.spans) == 2
    assert " 2 of " in result.description


def test_a_convention_is_refused_for_texts_it_is_not_made_for(
    tokenizer: Tokenizer, tmp_path: Path, data: Path
) -> None:
    with pytest.raises(CorpusError, match="lm-eval-word is defined for wikitext2 alone; measure ptb by another"):
        evaluation_windows(EvaluationSpec("ptb", "lm-eval-word", data_dir=data), tokenizer, CONTEXT)
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    for protocol in ("llamacpp", "strided-512"):
        with pytest.raises(CorpusError, match=f"{protocol} is not defined for conversations"):
            evaluation_windows(EvaluationSpec(str(path), protocol), tokenizer, CONTEXT)


def test_windows_beyond_the_context_are_refused(tokenizer: Tokenizer, data: Path) -> None:
    with pytest.raises(
        UsageError, match="gptq@4096 with windows of 4096 tokens does not fit the model's context of 2048"
    ):
        evaluation_windows(EvaluationSpec("wikitext2", "gptq@4096", data_dir=data), tokenizer, 2048)
