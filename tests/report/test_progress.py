"""Bars on a terminal."""

import io

import pytest
from rich.console import Console

from octavo.report.progress import Bar

NAME = "[draft] notes[/].txt"  # which rich would read as its own markup


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_bar_shows_names_as_they_are(terminal: Console) -> None:
    with Bar(terminal) as bar:
        bar.preparing(f"reading {NAME}")
        bar.begin("scoring", 2)
        bar.advance(1, f"of {NAME}")
        bar.preparing(f"reading {NAME}")
    assert f"reading {NAME}" in shown(terminal)
