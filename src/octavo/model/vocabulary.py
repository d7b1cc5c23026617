"""The two file formats of a vocabulary, `tokenizer.json` and SentencePiece's `tokenizer.model`, as one.

Here no text leads to a control token: those of a tokenizer.json are given secret names, and SentencePiece does not
look for its own. Whoever wants one puts its id between the texts.
"""

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from octavo.errors import TokenizerError
from octavo.records import read_bounded

# Four times the largest tokenizer file that we know of, Gemma 3's.
LARGEST_FILE = 128 * 1024 * 1024

NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

# Appended to a SentencePiece model, this sets `normalizer_spec.add_dummy_prefix` (fields 3 and 3 of its protocol
# buffer) to false: a message that comes twice is merged, and the last value counts.
NO_SPACE_BEFORE_TEXT = b"\x1a\x02\x18\x00"


@dataclass(frozen=True)
class ControlToken:
    """An id that ordinary text never becomes.

    `special` ones are left out of decoded text; others, such as `<think>`, are part of a reply. `strips_left` and
    `strips_right` take away the white space beside the spelling.
    """

    spelling: str
    id: int
    special: bool
    strips_left: bool
    strips_right: bool


@dataclass(frozen=True)
class Declarations:
    """What the JSON files beside a vocabulary say about it.

    `named` maps `bos_token`, … to a spelling, or to None where a file says that there is none; `named_ids` are ids
    from the model's configuration. `added` are tokens by spelling, with the fields of Hugging Face's AddedToken.
    `legacy` is only for SentencePiece, see `load_tokenizer`. `model_names` are those of the folder and in the
    configuration.
    """

    named: Mapping[str, str | None]
    named_ids: Mapping[str, tuple[int, ...]]
    added: Mapping[str, dict[str, Any]]
    adds_bos: bool | None
    legacy: bool
    chat_template: str | None
    model_names: tuple[str, ...]


@dataclass(frozen=True)
class PieceDecoder:
    """How pieces of a vocabulary become bytes; `strips_space` drops the space that was put before the text."""

    replacements: tuple[tuple[str, str], ...]
    byte_fallback: bool
    byte_level: bool
    strips_space: bool

    def to_bytes(self, piece: str) -> bytes:
        """UTF-8, perhaps only a part of a character."""
        if self.byte_fallback and re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece):
            return bytes([int(piece[3:5], 16)])
        if self.byte_level and all(character in _byte_of_character() for character in piece):
            return bytes(_byte_of_character()[character] for character in piece)
        for pattern, content in self.replacements:
            piece = piece.replace(pattern, content)
        return piece.encode()


@dataclass(frozen=True)
class TokenizerJson:
    """A `tokenizer.json`: a `tokenizers.Tokenizer` that knows control tokens by `hidden` names only."""

    library: Any
    control: tuple[ControlToken, ...]
    hidden: Mapping[int, str]
    decoder: PieceDecoder
    size: int
    named_ids: Mapping[str, int]

    @property
    def beginning(self) -> tuple[int, ...]:
        """The ids that the file's post-processor puts before a text."""
        encoding = self.library.encode("a")
        put = takewhile(lambda token: token[1], zip(encoding.ids, encoding.special_tokens_mask, strict=True))
        return tuple(token_id for token_id, _ in put)

    def encode(self, parts: Sequence[str | int]) -> list[int]:
        text = "".join(self.hidden[part] if isinstance(part, int) else part for part in parts)
        ids: list[int] = self.library.encode(text, add_special_tokens=False).ids
        return ids

    def piece(self, token_id: int) -> str:
        return str(self.library.id_to_token(token_id) or "")

    def id_of(self, piece: str) -> int | None:
        token_id: int | None = self.library.token_to_id(piece)
        return token_id


@dataclass(frozen=True)
class SentencePiece:
    """A `tokenizer.model`, as two `SentencePieceProcessor`s.

    `prefixed` puts a space before each text if the model was trained so; `bare` never does.
    """

    prefixed: Any
    bare: Any
    control: tuple[ControlToken, ...]
    named_ids: Mapping[str, int]
    legacy: bool

    @cached_property
    def size(self) -> int:
        return max([int(self.prefixed.vocab_size()), *(token.id + 1 for token in self.control)])

    @cached_property
    def decoder(self) -> PieceDecoder:
        adds_space = self.prefixed.normalize("a") == "▁a"
        return PieceDecoder((("▁", " "),), byte_fallback=True, byte_level=False, strips_space=adds_space)

    @property
    def beginning(self) -> tuple[int, ...]:
        """LlamaTokenizer puts a BOS first unless it is told not to."""
        return (self.named_ids["bos_token"],) if "bos_token" in self.named_ids else ()

    def encode(self, parts: Sequence[str | int]) -> list[int]:
        strips_left = {token.id for token in self.control if token.strips_left}
        strips_right = {token.id for token in self.control if token.strips_right}
        ids: list[int] = []
        for place, (before, part, after) in enumerate(zip(["", *parts], parts, [*parts[1:], ""], strict=False)):
            if isinstance(part, int):
                ids.append(part)
            else:
                text = part.lstrip() if before in strips_right else part
                text = text.rstrip() if after in strips_left else text
                ids += (self.prefixed if self.legacy or place == 0 else self.bare).encode(text)
        return ids

    def piece(self, token_id: int) -> str:
        return str(self.prefixed.id_to_piece(token_id)) if token_id < self.prefixed.vocab_size() else ""

    def id_of(self, piece: str) -> int | None:
        token_id = int(self.prefixed.piece_to_id(piece))
        return token_id if self.prefixed.id_to_piece(token_id) == piece else None


def open_tokenizer_json(path: Path, data: bytes, declarations: Declarations) -> TokenizerJson:
    """The vocabulary in the bytes of a tokenizer.json; TokenizerError if they are damaged."""
    from tokenizers import Tokenizer as Library

    with _damage_reported(path):
        document = json.loads(data)
        vocabulary = document["model"]["vocab"]
        pieces = set(vocabulary if isinstance(vocabulary, dict) else (piece for piece, _ in vocabulary))
        added = {token["content"]: dict(token) for token in document.get("added_tokens") or ()}
        for spelling, token in sorted(declarations.added.items(), key=lambda item: item[1].get("id", -1)):
            if spelling in added:
                added[spelling]["special"] |= token["special"]
            elif "id" in token or spelling in pieces:
                added[spelling] = {"id": 0} | token  # the library numbers it itself

        # Runs of white space are added tokens of some vocabularies, but text like any other.
        control = [spelling for spelling in added if spelling.replace("▁", " ").strip()]
        nonce = secrets.token_hex(16)
        hidden = {spelling: f"<{nonce}-{place}>" for place, spelling in enumerate(control)}
        for spelling, name in hidden.items():
            # The name stands where the spelling was found: whether it counts there is not for the library to ask.
            added[spelling] |= {"content": name, "single_word": False, "normalized": False}
        document["added_tokens"] = list(added.values())
        document["model"] |= _with_hidden_names(document["model"], hidden)
        document |= {"truncation": None, "padding": None}
        library = Library.from_str(json.dumps(document))
        numbered = library.get_vocab(with_added_tokens=True)
        ids = {spelling: numbered[name] for spelling, name in hidden.items()}
        size = max(numbered.values()) + 1
        decoder = _piece_decoder(path, document["decoder"])
    tokens = tuple(_control_token(added[spelling] | {"content": spelling}, ids[spelling]) for spelling in control)
    names = {ids[spelling]: name for spelling, name in hidden.items()}
    return TokenizerJson(library, tokens, names, decoder, size, named_ids={})


def _with_hidden_names(model: dict[str, Any], hidden: Mapping[str, str]) -> dict[str, Any]:
    """Vocabulary, merges and unknown token of a tokenizer.json in which no spelling of a control token is left."""
    vocabulary, unknown = model["vocab"], model.get("unk_token")
    changed: dict[str, Any] = {"unk_token": hidden.get(unknown, unknown)} if isinstance(unknown, str) else {}
    if isinstance(vocabulary, dict):
        changed["vocab"] = {hidden.get(piece, piece): token_id for piece, token_id in vocabulary.items()}
    else:
        changed["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocabulary]
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        changed["merges"] = [pair for pair in pairs if hidden.keys().isdisjoint([*pair, "".join(pair)])]
    return changed


def _piece_decoder(path: Path, decoder: dict[str, Any] | None) -> PieceDecoder:
    """The decoder of a tokenizer.json; TokenizerError for one that no LLaMA-family tokenizer has."""
    replacements: list[tuple[str, str]] = []
    kinds: set[str] = set()
    strips_space = False
    steps: list[Any] = decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder]
    for step in steps:
        match step:
            case {"type": "ByteLevel" | "ByteFallback" | "Fuse" as kind}:
                kinds.add(kind)
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                replacements.append((old, new))
            case {"type": "Metaspace", "replacement": str(old)}:
                replacements.append((old, " "))
                strips_space = step.get("prepend_scheme", "always") != "never"
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0} if "Fuse" in kinds:
                strips_space = start == 1
            case _:
                raise TokenizerError(f"{path} decodes by {step}, which no tokenizer of a LLaMA-family model does")
    return PieceDecoder(tuple(replacements), "ByteFallback" in kinds, "ByteLevel" in kinds, strips_space)


def open_sentencepiece(path: Path, data: bytes, declarations: Declarations) -> SentencePiece:
    """The vocabulary in the bytes of a tokenizer.model; TokenizerError if they are damaged.

    Also where the files beside it declare a control token that SentencePiece would find in any text.
    """
    from sentencepiece import SentencePieceProcessor

    if not data:
        raise TokenizerError(f"{path} is empty; fetch it again")
    with _damage_reported(path):
        prefixed, bare = (SentencePieceProcessor(model_proto=data + end) for end in (b"", NO_SPACE_BEFORE_TEXT))
        pieces = [prefixed.id_to_piece(token_id) for token_id in range(prefixed.vocab_size())]
        ids = {piece: token_id for token_id, piece in enumerate(pieces)}
        # SentencePiece finds every piece in a text but these.
        hidden = {piece for piece in pieces if prefixed.is_control(ids[piece]) or prefixed.is_unknown(ids[piece])}
        control = {piece: _control_token(_added_token(piece), ids[piece]) for piece in hidden}
        for spelling, token in declarations.added.items():
            token_id = ids.get(spelling, token.get("id"))
            if token_id is None:
                continue
            if token_id < len(pieces) and spelling not in hidden:
                raise TokenizerError(f"{path} has no control token {spelling!r}; provide a tokenizer.json")
            control[spelling] = _control_token(token, token_id)
    own = {"bos_token": prefixed.bos_id(), "eos_token": prefixed.eos_id(), "unk_token": prefixed.unk_id()}
    named_ids = {name: token_id for name, token_id in own.items() if token_id >= 0}
    return SentencePiece(prefixed, bare, tuple(control.values()), named_ids, declarations.legacy)


def _control_token(token: Mapping[str, Any], token_id: int) -> ControlToken:
    return ControlToken(
        spelling=token["content"],
        id=token_id,
        special=token["special"],
        strips_left=token["lstrip"],
        strips_right=token["rstrip"],
    )


def read_declarations(folder: Path) -> Declarations:
    """What the JSON files of a folder say about its vocabulary; TokenizerError where one is damaged."""
    config = _read_object(folder / "tokenizer_config.json")
    mapped = _read_object(folder / "special_tokens_map.json")
    numbered = _read_object(folder / "added_tokens.json")
    generation = _read_object(folder / "generation_config.json")
    model = _read_object(folder / "config.json")
    legacy = config.get("legacy") is not False and not (folder / "tokenizer.json").exists()
    with _damage_reported(folder):
        given = {name: source[name] for source in (mapped, config) for name in NAMES if name in source}
        ids = {
            name: _ids(generation.get(f"{name}_id")) + _ids(model.get(f"{name}_id"))
            for name in ("bos_token", "eos_token")
        }
        template = config.get("chat_template")
        if isinstance(template, list):
            template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
        if (path := folder / "chat_template.jinja").exists():
            template = read_file(path).decode()
        if not isinstance(template, str | None):
            raise ValueError("its chat_template is no text")
        adds_bos = config.get("add_bos_token")
        return Declarations(
            named={name: _added_token(token)["content"] if token else None for name, token in given.items()},
            named_ids={name: found for name, found in ids.items() if found},
            added=_added_tokens(config, mapped, numbered, legacy),
            adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
            legacy=legacy,
            chat_template=template,
            model_names=(folder.resolve().name, str(model.get("_name_or_path", ""))),
        )


def _added_tokens(
    config: dict[str, Any], mapped: dict[str, Any], numbered: dict[str, Any], legacy: bool
) -> dict[str, dict[str, Any]]:
    """What tokenizer_config.json, special_tokens_map.json and added_tokens.json add, by spelling."""
    swallows = {"lstrip": legacy, "rstrip": legacy}
    added = {
        spelling: _added_token(spelling) | swallows | {"id": token_id, "special": False}
        for spelling, token_id in numbered.items()
    }
    for token_id, token in (config.get("added_tokens_decoder") or {}).items():
        added[token["content"]] = _added_token(token) | {"id": int(token_id)}
    for source in (mapped, config):
        more = source.get("additional_special_tokens") or source.get("extra_special_tokens") or ()
        for token in [*map(source.get, NAMES), *(more.values() if isinstance(more, dict) else more)]:
            if token:
                fields = _added_token(token) | (swallows if source is mapped and isinstance(token, str) else {})
                added.setdefault(fields["content"], fields)["special"] = True
    return added


def _added_token(token: str | dict[str, Any]) -> dict[str, Any]:
    """The fields of an AddedToken; a mere string is a special token without conditions."""
    given = {"content": token} if isinstance(token, str) else token
    if not isinstance(given["content"], str) or not given["content"]:
        raise ValueError(f"{token} is no token")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": given["content"]} | {name: bool(given.get(name, flag)) for name, flag in flags.items()}


def _ids(value: Any) -> tuple[int, ...]:
    """`eos_token_id` and the like: absent, one id, or a list of them."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int for token_id in ids):
        raise ValueError(f"{value} is no token id")
    return tuple(ids)


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an absent file is an empty one."""
    if not path.exists():
        return {}
    with _damage_reported(path):
        value = json.loads(read_file(path))
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a JSON {type(value).__name__} where an object belongs; fetch it again")
    return value


def read_file(path: Path) -> bytes:
    """The bytes of a file of bounded size."""
    return read_bounded(path, LARGEST_FILE, TokenizerError)


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    """Make one sentence of what parsers raise at a damaged file: bare `Exception`s, or a panic of Rust code."""
    try:
        yield
    except TokenizerError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{path} is damaged or no tokenizer ({error!r}); fetch it again") from error


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: printable Latin-1 stands for itself, the rest goes from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
