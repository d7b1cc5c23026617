"""Tokenizers out of a GGUF's metadata: ids against the libraries of the originals, and what is refused."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from conftest import shared
from octavo.checkpoint.gguf import GgufFile, Value, read_gguf
from octavo.conversion.gguf_tokenizer import TokenType, rebuild_tokenizer
from octavo.errors import CheckpointError, TokenizerError

CONTROL = ["<|end|>", "<|start|>"]
MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("1", "2"), ("12", "3"), ("Â", "½"), ("a", "b"), ("b", "c")]
TOKENS = [*CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, MERGES), "abc", "<tool>"]
TYPES = [TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (len(TOKENS) - 3) + [TokenType.USER_DEFINED]

BYTE_LEVEL: dict[str, Value] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": tuple(TOKENS),
    "tokenizer.ggml.token_type": tuple(map(int, TYPES)),
    "tokenizer.ggml.merges": tuple(map(" ".join, MERGES)),
}
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
SCORES = [0.0] * 259 + [-9.0, -8.0, -7.0, -2.0, -1.0, -3.0]
SENTENCEPIECE: dict[str, Value] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.tokens": tuple(PIECES),
    "tokenizer.ggml.token_type": (2, 3, 3, *[6] * 256, *[1] * 6),
    "tokenizer.ggml.scores": tuple(SCORES),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def rebuild(metadata: dict[str, Value], **changes: Value) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of the metadata with some tokenizer.ggml fields changed, and its tokenizer_config.json."""
    changed = metadata | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    rebuilt = rebuild_tokenizer(GgufFile(Path("model.gguf"), changed, {}, 0))
    return Tokenizer.from_str(json.dumps(rebuilt.json)), rebuilt.config


def ids(*tokens: str) -> list[int]:
    return [TOKENS.index(token) for token in tokens]


# Byte-level BPE


def test_merges_and_bytes() -> None:
    tokenizer, _ = rebuild(BYTE_LEVEL)
    assert tokenizer.encode("a the").ids == ids("a", "Ġthe")
    assert tokenizer.encode("é\n").ids == ids("Ã", "©", "Ċ")
    assert tokenizer.decode(tokenizer.encode("a the é½\n").ids) == "a the é½\n"
    assert tokenizer.get_vocab() == {token: number for number, token in enumerate(TOKENS)}


def test_control_and_user_defined_tokens() -> None:
    tokenizer, _ = rebuild(BYTE_LEVEL)
    assert tokenizer.encode("a<|start|> the<tool>").ids == ids("a", "<|start|>", "Ġthe", "<tool>")
    assert tokenizer.decode([1, TOKENS.index("<tool>")], skip_special_tokens=True) == "<tool>"
    assert tokenizer.decode([1], skip_special_tokens=False) == "<|start|>"


REFERENCE_CUTS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
}


@pytest.mark.parametrize("name", REFERENCE_CUTS)
@given(text=st.text(st.sampled_from("the  12½3'sabc\n\t!?é世"), max_size=40))
@settings(deadline=None)
def test_cuts_of_the_original_tokenizers(name: str, text: str) -> None:
    reference = Tokenizer(models.BPE({token: number for number, token in enumerate(TOKENS)}, MERGES))
    reference.pre_tokenizer = REFERENCE_CUTS[name]
    assert rebuild(BYTE_LEVEL, pre=name)[0].encode(text).ids == reference.encode(text).ids


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt-2", "I|'|LL| pay| 12345| $,|\r\n\r\n | HelloWorld|/|\n|x| '|s| "),
        ("smollm", "I|'|LL| pay| |1|2|3|4|5| $,|\r\n\r\n | HelloWorld|/|\n|x| '|s| "),
        ("llama-bpe", "I|'LL| pay| |123|45| $,\r\n\r\n| | HelloWorld|/\n|x| '|s| "),
        ("qwen2", "I|'LL| pay| |1|2|3|4|5| $,\r\n\r\n| | HelloWorld|/\n|x| '|s| "),
        ("tekken", "I|'LL| pay| |1|2|3|4|5| $,\r\n\r\n| | Hello|World|/\n|x| '|s| "),
    ],
)
def test_cuts_word_by_word(name: str, words: str) -> None:
    tokenizer, _ = rebuild(BYTE_LEVEL, pre=name, bos_token_id=1)
    text = words.replace("|", "")
    assert text == "I'LL pay 12345 $,\r\n\r\n  HelloWorld/\nx 's "
    cut = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert "|".join(text[start:end] for _, (start, end) in cut) == words


def test_whole_words_are_not_merged() -> None:
    # "ab" merges first, and then no merge leads to "abc".
    assert rebuild(BYTE_LEVEL, pre="gpt-2")[0].encode("abc").ids == ids("ab", "c")
    assert rebuild(BYTE_LEVEL, pre="llama-bpe", add_bos_token=False)[0].encode("abc").ids == ids("abc")


def test_qwen2_composes_letters() -> None:
    assert rebuild(BYTE_LEVEL, pre="qwen2")[0].encode("e\u0301").ids == ids("Ã", "©")
    assert rebuild(BYTE_LEVEL, pre="gpt-2")[0].encode("e\u0301").ids == ids("e", "Ì", "ģ")


@pytest.mark.parametrize("pre", ["default", "deepseek-llm", ""])
def test_an_unknown_pre_tokenizer_is_named(pre: str) -> None:
    with pytest.raises(TokenizerError, match=f"pre-tokenizer '{pre}'; known are gpt-2, smollm, llama-bpe"):
        rebuild(BYTE_LEVEL, pre=pre)


# BOS and EOS


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["a"]),
        ({"add_bos_token": True}, ["<|start|>", "a"]),
        ({"add_eos_token": True}, ["a", "<|end|>"]),
        ({"add_bos_token": True, "add_eos_token": True}, ["<|start|>", "a", "<|end|>"]),
        ({"pre": "llama-bpe"}, ["<|start|>", "a"]),
        ({"pre": "tekken"}, ["<|start|>", "a"]),
        ({"pre": "llama-bpe", "add_bos_token": False}, ["a"]),
    ],
)
def test_what_is_added_to_each_text(changes: dict[str, Value], expected: list[str]) -> None:
    tokenizer, config = rebuild(BYTE_LEVEL, bos_token_id=1, eos_token_id=0, **changes)
    assert tokenizer.encode("a").ids == ids(*expected)
    assert tokenizer.encode("a", add_special_tokens=False).ids == ids("a")
    assert config["add_bos_token"] is ("<|start|>" in expected)
    assert config["add_eos_token"] is ("<|end|>" in expected)


def test_a_pair_of_texts() -> None:
    tokenizer, _ = rebuild(SENTENCEPIECE)
    encoding = tokenizer.encode("a", "b")
    assert encoding.tokens == ["<s>", "▁a", "<s>", "▁", "b"]
    assert encoding.type_ids == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_an_added_token_must_be_named(role: str) -> None:
    with pytest.raises(
        TokenizerError, match=f"adds {role} to each text, but lacks tokenizer.ggml.{role}_token_id"
    ):
        rebuild(BYTE_LEVEL, **{f"add_{role}_token": True})


# The configuration


def test_configuration_and_special_ids() -> None:
    named = {"bos": 1, "eos": 0, "eot": 5, "eom": 4, "padding": 0, "unknown": 3}
    metadata = BYTE_LEVEL | {f"tokenizer.ggml.{role}_token_id": number for role, number in named.items()}
    metadata["tokenizer.chat_template"] = "{{ messages }}"
    rebuilt = rebuild_tokenizer(GgufFile(Path("model.gguf"), metadata, {}, 0))
    assert rebuilt.config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|start|>",
        "eos_token": "<|end|>",
        "unk_token": TOKENS[3],
        "pad_token": "<|end|>",
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": "{{ messages }}",
    }
    assert rebuilt.token_ids == {"bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 0}
    assert rebuilt.end_ids == (0, 4, 5)
    assert rebuilt.vocabulary_size == len(TOKENS)


def test_a_file_that_names_no_special_token() -> None:
    rebuilt = rebuild_tokenizer(GgufFile(Path("model.gguf"), BYTE_LEVEL, {}, 0))
    assert rebuilt.token_ids == {}
    assert rebuilt.end_ids == ()
    assert "chat_template" not in rebuilt.config


# SentencePiece


def test_pieces_join_by_their_scores() -> None:
    tokenizer, _ = rebuild(SENTENCEPIECE, add_bos_token=False)
    # "ab" (-1) is joined before "▁a" (-2), and then "▁ab" (-3).
    assert tokenizer.encode("ab").tokens == ["▁ab"]
    assert tokenizer.encode("a b").tokens == ["▁a", "▁", "b"]
    assert tokenizer.encode("").tokens == []


def test_unknown_characters_become_bytes() -> None:
    tokenizer, _ = rebuild(SENTENCEPIECE, add_bos_token=False)
    assert tokenizer.encode("é").tokens == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode(" é世\n ab").ids) == " é世\n ab"


def test_the_space_in_front() -> None:
    with_space, _ = rebuild(SENTENCEPIECE, add_bos_token=False)
    without, _ = rebuild(SENTENCEPIECE, add_bos_token=False, add_space_prefix=False)
    assert with_space.encode("a</s>a").tokens == ["▁a", "</s>", "▁a"]
    assert without.encode("a</s>a").tokens == ["a", "</s>", "a"]
    assert without.decode(without.encode(" a").ids) == " a"


def test_only_normal_pieces_are_joined() -> None:
    types = [2, 3, 3, *[6] * 256, 1, 1, 1, 1, TokenType.UNUSED, TokenType.UNUSED]
    tokenizer, _ = rebuild(SENTENCEPIECE, add_bos_token=False, token_type=tuple(map(int, types)))
    assert tokenizer.encode("ab").tokens == ["▁a", "b"]


@pytest.fixture(scope="module")
def original() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(shared("tokenizers/llama-32000/tokenizer.model")))


@pytest.fixture(scope="module")
def llama(original: sentencepiece.SentencePieceProcessor, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The 32,000 pieces of LLaMA as llama.cpp's conversion stores them, rebuilt."""
    path = tmp_path_factory.mktemp("llama") / "model.gguf"
    pieces = range(original.vocab_size())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([original.id_to_piece(piece) for piece in pieces])
    writer.add_token_scores([original.get_score(piece) for piece in pieces])
    writer.add_token_types(
        [2 if piece == 0 else 3 if piece < 3 else 6 if original.is_byte(piece) else 1 for piece in pieces]
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return Tokenizer.from_str(json.dumps(rebuild_tokenizer(read_gguf(path)).json))


def test_ids_of_llama_on_prose(llama: Tokenizer, original: sentencepiece.SentencePieceProcessor) -> None:
    rows = shared("corpora/c4/validation-sample.jsonl").read_text().splitlines()
    documents = [json.loads(row)["text"] for row in rows]
    lines = shared("corpora/wikitext2/validation.txt").read_text().splitlines(keepends=True)
    for text in documents + lines:
        expected = original.encode(text)
        assert llama.encode(text).ids == [1, *expected]
        assert llama.decode(expected) == original.decode(expected)


@given(text=st.text(st.characters(codec="utf-8")) | st.text(st.sampled_from(" \t\n=-#a1▁é世")))
@settings(max_examples=300, deadline=None)
def test_ids_of_llama_on_anything(
    llama: Tokenizer, original: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    assert llama.encode(text, add_special_tokens=False).ids == original.encode(text)


# Contradictions


@pytest.mark.parametrize(
    ("metadata", "changes", "message"),
    [
        (BYTE_LEVEL, {"model": "bert"}, "tokenizer of the kind bert; gpt2 and llama can be rebuilt"),
        (BYTE_LEVEL, {"tokens": (*TOKENS[:-1], "a")}, r"has the token 'a' twice, as \d+ and \d+"),
        (BYTE_LEVEL, {"tokens": tuple(range(len(TOKENS)))}, "tokens in model.gguf is no array of str"),
        (BYTE_LEVEL, {"token_type": (1,)}, "tokens, but 1 token types"),
        (BYTE_LEVEL, {"token_type": tuple(map(float, TYPES))}, "token_type in model.gguf is no array of int"),
        (BYTE_LEVEL, {"merges": ("a c",)}, "merges 'a' and 'c', which are not in its vocabulary"),
        (BYTE_LEVEL, {"merges": ("ab",)}, "merges 'ab' and '', which are not in its vocabulary"),
        (BYTE_LEVEL, {"eos_token_id": len(TOKENS)}, "eos_token_id in model.gguf is 268, but there are 268 tokens"),
        (BYTE_LEVEL, {"eos_token_id": -1}, "eos_token_id in model.gguf is -1"),
        (SENTENCEPIECE, {"scores": (0.0,)}, "265 tokens, but 1 scores"),
        (SENTENCEPIECE, {"scores": tuple(range(265))}, "scores in model.gguf is no array of float"),
        (SENTENCEPIECE, {"remove_extra_whitespaces": True}, "drops repeated spaces"),
        (SENTENCEPIECE, {"tokens": (*PIECES[:-1], "a" * 1025)}, "a token of more than 1024 characters"),
    ],
)
def test_contradictions_are_named(metadata: dict[str, Value], changes: dict[str, Value], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        rebuild(metadata, **changes)


@pytest.mark.parametrize("name", ["model", "pre", "tokens", "token_type", "merges"])
def test_a_field_that_is_not_there(name: str) -> None:
    metadata = {key: value for key, value in BYTE_LEVEL.items() if key != f"tokenizer.ggml.{name}"}
    with pytest.raises(CheckpointError, match=f"lacks the metadata field tokenizer.ggml.{name}"):
        rebuild(metadata)
