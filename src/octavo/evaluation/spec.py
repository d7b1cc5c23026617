"""What to evaluate on: small enough for the command line to read its defaults from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from octavo.errors import UsageError

Protocol = Literal["gptq", "gptq-new"]


@dataclass(frozen=True)
class EvaluationSpec:
    """`text` is `wikitext2`, `ptb`, `c4` or the path of a file, cut to windows of `length` tokens.

    `windows` keeps the first so many; None keeps all that the protocol gives.
    """

    text: str = "wikitext2"
    protocol: Protocol = "gptq"
    length: int = 2048
    windows: int | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.protocol not in get_args(Protocol):
            raise UsageError(f"{self.protocol} is no protocol; choose {' or '.join(get_args(Protocol))}")
        if self.length < 2:
            raise UsageError(f"a window of length {self.length} predicts nothing; ask for at least 2 tokens")
        if self.windows is not None and self.windows < 1:
            raise UsageError(f"{self.windows} windows give no perplexity; ask for at least 1")
