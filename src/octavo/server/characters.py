"""Character cards, as text-generation-webui, Pygmalion and TavernAI write them: read as data, within bounds."""

import base64
import binascii
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import UsageError

LONGEST_NAME = 200
LONGEST_TEXT = 200_000  # characters
LONGEST_YAML = 2 * LONGEST_TEXT  # it is read at some fifty thousand characters a second
DEEPEST = 64
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# What each field is called in the formats in use; of those that are there, all are taken, in this order.
NAMES = ("name", "char_name", "bot", "Bot")
CONTEXTS = ("context", "description", "char_persona", "personality", "scenario", "world_scenario")
EXAMPLES = ("example_dialogue", "mes_example")
GREETINGS = ("greeting", "first_mes", "char_greeting")


@dataclass(frozen=True)
class Character:
    """Who a model plays: `context` goes before the conversation, `greeting` is what is seen first."""

    name: str
    context: str
    greeting: str


def read_character(data: bytes) -> Character:
    """A card from a PNG that carries one, JSON or YAML; UsageError for anything else."""
    card = _mapping(_json_in_png(data) if data.startswith(PNG_SIGNATURE) else data)
    inner = card.get("data")
    if isinstance(inner, Mapping) and str(card.get("spec", "")).startswith("chara_card"):
        card = dict(inner)
    context = _texts(card, CONTEXTS)
    if example := _texts(card, EXAMPLES):
        context.append("Example:\n" + "\n".join(example))
    name = "".join(_texts(card, NAMES)[:1]).strip()
    if not name:
        raise UsageError("this card names nobody: it needs a name; choose a TavernAI, Pygmalion or YAML card")
    character = Character(name, "\n\n".join(context), "\n".join(_texts(card, GREETINGS)[:1]))
    if len(character.name) > LONGEST_NAME or len(character.context) + len(character.greeting) > LONGEST_TEXT:
        raise UsageError(f"this card is longer than {LONGEST_TEXT} characters; shorten it")
    return character


def _texts(card: Mapping[str, Any], fields: tuple[str, ...]) -> list[str]:
    return [value.strip() for field in fields if isinstance(value := card.get(field), str) and value.strip()]


def _mapping(data: bytes) -> dict[str, Any]:
    """JSON, or the YAML that is only data."""
    try:
        text = data.decode("utf-8-sig")
        card = json.loads(text) if text.lstrip().startswith("{") else _yaml(text)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError("this file is no character card: neither a PNG with one, nor JSON, nor YAML") from error
    if not isinstance(card, dict):
        raise UsageError("this file is no character card: it has no fields such as name and greeting")
    return {key: value for key, value in card.items() if isinstance(key, str)}  # YAML has other keys, too


def _yaml(text: str) -> Any:
    """Plain YAML. Aliases are refused, for a few lines of them stand for gigabytes, and so are deep lists, for the
    time to read one grows with the square of its depth.
    """
    import yaml

    if len(text) > LONGEST_YAML:
        raise UsageError(f"this card is longer than {LONGEST_YAML} characters; shorten it")
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):  # as it is read: what is too much is not read on
            if isinstance(event, yaml.AliasEvent):
                raise UsageError("this card uses YAML aliases, which are not read; write the text out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise UsageError("this card nests lists deeper than a card does; take some out")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError("this file is no character card: its YAML is broken; mend it") from error


def _json_in_png(data: bytes) -> bytes:
    """The card in a text chunk of a PNG: keyword, zero byte, base64 (PNG specification, 11.3.4.3)."""
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = data[position + 8 : position + 8 + length]
        keyword, _, text = chunk.partition(b"\0")
        if kind == b"tEXt" and keyword in (b"chara", b"ccv3"):
            try:
                return base64.b64decode(text, validate=True)
            except binascii.Error as error:
                raise UsageError("the card in this picture is damaged; export it again") from error
        position += 12 + length
    raise UsageError("this picture carries no character card; choose one that TavernAI or a like program wrote")
