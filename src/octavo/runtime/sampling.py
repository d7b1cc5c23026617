"""Logits to the next tokens: penalty, temperature, then the cuts, then one draw; a row per sequence.

All that a draw depends on lies in tensors on the device, so that drawing can be a part of a captured step. A row's
draw depends on its own seed and position alone, never on the rows beside it.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from octavo.runtime.params import SamplingParams

Logits = Float[Tensor, "rows vocabulary"]
RANKED_AT_FIRST = 1024  # on a CPU, a nucleus is looked for among so many before all are sorted


@dataclass(frozen=True)
class SamplingState:
    """How each row is drawn, as tensors; `seen` marks the tokens of its text so far.

    `top_k` is the size of the vocabulary where it cuts nothing. `allowed` are the tokens that may come next; it
    counts only in a `Drawing` that is limited.
    """

    temperature: Float[Tensor, " rows"]
    top_k: Int64[Tensor, " rows"]
    top_p: Float[Tensor, " rows"]
    min_p: Float[Tensor, " rows"]
    repetition_penalty: Float[Tensor, " rows"]
    seed: Int64[Tensor, " rows"]
    seen: Bool[Tensor, "rows vocabulary"]
    allowed: Bool[Tensor, "rows vocabulary"]

    def first(self, rows: int) -> "SamplingState":
        """The first rows, sharing memory."""
        return SamplingState(**{field.name: getattr(self, field.name)[:rows] for field in fields(self)})

    def assign(self, row: int, params: SamplingParams, history: Sequence[int]) -> None:
        """Set a row up for a sequence whose text so far is `history`."""
        vocabulary = self.seen.shape[1]
        self.temperature[row] = params.temperature
        self.top_k[row] = vocabulary if params.top_k is None else min(params.top_k, vocabulary)
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.repetition_penalty[row] = params.repetition_penalty
        self.seed[row] = secrets.randbits(63) if params.seed is None else params.seed
        self.seen[row] = False
        self.seen[row, torch.tensor(list(history), dtype=torch.int64, device=self.seen.device)] = True
        self.allowed[row] = True


@dataclass(frozen=True)
class Drawing:
    """What any row of a batch asks for, known to the host: what none asks for is not computed.

    It changes the work, not the result, except that it must not leave out what a row needs. `limited`: some rows
    may not draw every token; `scored`: some want to know how likely their tokens were.
    """

    drawn: bool = True
    cut: bool = True
    penalized: bool = True
    limited: bool = False
    scored: bool = False

    @property
    def takes_likeliest(self) -> bool:
        """Whether each row's next token is the one of its largest logit, as the model gave them."""
        return not (self.drawn or self.penalized or self.limited)


def empty_state(rows: int, vocabulary: int, device: torch.device) -> SamplingState:
    """Greedy rows that have seen nothing."""

    def filled(value: float) -> Tensor:
        return torch.full((rows,), value, device=device)

    return SamplingState(
        temperature=filled(0.0),
        top_k=torch.full((rows,), vocabulary, dtype=torch.int64, device=device),
        top_p=filled(1.0),
        min_p=filled(0.0),
        repetition_penalty=filled(1.0),
        seed=torch.zeros(rows, dtype=torch.int64, device=device),
        seen=torch.zeros(rows, vocabulary, dtype=torch.bool, device=device),
        allowed=torch.ones(rows, vocabulary, dtype=torch.bool, device=device),
    )


def drawing_of(params: Sequence[SamplingParams]) -> Drawing:
    """What a batch of these asks for."""
    drawn = [each for each in params if each.temperature > 0]
    return Drawing(
        drawn=bool(drawn),
        cut=any(each.top_k is not None or each.top_p < 1 or each.min_p > 0 for each in drawn),
        penalized=any(each.repetition_penalty != 1 for each in params),
    )


def next_tokens(
    logits: Logits, state: SamplingState, positions: Int64[Tensor, " rows"], drawing: Drawing
) -> Int64[Tensor, " rows"]:
    """The token of each row, which will stand at `positions`; of equally likely ones, greedy takes the first."""
    logits = penalized(logits, state) if drawing.penalized else logits.float()
    if drawing.limited:
        logits = logits.masked_fill(~state.allowed, -torch.inf)
    likeliest = logits.max(-1).indices
    if not drawing.drawn:
        return likeliest
    kept = distribution(logits, state, drawing)
    # Summed in float64, whose rounding no draw can tell: the order of a device's running sum may vary.
    reached = kept.double().cumsum(-1)
    threshold = uniform(state.seed, positions).double()[:, None] * reached[:, -1:]
    drawn = (reached <= threshold).sum(-1).clamp(max=logits.shape[1] - 1)
    return torch.where(state.temperature == 0, likeliest, drawn)


def distribution(logits: Logits, state: SamplingState, drawing: Drawing) -> Float[Tensor, "rows vocabulary"]:
    """The probabilities that rows of a temperature above 0 are drawn from, from logits after the penalty."""
    warm = torch.where(state.temperature == 0, 1.0, state.temperature)
    kept = (logits / warm[:, None]).softmax(-1)
    return _cut(kept, state) if drawing.cut else kept


def penalized(logits: Logits, state: SamplingState) -> Logits:
    """float32 logits with those of seen tokens moved away from being chosen."""
    logits, penalty = logits.float(), state.repetition_penalty[:, None]
    return torch.where(state.seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def uniform(seed: Int64[Tensor, " rows"], position: Int64[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """One number in [0, 1) per row, a hash of its seed and position (the finalizer of MurmurHash3)."""
    mixed = _mixed(position)
    for part in (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF):
        mixed = _mixed(mixed ^ part)
    return (mixed >> 8).float() * 2.0**-24


def _mixed(value: Int64[Tensor, " rows"]) -> Int64[Tensor, " rows"]:
    """32 bits, well stirred."""
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return value ^ (value >> 16)


def _cut(kept: Tensor, state: SamplingState) -> Tensor:
    """What top-k, top-p and min-p leave of probabilities, made to sum to 1."""
    vocabulary = kept.shape[1]
    if kept.device.type == "cpu" and vocabulary > RANKED_AT_FIRST:
        ranked, order = kept.topk(RANKED_AT_FIRST)
        left = _left(ranked, state, vocabulary)
        if not left[:, -1].any():  # the cuts end among these, so nothing that ranks lower is left
            return torch.zeros_like(kept).scatter(1, order, left)
    ranked, order = kept.sort(descending=True, stable=True)
    return torch.zeros_like(kept).scatter(1, order, _left(ranked, state, vocabulary))


def _left(ranked: Tensor, state: SamplingState, vocabulary: int) -> Tensor:
    """The same of the likeliest probabilities, in falling order; equals of the k-th stay with it."""
    top_k, top_p, min_p = state.top_k[:, None], state.top_p[:, None], state.min_p[:, None]
    kth = ranked.gather(1, (top_k - 1).clamp(max=ranked.shape[1] - 1))
    limited = top_k < vocabulary
    ranked = ranked.where(~limited | (ranked >= kth), 0.0)
    total = torch.where(limited, ranked.sum(1, keepdim=True), 1.0)
    reached_before = (ranked.cumsum(1) - ranked) / total
    ranked = ranked.where((top_p >= 1) | (reached_before < top_p), 0.0)
    ranked = ranked.where(ranked >= min_p * ranked[:, :1], 0.0)
    return ranked / ranked.sum(1, keepdim=True)
