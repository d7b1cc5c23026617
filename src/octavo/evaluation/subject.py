"""What is measured: a model folder as it is, or a dense one run as a baseline. Loads without torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import UsageError
from octavo.schemes import QuantScheme

PRECISIONS = {"fp32": 32, "bf16": 16, "fp16": 16}  # bits of a number
LLM_INT8 = "llm.int8"
ROUNDED = re.compile(r"rtn-([2348])(?:-([1-9]\d*)g)?")


@dataclass(frozen=True)
class Subject:
    """A folder, and the baseline that it is run as; None is the folder as it is.

    Baselines are made of a dense folder while it is loaded: `fp32`, `bf16` and `fp16` compute in that precision;
    `llm.int8` is LLM.int8(); `rtn-8` rounds each row to its own asymmetric grid, as `--nearest` of GPTQ's
    reference does, and `rtn-4-128g` groups of 128 columns.
    """

    path: Path
    method: str | None = None

    def __post_init__(self) -> None:
        known = (None, LLM_INT8, *PRECISIONS)
        if self.method not in known and self.rounding is None:
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


def parse_subject(text: str | Path) -> Subject:
    """`FOLDER`, or `FOLDER@BASELINE`; a folder whose own name has an @ is taken as it is."""
    path, mark, method = str(text).rpartition("@")
    return Subject(Path(path), method) if mark and not Path(text).exists() else Subject(Path(text))
