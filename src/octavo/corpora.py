"""Texts, as strings: a published data set by name, or a local file; where it came from, and the hash of its bytes.

A named text comes from the data folder (`--data-dir`, else OCTAVO_DATA) when that has a folder of its name, else
from the Hugging Face hub. Nothing stands in for anything unless its name says so.
"""

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from octavo.errors import CorpusError, UsageError
from octavo.records import read_bounded, sha256_of_bytes

Dataset = Literal["wikitext2", "ptb", "c4"]
Split = Literal["train", "validation", "test"]
Conversation = tuple[tuple[str, str], ...]
"""(role, content) of each message, in order."""

DATA_DIR_VARIABLE = "OCTAVO_DATA"

# A shard of C4, the largest text that a protocol names, is 0.8 GB when unpacked.
LARGEST_TEXT = 2 * 1024**3
MOST_RECORDS = 10_000_000

LOCAL_FILES: dict[Dataset, dict[Split, str]] = {
    "wikitext2": {"train": "train.txt", "validation": "validation.txt", "test": "test.txt"},
    "ptb": {"train": "ptb.train.txt", "validation": "ptb.valid.txt", "test": "ptb.test.txt"},
    "c4": {"train": "c4-train.00000-of-01024.json.gz", "validation": "c4-validation.00000-of-00008.json.gz"},
}

# Before a file's name it says that another text stands in for it; results say so, too.
STANDS_IN = "stand-in"

# The names that turn up in published ShareGPT files.
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
}


@dataclass(frozen=True)
class Corpus:
    """One split of a text, loaded.

    `name` is what results show: `wikitext2`, `c4-sample(300 docs)`, `my.txt`. `dataset` is the published data set
    that the text is or stands in for; None for a local file. Either `documents` or `conversations` is filled.
    `source` is a path, or `repository@revision:file` on the hub; `sha256` is that of the file as stored, packed
    or not.
    """

    name: str
    dataset: Dataset | None
    documents: tuple[str, ...]
    conversations: tuple[Conversation, ...]
    source: str
    sha256: str


@dataclass(frozen=True)
class _HubDataset:
    """Where the hub keeps a data set; the commit is fixed, so that everyone reads the same text."""

    repository: str
    revision: str
    files: dict[Split, str]


HUB_DATASETS: dict[Dataset, _HubDataset] = {
    "wikitext2": _HubDataset(
        "Salesforce/wikitext",
        "b08601e04326c79dfdd32d625aee71d232d685c3",
        {split: f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet" for split in get_args(Split)},
    ),
    "c4": _HubDataset(
        "allenai/c4",
        "1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        {split: f"en/{name}" for split, name in LOCAL_FILES["c4"].items()},
    ),
}


def load_corpus(text: str, split: Split, data_dir: Path | None = None) -> Corpus:
    """The `split` of `wikitext2`, `ptb` or `c4`, or the local file at the path `text`, which is taken whole.

    A local file is plain text; JSON lines or a JSON array of `{"text"}`, `{"messages"}` or ShareGPT
    `{"conversations"}`; or articles in `<doc …>` and `</doc>` lines. Each may be packed with gzip (`.gz`).
    CorpusError where the text is missing, malformed or too large.
    """
    dataset = next((name for name in get_args(Dataset) if name == text), None)
    if dataset is None:
        return _load_file(Path(text))
    if split not in LOCAL_FILES[dataset]:
        raise UsageError(f"{dataset} has no {split} split; it has {' and '.join(LOCAL_FILES[dataset])}")
    folder = _folder_of(dataset, data_dir)
    return _load_from_hub(dataset, split) if folder is None else _load_from_folder(dataset, split, folder)


def _folder_of(dataset: Dataset, data_dir: Path | None) -> Path | None:
    """The data set's folder in the data folder; None where there is no such folder."""
    if data_dir is None:
        variable = os.environ.get(DATA_DIR_VARIABLE)
        if not variable:
            return None
        data_dir = Path(variable)
    if not data_dir.is_dir():
        raise CorpusError(f"the data folder {data_dir} does not exist; correct --data-dir or {DATA_DIR_VARIABLE}")
    folder = data_dir / dataset
    return folder if folder.is_dir() else None


def _load_from_folder(dataset: Dataset, split: Split, folder: Path) -> Corpus:
    path = folder / LOCAL_FILES[dataset][split]
    name: str = dataset
    if dataset == "c4":
        samples = sorted(folder.glob("*.jsonl"))
        stands_in = not path.is_file() and len(samples) == 1
        path = samples[0] if stands_in else path
    elif not path.is_file() and (substitute := folder / f"{STANDS_IN}.{path.name}").is_file():
        path, name = substitute, f"{dataset}-{STANDS_IN}"
    if not path.is_file():
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
        raise CorpusError(
            f"the {split} split of {dataset} is missing: {path} is not there (the folder holds {there}); "
            "put the file there, name another --data-dir, or give the path of a text of your own"
        )
    data = _read(path)
    if dataset == "c4":
        documents = _texts(path, data)
        name = f"c4-sample({len(documents)} docs)" if stands_in else name
    elif dataset == "ptb":
        documents = _ptb_rows(_decode(path, data))
    else:
        documents = _wikitext_rows(_decode(path, data))
    return Corpus(name, dataset, documents, (), str(path), sha256_of_bytes(data))


def _load_file(path: Path) -> Corpus:
    if not path.is_file():
        raise CorpusError(f"{path} is neither a file nor one of {', '.join(get_args(Dataset))}")
    data = _read(path)
    documents: tuple[str, ...] = ()
    conversations: tuple[Conversation, ...] = ()
    if path.name.removesuffix(".gz").endswith((".json", ".jsonl")):
        documents, conversations = _records(path, data)
    else:
        text = _decode(path, data)
        documents = _articles(path, text) if text.lstrip().startswith("<doc ") else (text,)
    if not conversations and not any(documents):
        raise CorpusError(f"{path} holds no text; give another file")
    return Corpus(path.name, None, documents, conversations, str(path), sha256_of_bytes(data))


# Bytes


def _read(path: Path) -> bytes:
    """The file as stored, of bounded size."""
    return read_bounded(path, LARGEST_TEXT, CorpusError)


def _too_large(path: Path) -> CorpusError:
    return CorpusError(f"{path} holds more than {LARGEST_TEXT} bytes of text; give a part of it")


def _lines(path: Path, data: bytes) -> Iterator[bytes]:
    """The unpacked lines of a file, each with its newline; bounded in sum."""
    left = LARGEST_TEXT
    packed = io.BytesIO(data)
    file = gzip.GzipFile(fileobj=packed) if path.suffix == ".gz" else packed
    with file:
        try:
            while line := file.readline(left + 1):
                left -= len(line)
                if left < 0:
                    raise _too_large(path)
                yield line
        except (OSError, EOFError, zlib.error) as error:
            raise CorpusError(f"{path} is no whole gzip file ({error}); fetch it again") from error


def _decode(path: Path, data: bytes) -> str:
    """The whole text, its line ends made "\\n" as Python's text files do."""
    try:
        text = b"".join(_lines(path, data)).decode()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is no UTF-8 text (byte {error.start}); convert it to UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


# Rows of the published sets


def _wikitext_rows(text: str) -> tuple[str, ...]:
    """Every line with its newline; a blank line is the row ""."""
    return tuple(line if line.strip() else "" for line in io.StringIO(text))


def _ptb_rows(text: str) -> tuple[str, ...]:
    """Every line, stripped: one sentence each."""
    return tuple(line.strip() for line in io.StringIO(text))


def _texts(path: Path, data: bytes) -> tuple[str, ...]:
    """The documents of a JSON-lines file that may hold nothing but `{"text"}`."""
    documents, conversations = _records(path, data)
    if conversations or not documents:
        raise CorpusError(f'{path} holds no documents; each line must be a JSON object with "text"')
    return documents


# Local files


def _articles(path: Path, text: str) -> tuple[str, ...]:
    """The articles between lines `<doc …>` and `</doc>`, without blank lines around them."""
    articles: list[str] = []
    article: list[str] | None = None
    for number, line in enumerate(io.StringIO(text), start=1):
        opens = line.startswith("<doc ")
        if article is None:
            if opens:
                article = []
            elif line.strip():
                raise CorpusError(f"{path} line {number} stands outside of <doc …> and </doc>; correct the file")
        elif opens:
            raise CorpusError(f"{path} line {number} opens an article before </doc>; correct the file")
        elif line.rstrip() == "</doc>":
            articles.append("".join(article).strip())
            article = None
        else:
            article.append(line)
    if article is not None:
        raise CorpusError(f"{path} ends inside an article, before </doc>; fetch it again")
    return tuple(articles)


def _records(path: Path, data: bytes) -> tuple[tuple[str, ...], tuple[Conversation, ...]]:
    """Documents and conversations of a JSON array or of JSON lines; one of the two is empty."""
    documents: list[str] = []
    conversations: list[Conversation] = []
    for where, record in _json_records(path, data):
        entry = _document_or_conversation(record, where)
        if isinstance(entry, str):
            documents.append(entry)
        elif entry:
            conversations.append(entry)
        if documents and conversations:
            raise CorpusError(f"{where} mixes documents and conversations; split the file in two")
        if len(documents) + len(conversations) > MOST_RECORDS:
            raise CorpusError(f"{path} holds more than {MOST_RECORDS} records; give a part of it")
    return tuple(documents), tuple(conversations)


def _json_records(path: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    """Each record and where it stands. Blank lines hold none."""
    lines = enumerate(_lines(path, data), start=1)
    for number, line in lines:
        if not line.strip():
            continue
        if line.lstrip().startswith(b"["):
            whole = line + b"".join(rest for _, rest in lines)
            array = _parse_json(whole, f"{path}, from line {number} on,")
            for position, record in enumerate(array, start=1):
                yield f"{path} record {position}", record
            return
        where = f"{path} line {number}"
        yield where, _parse_json(line, where)


def _parse_json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where} is no JSON ({error}); correct the file") from error


def _document_or_conversation(record: Any, where: str) -> str | Conversation:
    if isinstance(record, dict):
        if "messages" in record:
            return _messages(record["messages"], ("role", "content"), where)
        if "conversations" in record:
            turns = _messages(record["conversations"], ("from", "value"), where)
            return tuple((_sharegpt_role(role, where), content) for role, content in turns)
        if "text" in record:
            return _text_of(record, "text", where)
    raise CorpusError(f'{where} has no "text", "messages" or "conversations"; correct the file')


def _messages(messages: Any, keys: tuple[str, str], where: str) -> Conversation:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise CorpusError(f"{where} holds a conversation that is no list of objects; correct the file")
    role, content = keys
    return tuple((_text_of(message, role, where), _text_of(message, content, where)) for message in messages)


def _text_of(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise CorpusError(f'{where} has no string under "{key}"; correct the file')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(f'{where} has half a surrogate pair under "{key}"; correct the file') from error
    return value


def _sharegpt_role(role: str, where: str) -> str:
    if role not in SHAREGPT_ROLES:
        raise CorpusError(f'{where} has a message from "{role}"; known are {", ".join(SHAREGPT_ROLES)}')
    return SHAREGPT_ROLES[role]


# The hub


def _load_from_hub(dataset: Dataset, split: Split) -> Corpus:
    if dataset not in HUB_DATASETS:
        raise CorpusError(
            f"{dataset} is licensed and not fetched from the hub: put {LOCAL_FILES[dataset][split]} into a folder "
            f"{dataset}, and name the folder above it with --data-dir or {DATA_DIR_VARIABLE}"
        )
    hub = HUB_DATASETS[dataset]
    path = _download(hub, dataset, split)
    data = _read(path)
    documents = _texts(path, data) if dataset == "c4" else _parquet_texts(path, data)
    source = f"{hub.repository}@{hub.revision}:{hub.files[split]}"
    return Corpus(dataset, dataset, documents, (), source, sha256_of_bytes(data))


def _download(hub: _HubDataset, dataset: Dataset, split: Split) -> Path:
    """The file in the hub's cache, fetched if need be; HF_ENDPOINT and HF_HUB_OFFLINE hold."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library in use

    try:
        return Path(hf_hub_download(hub.repository, hub.files[split], repo_type="dataset", revision=hub.revision))
    except (OSError, HTTPError, RuntimeError) as error:  # RuntimeError: hf_xet's only one
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        raise CorpusError(
            f"{dataset} cannot be fetched from the hub ({reason.rstrip('.')}); try again online, or put "
            f"{LOCAL_FILES[dataset][split]} into a folder {dataset} and name the folder above it with --data-dir"
        ) from error


def _parquet_texts(path: Path, data: bytes) -> tuple[str, ...]:
    """The column `text`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise CorpusError(
            "the hub keeps this text as Parquet, which needs pyarrow; pip install octavo[data], or use --data-dir"
        ) from error

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data))
        groups = (file.metadata.row_group(index) for index in range(file.num_row_groups))
        if sum(group.total_byte_size for group in groups) > LARGEST_TEXT or file.metadata.num_rows > MOST_RECORDS:
            raise _too_large(path)
        texts = file.read(columns=["text"]).column("text").to_pylist()
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise CorpusError(f"{path} is no Parquet file with a column text ({error}); fetch it again") from error
    return tuple(text or "" for text in texts)
