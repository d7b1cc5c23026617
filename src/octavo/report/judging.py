"""A judge's verdicts as a table."""

from collections.abc import Mapping

from rich.console import Console

from octavo.evaluation.judging import Tally
from octavo.report.tables import Column, print_table

TITLES = ("won", "lost", "tied", "unreadable", "orders contradict", "share of wins", "95 % interval")


def print_tallies(console: Console, tallies: Mapping[str, Tally]) -> None:
    """A row for all questions and for each category; a tie counts half in the share of wins."""
    columns = [Column("category", number=False), *map(Column, TITLES)]
    print_table(
        console, "against the opponent", columns, [[name, *_cells(tally)] for name, tally in tallies.items()]
    )


def _cells(tally: Tally) -> list[str]:
    counts = [tally.won, tally.lost, tally.tied, tally.unreadable, tally.contradicted]
    share = "–" if tally.share is None else f"{100 * tally.share.value:.1f} %"
    ends = None if tally.share is None else tally.share.interval()
    # A share lies between nothing and all, whatever Student's t makes of few questions.
    interval = "–" if ends is None else f"{100 * max(0, ends[0]):.1f} … {100 * min(1, ends[1]):.1f} %"
    return [*map(str, counts), share, interval]
