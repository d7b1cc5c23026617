"""Text to ids and back, against transformers old and new; and no way from text to a control token."""

import hashlib
import io
import json
import re
import shutil
import struct
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from conftest import shared
from octavo.errors import TokenizerError, UsageError
from octavo.model.tokenizer import Segment, TextStream, load_tokenizer

GOLDEN = Path(__file__).parent.parent / "golden"
CHATML = GOLDEN / "chatml-tokenizer"
LEGACY = json.loads((GOLDEN / "llama_legacy_tokens.json").read_text(encoding="utf-8"))

# Pieces that meet at the borders of control tokens, spaces and characters of several bytes.
PIECES = [
    "<s>",
    "</s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<",
    "/s",
    ">",
    "|",
    "im_end",
]
PIECES += [
    " ",
    "  ",
    "    ",
    "▁",
    "\n",
    "\t",
    "a",
    "Hey",
    "USER:",
    "é",
    "日本",
    "😀",
    "<0x0A>",
    "\x00",
    "\u0338",
    "'s",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join)

TOKEN = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
MAPS = {
    "strings": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "dictionaries": {
        "bos_token": {"content": "<s>", **TOKEN},
        "eos_token": {"content": "</s>", **TOKEN},
        "unk_token": {"content": "<unk>", **TOKEN},
    },
}


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def folder_with(folder, model, **files):
    """A folder with a copy of a vocabulary file, and JSON files named without their ending."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(model, folder / model.name)
    for name, value in files.items():
        write(folder / f"{name}.json", value)
    return folder


@pytest.fixture(scope="session")
def llama_model():
    return shared("tokenizers/llama-32000/tokenizer.model")


@pytest.fixture(scope="session")
def legacy_folder(llama_model, tmp_path_factory):
    """LLaMA's tokenizer as in 2023, when no file said "legacy"."""
    return folder_with(tmp_path_factory.mktemp("legacy"), llama_model, special_tokens_map=MAPS["strings"])


@pytest.fixture(scope="session")
def unigram_folder(tmp_path_factory):
    """A vocabulary whose model would find </s> in text by itself, as the best piece of all."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((chr(code), -3.0) for code in range(33, 127))]
    library = Library(models.Unigram(pieces, unk_id=0))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    folder = tmp_path_factory.mktemp("unigram")
    library.save(str(folder / "tokenizer.json"))
    write(folder / "tokenizer_config.json", {"eos_token": "</s>", "unk_token": "<unk>"})
    assert library.encode("a</s>").tokens == ["▁", "a", "</s>"]
    return folder


@pytest.fixture(scope="session")
def tokenizers(legacy_folder, unigram_folder):
    folders = {
        "llama": shared("tokenizers/llama-32000"),
        "legacy": legacy_folder,
        "stories": shared("models/stories260K"),
        "chatml": CHATML,
        "unigram": unigram_folder,
    }
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


every_tokenizer = pytest.mark.parametrize("name", ["llama", "legacy", "stories", "chatml", "unigram"])
tokenizers_with_bytes = pytest.mark.parametrize("name", ["llama", "legacy", "stories", "chatml"])


# --- No way from text to a control token


@every_tokenizer
def test_typed_control_tokens_are_text(tokenizers, name):
    tokenizer = tokenizers[name]

    @given(TEXTS)
    def check(text):
        ids = tokenizer.encode(text, control_tokens=False)
        assert not tokenizer.control_ids.difference([tokenizer.unk_id]).intersection(ids)

    check()
    for token_id in tokenizer.control_ids:
        assert token_id not in tokenizer.encode(tokenizer.spelling(token_id), control_tokens=False)


def test_whoever_asks_for_control_tokens_gets_them(tokenizers):
    llama, chatml = tokenizers["llama"], tokenizers["chatml"]
    assert llama.encode("</s>", control_tokens=True) == [2]
    assert llama.encode("</s>", control_tokens=False) == [1533, 29879, 29958]
    assert chatml.encode("<|im_end|>\n", control_tokens=True) == [322, 198]
    assert chatml.encode("<|im_end|>\n", control_tokens=False) == [27, 91, 298, 62, 306, 91, 29, 198]
    assert chatml.encode("<think>", control_tokens=True) == [323]
    assert 323 not in chatml.encode("<think>", control_tokens=False)
    assert tokenizers["unigram"].encode("a</s>", control_tokens=True) == [2, 67, 1]


def test_runs_of_spaces_are_text_although_they_are_added_tokens(tokenizers):
    chatml = tokenizers["chatml"]
    assert (
        chatml.encode("a    b", control_tokens=False)
        == chatml.encode("a    b", control_tokens=True)
        == [64, 325, 65]
    )
    assert sorted(chatml.control_ids) == [320, 321, 322, 323, 324]


def test_a_merge_does_not_lead_to_a_control_token(tmp_path):
    """A BPE vocabulary that would put the declared token together from its letters."""
    vocabulary = {"<": 0, "e": 1, ">": 2, "<e": 3, "<e>": 4, "<e>>": 5}
    library = Library(models.BPE(vocabulary, [("<", "e"), ("<e", ">"), ("<e>", ">")]))
    library.decoder = decoders.Fuse()
    assert library.encode("<e>").ids == [4]
    library.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path / "tokenizer_config.json", {"eos_token": "<e>"})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("<e>>", control_tokens=False) == [3, 2, 2]
    assert tokenizer.encode("<e>>", control_tokens=True) == [4, 2]


def test_a_sentencepiece_control_token_that_is_found_in_text_is_refused(tmp_path):
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        user_defined_symbols=["<|im_start|>"],
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    write(tmp_path / "added_tokens.json", {"<|im_start|>": 3})
    with pytest.raises(TokenizerError, match=r"no control token '<\|im_start\|>'; provide a tokenizer.json"):
        load_tokenizer(tmp_path)


# --- The same ids as transformers, old and new


@pytest.mark.parametrize("style", MAPS)
def test_legacy_ids_are_those_of_2023(llama_model, tmp_path, style):
    tokenizer = load_tokenizer(folder_with(tmp_path, llama_model, special_tokens_map=MAPS[style]))
    for case in LEGACY["cases"][style]:
        # Old transformers doubled a BOS that the text spells out.
        expected = case["ids"][1:] if case["text"].startswith("<s>") else case["ids"]
        assert tokenizer.encode(case["text"], control_tokens=True, beginning=True) == expected, case["text"]


def test_legacy_ids_of_a_whole_corpus(tokenizers):
    text = shared("corpora/wikitext2/test.txt").read_text(encoding="utf-8")
    ids = tokenizers["legacy"].encode(text, control_tokens=True, beginning=True)
    packed = struct.pack(f"<{len(ids)}I", *ids)
    golden = LEGACY["wikitext2_test"]["strings"]
    assert {"tokens": len(ids), "sha256": hashlib.sha256(packed).hexdigest()} == golden


@pytest.mark.parametrize(("name", "folder"), [("stories", "models/stories260K"), ("chatml", CHATML)])
def test_ids_and_text_are_those_of_the_tokenizers_library(tokenizers, name, folder):
    oracle = Library.from_file(str((shared(folder) if name == "stories" else folder) / "tokenizer.json"))

    @settings(max_examples=300)
    @given(TEXTS)
    def check(text):
        ids = tokenizers[name].encode(text, control_tokens=True)
        assert ids == oracle.encode(text, add_special_tokens=False).ids
        assert tokenizers[name].decode(ids) == oracle.decode(ids)
        assert tokenizers[name].decode(ids, control_tokens=True) == oracle.decode(ids, skip_special_tokens=False)

    check()
    assert tokenizers[name].encode("Hey", control_tokens=False, beginning=True) == oracle.encode("Hey").ids


def test_modern_ids_are_those_of_transformers(tokenizers):
    """But for runs of spaces, where SentencePiece itself decides, and transformers 5 tokenizes otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import LlamaTokenizer

        oracle = LlamaTokenizer.from_pretrained(shared("tokenizers/llama-32000")).backend_tokenizer

    @settings(max_examples=300)
    @given(TEXTS)
    def check(text):
        text = re.sub("[ ▁]+", " ", text).lstrip(" ")
        ids = tokenizers["llama"].encode(text, control_tokens=True, beginning=True)
        assert ids[0 if text.startswith("<s>") else 1 :] == oracle.encode(text, add_special_tokens=False).ids
        assert tokenizers["llama"].decode(ids) == oracle.decode(ids)

    check()


def test_runs_of_spaces_are_those_of_sentencepiece(tokenizers, llama_model):
    import sentencepiece

    oracle = sentencepiece.SentencePieceProcessor(model_file=str(llama_model))
    for text in ["a  Hey", "a   Hey", "  Hey", " Hey", "a\n    b", "   "]:
        for name in ("llama", "legacy"):
            assert tokenizers[name].encode(text, control_tokens=False) == oracle.encode(text)
    assert tokenizers["llama"].encode("a  Hey", control_tokens=False) == [263, 29871, 18637]


def test_the_first_space_of_modern_llama(tokenizers):
    """`▁` comes before the very first text only; these ids are those of transformers 5.23."""
    llama = tokenizers["llama"]
    assert llama.encode("Hey", control_tokens=True) == [18637]
    assert llama.encode(" Hey", control_tokens=True) == [29871, 18637]
    assert llama.encode("<s>Hey", control_tokens=True) == [1, 29950, 1032]
    assert llama.encode("</s>USER: x", control_tokens=True) == [2, 11889, 29901, 921]
    assert llama.encode("aer <unk> berlitz", control_tokens=True) == [14911, 29871, 0, 7655, 29880, 2784]


def test_the_longest_spelling_counts(tmp_path):
    library = Library.from_file(str(CHATML / "tokenizer.json"))
    library.add_special_tokens(["<a>", "<a><b>", "<b>"])
    library.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("<a><b><a><a>", control_tokens=True) == [327, 326, 326]


def test_a_control_token_is_found_wherever_it_stands(tmp_path):
    """Where the library looks for it in normalized text, a space before the text would hide it after a letter."""
    library = Library(models.BPE({"▁": 0, "a": 1, "b": 2}, []))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Fuse()
    library.add_tokens([AddedToken("<think>", normalized=True, single_word=True)])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a<think>b", control_tokens=True) == [0, 1, 3, 0, 2]
    assert tokenizer.encode("a<think>b", control_tokens=False) == [0, 1, 2]


def test_what_stands_beside_a_control_token_is_swallowed_where_it_says_so(tmp_path):
    library = Library.from_file(str(CHATML / "tokenizer.json"))
    library.add_special_tokens([AddedToken("<|end|>", rstrip=True), AddedToken("<|mask|>", lstrip=True)])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    for text in ["a <|end|> \n b", "a <|mask|> b", "<|mask|><|end|>"]:
        assert tokenizer.encode(text, control_tokens=True) == library.encode(text, add_special_tokens=False).ids
    segments = [Segment("a ", False), Segment("<|end|>", True), Segment(" \n b", False)]
    assert tokenizer.encode_segments(segments) == [64, 220, 326, 65]


# --- The beginning of a text


def test_one_bos_at_most(tokenizers):
    for name in ("llama", "legacy", "stories"):
        tokenizer = tokenizers[name]
        assert tokenizer.beginning == (1,) == (tokenizer.bos_id,)
        assert tokenizer.encode("", control_tokens=False, beginning=True) == [1]
        assert tokenizer.encode("<s>a", control_tokens=True, beginning=True).count(1) == 1
        assert tokenizer.encode("<s>a", control_tokens=False, beginning=True).count(1) == 1
    chatml = tokenizers["chatml"]
    assert chatml.beginning == () and chatml.bos_id is None
    assert chatml.encode("a", control_tokens=False, beginning=True) == [64]


@pytest.mark.parametrize("processor", ["template", "roberta"])
def test_the_post_processor_says_what_comes_first_and_nothing_comes_last(tmp_path, processor):
    library = Library.from_file(str(CHATML / "tokenizer.json"))
    start, end = ("<|im_start|>", 321), ("<|im_end|>", 322)
    library.post_processor = {
        "template": processors.TemplateProcessing("<|im_start|>:0 $A:0 <|im_end|>:0", special_tokens=[start, end]),
        "roberta": processors.RobertaProcessing(end, start),
    }[processor]
    library.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("a", control_tokens=False, beginning=True) == [321, 64]
    write(tmp_path / "tokenizer_config.json", {"add_bos_token": False})
    assert load_tokenizer(tmp_path).beginning == ()


@pytest.mark.parametrize(("adds_bos", "beginning"), [(True, (1,)), (False, ()), (None, (1,))])
def test_tokenizer_config_decides_about_the_bos(llama_model, tmp_path, adds_bos, beginning):
    folder = folder_with(tmp_path, llama_model, tokenizer_config={"add_bos_token": adds_bos})
    assert load_tokenizer(folder).beginning == beginning


# --- Segments


@every_tokenizer
def test_borders_of_segments_are_no_borders_of_tokens(tokenizers, name):
    tokenizer = tokenizers[name]

    @given(st.lists(TEXTS, max_size=4))
    def check(texts):
        segments = [Segment(text, control_tokens=False) for text in texts]
        assert tokenizer.encode_segments(segments) == tokenizer.encode("".join(texts), control_tokens=False)

    check()


def test_control_tokens_of_one_segment_and_text_of_another(tokenizers):
    segments = [Segment("<|im_start|>us", True), Segment("er\n<|im_end|>", False), Segment("<|im_end|>\n", True)]
    ids = tokenizers["chatml"].encode_segments(segments)
    text = tokenizers["chatml"].encode("user\n<|im_end|>", control_tokens=False)
    assert ids == [321, *text, 322, 198]


# --- Decoding


@tokenizers_with_bytes
def test_text_comes_back(tokenizers, name):
    tokenizer = tokenizers[name]

    @given(TEXTS)
    def check(text):
        # SentencePiece writes a space as ▁, so it cannot tell the two apart.
        expected = text if name == "chatml" else text.replace("▁", " ")
        assert tokenizer.decode(tokenizer.encode(text, control_tokens=False, beginning=True)) == expected

    check()


@every_tokenizer
@pytest.mark.parametrize("control_tokens", [True, False])
@pytest.mark.parametrize("continued", [True, False])
def test_a_stream_gives_what_decode_gives(tokenizers, name, control_tokens, continued):
    tokenizer = tokenizers[name]

    @given(st.lists(st.integers(0, min(tokenizer.vocabulary_size + 3, 700)), max_size=30))
    def check(ids):
        options = {"control_tokens": control_tokens, "continued": continued}
        stream = TextStream(tokenizer, **options)
        assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids, **options)

    check()


def test_decoding_random_ids_as_the_library_does(tokenizers):
    """Of bytes that are no UTF-8 too: byte-level vocabularies have one rule for them, Unicode's."""
    library = Library.from_file(str(CHATML / "tokenizer.json"))

    @given(st.lists(st.integers(0, 330), max_size=30), st.booleans())
    def check(ids, control_tokens):
        expected = library.decode(ids, skip_special_tokens=not control_tokens)
        assert tokenizers["chatml"].decode(ids, control_tokens=control_tokens) == expected

    check()


def test_a_character_appears_with_its_last_byte(tokenizers):
    stream = TextStream(tokenizers["llama"])
    assert [stream.push(token_id) for token_id in [29871, 243, 162, 155, 131, 13]] == ["", "", "", "", "😀", "\n"]
    assert stream.finish() == ""


def test_what_never_became_a_character(tokenizers):
    stream = TextStream(tokenizers["llama"])
    assert [stream.push(token_id) for token_id in [243, 162]] == ["", ""]
    assert stream.finish() == "�"


def test_control_tokens_in_decoded_text(tokenizers):
    llama, chatml = tokenizers["llama"], tokenizers["chatml"]
    assert llama.decode([1, 15043, 2]) == "Hello"
    assert llama.decode([1, 15043, 2], control_tokens=True) == "<s> Hello</s>"
    # Half a character on either side of a token that is left out is whole again.
    assert llama.decode([195 + 3, 2, 169 + 3]) == "é"
    # <think> is part of a reply.
    assert chatml.decode([323, 39, 72, 324, 322]) == "<think>Hi</think>"
    assert chatml.decode([326, 100_000, -1]) == ""


def test_the_space_before_the_first_word(tokenizers):
    for name in ("llama", "legacy", "stories"):
        tokenizer = tokenizers[name]
        ids = tokenizer.encode("a cat", control_tokens=False)
        assert tokenizer.decode(ids) == "a cat"
        assert tokenizer.decode(ids, continued=True) == " a cat"
        assert tokenizer.decode([1, *ids]) == "a cat"
    assert tokenizers["chatml"].decode([220, 64]) == " a"


def test_the_cost_of_a_push_does_not_grow_with_the_text(tokenizers):
    def seconds(pushes):
        stream = TextStream(tokenizers["llama"])
        started = time.perf_counter()
        for _ in range(pushes):
            stream.push(243)  # the first byte of a character that never comes
            stream.push(15043)
        return time.perf_counter() - started

    assert min(seconds(2_000) for _ in range(3)) < 40 * min(seconds(200) for _ in range(3))


@pytest.mark.parametrize(
    ("decoder", "text"),
    [
        (decoders.Metaspace(), "a b"),
        (decoders.Metaspace(prepend_scheme="never"), " a b"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]), " a b"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]), "a b"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 0, 0)]), " a b"),
    ],
)
def test_decoders_of_the_family(tmp_path, decoder, text):
    library = Library(models.BPE({"▁": 0, "a": 1, "b": 2}, []))
    library.normalizer = normalizers.Replace(" ", "▁")
    library.decoder = decoder
    library.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).decode([0, 1, 0, 2]) == library.decode([0, 1, 0, 2]) == text


# --- What a tokenizer says of itself


def test_names_and_numbers(tokenizers):
    llama, chatml = tokenizers["llama"], tokenizers["chatml"]
    assert (llama.vocabulary_size, llama.bos_id, llama.eos_ids, llama.unk_id) == (32000, 1, (2,), 0)
    assert llama.control_ids == {0, 1, 2}
    assert [llama.spelling(i) for i in (0, 1, 13, 15043)] == ["<unk>", "<s>", "<0x0A>", "▁Hello"]
    assert [llama.id_of(piece) for piece in ("</s>", "▁Hello", "no such piece")] == [2, 15043, None]
    assert (chatml.vocabulary_size, chatml.eos_ids, chatml.unk_id) == (326, (322,), None)
    assert [chatml.spelling(i) for i in (220, 322, 325)] == ["Ġ", "<|im_end|>", "    "]
    assert [chatml.id_of(piece) for piece in ("Ġ", "<think>", "</s>")] == [220, 323, None]
    assert chatml.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    for token_id in (-1, 326):
        with pytest.raises(UsageError, match=f"{token_id} is not one of the 326 ids"):
            chatml.spelling(token_id)


def test_every_id_that_ends_a_reply(llama_model, tmp_path):
    folder = folder_with(
        tmp_path,
        llama_model,
        generation_config={"eos_token_id": [7, 5]},
        config={"eos_token_id": 5, "bos_token_id": 1},
    )
    assert load_tokenizer(folder).eos_ids == (7, 5, 2)


def test_a_vocabulary_without_any_file_beside_it(llama_model, tmp_path):
    tokenizer = load_tokenizer(folder_with(tmp_path, llama_model))
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert tokenizer.encode("a</s>", control_tokens=True, beginning=True) == [1, 263, 2]


def test_tokens_that_only_files_beside_the_vocabulary_add(llama_model, tmp_path):
    added = {"32001": {"content": "<|im_end|>", **TOKEN, "special": True}}
    folder = folder_with(
        tmp_path, llama_model, added_tokens={"[PAD]": 32000}, tokenizer_config={"added_tokens_decoder": added}
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocabulary_size == 32002
    assert tokenizer.encode("a[PAD]<|im_end|>", control_tokens=True) == [263, 32000, 32001]
    assert tokenizer.decode([263, 32000, 32001]) == "a[PAD]"
    assert tokenizer.control_ids == {0, 1, 2, 32000, 32001}


def test_a_token_that_the_configuration_names_is_special(tmp_path):
    folder = folder_with(tmp_path, CHATML / "tokenizer.json", tokenizer_config={"eos_token": "</think>"})
    assert load_tokenizer(folder).decode([323, 324]) == "<think>"


def test_a_tokenizer_json_that_cuts_and_pads(tmp_path):
    """Some are published with the limits of their training."""
    library = Library.from_file(str(CHATML / "tokenizer.json"))
    library.enable_truncation(2)
    library.enable_padding(length=5)
    library.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("abc", control_tokens=False) == [64, 65, 66]
    library.no_truncation()
    library.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("abc", control_tokens=False) == [64, 65, 66]


def test_config_adds_tokens_to_a_tokenizer_json(tmp_path):
    added = {"326": {"content": "<tool>", **TOKEN, "special": False}}
    folder = folder_with(tmp_path, CHATML / "tokenizer.json", tokenizer_config={"added_tokens_decoder": added})
    assert load_tokenizer(folder).encode("<tool>", control_tokens=True) == [326]


@pytest.mark.parametrize(
    ("config", "template"),
    [
        ({}, None),
        ({"chat_template": "text"}, "text"),
        ({"chat_template": [{"name": "rag", "template": "a"}, {"name": "default", "template": "b"}]}, "b"),
    ],
)
def test_where_the_chat_template_stands(tmp_path, config, template):
    folder = folder_with(tmp_path, CHATML / "tokenizer.json", tokenizer_config=config)
    assert load_tokenizer(folder).chat_template == template
    (folder / "chat_template.jinja").write_text("from a file of its own")
    assert load_tokenizer(folder).chat_template == "from a file of its own"


def test_equal_tokenizers_have_equal_fingerprints(llama_model, legacy_folder, tmp_path):
    def fingerprint(name, **files):
        return load_tokenizer(folder_with(tmp_path / name, llama_model, **files)).fingerprint

    same = [
        load_tokenizer(legacy_folder).fingerprint,
        fingerprint("a", special_tokens_map=MAPS["strings"], generation_config={"eos_token_id": 5}),
        fingerprint("b", special_tokens_map=MAPS["strings"], tokenizer_config={"model_max_length": 4096}),
    ]
    others = [
        fingerprint("c", special_tokens_map=MAPS["dictionaries"]),
        fingerprint("d", special_tokens_map=MAPS["strings"], tokenizer_config={"legacy": False}),
        fingerprint("e", special_tokens_map=MAPS["strings"], tokenizer_config={"add_bos_token": False}),
        fingerprint("f", special_tokens_map=MAPS["strings"], added_tokens={"<pad>": 32000}),
        load_tokenizer(CHATML).fingerprint,
        load_tokenizer(shared("models/stories260K")).fingerprint,
        fingerprint("g", tokenizer_config={"legacy": False}, added_tokens={"<pad>": 32000}),
    ]
    assert len(set(same)) == 1 and len({*same, *others}) == 1 + len(others)
    assert load_tokenizer(CHATML).fingerprint == load_tokenizer(CHATML).fingerprint


# --- Bad input


def test_half_a_surrogate_pair(tokenizers):
    for name in ("llama", "chatml"):
        with pytest.raises(UsageError, match="half of a surrogate pair"):
            tokenizers[name].encode("a\ud800b", control_tokens=False)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor tokenizer\.model; copy"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b'{"model": {"vocab": {}}}'),
        ("tokenizer.json", b'{"model": ' * 100_000),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}, "decoder": null}'),
        ("tokenizer.model is empty", b""),
        ("tokenizer.model", b"no protocol buffer"),
        ("tokenizer.model", b"\x0a\x05"),
    ],
)
def test_damaged_vocabularies(tmp_path, name, data):
    (tmp_path / name.split()[0]).write_bytes(data)
    with pytest.raises(TokenizerError, match=name):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"tokenizer_config": []}, "a JSON list where an object belongs"),
        ({"tokenizer_config": {"eos_token": 7}}, "damaged"),
        ({"tokenizer_config": {"eos_token": "<end>"}}, "names '<end>' as its eos_token"),
        ({"tokenizer_config": {"chat_template": 7}}, "chat_template is no text"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "y"}}}}, "damaged"),
        ({"generation_config": {"eos_token_id": "2"}}, "is no token id"),
        ({"config": {"eos_token_id": 326}}, r"eos_token the ids \(326,\), but tokenizer.json has 326"),
        ({"added_tokens": {"<|im_end|>": 321}}, r"'<\|im_end\|>' is token 322 in .*, but 321 beside it"),
        ({"added_tokens": {"<new>": 400}}, "'<new>' is token 326 in .*, but 400 beside it"),
    ],
)
def test_files_beside_the_vocabulary_that_are_damaged_or_contradict_it(tmp_path, files, sentence):
    with pytest.raises(TokenizerError, match=sentence):
        load_tokenizer(folder_with(tmp_path, CHATML / "tokenizer.json", **files))


@pytest.mark.parametrize(
    ("decoder", "kind"),
    [
        (decoders.WordPiece(), "WordPiece"),
        (decoders.Replace(Regex("a+"), "b"), "Replace"),
        (
            decoders.Sequence([decoders.Strip(" ", 1, 0), decoders.Fuse()]),
            "Strip",
        ),  # of every piece, not of the text
        (None, "None"),
    ],
)
def test_decoders_of_other_families(tmp_path, decoder, kind):
    library = Library(models.BPE({"a": 0}, []))
    if decoder is not None:
        library.decoder = decoder
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match=f"decodes by .*{kind}"):
        load_tokenizer(tmp_path)


def test_a_file_that_is_too_large(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(128 * 1024 * 1024 + 1)
    with pytest.raises(TokenizerError, match="larger than 134217728 bytes"):
        load_tokenizer(tmp_path)
