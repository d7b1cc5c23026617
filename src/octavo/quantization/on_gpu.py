"""What a quantization does otherwise on a GPU: products of halves, and hidden states that wait in host memory.

Inference rounds what enters a product to half precision, so calibration loses nothing by doing the same, and the
matrix units are ten times as fast on halves as on float32. Sums, norms and the hidden states stay float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Float16, Float32
from torch import Tensor

from octavo.model.linear import Linear
from octavo.quantization.journal import Samples
from octavo.weights import DenseWeight, Weight, dequantize

LARGEST_HALF = 2.0**15  # to which larger inputs are scaled down, by powers of two


def linear_of_halves(weight: Weight, bias: Float[Tensor, " out_features"] | None, device: torch.device) -> Linear:
    """y = x W^T + b for float32 rows: both factors as halves, the sums in float32."""
    values = weight.values.to(device) if isinstance(weight, DenseWeight) else dequantize(weight)
    transposed = values.half().t()

    def matmul(inputs: Float[Tensor, "rows in_features"]) -> Float[Tensor, "rows out_features"]:
        rows, factors = halves(inputs, each_row=True)
        return product_of_halves(rows, transposed).mul_(factors)

    placed_bias = None if bias is None else bias.to(device, torch.float32)
    return Linear(matmul, placed_bias, "dense, in halves", {})


def add_gram(total: Float32[Tensor, "columns columns"], inputs: Float32[Tensor, "tokens columns"]) -> None:
    """Add x^T x to `total`, of inputs rounded to halves: their products are exact, and summed in float32."""
    rows, factor = halves(inputs, each_row=False)
    total.addcmul_(product_of_halves(rows.t(), rows), factor.square())


def halves(
    values: Float32[Tensor, "rows columns"], *, each_row: bool
) -> tuple[Float16[Tensor, "rows columns"], Float32[Tensor, "_ 1"]]:
    """Values as halves, and the powers of two, of each row or of all, that large ones were divided by."""
    largest = values.abs().amax(1, keepdim=True)
    if not each_row:
        largest = largest.amax(0, keepdim=True)
    factors = torch.exp2((largest / LARGEST_HALF).log2().ceil().clamp(min=0))
    return (values / factors).half(), factors


def product_of_halves(
    left: Float16[Tensor, "rows inner"], right: Float16[Tensor, "inner columns"]
) -> Float32[Tensor, "rows columns"]:
    """left @ right, summed in float32 and never rounded to halves."""
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


class Streamed:
    """Hidden states that lie in host memory: read, one is on the device, and the next on its way there.

    Copies run beside the work on a stream of their own. What is assigned goes to memory of its own, for the former
    state may still be on its way to the disk.
    """

    def __init__(self, states: Samples, device: torch.device) -> None:
        self._states = states
        self._device = device
        self._copies = torch.cuda.Stream(device)
        self._arriving: dict[int, tuple[Tensor, torch.cuda.Event]] = {}

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Tensor:
        self._fetch(number)
        state, arrived = self._arriving.pop(number)
        self._fetch((number + 1) % len(self))
        here = torch.cuda.current_stream(self._device)
        here.wait_event(arrived)
        state.record_stream(here)
        return state

    def __setitem__(self, number: int, state: Tensor) -> None:
        self._arriving.pop(number, None)
        kept = torch.empty(state.shape, dtype=state.dtype, pin_memory=True)
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            kept.copy_(state, non_blocking=True)
        state.record_stream(self._copies)
        self._states[number] = kept

    def settle(self) -> None:
        """Return when all states are in host memory."""
        self._copies.synchronize()

    def _fetch(self, number: int) -> None:
        if number in self._arriving:
            return
        with torch.cuda.stream(self._copies):
            state = self._states[number].to(self._device, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._arriving[number] = state, arrived


@contextmanager
def streamed(states: Samples, device: torch.device) -> Iterator[Samples | Streamed]:
    """The states for work on a device: themselves on a CPU; assignments reach `states` when this ends."""
    if device.type != "cuda":
        yield states
        return
    moving = Streamed(states, device)
    yield moving
    moving.settle()
