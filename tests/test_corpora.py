"""Named texts and local files: exact rows, names, sources and hashes; every malformed file in one sentence."""

import gzip
import hashlib
import http.server
import io
import json
import os
import random
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import shared
from octavo import corpora
from octavo.corpora import Corpus, load_corpus
from octavo.errors import CorpusError, UsageError

WIKITEXT = " \n = Title = \n \n Some text , with words . \n"
WIKITEXT_ROWS = ("", " = Title = \n", "", " Some text , with words . \n")


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def json_lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCTAVO_DATA", raising=False)


# Data folders


def test_wikitext2_rows_are_those_of_the_hub(tmp_path: Path) -> None:
    path = write(tmp_path / "wikitext2" / "test.txt", WIKITEXT)
    assert load_corpus("wikitext2", "test", tmp_path) == Corpus(
        name="wikitext2",
        dataset="wikitext2",
        documents=WIKITEXT_ROWS,
        conversations=(),
        source=str(path),
        sha256=hashlib.sha256(WIKITEXT.encode()).hexdigest(),
    )


def test_lines_end_at_line_feeds_and_nowhere_else(tmp_path: Path) -> None:
    # Python's str.splitlines() would also cut at form feeds, U+0085 and U+2028.
    write(tmp_path / "wikitext2" / "train.txt", "a\x0cb\x85c\u2028d\n\u3000\r\ne\rf")
    assert load_corpus("wikitext2", "train", tmp_path).documents == ("a\x0cb\x85c\u2028d\n", "", "e\n", "f")


def test_the_real_wikitext2_has_the_hubs_number_of_rows() -> None:
    folder = shared("corpora")
    test = load_corpus("wikitext2", "test", folder)
    assert len(test.documents) == 4358
    assert test.documents[:4] == ("", " = Robert Boulter = \n", "", test.documents[3])
    assert test.documents[3].startswith(" Robert Boulter is an English film , television and theatre actor .")
    assert test.sha256 == "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
    assert len(load_corpus("wikitext2", "validation", folder).documents) == 3760


def test_penn_treebank_rows_are_stripped_sentences(tmp_path: Path) -> None:
    write(tmp_path / "ptb" / "ptb.valid.txt", " no it was n't black monday \n\n but while the <unk> N \n")
    corpus = load_corpus("ptb", "validation", tmp_path)
    assert corpus.documents == ("no it was n't black monday", "", "but while the <unk> N")
    assert (corpus.name, corpus.dataset) == ("ptb", "ptb")


def test_c4_is_read_from_its_shard(tmp_path: Path) -> None:
    shard = json_lines({"text": "one\ntwo", "url": "x"}, {"text": "three — four"}).encode()
    packed = gzip.compress(shard)
    path = write(tmp_path / "c4" / "c4-validation.00000-of-00008.json.gz", packed)
    write(tmp_path / "c4" / "sample.jsonl", json_lines({"text": "not this"}))
    corpus = load_corpus("c4", "validation", tmp_path)
    assert corpus == Corpus(
        "c4", "c4", ("one\ntwo", "three — four"), (), str(path), hashlib.sha256(packed).hexdigest()
    )


def test_what_stands_in_for_c4_says_so_in_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "c4" / "some.jsonl", json_lines({"text": "one"}, {"text": "two"}))
    for split in ("train", "validation"):
        corpus = load_corpus("c4", split, tmp_path)
        assert (corpus.name, corpus.dataset, corpus.source) == ("c4-sample(2 docs)", "c4", str(path))


def test_the_real_sample_of_c4() -> None:
    corpus = load_corpus("c4", "validation", shared("corpora"))
    assert corpus.name == "c4-sample(300 docs)"
    assert corpus.documents[0].startswith("Don’t think you need all the bells and whistles?")


def test_two_samples_of_c4_are_no_sample(tmp_path: Path) -> None:
    write(tmp_path / "c4" / "a.jsonl", json_lines({"text": "one"}))
    write(tmp_path / "c4" / "b.jsonl", json_lines({"text": "two"}))
    with pytest.raises(
        CorpusError, match=r"c4-train.00000-of-01024.json.gz is not there \(the folder holds a.jsonl"
    ):
        load_corpus("c4", "train", tmp_path)


def test_a_missing_split_is_named_and_nothing_takes_its_place(tmp_path: Path) -> None:
    write(tmp_path / "wikitext2" / "test.txt", WIKITEXT)
    with pytest.raises(CorpusError) as caught:
        load_corpus("wikitext2", "train", tmp_path)
    assert str(caught.value) == (
        f"the train split of wikitext2 is missing: {tmp_path}/wikitext2/train.txt is not there (the folder holds "
        "test.txt); put the file there, name another --data-dir, or give the path of a text of your own"
    )


def test_the_data_folder_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one" / "wikitext2" / "test.txt", "one\n")
    write(tmp_path / "two" / "wikitext2" / "test.txt", "two\n")
    monkeypatch.setenv("OCTAVO_DATA", str(tmp_path / "one"))
    assert load_corpus("wikitext2", "test").documents == ("one\n",)
    assert load_corpus("wikitext2", "test", tmp_path / "two").documents == ("two\n",)


def test_a_data_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="nowhere does not exist; correct --data-dir"):
        load_corpus("wikitext2", "test", tmp_path / "nowhere")


def test_penn_treebank_comes_from_a_folder_only(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"put ptb\.test\.txt into a folder ptb, and name the folder above it"):
        load_corpus("ptb", "test", tmp_path)


def test_c4_has_no_test_split() -> None:
    with pytest.raises(UsageError, match="c4 has no test split; it has train and validation"):
        load_corpus("c4", "test")


# Local files


def test_a_plain_file_is_one_document(tmp_path: Path) -> None:
    path = write(tmp_path / "my.txt", "Grüße,\r\nWelt\n")
    assert load_corpus(str(path), "train") == Corpus(
        "my.txt", None, ("Grüße,\nWelt\n",), (), str(path), hashlib.sha256("Grüße,\r\nWelt\n".encode()).hexdigest()
    )


def test_a_packed_file_reads_as_the_unpacked_one(tmp_path: Path) -> None:
    packed = gzip.compress(b"some text\n")
    corpus = load_corpus(str(write(tmp_path / "my.txt.gz", packed)), "train")
    assert corpus.documents == ("some text\n",)
    assert corpus.sha256 == hashlib.sha256(packed).hexdigest()


def test_a_real_packed_sample() -> None:
    corpus = load_corpus(str(shared("corpora/c4/c4-sample.01.json.gz")), "train")
    assert len(corpus.documents) == 10
    assert corpus.documents[0].startswith("The woman who died after falling from a bridge over the A21")


def test_articles_are_documents(tmp_path: Path) -> None:
    text = '<doc id="1" title="A">\nA\n\nFirst.\n\n</doc>\n\n<doc id="2">\nB\n<docile> animals.\n</doc>\n'
    corpus = load_corpus(str(write(tmp_path / "wiki.txt", text)), "train")
    assert corpus.documents == ("A\n\nFirst.", "B\n<docile> animals.")


def test_a_text_that_begins_like_articles_is_plain(tmp_path: Path) -> None:
    text = "<docile>\nanimals\n"
    assert load_corpus(str(write(tmp_path / "plain.txt", text)), "train").documents == (text,)


def test_the_real_articles() -> None:
    corpus = load_corpus(str(shared("corpora/calibration/wikipedia.txt")), "train")
    assert len(corpus.documents) == 2349
    assert corpus.documents[0].startswith("2007 European Parliament election in Romania\n\nRomania elected")
    assert corpus.documents[-1] == "Zierliana"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<doc 1>\na\n</doc>\nstray\n", "line 4 stands outside of <doc …> and </doc>"),
        ("<doc 1>\na\n<doc 2>\nb\n</doc>\n", "line 3 opens an article before </doc>"),
        ("<doc 1>\na\n", "ends inside an article, before </doc>"),
    ],
)
def test_broken_articles_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CorpusError, match=f"wiki.txt {message}"):
        load_corpus(str(write(tmp_path / "wiki.txt", text)), "train")


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def test_json_lines_of_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", '{"text": "a\\nb"}\n\n  {"text": "", "n": 1}\r\n{"text": "\\u00e9"}')
    assert load_corpus(str(path), "train").documents == ("a\nb", "", "é")


def test_json_lines_of_messages(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", json_lines({"messages": CHAT, "text": "their own rendering"}))
    corpus = load_corpus(str(path), "train")
    assert corpus.documents == ()
    assert corpus.conversations == ((("system", "Be brief."), ("user", "Hi")),)


def test_sharegpt_in_lines_and_in_an_array(tmp_path: Path) -> None:
    expected = ((("user", "Hi"), ("assistant", "Hello")),) * 2
    records = [{"id": "1", "conversations": SHAREGPT}, {"conversations": []}, {"conversations": SHAREGPT}]
    lines = write(tmp_path / "s.jsonl", json_lines(*records))
    array = write(tmp_path / "s.json", "\n " + json.dumps(records, indent=2))
    assert load_corpus(str(lines), "train").conversations == expected
    assert load_corpus(str(array), "train").conversations == expected


def test_the_real_sharegpt_file() -> None:
    corpus = load_corpus(str(shared("chat/fastchat_dummy_conversation.json")), "train")
    assert len(corpus.conversations) == 500
    assert corpus.conversations[0][0] == ("user", "Who are you?")
    assert {role for conversation in corpus.conversations for role, _ in conversation} == {"user", "assistant"}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1).filter(any), st.booleans())
def test_any_text_survives_json_lines(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], escaped: bool
) -> None:
    lines = "".join(json.dumps({"text": text}, ensure_ascii=escaped) + "\n" for text in texts)
    path = write(tmp_path_factory.mktemp("lines") / "t.jsonl", lines)
    assert load_corpus(str(path), "train").documents == tuple(texts)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text": \n', "x.jsonl line 2 is no JSON"),
        ("x.jsonl", '{"text": "a"}\n' + "[" * 100_000 + "\n", "x.jsonl, from line 2 on, is no JSON"),
        ("x.jsonl", '{"text": ' + "[" * 100_000 + "\n", "x.jsonl line 1 is no JSON"),
        ("x.json", '[{"text": "a"},', "x.json, from line 1 on, is no JSON"),
        ("x.json", '[{"text": "a"}, 7]', 'x.json record 2 has no "text", "messages" or "conversations"'),
        ("x.jsonl", '{"turns": ["a"]}\n', 'line 1 has no "text", "messages" or "conversations"'),
        ("x.jsonl", '{"text": 7}\n', 'line 1 has no string under "text"'),
        ("x.jsonl", '{"text": "\\ud800"}\n', 'line 1 has half a surrogate pair under "text"'),
        ("x.jsonl", '{"messages": 7}\n', "line 1 holds a conversation that is no list of objects"),
        ("x.jsonl", '{"messages": ["hello"]}\n', "line 1 holds a conversation that is no list of objects"),
        ("x.jsonl", '{"messages": [{"role": "user"}]}\n', 'line 1 has no string under "content"'),
        ("x.jsonl", '{"conversations": [{"from": "cow", "value": "moo"}]}\n', 'line 1 has a message from "cow"'),
        ("x.jsonl", '{"text": "a"}\n{"messages": [{"role": "user", "content": "b"}]}\n', "line 2 mixes documents"),
        ("x.jsonl", "\n\n", "x.jsonl holds no text"),
        ("x.jsonl", '{"messages": []}\n', "x.jsonl holds no text"),
        ("x.txt", "", "x.txt holds no text"),
        ("x.txt", b"abc\xff", r"x.txt is no UTF-8 text \(byte 3\)"),
        ("x.jsonl", b'{"text": "\xff"}\n', "x.jsonl line 1 is no JSON"),
        ("x.txt.gz", b"no gzip", "x.txt.gz is no whole gzip file"),
        ("x.txt.gz", gzip.compress(random.Random(0).randbytes(5000))[:2000], "x.txt.gz is no whole gzip file"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, name: str, text: bytes | str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load_corpus(str(write(tmp_path / name, text)), "train")


@given(st.binary(max_size=200), st.sampled_from(["x.txt", "x.jsonl", "x.json", "x.txt.gz", "x.jsonl.gz"]))
def test_any_bytes_give_a_text_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str
) -> None:
    path = write(tmp_path_factory.mktemp("any") / name, data)
    try:
        corpus = load_corpus(str(path), "train")
    except CorpusError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert any(corpus.documents) or corpus.conversations


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz", "x.jsonl", "x.jsonl.gz"])
def test_the_size_of_a_text_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data = b"a" * 1000 if "txt" in name else json_lines({"text": "a" * 987}).encode()
    assert len(data) == 1000
    path = write(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
    monkeypatch.setattr(corpora, "LARGEST_TEXT", 1000)
    assert load_corpus(str(path), "train").documents
    monkeypatch.setattr(corpora, "LARGEST_TEXT", 999)
    with pytest.raises(CorpusError, match=f"{name} (is larger than 999 bytes|holds more than 999 bytes of text)"):
        load_corpus(str(path), "train")


@pytest.mark.parametrize("name", ["bomb.txt.gz", "bomb.jsonl.gz"])
def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = write(tmp_path / name, gzip.compress(bytes(30_000_000)))
    monkeypatch.setattr(corpora, "LARGEST_TEXT", 100_000)
    tracemalloc.start()
    with pytest.raises(CorpusError, match="holds more than 100000 bytes"):
        load_corpus(str(path), "train")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_the_number_of_records_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "MOST_RECORDS", 2)
    path = write(tmp_path / "x.jsonl", json_lines(*[{"text": "a"}] * 3))
    with pytest.raises(CorpusError, match="holds more than 2 records"):
        load_corpus(str(path), "train")


def test_a_name_that_is_no_file_lists_the_known_texts(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="wikitext is neither a file nor one of wikitext2, ptb, c4"):
        load_corpus("wikitext", "test")
    with pytest.raises(CorpusError, match="neither a file nor one of"):
        load_corpus(str(tmp_path), "test")


def test_a_sample_of_c4_holds_documents_only(tmp_path: Path) -> None:
    write(tmp_path / "c4" / "x.jsonl", json_lines({"messages": CHAT}))
    with pytest.raises(CorpusError, match=r"x\.jsonl holds no documents; each line"):
        load_corpus("c4", "train", tmp_path)


# The hub, played by a local server


@dataclass(frozen=True)
class Hub:
    """A server that answers as huggingface.co does; `files` are its repositories', by path."""

    endpoint: str
    files: dict[str, bytes]
    asked: list[str]


@pytest.fixture
def hub() -> Iterator[Hub]:
    files: dict[str, bytes] = {}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.wfile.write(self.answer())

        def answer(self) -> bytes:
            asked.append(f"{self.command} {self.path}")
            body = files.get(self.path)
            self.send_response(404 if body is None else 200)
            if body is None:
                self.send_header("X-Error-Code", "EntryNotFound")
                body = b""
            else:
                self.send_header("X-Repo-Commit", self.path.split("/")[5])
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return body

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield Hub(f"http://127.0.0.1:{server.server_address[1]}", files, asked)
    server.shutdown()
    thread.join()
    server.server_close()


LOAD = """
import json, sys
from octavo.corpora import load_corpus
from octavo.errors import CorpusError
try:
    corpus = load_corpus(sys.argv[1], sys.argv[2])
except CorpusError as error:
    print(json.dumps({"error": str(error)}))
else:
    print(json.dumps([corpus.name, corpus.dataset, corpus.documents, corpus.source, corpus.sha256]))
"""


def load_in_new_process(text: str, split: str, home: Path, **variables: str) -> object:
    """huggingface_hub reads its environment when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "OCTAVO_"))}
    process = subprocess.run(
        [sys.executable, "-c", LOAD, text, split],
        env={**environment, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(process.stdout)


WIKITEXT_COMMIT = "b08601e04326c79dfdd32d625aee71d232d685c3"
WIKITEXT_FILE = "wikitext-2-raw-v1/test-00000-of-00001.parquet"
WIKITEXT_URL = f"/datasets/Salesforce/wikitext/resolve/{WIKITEXT_COMMIT}/{WIKITEXT_FILE}"
C4_COMMIT = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
C4_FILE = "en/c4-train.00000-of-01024.json.gz"


def parquet(rows: tuple[str | None, ...], column: str = "text") -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({column: rows}), buffer)
    return buffer.getvalue()


def test_wikitext2_from_the_hub_and_then_from_its_cache(hub: Hub, tmp_path: Path) -> None:
    data = parquet(WIKITEXT_ROWS)
    hub.files[WIKITEXT_URL] = data
    expected = [
        "wikitext2",
        "wikitext2",
        list(WIKITEXT_ROWS),
        f"Salesforce/wikitext@{WIKITEXT_COMMIT}:{WIKITEXT_FILE}",
        hashlib.sha256(data).hexdigest(),
    ]
    assert load_in_new_process("wikitext2", "test", tmp_path, HF_ENDPOINT=hub.endpoint) == expected
    assert hub.asked == [f"HEAD {WIKITEXT_URL}", f"GET {WIKITEXT_URL}"]
    assert load_in_new_process("wikitext2", "test", tmp_path, HF_HUB_OFFLINE="1") == expected


def test_c4_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    data = gzip.compress(json_lines({"text": "one"}, {"text": "two"}).encode())
    hub.files[f"/datasets/allenai/c4/resolve/{C4_COMMIT}/{C4_FILE}"] = data
    # A data folder that has no folder of this name leaves the text to the hub.
    folder = write(tmp_path / "data" / "ptb" / "ptb.test.txt", "a\n").parent.parent
    found = load_in_new_process(
        "c4", "train", tmp_path / "home", HF_ENDPOINT=hub.endpoint, OCTAVO_DATA=str(folder)
    )
    sha256 = hashlib.sha256(data).hexdigest()
    assert found == ["c4", "c4", ["one", "two"], f"allenai/c4@{C4_COMMIT}:{C4_FILE}", sha256]


def test_offline_without_the_file_is_one_sentence(tmp_path: Path) -> None:
    found = load_in_new_process("wikitext2", "test", tmp_path, HF_HUB_OFFLINE="1")
    assert isinstance(found, dict)
    assert found["error"].startswith("wikitext2 cannot be fetched from the hub (Cannot reach ")
    assert "HF_HUB_OFFLINE" in found["error"]
    assert found["error"].endswith(
        "try again online, or put test.txt into a folder wikitext2 and name the folder above it with --data-dir"
    )
    assert "\n" not in found["error"]


def test_a_file_that_the_hub_lacks_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    found = load_in_new_process("c4", "validation", tmp_path, HF_ENDPOINT=hub.endpoint)
    assert isinstance(found, dict)
    assert found["error"].startswith("c4 cannot be fetched from the hub (")
    assert "404" in found["error"] and "\n" not in found["error"]


@pytest.mark.parametrize("data", [b"no parquet", parquet(WIKITEXT_ROWS, column="other")])
def test_a_damaged_parquet_file_is_refused(hub: Hub, tmp_path: Path, data: bytes) -> None:
    hub.files[WIKITEXT_URL] = data
    found = load_in_new_process("wikitext2", "test", tmp_path, HF_ENDPOINT=hub.endpoint)
    assert isinstance(found, dict)
    assert "is no Parquet file with a column text" in found["error"] and "\n" not in found["error"]


def test_without_pyarrow_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", parquet(WIKITEXT_ROWS))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(path))
    assert load_corpus("wikitext2", "test").documents == WIKITEXT_ROWS
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CorpusError, match=r"needs pyarrow; pip install octavo\[data\], or use --data-dir"):
        load_corpus("wikitext2", "test")


def test_a_null_in_a_parquet_file_is_an_empty_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", parquet(("a", None)))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(path))
    assert load_corpus("wikitext2", "test").documents == ("a", "")


def test_an_oversized_parquet_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", parquet(("a" * 100_000,)))
    assert path.stat().st_size < 50_000
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(path))
    monkeypatch.setattr(corpora, "LARGEST_TEXT", 50_000)
    with pytest.raises(CorpusError, match="holds more than 50000 bytes of text"):
        load_corpus("wikitext2", "test")
