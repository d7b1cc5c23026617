"""Texts as other tools read them: the raw file for llama.cpp, pages and words for lm-evaluation-harness."""

import re
from collections.abc import Sequence

from octavo.corpora import Corpus

# What lm-evaluation-harness does to a page of wikitext, in this order, before it is tokenized: tasks/wikitext/
# preprocess_wikitext.py. The second rule looks for a slash and so never applies; it is kept out.
REPLACED = (
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    (" : ", ": "),
    (" ; ", "; "),
    (" . ", ". "),
    (" ! ", "! "),
    (" ? ", "? "),
    (" , ", ", "),
)
ENCLOSED = (
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
)
REPLACED_LAST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def raw_text(corpus: Corpus, c4_documents: int) -> str:
    """The file that the rows of a text were read from; what has no such file is joined by newlines."""
    if corpus.dataset == "wikitext2":
        return "".join(row or " \n" for row in corpus.documents)
    if corpus.dataset == "ptb":
        return "".join(f" {row} \n" for row in corpus.documents)
    if corpus.dataset == "c4":
        return "\n".join(corpus.documents[:c4_documents])
    return "\n".join(corpus.documents)


def pages_of(rows: Sequence[str]) -> list[str]:
    """The pages of wikitext from its rows, cut before each heading ` = Title = `.

    As the data set `EleutherAI/wikitext_document_level` cuts the raw file.
    """
    pages: list[str] = []
    lines: list[str] = []
    for line in "".join(row or " \n" for row in rows).split("\n"):
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            pages.append("\n".join(lines))
            lines = []
        lines.append(line)
    pages.append("\n".join(lines))
    # The harness keeps the last page even where it is blank, which adds to its words; no real file ends so.
    return [page for page in pages if page.strip()]


def words_of(page: str) -> int:
    """Words as the harness counts them: pieces between runs of white space, empty ones at the ends included."""
    return len(re.split(r"\s+", page))


def detokenized(page: str) -> str:
    """A page of wikitext as ordinary English, by the rules of the harness."""
    for old, new in REPLACED:
        page = page.replace(old, new)
    for pattern, enclosed in ENCLOSED:
        page = re.sub(pattern, enclosed, page)
    for old, new in REPLACED_LAST:
        page = page.replace(old, new)
    return page
