"""How likely a model holds tokens: log-probabilities from its logits as they are, before any sampler."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from octavo.runtime.requests import MOST_TOP_LOGPROBS, Score


@dataclass(frozen=True)
class Scores:
    """Natural log-probabilities, per row: of the row's token, and of the likeliest tokens in falling order."""

    chosen: Float[Tensor, " rows"]
    top: Float[Tensor, "rows best"]
    top_tokens: Int64[Tensor, "rows best"]

    def first(self, rows: int) -> "Scores":
        """The first rows, sharing memory."""
        return Scores(self.chosen[:rows], self.top[:rows], self.top_tokens[:rows])

    def write(self, other: "Scores") -> None:
        """Overwrite these with others, in place."""
        self.chosen.copy_(other.chosen)
        self.top.copy_(other.top)
        self.top_tokens.copy_(other.top_tokens)

    def read(self, counts: Sequence[int | None]) -> list[Score | None]:
        """Each row with so many of its likeliest, on the host; None where None is wanted."""
        rows = zip(counts, self.chosen.tolist(), self.top_tokens.tolist(), self.top.tolist(), strict=True)
        return [
            None if count is None else Score(chosen, tuple(zip(tokens[:count], top[:count], strict=True)))
            for count, chosen, tokens, top in rows
        ]


def empty_scores(rows: int, vocabulary: int, device: torch.device) -> Scores:
    best = (rows, min(MOST_TOP_LOGPROBS, vocabulary))
    return Scores(
        torch.zeros(rows, device=device),
        torch.zeros(best, device=device),
        torch.zeros(best, dtype=torch.int64, device=device),
    )


def score(logits: Float[Tensor, "rows vocabulary"], tokens: Int64[Tensor, " rows"]) -> Scores:
    """The scores of `tokens`, one per row, in float32."""
    logprobs = logits.float().log_softmax(-1)
    top, top_tokens = logprobs.topk(min(MOST_TOP_LOGPROBS, logprobs.shape[1]))
    return Scores(logprobs.gather(1, tokens[:, None])[:, 0], top, top_tokens)
