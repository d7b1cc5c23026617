"""The reference's `--benchmark N --check`: one window, token by token, with what it left out.

Each token is fed as in generation, with its past in the cache; the time of each is taken, and with a check its
loss. Beside the median stand the time to a first token, the share of the memory bus, and the true peak of memory.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from octavo.evaluation.scoring import ROWS_AT_ONCE, losses_of, mean_loss
from octavo.kernels.attention import SequencePages
from octavo.model.kv_cache import Batch, KVCache, make_cache, one_sequence
from octavo.model.llama import LlamaModel, forward
from octavo.runtime.capture import capture_for
from octavo.runtime.generation import prefill

WARM_UP_TOKENS = 8  # fed before, and not counted
BANDWIDTH_BYTES = 512 * 2**20  # beyond the caches of most processors
BANDWIDTH_TURNS = 5


@dataclass(frozen=True)
class Decoding:
    """What feeding a window token by token gave.

    `seconds` are those of each token; `loss` is the mean over the tokens that were predicted, None without a
    check; `allocated` the most bytes that a GPU held after a token, None on a CPU.
    """

    seconds: list[float]
    loss: float | None
    allocated: int | None

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)


class MemoryMeter:
    """Bytes held since it was made: on a GPU what torch has allocated, on a CPU the process's resident set."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = torch.cuda.memory_allocated(device)
        else:
            _reset_resident_peak()
            self._before = _resident("VmRSS")

    def allocated(self) -> int | None:
        """What a GPU holds now; after a forward pass this is what tables of 2023 call memory. None on a CPU."""
        if self._device.type != "cuda" or self._before is None:
            return None
        return torch.cuda.memory_allocated(self._device) - self._before

    def peak(self) -> int | None:
        """The most that was held at any moment, mapped files included; None where the system does not tell."""
        cuda = self._device.type == "cuda"
        most = torch.cuda.max_memory_allocated(self._device) if cuda else _resident("VmHWM")
        return None if most is None or self._before is None else most - self._before


# Of Linux: proc(5).
_STATUS = Path("/proc/self/status")


def _reset_resident_peak() -> None:
    """The peak becomes what is held now; what earlier models have left is given back before."""
    if not _STATUS.exists():
        return
    gc.collect()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # glibc's own
        library.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def _resident(field: str) -> int | None:
    """A size of this process, in bytes."""
    if not _STATUS.exists():
        return None
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def decode_window(
    model: LlamaModel, window: Int64[Tensor, " length"], check: bool, meter: MemoryMeter
) -> Decoding:
    """Feed a window token by token; with `check` also take the loss of each token but the first.

    The losses are those of `scoring.score` over the same window, to the last bit where the kernels give a row the
    same bits alone as among others.
    """
    cache = make_cache(model.config, 1, len(window), model.device, model.dtype)
    logits = torch.zeros(1, model.config.vocabulary_size, device=model.device, dtype=model.dtype)
    kept = logits.repeat(min(ROWS_AT_ONCE, len(window)), 1) if check else logits[:0]
    token, position = torch.zeros(2, 1, dtype=torch.int64, device=model.device)
    with torch.inference_mode():
        step = capture_for(model.device)(lambda: _step(model, cache, token, position, logits))
        for _ in range(min(WARM_UP_TOKENS, len(window))):
            step()
        position.zero_()
        seconds, parts = [], []
        allocated = meter.allocated()
        for number, token_id in enumerate(window.tolist()):
            token.fill_(token_id)
            seconds.append(_timed(step, model.device))
            if allocated is not None:
                allocated = max(allocated, meter.allocated() or 0)
            if check and number < len(window) - 1:
                row = number % ROWS_AT_ONCE
                kept[row] = logits[0]
                if row == ROWS_AT_ONCE - 1 or number == len(window) - 2:
                    parts.append(losses_of(kept[: row + 1], window, slice(number - row, number + 1)))
    return Decoding(seconds, mean_loss(parts) if check else None, allocated)


def first_token_seconds(model: LlamaModel, window: Int64[Tensor, " length"]) -> float:
    """From a prompt of a whole window to the logits of what follows it."""
    cache = make_cache(model.config, 1, len(window), model.device, model.dtype)
    last = window[-1:].to(model.device)

    def whole() -> None:
        prefill(model, window[:-1].tolist(), cache)
        forward(model, one_sequence(last, len(window) - 1, cache.page_size), cache)

    with torch.inference_mode():
        return _timed(whole, model.device)


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second that the device reads of memory, the best of several turns over a large buffer."""
    buffer = torch.ones(BANDWIDTH_BYTES // 4, device=device)
    return BANDWIDTH_BYTES / min(_timed(buffer.sum, device) for _ in range(BANDWIDTH_TURNS))


def _step(model: LlamaModel, cache: KVCache, token: Tensor, position: Tensor, logits: Tensor) -> None:
    """The logits after one more token; all that changes from step to step lies in the tensors."""
    pages = SequencePages(
        lengths=position + 1,
        row_starts=torch.arange(2, device=position.device),
        page_table=torch.zeros(1, 1, dtype=torch.int64, device=position.device),
        page_size=cache.page_size,
        most_rows=1,
        longest=cache.page_size,
    )
    logits.copy_(forward(model, Batch(token, position, position, pages), cache))
    position.add_(1)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
