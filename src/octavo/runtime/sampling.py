"""Logits to the next token: penalty, temperature, then the cuts, then one draw."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from octavo.errors import NumericalError
from octavo.runtime.params import SamplingParams


def next_token(
    logits: Float[Tensor, " vocabulary"],
    history: Sequence[int],
    params: SamplingParams,
    generator: torch.Generator,
) -> int:
    """The next token's id; of equally likely ones, greedy takes the first."""
    if not torch.isfinite(logits).all():
        raise NumericalError("the model's logits hold NaN or Inf; its weights are damaged or overflow")
    if params.temperature == 0:
        return int(penalized(logits, history, params.repetition_penalty).argmax())
    return int(torch.multinomial(distribution(logits, history, params), 1, generator=generator))


def distribution(
    logits: Float[Tensor, " vocabulary"], history: Sequence[int], params: SamplingParams
) -> Float[Tensor, " vocabulary"]:
    """The probabilities that are drawn from, for a temperature above 0."""
    scaled = penalized(logits, history, params.repetition_penalty) / params.temperature
    kept = scaled.softmax(-1)
    if params.top_k is not None and params.top_k < len(kept):
        kept = _keep(kept, kept >= kept.topk(params.top_k).values[-1])
    if params.top_p < 1:
        ordered, order = kept.sort(descending=True, stable=True)
        reached_before = ordered.cumsum(0) - ordered
        inside = torch.zeros_like(kept, dtype=torch.bool)
        inside[order] = reached_before < params.top_p
        kept = _keep(kept, inside)
    if params.min_p > 0:
        kept = _keep(kept, kept >= params.min_p * kept.max())
    return kept


def penalized(
    logits: Float[Tensor, " vocabulary"], history: Sequence[int], penalty: float
) -> Float[Tensor, " vocabulary"]:
    """float32 logits with those of seen tokens moved away from being chosen."""
    logits = logits.float()
    if penalty == 1 or not history:
        return logits
    seen = torch.tensor(sorted(set(history)), device=logits.device)
    former = logits[seen]
    return logits.index_copy(0, seen, torch.where(former > 0, former / penalty, former * penalty))


def _keep(probabilities: Tensor, inside: Tensor) -> Tensor:
    kept = probabilities.where(inside, 0)
    return kept / kept.sum()
