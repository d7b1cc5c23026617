"""Character cards of every format in use, and what pretends to be one."""

import base64
import json
import struct
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from octavo.errors import UsageError
from octavo.server.characters import Character, read_character

TAVERN = {"name": "Ada", "description": "A mathematician.", "personality": "exact", "first_mes": "Good day."}


def png(*chunks):
    parts = [(b"IHDR", bytes(13)), *chunks, (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def in_png(card):
    return png((b"tEXt", b"Software\0none"), (b"tEXt", b"chara\0" + base64.b64encode(json.dumps(card).encode())))


ADA = Character("Ada", "A mathematician.\n\nexact", "Good day.")


@pytest.mark.parametrize(
    "card",
    [
        json.dumps(TAVERN).encode(),
        b"\xef\xbb\xbf" + json.dumps(TAVERN).encode(),
        json.dumps({"spec": "chara_card_v2", "data": TAVERN}).encode(),
        in_png(TAVERN),
        in_png({"spec": "chara_card_v2", "name": "old", "data": TAVERN}),
        b"name: Ada\ncontext: |\n  A mathematician.\n\n  exact\ngreeting: Good day.\n",
    ],
)
def test_the_same_character_from_each_format(card):
    assert read_character(card) == ADA


def test_pygmalion_and_its_examples():
    card = {
        "char_name": "Ada",
        "char_persona": "She counts.",
        "example_dialogue": "You: 1?\nAda: 2.",
        "char_greeting": "Hi",
    }
    expected = Character("Ada", "She counts.\n\nExample:\nYou: 1?\nAda: 2.", "Hi")
    assert read_character(json.dumps(card).encode()) == expected


@pytest.mark.parametrize(
    ("card", "complaint"),
    [
        (b"just a text", "no fields"),
        (b"[1, 2]", "no fields"),
        (b'{"greeting": "Hi"}', "names nobody"),
        (b'{"name": ["a"]}', "names nobody"),
        (b"{broken", "neither a PNG"),
        (b"\xff\xfe\x00", "neither a PNG"),
        (b"a: [", "YAML is broken"),
        (b"name: !!python/object/apply:os.system ['true']", "YAML is broken"),
        (b"a: &a [x]\nname: n\nb: [*a, *a]", "aliases"),
        (b"name: " + b"n" * 300, "longer"),
        (b"[" * 100_000, "deeper"),
        (b"- " * 100_000, "deeper"),
        (b"? " * 100_000, "deeper"),
        (b"name: n\n" + b"x: 1\n" * 100_000, "longer"),
        (b'{"a":' * 100_000, "neither a PNG"),
        (png(), "carries no character card"),
        (png((b"tEXt", b"chara\0no base64!")), "damaged"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 40, "carries no character card"),
    ],
)
def test_what_is_no_card_is_refused_in_a_sentence(card, complaint):
    with pytest.raises(UsageError, match=complaint):
        read_character(card)


@given(st.binary(max_size=300), st.booleans())
@example(b"? : nothing", False)
@example(b"1: one\nname: Ann", False)
def test_whatever_comes_is_a_card_or_refused(data, as_picture):
    try:
        read_character((b"\x89PNG\r\n\x1a\n" if as_picture else b"") + data)
    except UsageError as refusal:
        assert str(refusal)
