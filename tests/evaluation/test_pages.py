"""Pages of wikitext as lm-evaluation-harness reads them."""

import pytest

from conftest import shared
from octavo.corpora import load_corpus
from octavo.evaluation.pages import detokenized, pages_of, raw_text, words_of


@pytest.mark.parametrize(
    ("spaced", "ordinary"),
    [
        (" The dogs ' bowl \n", " The dogs' bowl\n"),
        ("a well @-@ known 1 @,@ 000 or 2 @.@ 5", "a well-known 1,000 or 2.5"),
        ("So : yes ; no . Ah ! Eh ? Well , ", "So: yes; no. Ah! Eh? Well, "),
        ("( one ) [ two ] { three }", "(one) [two] {three}"),
        ('he said " go on " and left', 'he said "go on" and left'),
        (" = = = Notes = = = \n \n Text", " === Notes ===\n\nText"),
        ("at 5 ° C the N times , it 's", "at 5°C the 1 times, it's"),
    ],
)
def test_a_page_becomes_ordinary_english(spaced: str, ordinary: str) -> None:
    assert detokenized(spaced) == ordinary


def test_words_are_counted_with_the_empty_pieces_at_the_ends() -> None:
    assert words_of(" two words \n") == 4
    assert words_of("two words") == 2


def test_the_real_test_set_has_62_pages_and_the_harness_s_words() -> None:
    path = shared("corpora/wikitext2/test.txt")
    corpus = load_corpus("wikitext2", "test", path.parent.parent)
    assert raw_text(corpus, 0) == path.read_text()
    pages = pages_of(corpus.documents)
    assert len(pages) == 62
    assert pages[0].lstrip().startswith("= Robert Boulter =")
    # 241,211 words separated by white space, and an empty piece at both ends of each page.
    assert sum(map(words_of, pages)) == len(path.read_text().split()) + 2 * 62
