"""Tables for people: framed on a terminal, plain lines with tabs in a pipe."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Column:
    """A heading, and whether its cells are numbers."""

    title: str
    number: bool = True


def print_table(console: Console, title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells; the title is left out where a program reads along."""
    if not console.is_terminal:
        for cells in ([column.title for column in columns], *rows):
            print("\t".join(cells), file=console.file)  # rich would turn the tabs into spaces
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column.title, justify="right" if column.number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def as_markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a bar in a cell would end it, and is escaped."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)


def with_error(value: float, error: float | None, digits: int) -> str:
    """A value and its standard error."""
    text = f"{value:.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"


def as_size(size: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, bytes_of_unit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_of_unit:
            return f"{size / bytes_of_unit:.1f} {unit}"
    return f"{size} B"
