"""Replies in pieces: the text of the whole, no half characters, no beginnings of stop strings, scores in step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byte_tokenizer import write_byte_tokenizer
from conftest import shared
from octavo.model.tokenizer import load_tokenizer
from octavo.runtime.generation import until_stop
from octavo.runtime.reply_text import ReplyText
from octavo.runtime.requests import Score


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory):
    return load_tokenizer(write_byte_tokenizer(tmp_path_factory.mktemp("bytes")))


def pieces_of(tokenizer, tokens, stop=(), continued=False):
    reply = ReplyText(tokenizer, stop, continued=continued)
    pieces = []
    for place, token in enumerate(tokens):
        pieces.append(reply.push(token, Score(-float(place), ())))
        if reply.stopped:
            break
    return [*pieces, reply.finish()]


def ids(text):
    return [3 + byte for byte in text.encode()]


def test_a_character_comes_with_its_last_byte(bytewise):
    pieces = pieces_of(bytewise, ids("a🦉b"))
    assert [piece.text for piece in pieces] == ["a", "", "", "", "🦉", "b", ""]
    assert [len(piece.tokens) for piece in pieces] == [1, 0, 0, 0, 4, 1, 0]
    tokens = [token for piece in pieces for token in piece.tokens]
    assert b"".join(token.data for token in tokens) == "a🦉b".encode()
    assert [token.offset for token in tokens] == [0, 1, 1, 1, 1, 2]
    assert [token.score.logprob for token in tokens] == [0, -1, -2, -3, -4, -5]


def test_an_unfinished_character_is_left_out_and_its_tokens_are_not(bytewise):
    pieces = pieces_of(bytewise, ids("a🦉")[:-1])
    assert "".join(piece.text for piece in pieces) == "a"
    assert sum(len(piece.tokens) for piece in pieces) == 4


def test_what_could_begin_a_stop_string_is_held_back(bytewise):
    pieces = pieces_of(bytewise, ids("one two END three"), stop=["END"])
    assert [piece.text for piece in pieces] == [*"one two ", "", "", "", ""]
    assert len(pieces) == len("one two END") + 1
    assert sum(len(piece.tokens) for piece in pieces) == len("one two ")
    pieces = pieces_of(bytewise, ids("one EN"), stop=["END"])
    assert [piece.text for piece in pieces] == [*"one ", "", "", "EN"]
    assert [len(piece.tokens) for piece in pieces] == [1, 1, 1, 1, 0, 0, 2]


def test_a_stop_string_may_lie_within_a_token():
    tokenizer = load_tokenizer(shared("tokenizers/llama-32000"))
    tokens = tokenizer.encode("Hello there", control_tokens=False)
    pieces = pieces_of(tokenizer, tokens, stop=["the"])
    assert "".join(piece.text for piece in pieces) == "Hello "
    pieces = pieces_of(tokenizer, tokens, stop=["ere"])
    assert "".join(piece.text for piece in pieces) == "Hello th"
    assert [token.data for piece in pieces for token in piece.tokens] == [b"Hello", b" there"]


def test_the_first_space_is_one_only_after_other_text():
    tokenizer = load_tokenizer(shared("tokenizers/llama-32000"))
    tokens = tokenizer.encode("Hello", control_tokens=False)
    for continued, text in ((False, "Hello"), (True, " Hello")):
        (piece, _) = pieces_of(tokenizer, tokens, continued=continued)
        assert piece.text == text and piece.tokens[0].data == text.encode()


STOPS = st.lists(st.text(alphabet="ab🦉", min_size=1, max_size=4), max_size=4)


@given(st.text(alphabet="aab🦉é", max_size=30), STOPS)
def test_pieces_join_to_the_text_before_the_first_stop_string(bytewise, text, stop):
    pieces = pieces_of(bytewise, ids(text), stop)
    joined = "".join(piece.text for piece in pieces)
    assert joined == "".join(until_stop([text], stop)) == "".join(until_stop(text, stop))
    tokens = [token for piece in pieces for token in piece.tokens]
    assert b"".join(token.data for token in tokens) == joined.encode()
    settled = ""
    for piece in pieces:
        settled += piece.text
        for token in piece.tokens:  # each lies in the text that has come, where it says
            assert token.data in settled[token.offset].encode()
