"""Shared runs of words, counted by hand."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.corpora import Corpus
from octavo.evaluation import hygiene
from octavo.evaluation.hygiene import Overlap, overlap


def corpus(*documents: str, dataset=None, conversations=()) -> Corpus:
    return Corpus("name", dataset, documents, conversations, "source", "0" * 64)


def words(start: int, end: int) -> str:
    return " ".join(f"w{number}" for number in range(start, end))


def test_a_text_in_itself_is_all_of_it() -> None:
    assert overlap(corpus(words(0, 40)), corpus("Before. " + words(0, 40).upper() + "! After.")) == Overlap(28, 28)


def test_other_words_share_nothing_and_short_texts_have_no_runs() -> None:
    assert overlap(corpus(words(0, 40)), corpus(words(100, 200))) == Overlap(28, 0)
    assert overlap(corpus(words(0, 12)), corpus(words(0, 12))) == Overlap(0, 0)
    assert Overlap(0, 0).share == 0


def test_a_part_counts_as_a_part() -> None:
    # 20 words in common hold 8 runs of 13.
    assert overlap(corpus(words(0, 30)), corpus(words(10, 30) + " end")) == Overlap(18, 8)


def test_documents_are_apart_and_rows_are_not() -> None:
    halves = (words(0, 7), words(7, 14))
    assert overlap(corpus(words(0, 14)), corpus(*halves)) == Overlap(2, 0)
    assert overlap(corpus(words(0, 14)), corpus(*halves, dataset="ptb")) == Overlap(2, 2)


def test_messages_are_texts() -> None:
    chat = corpus(conversations=((("user", words(0, 14)), ("assistant", words(50, 70))),))
    assert overlap(chat, corpus(words(50, 70))) == Overlap(10, 8)


@given(st.integers(0, 10**6))
def test_it_is_the_share_of_runs_that_can_be_found(seed: int) -> None:
    """Twin: each run is looked for in the calibration text as a string."""
    generator = random.Random(seed)
    evaluated, calibrated = (
        " ".join(generator.choices(["a", "b"], k=generator.randint(13, 60))) for _ in range(2)
    )
    evaluated_words = evaluated.split()
    found = sum(
        " ".join(evaluated_words[start : start + 13]) in calibrated for start in range(len(evaluated_words) - 12)
    )
    assert overlap(corpus(evaluated), corpus(calibrated)) == Overlap(len(evaluated_words) - 12, found)


@pytest.mark.parametrize(("shared", "ending"), [(0, "on which the model was calibrated"), (5, "are too good")])
def test_what_is_said_of_it(shared: int, ending: str) -> None:
    sentence = Overlap(200, shared).sentence("wikitext2", "mine.txt")
    assert sentence.startswith(
        f"{shared / 2:.2f} % of the runs of {hygiene.RUN} words of wikitext2 stand in mine.txt"
    )
    assert sentence.endswith(ending)
