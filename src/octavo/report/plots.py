"""The pictures of a model card, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.errors import UsageError
from octavo.records import LinearRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES, DOTS_PER_INCH = (8.0, 4.5), 120


def plot_layer_errors(linears: Sequence[LinearRecord], path: Path) -> None:
    """Squared error of each linear's output per token over the layers, a line for each kind of linear."""
    figure, axes = _figure()
    from matplotlib.ticker import MaxNLocator

    lines: dict[str, list[tuple[int, float]]] = {}
    for linear in linears:
        parts = linear.name.split(".")
        if linear.loss is not None and len(parts) > 2 and parts[2].isdecimal():
            lines.setdefault(parts[-1], []).append((int(parts[2]), linear.loss))
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.set(xlabel="layer", ylabel="squared error of the output, per token", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(ncols=2, fontsize="small")
    figure.savefig(path, metadata={"Software": None})


def plot_divergences(histograms: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Share of positions over their KL divergence to the reference, a line for each text."""
    figure, axes = _figure()
    for name, histogram in histograms.items():
        total = sum(histogram["counts"])
        shares = [count / total for count in histogram["counts"]]
        axes.stairs(shares, histogram["edges"], label=name)
    axes.set(xlabel="KL divergence to the reference, nats", ylabel="share of positions", xscale="log")
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Software": None})


def _figure() -> "tuple[Figure, Axes]":
    """A figure of its own: no window system and no state of matplotlib's is involved."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("the plots of a card need matplotlib; pip install octavo[plots]") from error
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes
