"""Text to token ids and back.

Control tokens are the ids that text alone must not reach: `</s>`, `<|im_end|>` and every other added token. Only a
caller who asks for them gets them, so that what a person types stays text.
"""

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from octavo.errors import TokenizerError, UsageError
from octavo.model.vocabulary import (
    ControlToken,
    Declarations,
    SentencePiece,
    TokenizerJson,
    open_sentencepiece,
    open_tokenizer_json,
    read_declarations,
    read_file,
)
from octavo.records import sha256_of_bytes, sha256_of_value


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt; where `control_tokens` is False, a spelling such as `</s>` in it is only text."""

    text: str
    control_tokens: bool


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer, the same from either file format; made by `load_tokenizer`."""

    vocabulary: TokenizerJson | SentencePiece
    declarations: Declarations
    file_hash: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the vocabulary file and of what else decides about ids: equal where two tokenizers are."""
        control = sorted([t.spelling, t.id, t.strips_left, t.strips_right] for t in self.vocabulary.control)
        return sha256_of_value([self.file_hash, control, self.beginning, self.declarations.legacy])

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return self.vocabulary.size

    @property
    def chat_template(self) -> str | None:
        """The model's own template, in Jinja, if it has one."""
        return self.declarations.chat_template

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """Spellings of `bos_token`, `eos_token`, …, as chat templates know them, where there are such tokens."""
        ids = {name: given[0] for name, given in self.declarations.named_ids.items()} | dict(
            self.vocabulary.named_ids
        )
        named = {name: self.spelling(token_id) for name, token_id in ids.items()} | dict(self.declarations.named)
        return {name: spelling for name, spelling in named.items() if spelling is not None}

    @property
    def bos_id(self) -> int | None:
        return self._id_of_named("bos_token")

    @property
    def unk_id(self) -> int | None:
        return self._id_of_named("unk_token")

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """All ids that end a reply: those of generation_config.json, of config.json and the tokenizer's own."""
        own = self._id_of_named("eos_token")
        ids = (*self.declarations.named_ids.get("eos_token", ()), *(() if own is None else (own,)))
        return tuple(dict.fromkeys(ids))

    @cached_property
    def beginning(self) -> tuple[int, ...]:
        """What the tokenizer puts before a text: one BOS for LLaMA, nothing for SmolLM2 or Qwen."""
        if self.declarations.adds_bos is None:
            return self.vocabulary.beginning
        return (self.bos_id,) if self.declarations.adds_bos and self.bos_id is not None else ()

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The ids that no text reaches with `control_tokens=False`.

        With one exception: a vocabulary without bytes gives the unknown token to characters that it lacks.
        """
        return frozenset(self._control_of_id)

    def id_of(self, spelling: str) -> int | None:
        """The id of a control token, or of a piece as the vocabulary writes it (`▁the`, `Ġthe`, `<0x0A>`)."""
        token = self._control_of_spelling.get(spelling)
        return token.id if token is not None else self.vocabulary.id_of(spelling)

    def spelling(self, token_id: int) -> str:
        """A token as the vocabulary writes it, for display; UsageError for an id that it lacks."""
        if not 0 <= token_id < self.vocabulary_size:
            raise UsageError(f"token id {token_id} is not one of the {self.vocabulary_size} ids of this tokenizer")
        token = self._control_of_id.get(token_id)
        return token.spelling if token is not None else self.vocabulary.piece(token_id)

    def split(self, text: str) -> list[str | int]:
        """A text cut at the spellings of control tokens, which become ids; the longest at a place counts."""
        # Splitting by a pattern with one group gives text, spelling, text, …
        pieces = enumerate(self._control_pattern.split(text))
        parts = (self._control_of_spelling[piece].id if place % 2 else piece for place, piece in pieces)
        return [part for part in parts if part != ""]

    def encode(self, text: str, *, control_tokens: bool, beginning: bool = False) -> list[int]:
        """Token ids of a text.

        With `control_tokens`, spellings of control tokens become their ids, as in Hugging Face's tokenizers;
        without, they are text like any other. `beginning` puts first what the tokenizer puts before a text, unless
        the ids start with it. Nothing is added at the end. Raises UsageError for lone surrogates.
        """
        return self.encode_segments([Segment(text, control_tokens)], beginning=beginning)

    def encode_segments(self, segments: Iterable[Segment], *, beginning: bool = False) -> list[int]:
        """Token ids of segments, tokenized as one text: a token may reach over the border of two segments."""
        parts: list[str | int] = []
        for segment in segments:
            for part in self.split(segment.text) if segment.control_tokens else [segment.text]:
                if isinstance(part, str) and parts and isinstance(parts[-1], str):
                    parts[-1] += part
                elif part != "":
                    parts.append(part)
        for part in parts:
            if isinstance(part, str):
                _refuse_surrogates(part)
        ids = self.vocabulary.encode(parts)
        prefix = list(self.beginning)
        return prefix + ids if beginning and ids[: len(prefix)] != prefix else ids

    def decode(self, ids: Iterable[int], *, control_tokens: bool = False, continued: bool = False) -> str:
        """The text of token ids: what a `TextStream` makes of them, in one piece."""
        stream = TextStream(self, control_tokens=control_tokens, continued=continued)
        return "".join([*map(stream.push, ids), stream.finish()])

    def bytes_of(self, token_id: int, *, control_tokens: bool) -> bytes:
        """What a token adds to a decoded text: UTF-8, perhaps only a part of a character."""
        token = self._control_of_id.get(token_id)
        left_out = token is not None and token.special and not control_tokens
        if left_out or not 0 <= token_id < self.vocabulary_size:
            return b""
        return self.vocabulary.decoder.to_bytes(self.spelling(token_id))

    def _id_of_named(self, name: str) -> int | None:
        return self.id_of(self.special_tokens[name]) if name in self.special_tokens else None

    @cached_property
    def _control_of_id(self) -> dict[int, ControlToken]:
        return {token.id: token for token in self.vocabulary.control}

    @cached_property
    def _control_of_spelling(self) -> dict[str, ControlToken]:
        return {token.spelling: token for token in self.vocabulary.control}

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._control_of_spelling, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


class TextStream:
    """Text as its tokens come: all that `push` and `finish` return, joined, is what `Tokenizer.decode` returns.

    A character whose bytes are spread over tokens appears with its last byte; bytes that are not UTF-8 become
    U+FFFD (Unicode's "maximal subparts"). Special tokens are left out unless `control_tokens`; ids outside the
    vocabulary, such as the padding rows of an embedding, always. `continued` says that other text stands before:
    then a space before the first word is one, and not that which SentencePiece puts before every text. The cost of
    a push does not grow with the text.
    """

    def __init__(self, tokenizer: Tokenizer, *, control_tokens: bool = False, continued: bool = False) -> None:
        self._tokenizer = tokenizer
        self._control_tokens = control_tokens
        self._strips_space = tokenizer.vocabulary.decoder.strips_space and not continued
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes."""
        return self._text(self._tokenizer.bytes_of(token_id, control_tokens=self._control_tokens))

    def finish(self) -> str:
        """What is left of a character that never became whole."""
        return self._text(b"", final=True)

    def _text(self, data: bytes, *, final: bool = False) -> str:
        text = self._characters.decode(data, final)
        if text and self._strips_space:
            self._strips_space = False
            return text.removeprefix(" ")
        return text


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder: `tokenizer.json` if there is one, else SentencePiece's `tokenizer.model`.

    For SentencePiece, a text is cut at the spellings of control tokens, and every part gets the space that
    SentencePiece puts before a text, as in the slow LlamaTokenizer of transformers 4.28, whose tokens 2023's
    perplexities count. As there, a token that `special_tokens_map.json` gives as a mere string swallows the white
    space beside it. Where `tokenizer_config.json` says `"legacy": false`, only a part that begins the text gets
    the space, as in transformers 5; unlike there, it gets it even if it begins with one, and runs of spaces become
    the tokens that SentencePiece makes of them. Unlike in both, control pieces of the vocabulary need no
    declaration, and `clean_up_tokenization_spaces` is not done, for it would alter replies.

    Raises TokenizerError where the files are absent, damaged, larger than 128 MiB or contradictory.
    """
    declarations = read_declarations(folder)
    vocabulary: TokenizerJson | SentencePiece
    if (path := folder / "tokenizer.json").exists():
        data = read_file(path)
        vocabulary = open_tokenizer_json(path, data, declarations)
    elif (path := folder / "tokenizer.model").exists():
        data = read_file(path)
        vocabulary = open_sentencepiece(path, data, declarations)
    else:
        raise TokenizerError(f"{folder} has neither tokenizer.json nor tokenizer.model; copy the original model's")

    for token in vocabulary.control:
        declared = declarations.added.get(token.spelling, {}).get("id", token.id)
        if declared != token.id:
            raise TokenizerError(f"{token.spelling!r} is token {token.id} in {path}, but {declared} beside it")
    for name, ids in declarations.named_ids.items():
        if not all(0 <= token_id < vocabulary.size for token_id in ids):
            raise TokenizerError(f"{folder} gives {name} the ids {ids}, but {path.name} has {vocabulary.size}")
    tokenizer = Tokenizer(vocabulary, declarations, sha256_of_bytes(data))
    for name in ("bos_token", "eos_token", "unk_token"):
        spelling = tokenizer.special_tokens.get(name)
        if spelling is not None and tokenizer.id_of(spelling) is None:
            raise TokenizerError(f"{folder} names {spelling!r} as its {name}, but {path.name} has no such token")
    return tokenizer


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise UsageError(f"the text holds {half!r}, half of a surrogate pair; send whole characters") from error
