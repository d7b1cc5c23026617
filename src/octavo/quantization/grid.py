"""The grid of a group of weights, scale and zero, and rounding to it.

Scales are rounded to fp16, as the file will hold them, before any code is chosen.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from octavo.errors import NumericalError
from octavo.kernels.solver import GridRule
from octavo.quantization.recipe import ScaleSearch
from octavo.schemes import QuantScheme

SMALLEST_SCALE = 2.0**-14  # the smallest normal fp16: below it, scales lose the bits that make codes exact
LARGEST_SCALE = 65504.0

# Shrink factors of the range that the search tries. Fewer bits gain from clipping deeper.
DEEPEST_SHRINK = {2: 0.2, 3: 0.3, 4: 0.4, 8: 0.8}
SHRINK_STEPS = 60

Grid = tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]


def min_max_grid(values: Float[Tensor, "rows columns"], scheme: QuantScheme, smallest_zero: int) -> Grid:
    """Scale and zero of each row, so that its range, widened to hold 0, fits the codes."""
    lowest, highest = _range(values, scheme)
    return _grid_of_range(lowest, highest, scheme, smallest_zero)


def search_grid(
    values: Float[Tensor, "rows columns"], importance: Float[Tensor, " columns"], rule: GridRule
) -> Grid:
    """The grid of a shrunken range with the least squared rounding error, weighted by column.

    The whole range is the first candidate, so the result is never worse than `min_max_grid` by this measure.
    """
    scheme = rule.scheme
    lowest, highest = _range(values, scheme)
    best_scale, best_zero = _grid_of_range(lowest, highest, scheme, rule.smallest_zero)
    if len(rule.shrinks) == 1:
        return best_scale, best_zero
    least = _rounding_error(values, best_scale, best_zero, importance, scheme)
    for shrink in rule.shrinks[1:]:
        scale, zero = _grid_of_range(lowest * shrink, highest * shrink, scheme, rule.smallest_zero)
        error = _rounding_error(values, scale, zero, importance, scheme)
        better = error < least
        least = torch.where(better, error, least)
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
    return best_scale, best_zero


def shrinks(bits: int, search: ScaleSearch) -> tuple[float, ...]:
    """The parts of a group's range to try, the whole first; float32 values."""
    if search == "none":
        return (1.0,)
    return tuple(torch.linspace(1.0, DEEPEST_SHRINK[bits], SHRINK_STEPS + 1).tolist())


def round_to_codes(values: Tensor, scale: Tensor, zero: Tensor, scheme: QuantScheme) -> Tensor:
    """`clamp(round(w / scale) + zero, 0, 2^bits - 1)`, half to even, in the dtype of the values."""
    return (values / scale).round_().add_(zero).clamp_(0, scheme.largest_code)


def _range(values: Float[Tensor, "rows columns"], scheme: QuantScheme) -> Grid:
    """Lowest and highest value of each row, with 0 between them; ±1 for rows of zeros."""
    lowest, highest = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
    if scheme.symmetric:
        highest = torch.maximum(-lowest, highest)
        lowest = -highest
    empty = lowest == highest
    return lowest.masked_fill(empty, -1), highest.masked_fill(empty, 1)


def _grid_of_range(lowest: Tensor, highest: Tensor, scheme: QuantScheme, smallest_zero: int) -> Grid:
    """The grid whose codes 0 … 2^bits - 1 span a range."""
    scale = _as_stored((highest - lowest) / scheme.largest_code)
    if scheme.symmetric:
        return scale, torch.full_like(scale, scheme.middle)
    zero = (-lowest / scale).round_().clamp_(0, scheme.largest_code)
    # A layout that cannot store the zero 0 gives up its lowest code in such a group, not its highest value.
    short = zero < smallest_zero
    raised = _as_stored(highest / (scheme.largest_code - smallest_zero))
    return torch.where(short, raised, scale), zero.clamp_(min=smallest_zero)


def refuse_large(scale: Tensor) -> None:
    """NumericalError where a scale is beyond the range of fp16, or NaN."""
    if not (scale <= LARGEST_SCALE).all():
        raise NumericalError("a group of weights is too large for the fp16 scales of the checkpoint format")


def _as_stored(scale: Tensor) -> Tensor:
    refuse_large(scale)
    return scale.clamp(min=SMALLEST_SCALE).to(torch.float16).to(scale.dtype)


def _rounding_error(
    values: Tensor, scale: Tensor, zero: Tensor, importance: Tensor, scheme: QuantScheme
) -> Float[Tensor, " rows"]:
    # Summed in float64, so that candidates do not change places with the order of summation.
    scale, zero = scale[:, None], zero[:, None]
    rounded = round_to_codes(values, scale, zero, scheme).sub_(zero).mul_(scale)
    return rounded.sub_(values).square_().mul_(importance).sum(1, dtype=torch.float64)
