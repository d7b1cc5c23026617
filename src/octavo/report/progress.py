"""Bars on a terminal and plain lines in a pipe, for jobs that take longer than a second."""

import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from octavo.evaluation.metrics import perplexity
from octavo.evaluation.protocol import EvaluationWindows
from octavo.evaluation.scoring import EvaluationObserver
from octavo.quantization.blocks import Observer
from octavo.records import LinearRecord, QuantizationRecord
from octavo.report.tables import as_size

Own = TypeVar("Own", bound="Bar")


class Bar:
    """One bar at a time with lines above it; only the lines where nobody watches. Used in a `with`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),  # names of files stand in it
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self: Own) -> Own:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def preparing(self, what: str) -> None:
        """A bar without an end, for what cannot be counted."""
        self.begin(what, total=None)

    def begin(self, description: str, total: int | None, completed: int = 0) -> None:
        """Put a new bar in place of the one before."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=total, completed=completed, note="")

    def advance(self, completed: int, note: str = "") -> None:
        assert self._task is not None, "a bar begins before it advances"
        self._progress.update(self._task, completed=completed, note=note)

    def line(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class QuantizationProgress(Bar, Observer):
    """How a quantization goes: a line per linear, a bar over the blocks with the time that remains."""

    def __init__(self, console: Console, out: Path) -> None:
        super().__init__(console)
        self._out = out
        self._total, self._done, self._before, self._began = 0, 0, 0, 0.0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is KeyboardInterrupt:
            self.line(f"Stopped. Nothing is lost: run the same command to continue {self._out}.")

    def already_done(self) -> None:
        self.line(f"{self._out} is already done; nothing to do.")

    def started(self, units: int, done: int, needed: int, free: int) -> None:
        self.line(f"writing {self._out}: {as_size(needed)} needed, {as_size(free)} free")
        if done:
            self.line(f"continuing after {done} of {units} parts")
        self._total, self._done, self._before = units, done, done
        self._began = time.perf_counter()
        self.begin("quantizing", units, done)

    def linear_solved(self, linear: LinearRecord, seconds: float) -> None:
        measured = "" if linear.loss is None else f"  loss {linear.loss:.4e}  damping {linear.damping}"
        self.line(f"{linear.name}{measured}  {seconds:.2f} s")

    def unit_done(self, name: str) -> None:
        self._done += 1
        self.advance(self._done, name)
        elapsed, made = time.perf_counter() - self._began, self._done - self._before
        if not self._console.is_terminal and made > 1:  # the first unit, the embedding, is no measure of the rest
            remaining = timedelta(seconds=round(elapsed / made * (self._total - self._done)))
            self.line(f"{self._done} of {self._total} parts done, about {remaining} remaining")

    def finished(self, record: QuantizationRecord) -> None:
        size = sum((self._out / file).stat().st_size for file in record.files)
        self.line(f"wrote {self._out}: {as_size(size)}")


class EvaluationProgress(Bar, EvaluationObserver):
    """How an evaluation goes: a bar over the windows with the perplexity so far."""

    def started(self, windows: EvaluationWindows) -> None:
        self.line(windows.description)
        self.begin("scoring", windows.windows.shape[0])

    def scored(self, losses: list[float]) -> None:
        self.advance(len(losses), f"perplexity {perplexity(losses).value:.4f}")

    def asked(self, done: int, total: int) -> None:
        if done == 1:
            self.begin("asking", total)
        self.advance(done)


class ConversionProgress(Bar):
    """How a conversion goes: a bar over the tensors."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._total = 0

    def __call__(self, name: str, done: int, total: int) -> None:
        if total != self._total:
            self._total = total
            self.begin("converting", total)
        self.advance(done, name)
