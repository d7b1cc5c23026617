"""Several processes that calibrate together, started by `torchrun`: each has its windows, the first leads.

Hidden states of a window stay with its process. Sums of x^T x go to the leader, which joins them as one process
would (`hessian`), solves, and sends the codes back; it alone writes. The result is that of one process, byte for
byte.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from octavo.errors import UsageError
from octavo.quantization.hessian import PartialSum, Run, append
from octavo.quantization.journal import Samples
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight

LEADER = 0
MOST_RUNS = 8  # so many processes can share a job; each two of them cost the memory of one more Hessian


def dealt(windows: int, processes: int) -> tuple[tuple[Run, ...], ...]:
    """The runs of windows of each process: the same runs for any number of them, neighbours together."""
    runs = [Run(number, count) for number, count in enumerate(_evenly(windows, max(1, min(windows, MOST_RUNS))))]
    ends = list(accumulate(_evenly(len(runs), processes)))
    return tuple(tuple(runs[start:end]) for start, end in pairwise((0, *ends)))


def _evenly(things: int, parts: int) -> list[int]:
    """How many of some things each part gets; the first ones get one more where that does not come out even."""
    each, more = divmod(things, parts)
    return [each + (part < more) for part in range(parts)]


@dataclass(frozen=True)
class Crew:
    """The processes of a job, by the runs of windows of each; `number` is this one's, `device` where it works."""

    number: int
    runs: tuple[tuple[Run, ...], ...]
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.number == LEADER

    @property
    def others(self) -> range:
        return range(1, len(self.runs))

    @property
    def windows(self) -> tuple[int, ...]:
        """How many windows each process has."""
        return tuple(sum(run.windows for run in runs) for runs in self.runs)

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

    def joined(self, sums: list[PartialSum]) -> list[PartialSum]:
        """Sums over all windows, at the leader; elsewhere those over the process' own, which were sent to it."""
        if not self.leads:
            self._send_sums(sums)
            return sums
        for other in self.others:
            for received in self._received_sums(other):
                append(sums, received)
        return sums

    def _send_sums(self, sums: list[PartialSum]) -> None:
        places = [(part.level, part.index, part.tokens, len(part.total)) for part in sums]
        dist.send(torch.tensor([len(sums)], device=self.device), LEADER)
        dist.send(torch.tensor(places, device=self.device), LEADER)
        for part in sums:
            dist.send(part.total, LEADER)

    def _received_sums(self, sender: int) -> Iterator[PartialSum]:
        count = int(self._received((1,), torch.int64, sender))
        places: list[list[int]] = self._received((count, 4), torch.int64, sender).tolist()
        for level, index, tokens, columns in places:
            yield PartialSum(level, index, tokens, self._received((columns, columns), torch.float32, sender))

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

    A job without windows, or with fewer runs of them than processes, is a UsageError where there are several.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Crew(LEADER, dealt(windows, 1), device)
        return
    if windows < count or count > MOST_RUNS:
        raise UsageError(
            f"{count} processes cannot share {windows} calibration windows, at most {MOST_RUNS} can, "
            "and each needs one; start fewer, or without torchrun"
        )
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Crew(dist.get_rank(), dealt(windows, count), device)
    finally:
        dist.destroy_process_group()
