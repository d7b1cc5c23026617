"""How a model is solved, and on what text. A checkpoint cannot say it; the record beside it does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from octavo.errors import UsageError
from octavo.schemes import QuantScheme, SchemePlan

Method = Literal["gptq", "rtn"]
ActOrder = Literal["none", "group", "static"]
ScaleSearch = Literal["hessian", "none"]


@dataclass(frozen=True)
class Recipe:
    """The scheme of each linear and the way to its codes.

    `act_order`: columns are solved as stored ("none"), or in order of falling activation, with groups formed in
    that order ("group": `g_idx` matters at run time) or as stored ("static": it does not). `damping` is the
    fraction of the Hessian's mean diagonal that is added to it. `scale_search` "hessian" tries shrunken ranges
    for each group and keeps the best by activation-weighted error; "none" takes the range as it is.
    """

    plan: SchemePlan = SchemePlan(QuantScheme(bits=8, group_size=128, symmetric=True))
    method: Method = "gptq"
    act_order: ActOrder = "static"
    damping: float = 0.01
    scale_search: ScaleSearch = "hessian"

    def __post_init__(self) -> None:
        if not 0 < self.damping < 1:
            raise UsageError(f"damping {self.damping} is outside 0 … 1; 0.01 is usual")
        if self.method == "rtn" and (self.act_order, self.scale_search) != ("none", "none"):
            raise UsageError(
                "rounding to nearest sees no activations, so it takes act-order none and scale search none"
            )


@dataclass(frozen=True)
class CalibrationSpec:
    """Which windows to calibrate with, from the train split of `wikitext2`, `ptb` or `c4`, or from a file."""

    text: str = "c4"
    samples: int = 128
    sequence_length: int = 2048
    seed: int = 0
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UsageError(f"{self.samples} calibration samples are too few; ask for at least 1")
        if self.sequence_length < 1:
            raise UsageError(f"a sequence length of {self.sequence_length} is too short; ask for at least 1")
