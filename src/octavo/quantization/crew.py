"""Several processes that calibrate together, started by `torchrun`: each has its windows, the first leads.

Hidden states of a window stay with its process. Hessians go to the leader, which adds them up in the order of
processes, solves, and sends the codes back; it alone writes. So float32 sums are in another order than in one
process: a code that lies between two others may turn, and no more (tests/quantization/test_crew.py).
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from octavo.errors import UsageError
from octavo.quantization.journal import Samples
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight

LEADER = 0


@dataclass(frozen=True)
class Crew:
    """The processes of a job, by how many windows each has; `number` is this one's, `device` where it works."""

    number: int
    windows: tuple[int, ...]
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.number == LEADER

    @property
    def others(self) -> range:
        return range(1, len(self.windows))

    @property
    def mine(self) -> slice:
        """This process' windows among all."""
        first = sum(self.windows[: self.number])
        return slice(first, first + self.windows[self.number])

    def tell(self, value: dict[str, Any]) -> None:
        """Tell the others what is plain JSON."""
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8, device=self.device)
        for other in self.others:
            dist.send(torch.tensor([len(text)], device=self.device), other)
            dist.send(text, other)

    def told(self) -> dict[str, Any]:
        """What the leader tells."""
        size = int(self._received((1,), torch.int64, LEADER))
        value: dict[str, Any] = json.loads(bytes(self._received((size,), torch.uint8, LEADER).tolist()))
        return value

    def mean(self, hessian: Float[Tensor, "columns columns"]) -> Float[Tensor, "columns columns"]:
        """The mean over all windows, at the leader, of the means over each process' own; elsewhere its own."""
        if not self.leads:
            dist.send(hessian, LEADER)
            return hessian
        if not self.others:
            return hessian
        total = hessian * self.windows[LEADER]
        for other in self.others:
            total.add_(self._received(hessian.shape, hessian.dtype, other), alpha=self.windows[other])
        return total.div_(sum(self.windows))

    def send_codes(self, weight: QuantizedWeight) -> None:
        """Give the others what was solved."""
        for other in self.others:
            for part in (weight.codes, weight.scales, weight.zeros.int(), weight.group_of_column):
                dist.send(part.contiguous(), other)

    def receive_codes(self, shape: tuple[int, int], scheme: QuantScheme) -> QuantizedWeight:
        """A weight of (outputs, inputs) that the leader solved."""
        grids = (shape[0], scheme.groups(shape[1]))
        return QuantizedWeight(
            codes=self._received(shape, torch.uint8, LEADER),
            scales=self._received(grids, torch.float16, LEADER),
            zeros=self._received(grids, torch.int32, LEADER).to(torch.int16),
            group_of_column=self._received(shape[1:], torch.int32, LEADER),
            scheme=scheme,
        )

    def deal(self, states: Samples) -> Samples:
        """Give the others the states of their windows, if there are any; the leader's own are left."""
        if not states:
            return []
        rest = iter(states[self.windows[LEADER] :])
        for other in self.others:
            self.send_states([next(rest) for _ in range(self.windows[other])], other)
        return states[: self.windows[LEADER]]

    def gather(self, states: Samples) -> Samples:
        """The states of all windows, the leader's first."""
        if not states:
            return []
        received = [self.receive_states(self.windows[other], states[0].shape, other) for other in self.others]
        return [*states, *(state for part in received for state in part)]

    def send_states(self, states: Samples, to: int) -> None:
        for state in states:
            dist.send(state.to(self.device), to)

    def receive_states(self, count: int, shape: Sequence[int], sender: int) -> Samples:
        """States of `count` windows, in host memory."""
        return [self._received(shape, torch.float32, sender).cpu() for _ in range(count)]

    def _received(self, shape: Sequence[int], dtype: torch.dtype, sender: int) -> Tensor:
        tensor = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        dist.recv(tensor, sender)
        return tensor


@contextmanager
def joined(device: torch.device, windows: int) -> Iterator[Crew]:
    """The crew that this process was started in by `torchrun`, else this process alone.

    A job without windows, or with fewer of them than processes, is a UsageError where there are several.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Crew(LEADER, (windows,), device)
        return
    if windows < count:
        raise UsageError(
            f"{count} processes cannot share {windows} calibration windows; start fewer, or without torchrun"
        )
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        each, more = divmod(windows, count)
        yield Crew(dist.get_rank(), tuple(each + (number < more) for number in range(count)), device)
    finally:
        dist.destroy_process_group()
