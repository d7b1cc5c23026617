"""How a reply is to be drawn. Loads without torch."""

from dataclasses import dataclass

from octavo.errors import UsageError


@dataclass(frozen=True)
class SamplingParams:
    """How to choose among the next tokens. `temperature` 0 is greedy; the other defaults cut nothing.

    `top_k` keeps the k likeliest; `top_p` the fewest that together reach p; `min_p` those at least p times as
    likely as the likeliest; `repetition_penalty` divides the logits of tokens already seen
    (https://arxiv.org/abs/1909.05858). `seed` None draws anew each time.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature {self.temperature} is outside 0 … 100; 0 is greedy, 0.7 is usual")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top-k {self.top_k} keeps no token; use 1 or more")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p {self.top_p} is outside 0 … 1; 1 keeps all tokens")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min-p {self.min_p} is outside 0 … 1; 0 keeps all tokens")
        if not 0 < self.repetition_penalty <= 100:
            raise UsageError(f"repetition penalty {self.repetition_penalty} is not positive; 1 is none")
