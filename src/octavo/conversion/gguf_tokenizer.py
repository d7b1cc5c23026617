"""The tokenizer that a GGUF file holds, rebuilt as the files that Hugging Face's libraries read.

llama.cpp stores a list of typed tokens, and either the merges of a byte-level BPE ("gpt2") or the scores of a
SentencePiece BPE ("llama"). How a text is cut into words before it is merged, the file says by a name only.
"""

from dataclasses import dataclass
from enum import IntEnum
from operator import itemgetter
from typing import Any, TypeVar

from octavo.checkpoint.gguf import GgufFile
from octavo.errors import TokenizerError

Json = dict[str, Any]
Item = TypeVar("Item")

LONGEST_PIECE = 1024  # characters; looking for the merges of a piece takes the square of its length
SPACE = "▁"  # as SentencePiece spells it


class TokenType(IntEnum):
    """The numbers of `tokenizer.ggml.token_type`, which are SentencePiece's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class PreTokenizer:
    """What a byte-level BPE does before it merges, as the original tokenizer.json files have it.

    `patterns` cut the text one after the other. `whole_words`: a word that is itself a token is not merged.
    `begins`: a text gets a BOS where the file does not say. `composes`: text is brought to Unicode's form C.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    begins: bool = False
    composes: bool = False


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# By the names that `tokenizer.ggml.pre` gives them.
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer((GPT2,)),
    "smollm": PreTokenizer((r"\p{N}", GPT2)),
    "llama-bpe": PreTokenizer((LLAMA3,), whole_words=True, begins=True),
    "qwen2": PreTokenizer((QWEN2,), composes=True),
    "tekken": PreTokenizer((TEKKEN,), whole_words=True, begins=True),
}

# Special tokens by GGUF's names, with Hugging Face's.
ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
ENDS = ("eos", "eot", "eom")  # of a text, of a turn, of a message to a tool


@dataclass(frozen=True)
class RebuiltTokenizer:
    """What the files of a model folder say of its tokenizer."""

    json: Json  # tokenizer.json
    config: Json  # tokenizer_config.json, but for the length of the context
    token_ids: dict[str, int]  # of config.json: bos_token_id, eos_token_id, pad_token_id
    end_ids: tuple[int, ...]  # that end a reply
    vocabulary_size: int


@dataclass(frozen=True)
class _Vocabulary:
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    ids: dict[str, int]
    special: dict[str, int]  # by GGUF's names

    def of_type(self, *kinds: TokenType) -> dict[str, int]:
        return {token: number for token, number in self.ids.items() if self.types[number] in kinds}


def rebuild_tokenizer(file: GgufFile) -> RebuiltTokenizer:
    """The tokenizer of a GGUF file, each token with the id that it has there.

    Of several chat templates, the default one is kept. Raises TokenizerError where the file contradicts itself, or
    names a kind of tokenizer or a pre-tokenizer that is not known here.
    """
    vocabulary = _vocabulary(file)
    kind = file.require("tokenizer.ggml.model", str)
    if kind == "gpt2":
        parts, begins = _byte_level(file, vocabulary)
    elif kind == "llama":
        parts, begins = _sentencepiece(file, vocabulary), True
    else:
        raise TokenizerError(f"{file.path} has a tokenizer of the kind {kind}; gpt2 and llama can be rebuilt")
    adds = {
        "bos": file.get("tokenizer.ggml.add_bos_token", bool, begins),
        "eos": file.get("tokenizer.ggml.add_eos_token", bool, False),
    }
    for role, added in adds.items():
        if added and role not in vocabulary.special:
            raise TokenizerError(f"{file.path} adds {role} to each text, but lacks tokenizer.ggml.{role}_token_id")
    named = {name: vocabulary.special[role] for role, name in ROLES.items() if role in vocabulary.special}
    template = file.get("tokenizer.chat_template", str, None)
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: vocabulary.tokens[number] for name, number in named.items()},
        **{f"add_{role}_token": added for role, added in adds.items()},
        "clean_up_tokenization_spaces": False,
    }
    return RebuiltTokenizer(
        json={
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added_tokens(vocabulary),
            "post_processor": _post_processor(vocabulary, [role for role, added in adds.items() if added]),
            **parts,
        },
        config=config if template is None else config | {"chat_template": template},
        token_ids={f"{name}_id": number for name, number in named.items() if name != "unk_token"},
        end_ids=tuple(sorted({vocabulary.special[role] for role in ENDS if role in vocabulary.special})),
        vocabulary_size=len(vocabulary.tokens),
    )


def _vocabulary(file: GgufFile) -> _Vocabulary:
    tokens = _array(file, "tokenizer.ggml.tokens", str)
    types = _array(file, "tokenizer.ggml.token_type", int)
    if len(types) != len(tokens):
        raise TokenizerError(f"{file.path} has {len(tokens)} tokens, but {len(types)} token types")
    ids: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if token in ids:
            raise TokenizerError(f"{file.path} has the token {token!r:.80} twice, as {ids[token]} and {number}")
        ids[token] = number
    special = {}
    for role in (*ROLES, "eot", "eom"):
        key = f"tokenizer.ggml.{role}_token_id"
        if key in file.metadata:
            special[role] = file.require(key, int)
            if not 0 <= special[role] < len(tokens):
                raise TokenizerError(
                    f"{key} in {file.path} is {special[role]}, but there are {len(tokens)} tokens"
                )
    return _Vocabulary(tokens, types, ids, special)


def _array(file: GgufFile, key: str, kind: type[Item]) -> tuple[Item, ...]:
    values = file.require(key, tuple)
    if not all(type(value) is kind for value in values):
        raise TokenizerError(f"{key} in {file.path} is no array of {kind.__name__}")
    return values


def _added_tokens(vocabulary: _Vocabulary) -> list[Json]:
    """The tokens that are found in a text before it is cut into words."""
    control = vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN)
    added = control | vocabulary.of_type(TokenType.USER_DEFINED)
    exactly = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": number, "content": token, **exactly, "special": token in control}
        for token, number in sorted(added.items(), key=itemgetter(1))
    ]


def _post_processor(vocabulary: _Vocabulary, added: list[str]) -> Json | None:
    """Puts BOS before each text and EOS behind it, where the file wants them."""
    if not added:
        return None

    def piece(kind: str, name: str, type_id: int) -> Json:
        return {kind: {"id": name, "type_id": type_id}}

    spelling = {role: vocabulary.tokens[vocabulary.special[role]] for role in added}

    def around(sequence: str, type_id: int) -> list[Json]:
        before = [piece("SpecialToken", spelling["bos"], type_id)] if "bos" in added else []
        behind = [piece("SpecialToken", spelling["eos"], type_id)] if "eos" in added else []
        return [*before, piece("Sequence", sequence, type_id), *behind]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.ids[token]], "tokens": [token]} for token in spelling.values()
        },
    }


def _byte_level(file: GgufFile, vocabulary: _Vocabulary) -> tuple[Json, bool]:
    """The parts of a byte-level BPE, and whether it begins texts with BOS unless told otherwise."""
    name = file.require("tokenizer.ggml.pre", str)
    if name not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"{file.path} has the pre-tokenizer {name!r:.80}; known are {', '.join(PRE_TOKENIZERS)}"
        )
    cut = PRE_TOKENIZERS[name]
    merges = []
    for merge in _array(file, "tokenizer.ggml.merges", str):
        left, _, right = merge.partition(" ")
        merges.append((left, right))
        if not {left, right, left + right} <= vocabulary.ids.keys():
            raise TokenizerError(
                f"{file.path} merges {left!r:.80} and {right!r:.80}, which are not in its vocabulary"
            )
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in cut.patterns
    ]
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    parts = {
        "normalizer": {"type": "NFC"} if cut.composes else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, to_bytes]},
        "decoder": to_bytes,
        "model": _bpe(vocabulary, merges) | {"ignore_merges": cut.whole_words},
    }
    return parts, cut.begins


def _sentencepiece(file: GgufFile, vocabulary: _Vocabulary) -> Json:
    """The parts of a SentencePiece BPE.

    Each stretch of text between control tokens gets its own space in front, as in llama.cpp and in the
    tokenizer.json files of Llama 2.
    """
    if file.get("tokenizer.ggml.remove_extra_whitespaces", bool, False):
        raise TokenizerError(f"{file.path} has a tokenizer that drops repeated spaces, which cannot be rebuilt")
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    spell = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    unspell = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders = [unspell, {"type": "ByteFallback"}, {"type": "Fuse"}]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    unknown = next(iter(vocabulary.of_type(TokenType.UNKNOWN)), None)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [prepend, spell] if prefix else [spell]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [*decoders, strip] if prefix else decoders},
        "model": _bpe(vocabulary, _merges_by_score(file, vocabulary))
        | {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
    }


def _merges_by_score(file: GgufFile, vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours that make the piece of the highest score, however they are cut."""
    scores = _array(file, "tokenizer.ggml.scores", float)
    if len(scores) != len(vocabulary.ids):
        raise TokenizerError(f"{file.path} has {len(vocabulary.ids)} tokens, but {len(scores)} scores")
    pieces = vocabulary.of_type(TokenType.NORMAL)
    if max(map(len, pieces), default=0) > LONGEST_PIECE:
        raise TokenizerError(f"{file.path} has a token of more than {LONGEST_PIECE} characters")
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=lambda piece: -scores[pieces[piece]])
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]


def _bpe(vocabulary: _Vocabulary, merges: list[tuple[str, str]]) -> Json:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary.ids,
        "merges": merges,
    }
