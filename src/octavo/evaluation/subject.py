"""What is measured: a model as it is, or a dense one run as a baseline."""

import re
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import UsageError
from octavo.model.hub import REPOSITORY
from octavo.schemes import QuantScheme

PRECISIONS = {"fp32": 32, "bf16": 16, "fp16": 16}  # bits of a number
LLM_INT8 = "llm.int8"
ROUNDED = re.compile(r"rtn-([2348])(?:-([1-9]\d*)g)?")


@dataclass(frozen=True)
class Subject:
    """A folder, or a name on the hub, and the baseline that it is run as; None is the model as it is.

    Baselines are made of a dense folder while it is loaded: `fp32`, `bf16` and `fp16` compute in that precision;
    `llm.int8` is LLM.int8(); `rtn-8` rounds each row to its own asymmetric grid, as `--nearest` of GPTQ's
    reference does, and `rtn-4-128g` groups of 128 columns.
    """

    path: Path
    method: str | None = None

    def __post_init__(self) -> None:
        if self.method is not None and not is_baseline(self.method):
            raise UsageError(
                f"{self.method} is no baseline; choose {', '.join(PRECISIONS)}, {LLM_INT8}, rtn-8 or rtn-4-128g"
            )

    @property
    def rounding(self) -> QuantScheme | None:
        """The grid of a baseline that rounds to nearest."""
        found = ROUNDED.fullmatch(self.method or "")
        if found is None:
            return None
        return QuantScheme(int(found[1]), int(found[2]) if found[2] else None, symmetric=False)

    def bits_of_row(self, columns: int) -> int:
        """Bits of a row of a weight as a baseline holds it, with its scales in half precision and its zeros."""
        scheme = self.rounding
        if scheme is not None:
            return scheme.bits * columns + scheme.groups(columns) * (16 + scheme.bits)
        if self.method == LLM_INT8:
            return 8 * columns + 32
        assert self.method is not None, "a folder as it is says itself how its weights are stored"
        return PRECISIONS[self.method] * columns

    def __str__(self) -> str:
        return str(self.path) if self.method is None else f"{self.path}@{self.method}"


def is_baseline(method: str) -> bool:
    """Whether a dense model can be run as this."""
    return method == LLM_INT8 or method in PRECISIONS or ROUNDED.fullmatch(method) is not None


def parse_subject(text: str | Path) -> Subject:
    """`MODEL`, or `MODEL@BASELINE`; MODEL is a folder, or a name on the hub: `org/name`, `org/name@revision`.

    A folder whose own name has an @ is taken as it is. Behind a name on the hub, what is no baseline is a
    revision.
    """
    path, mark, method = str(text).rpartition("@")
    if not mark or Path(text).exists():
        return Subject(Path(text))
    on_the_hub = REPOSITORY.fullmatch(path) and not Path(path).exists()
    if on_the_hub and not is_baseline(method):
        return Subject(Path(text))
    return Subject(Path(path), method)
