"""What a quantization does otherwise on a GPU: products of halves, and copies to and fro beside the work.

Inference rounds what enters a product to half precision, so calibration loses nothing by doing the same, and the
matrix units are ten times as fast on halves as on float32. Sums, norms and the hidden states stay float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Arrival:
    """Values on their way to where the work is done; `come` happens there when they have arrived."""

    values: Tensor
    come: torch.cuda.Event | None = None


class Lane:
    """Carries values between host memory and the device that works; this one is a CPU's, where both are one."""

    def fetch(self, values: Tensor) -> Arrival:
        """Send values in host memory to the device, after all that was sent home before; from any thread."""
        return Arrival(values)

    def take(self, arrival: Arrival) -> Tensor:
        """What was fetched, for work that is given to the device from now on."""
        return arrival.values

    def send_home(self, values: Tensor) -> Tensor:
        """Values that work on the device makes, in host memory; they are there when `settle` returns."""
        return values

    def settle(self) -> None:
        """Return when everything that was sent home is there."""


class CudaLane(Lane):
    """Copies run beside the work, on a stream for each direction; what comes home lies in pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._out, self._home = (torch.cuda.Stream(device) for _ in range(2))

    def fetch(self, values: Tensor) -> Arrival:
        self._out.wait_stream(self._home)
        with torch.cuda.stream(self._out):
            fetched = values.to(self._device, non_blocking=True)
            come = torch.cuda.Event()
            come.record()
        return Arrival(fetched, come)

    def take(self, arrival: Arrival) -> Tensor:
        assert arrival.come is not None, "it was fetched by another lane"
        work = torch.cuda.current_stream(self._device)
        work.wait_event(arrival.come)
        arrival.values.record_stream(work)
        return arrival.values

    def send_home(self, values: Tensor) -> Tensor:
        kept = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._home.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._home):
            kept.copy_(values, non_blocking=True)
        values.record_stream(self._home)
        return kept

    def settle(self) -> None:
        self._home.synchronize()


def lane_to(device: torch.device) -> Lane:
    """A lane of one's own to a device."""
    return CudaLane(device) if device.type == "cuda" else Lane()


class Streamed:
    """Hidden states that lie in host memory: read, one is on the device, and the next on its way there.

    What is assigned goes to memory of its own, for the former state may still be on its way to the disk; `settle`
    returns when all are there.
    """

    def __init__(self, states: Samples, lane: Lane) -> None:
        self._states = states
        self._lane = lane
        self._coming: dict[int, Arrival] = {}

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Tensor:
        self._fetch(number)
        state = self._lane.take(self._coming.pop(number))
        self._fetch((number + 1) % len(self))
        return state

    def __setitem__(self, number: int, state: Tensor) -> None:
        self._coming.pop(number, None)
        self._states[number] = self._lane.send_home(state)

    def settle(self) -> None:
        self._lane.settle()

    def _fetch(self, number: int) -> None:
        if number not in self._coming:
            self._coming[number] = self._lane.fetch(self._states[number])
