"""A data folder for the three tables, with stand-ins for what may not be shipped; each is named as one."""

import re
from collections import Counter
from pathlib import Path

from conftest import shared

RAREST = 3  # a word that occurs less often is <unk>, as in Penn Treebank


def write_data_folder(folder: Path, most_lines: int | None = None) -> Path:
    """wikitext2's validation set for its training set, a sample for C4, and stories for Penn Treebank.

    `most_lines` keeps the beginning of each file.
    """
    for name in ("wikitext2", "ptb", "c4"):
        (folder / name).mkdir(parents=True)
    for source, path in (
        ("wikitext2/test.txt", "wikitext2/test.txt"),
        ("wikitext2/validation.txt", "wikitext2/stand-in.train.txt"),
        ("c4/validation-sample.jsonl", "c4/validation-sample.jsonl"),
    ):
        lines = shared(f"corpora/{source}").read_text().split("\n")[:most_lines]
        (folder / path).write_text("\n".join(lines))
    sentences = treebank_sentences(shared("corpora/calibration/tinystories.txt").read_text())
    half, rest = len(sentences) // 2, len(sentences) * 3 // 4
    for split, chosen in (
        ("train", sentences[:half]),
        ("valid", sentences[half:rest]),
        ("test", sentences[rest:]),
    ):
        lines = "".join(f" {sentence} \n" for sentence in chosen)
        (folder / "ptb" / f"stand-in.ptb.{split}.txt").write_text(lines)
    return folder


def treebank_sentences(text: str) -> list[str]:
    """A text in Penn Treebank's form: a sentence a line, small letters, no punctuation, N for numbers, <unk>."""
    sentences = [
        re.findall(r"[a-z]+|[0-9]+", sentence.lower().replace("'", "")) for sentence in re.split(r"[.!?]\s", text)
    ]
    counts = Counter(word for sentence in sentences for word in sentence)
    return [
        " ".join("N" if word.isdecimal() else word if counts[word] >= RAREST else "<unk>" for word in sentence)
        for sentence in sentences
        if sentence
    ]
