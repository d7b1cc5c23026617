"""The tokenizer of a model folder as the fields that llama.cpp reads: `gguf_tokenizer` backwards."""

import json
from pathlib import Path
from typing import Any

from octavo.checkpoint.gguf import Value
from octavo.conversion.gguf_tokenizer import PRE_TOKENIZERS, TokenType
from octavo.errors import TokenizerError
from octavo.model.load import ModelFolder
from octavo.model.tokenizer import Tokenizer, load_tokenizer
from octavo.model.vocabulary import LARGEST_FILE
from octavo.records import read_bounded

# Where a piece is made by no merge, nothing is to be joined into it.
NEVER_JOINED = -1e9


def tokenizer_fields(folder: ModelFolder) -> dict[str, Value]:
    """The `tokenizer.*` fields of a folder's tokenizer, padded to the rows of its embedding.

    Raises TokenizerError where the folder has no tokenizer, or one of a kind that llama.cpp knows no name for.
    """
    tokenizer = load_tokenizer(folder.path)
    path = folder.path / "tokenizer.json"
    fields = _from_json(path) if path.exists() else _from_sentencepiece(folder.path / "tokenizer.model")
    tokens, types = list(fields.pop("tokens")), list(fields.pop("types"))
    rows = folder.config.vocabulary_size
    if tokenizer.vocabulary_size > rows:
        raise TokenizerError(
            f"the tokenizer of {folder.path} has {tokenizer.vocabulary_size} tokens, the embedding {rows} rows"
        )
    padding = range(len(tokens), rows)
    tokens += [f"[PAD{number}]" for number in padding]
    types += [TokenType.UNUSED for _ in padding]
    for token in tokenizer.vocabulary.control:
        tokens[token.id] = token.spelling
        types[token.id] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    if tokenizer.unk_id is not None and fields["model"] == "llama":
        types[tokenizer.unk_id] = TokenType.UNKNOWN
    if "scores" in fields:
        fields["scores"] = tuple(fields["scores"]) + (0.0,) * len(padding)
    named = {"tokens": tuple(tokens), "token_type": tuple(int(kind) for kind in types), **fields}
    described = {f"tokenizer.ggml.{name}": value for name, value in {**named, **_special(tokenizer)}.items()}
    if tokenizer.chat_template is not None:
        described["tokenizer.chat_template"] = tokenizer.chat_template
    return described


def _special(tokenizer: Tokenizer) -> dict[str, Value]:
    fields: dict[str, Value] = {"add_bos_token": bool(tokenizer.beginning)}
    if tokenizer.bos_id is not None:
        fields["bos_token_id"] = tokenizer.bos_id
    if tokenizer.eos_ids:
        fields["eos_token_id"] = tokenizer.eos_ids[0]
    if tokenizer.unk_id is not None:
        fields["unknown_token_id"] = tokenizer.unk_id
    return fields


def _from_json(path: Path) -> dict[str, Any]:
    data = json.loads(read_bounded(path, LARGEST_FILE, TokenizerError))
    model = data.get("model", {})
    vocabulary: dict[str, int] = model.get("vocab", {})
    if model.get("type") != "BPE" or not vocabulary:
        raise TokenizerError(f"{path} is a {model.get('type')!r} tokenizer, and GGUF files are written with BPE")
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    size = max(vocabulary.values()) + 1
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [TokenType.UNUSED] * size
    for piece, number in vocabulary.items():
        byte = model.get("byte_fallback") and len(piece) == 6 and piece.startswith("<0x")
        tokens[number], types[number] = piece, TokenType.BYTE if byte else TokenType.NORMAL
    for added in data.get("added_tokens", []):
        missing = added["id"] + 1 - len(tokens)
        tokens += [f"[PAD{len(tokens) + place}]" for place in range(missing)]
        types += [TokenType.UNUSED] * missing
    if model.get("byte_fallback"):
        ranks: dict[str, int] = {}
        for rank, (left, right) in enumerate(merges):
            ranks.setdefault(left + right, rank)
        scores = [float(-ranks[piece]) if piece in ranks else NEVER_JOINED for piece in tokens]
        prefix = "Prepend" in json.dumps(data.get("normalizer"))
        return {"model": "llama", "tokens": tokens, "types": types, "scores": scores, "add_space_prefix": prefix}
    named = {"model": "gpt2", "pre": _pre_tokenizer(path, data), "tokens": tokens, "types": types}
    return {**named, "merges": tuple(f"{left} {right}" for left, right in merges)}


def _pre_tokenizer(path: Path, data: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which a tokenizer.json cuts a text into words."""
    cut = data.get("pre_tokenizer") or {}
    steps = cut.get("pretokenizers", [cut])
    patterns = []
    for step in steps:
        if step.get("type") == "Split":
            patterns.append(step.get("pattern", {}).get("Regex"))
        elif step.get("type") == "Digits" and step.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif step.get("type") == "ByteLevel" and step.get("use_regex", True):
            patterns.append(PRE_TOKENIZERS["gpt-2"].patterns[0])
    for name, known in PRE_TOKENIZERS.items():
        if known.patterns == tuple(patterns):
            return name
    raise TokenizerError(
        f"{path} cuts texts into words in a way that has no name here; llama.cpp would cut otherwise"
    )


def _from_sentencepiece(path: Path) -> dict[str, Any]:
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=read_bounded(path, LARGEST_FILE, TokenizerError))
    types = []
    for number in range(pieces.vocab_size()):
        kinds = {
            TokenType.UNKNOWN: pieces.is_unknown,
            TokenType.CONTROL: pieces.is_control,
            TokenType.BYTE: pieces.is_byte,
            TokenType.UNUSED: pieces.is_unused,
        }
        types.append(next((kind for kind, holds in kinds.items() if holds(number)), TokenType.NORMAL))
    return {
        "model": "llama",
        "tokens": [pieces.id_to_piece(number) for number in range(pieces.vocab_size())],
        "types": types,
        "scores": [pieces.get_score(number) for number in range(pieces.vocab_size())],
        "add_space_prefix": pieces.normalize("a") == "▁a",
    }
