"""Triton's kernels run in its interpreter, on the CPU: in a process that was started with TRITON_INTERPRET=1."""

import os

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
# Triton decides at its import; the tests of the other kernels do without it.
collect_ignore_glob = [] if INTERPRETING else ["test_*.py"]

BAND = 512  # elements before and behind each buffer


class Guards:
    """Memory whose surroundings are known: outputs start as NaN, and what lies around a buffer stays as it was."""

    def __init__(self) -> None:
        self.held: list[tuple[torch.Tensor, torch.Tensor]] = []

    def around(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy between bands of NaN, or of the largest integers."""
        poison = float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
        memory = torch.full((tensor.numel() + 2 * BAND,), poison, dtype=tensor.dtype)
        inner = memory[BAND : BAND + tensor.numel()]
        inner.copy_(tensor.flatten())
        self.held.append((memory, memory.clone()))
        return inner.view(tensor.shape)

    def poisoned(self, *size: int | tuple[int, ...], dtype: torch.dtype, device: object = None) -> torch.Tensor:
        """What `torch.empty` gives on a bad day."""
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        return self.around(torch.full(shape, float("nan") if dtype.is_floating_point else -1, dtype=dtype))

    def intact(self) -> bool:
        """Whether no band was written to."""
        return all(
            torch.equal(now[part].view(torch.uint8), before[part].view(torch.uint8))
            for now, before in self.held
            for part in (slice(None, BAND), slice(-BAND, None))
        )


@pytest.fixture
def guards(monkeypatch):
    """Whatever the kernels' hosts allocate is guarded; the bands are looked at when the test ends."""
    guards = Guards()
    monkeypatch.setattr(torch, "empty", guards.poisoned)
    yield guards
    assert guards.intact(), "a kernel wrote beside its buffer"
