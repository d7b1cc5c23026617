"""Whether the text that a model was calibrated on holds what it is measured on: shared runs of words.

The measure is the one that GPT-3's authors used for training data: runs of 13 words, in small letters and without
punctuation (https://arxiv.org/abs/2005.14165, appendix C).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from octavo.corpora import Corpus

RUN = 13  # words
LARGE_SHARE = 0.01


@dataclass(frozen=True)
class Overlap:
    """How many of the runs of words of an evaluation text stand in the calibration text, too."""

    runs: int
    shared: int

    @property
    def share(self) -> float:
        return self.shared / self.runs if self.runs else 0.0

    def sentence(self, evaluated: str, calibrated: str) -> str:
        """What is to be said of it."""
        found = f"{100 * self.share:.2f} % of the runs of {RUN} words of {evaluated} stand in {calibrated}"
        if self.share >= LARGE_SHARE:
            return (
                f"{found}: the model was calibrated on what it is measured on, and its numbers there are too good"
            )
        return f"{found}, on which the model was calibrated"


def overlap(evaluated: Corpus, calibrated: Corpus) -> Overlap:
    """The share of the evaluation text's runs of words that the calibration text contains."""
    wanted = [run for text in texts_of(evaluated) for run in runs_of(text)]
    remaining = set(wanted)
    found: set[int] = set()
    for text in texts_of(calibrated):
        found.update(run for run in runs_of(text) if run in remaining)
    return Overlap(len(wanted), sum(run in found for run in wanted))


def texts_of(corpus: Corpus) -> Iterator[str]:
    """Documents whole, conversations message by message; neighbouring rows of a data set are one text."""
    if corpus.conversations:
        yield from (content for conversation in corpus.conversations for _, content in conversation)
    elif corpus.dataset in ("wikitext2", "ptb"):
        yield "\n".join(corpus.documents)
    else:
        yield from corpus.documents


def runs_of(text: str) -> Iterator[int]:
    """Hashes of all runs of so many words; a text of fewer words has none."""
    words = re.findall(r"\w+", text.lower())
    return (hash(tuple(words[start : start + RUN])) for start in range(len(words) - RUN + 1))
