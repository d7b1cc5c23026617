"""What to evaluate on: small enough for the command line to read its defaults from."""

from dataclasses import dataclass
from pathlib import Path

from octavo.errors import UsageError

# The published conventions, and the length of a window where none is asked for; None is the model's whole context.
USUAL_LENGTHS: dict[str, int | None] = {
    "gptq": 2048,
    "gptq-new": 2048,
    "llamacpp": 512,
    "strided-512": 2048,
    "lm-eval-word": None,
}

# Side by side they show why one model has several perplexities of the same text, each of them published.
LINE_UP = ("gptq", "gptq@4096", "llamacpp", "strided-512", "lm-eval-word")


@dataclass(frozen=True)
class EvaluationSpec:
    """`text` is `wikitext2`, `ptb`, `c4` or the path of a file; `protocol` the name of a convention.

    `length` is that of a window in tokens, which `gptq@4096` says as well; None takes the convention's own.
    `windows` keeps the first so many; None keeps all that the protocol gives. `calibration` names the text that
    the model was calibrated on, in which the evaluation text is then looked for.
    """

    text: str = "wikitext2"
    protocol: str = "gptq"
    length: int | None = None
    windows: int | None = None
    data_dir: Path | None = None
    calibration: str | None = None

    def __post_init__(self) -> None:
        self._protocol_length()
        if self.convention not in USUAL_LENGTHS:
            raise UsageError(
                f"{self.protocol} is no protocol; choose {', '.join(USUAL_LENGTHS)}, or a length such as gptq@4096"
            )
        length = self._protocol_length() or self.length
        if length is not None and length < 2:
            raise UsageError(f"a window of length {length} predicts nothing; ask for at least 2 tokens")
        if self.windows is not None and self.windows < 1:
            raise UsageError(f"{self.windows} windows give no perplexity; ask for at least 1")

    @property
    def convention(self) -> str:
        """The protocol without its length."""
        return self.protocol.partition("@")[0]

    def window_length(self, context: int) -> int:
        """Tokens of a window for a model of some context; UsageError where they do not fit into it."""
        length = self._protocol_length() or self.length or USUAL_LENGTHS[self.convention] or context
        if length > context:
            raise UsageError(
                f"{self.protocol} with windows of {length} tokens does not fit the model's context of {context}; "
                f"ask for at most {context} with --length"
            )
        return length

    def _protocol_length(self) -> int | None:
        """What stands behind the @ of the protocol."""
        _, mark, digits = self.protocol.partition("@")
        if not mark:
            return None
        if not digits.isdecimal() or int(digits) == 0:
            raise UsageError(f"{self.protocol} has no length behind its @; write it like gptq@4096")
        if self.length is not None and self.length != int(digits):
            raise UsageError(f"{self.protocol} and a length of {self.length} contradict each other; leave one out")
        return int(digits)


@dataclass(frozen=True)
class BenchmarkSpec:
    """One window of the training split of `text`, `tokens` long, fed token by token; `check` takes its loss."""

    text: str = "wikitext2"
    tokens: int = 2048
    check: bool = True
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise UsageError(f"a benchmark of {self.tokens} tokens predicts nothing; ask for at least 2")


BENCHMARK = "benchmark"


@dataclass(frozen=True)
class ComparisonSpec:
    """Which tables to make, with a column for each text, and which tasks to ask.

    `tables` are `benchmark` and names of protocols; `length` and `windows` are those of the protocols, `tokens`
    those of the benchmark; `calibration` is as in `EvaluationSpec`. `tasks` are those of lm-evaluation-harness, of
    each of which `documents` keeps the first so many.
    """

    tables: tuple[str, ...] = (BENCHMARK, "gptq", "gptq-new")
    texts: tuple[str, ...] = ("wikitext2", "ptb", "c4")
    length: int | None = None
    windows: int | None = None
    tokens: int = 2048
    data_dir: Path | None = None
    calibration: str | None = None
    tasks: tuple[str, ...] = ()
    documents: int | None = None

    def __post_init__(self) -> None:
        if not self.texts or not (self.tables or self.tasks):
            raise UsageError("a comparison needs at least one text, and one table or task; leave out none of them")
        if self.documents is not None and (self.documents < 1 or not self.tasks):
            raise UsageError(
                f"{self.documents} documents of {len(self.tasks)} tasks measure nothing; ask for more"
            )
        self.evaluations()
        self.benchmarks()

    def evaluations(self) -> list[EvaluationSpec]:
        """One for each protocol and text."""
        return [
            EvaluationSpec(text, table, self.length, self.windows, self.data_dir, self.calibration)
            for table in self.tables
            for text in self.texts
            if table != BENCHMARK
        ]

    def benchmarks(self) -> list[BenchmarkSpec]:
        """One for each text, where a benchmark is asked for."""
        texts = self.texts if BENCHMARK in self.tables else ()
        return [BenchmarkSpec(text, self.tokens, True, self.data_dir) for text in texts]
