"""Streams and random draws, against a literal retelling of GPTQ's reference loop."""

import hashlib
import random
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from byte_tokenizer import byte_tokens, write_byte_tokenizer
from octavo.corpora import Conversation, Corpus
from octavo.errors import CorpusError
from octavo.model.text_windows import (
    draw_from_documents,
    draw_training_windows,
    sha256_of_tokens,
    token_stream,
)
from octavo.model.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def corpus(*documents: str, dataset: str | None = None, conversations: tuple[Conversation, ...] = ()) -> Corpus:
    return Corpus(dataset or "my.txt", dataset, documents, conversations, "", "")


def test_a_stream_begins_once_and_is_joined_before_it_is_tokenized(tokenizer: Tokenizer) -> None:
    stream = token_stream(corpus("one", "", "two <unk> é\n"), tokenizer)
    assert stream == byte_tokens("one\n\n\n\ntwo <unk> é\n")
    assert (stream[0], stream.count(1), stream.count(0)) == (1, 1, 1)
    assert token_stream(corpus("one", "two"), tokenizer, " ") == byte_tokens("one two")


def test_conversations_go_through_the_template_and_lie_end_to_end(tokenizer: Tokenizer) -> None:
    conversations = ((("user", "Hi"), ("assistant", "Ho")), (("user", "a</s><s>b"),))
    text = [ord(character) + 3 for character in "a</s><s>b"]
    assert token_stream(corpus(conversations=conversations), tokenizer) == [
        *byte_tokens("user: Hi</s><s>assistant: Ho</s><s>user: "),
        *text,  # typed by a user, control tokens are plain text
        2,
    ]


def test_a_conversation_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    folder = write_byte_tokenizer(tmp_path)
    config = folder / "tokenizer_config.json"
    config.write_text(
        config.read_text().replace("<s>{{ message['role']", "{{ raise_exception('no') }}{{ message['role']")
    )
    conversations = ((("user", "Hi"),),)
    with pytest.raises(
        CorpusError, match=r"conversation 1 of my\.txt cannot be written as a prompt: .*refuses these messages: no"
    ):
        token_stream(corpus(conversations=conversations), load_tokenizer(folder))


def test_a_conversation_with_an_unknown_role_is_named(tokenizer: Tokenizer) -> None:
    conversations = ((("user", "Hi"),), (("narrator", "Once"),))
    with pytest.raises(
        CorpusError, match=r"conversation 2 of my\.txt cannot be written as a prompt: .*'narrator'"
    ):
        token_stream(corpus(conversations=conversations), tokenizer)


def reference_windows_of_a_stream(tokens: list[int], samples: int, length: int, seed: int) -> list[list[int]]:
    random.seed(seed)
    windows = []
    for _ in range(samples):
        i = random.randint(0, len(tokens) - length - 1)
        windows.append(tokens[i : i + length])
    return windows


def reference_windows_of_documents(documents: list[str], samples: int, length: int, seed: int) -> list[list[int]]:
    random.seed(seed)
    windows = []
    for _ in range(samples):
        while True:
            i = random.randint(0, len(documents) - 1)
            tokens = byte_tokens(documents[i])
            if len(tokens) >= length:
                break
        i = random.randint(0, len(tokens) - length - 1)
        windows.append(tokens[i : i + length])
    return windows


@given(st.text("abc <é\n", min_size=20, max_size=200), st.integers(1, 20), st.integers(0, 2**32))
@settings(max_examples=50)
def test_windows_of_a_stream_are_the_references(tokenizer: Tokenizer, text: str, length: int, seed: int) -> None:
    windows = draw_training_windows(corpus(text), tokenizer, samples=5, length=length, seed=seed)
    assert windows.dtype == torch.int64
    assert windows.tolist() == reference_windows_of_a_stream(byte_tokens(text), 5, length, seed)


@given(st.lists(st.text("abc <é\n", max_size=40), min_size=1, max_size=12), st.integers(0, 2**32))
@settings(max_examples=50)
def test_windows_of_documents_are_the_references(tokenizer: Tokenizer, documents: list[str], seed: int) -> None:
    length = 16
    # A document of exactly the window's length ends the reference's run; see the next test.
    documents = [document for document in documents if len(byte_tokens(document)) != length]
    documents.append("a document <unk> that is <unk> long enough")
    drawn = draw_training_windows(corpus(*documents, dataset="c4"), tokenizer, 6, length, seed)
    assert drawn.tolist() == reference_windows_of_documents(documents, 6, length, seed)


def test_a_document_of_exactly_one_window_is_drawn_again(tokenizer: Tokenizer) -> None:
    exact, longer = "a" * 15, "b" * 16
    with pytest.raises(ValueError, match="empty range"):
        reference_windows_of_documents([exact, longer], 8, 16, 0)
    windows, documents = draw_from_documents(corpus(exact, longer), tokenizer, samples=8, length=16, seed=0)
    assert documents == [1] * 8
    assert windows.tolist() == [byte_tokens(longer)[:16]] * 8


def test_each_window_says_its_document(tokenizer: Tokenizer) -> None:
    texts = ["a" * 40, "short", "c" * 50]
    windows, documents = draw_from_documents(corpus(*texts), tokenizer, samples=20, length=16, seed=3)
    assert set(documents) == {0, 2}
    assert [texts[document][0] for document in documents] == [chr(row[-1] - 3) for row in windows.tolist()]


def test_the_global_generator_is_left_alone(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(random, "seed")
    monkeypatch.delattr(random, "randint")
    for dataset in ("c4", None):
        assert draw_training_windows(corpus("a" * 40, dataset=dataset), tokenizer, 3, 8, seed=1).shape == (
            3,
            8,
        )


def test_a_stream_that_is_too_short_says_by_how_much(tokenizer: Tokenizer) -> None:
    # 15 bytes and <s> are one window, but a start drawn from 0 … -1 is none.
    message = "my.txt has 16 tokens; to draw windows of 16 takes at least 17"
    with pytest.raises(CorpusError, match=message):
        draw_training_windows(corpus("a" * 15), tokenizer, samples=1, length=16, seed=0)
    assert len(draw_training_windows(corpus("a" * 16), tokenizer, samples=1, length=16, seed=0)) == 1


def test_documents_that_are_all_too_short_end_the_draws(tokenizer: Tokenizer) -> None:
    message = "none of the 3 documents of c4 has more than 16 tokens"
    with pytest.raises(CorpusError, match=message):
        draw_training_windows(corpus("a" * 15, "b", "", dataset="c4"), tokenizer, samples=1, length=16, seed=0)


def test_the_hash_is_over_little_endian_int64() -> None:
    tokens = torch.tensor([[1, 2], [300, 2**40]])
    expected = hashlib.sha256(struct.pack("<4q", 1, 2, 300, 2**40)).hexdigest()
    assert sha256_of_tokens(tokens) == expected
    assert sha256_of_tokens(tokens.T.contiguous().T) == expected
