"""Times on a GPU: graphs replayed between events, medians with their spread; and the ceilings of the card."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

REPEATS = 15
STREAM_BYTES = 6 * 2**30  # a read of so much leaves the caches behind
MATMUL = 8192


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median over replays, the least and the most."""

    median: float
    least: float
    most: float


def time_graph(calls: Callable[[], None], count: int) -> Timing:
    """Seconds of one of the `count` calls that `calls` makes, captured in a graph and replayed."""
    graph = captured(calls)
    graph.replay()
    return timed(graph.replay, count)


def captured(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """The work as a graph, run twice before it is captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def timed(work: Callable[[], None], count: int = 1, repeats: int = REPEATS) -> Timing:
    """Seconds of one of the `count` calls in `work`, between events."""
    seconds = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000 / count)
    return Timing(statistics.median(seconds), min(seconds), max(seconds))


def ceilings() -> dict[str, float]:
    """What the card allows: bytes read per second, bf16 operations per second, seconds per launch in a graph."""
    buffer = torch.randint(-(2**31), 2**31 - 1, (STREAM_BYTES // 4,), dtype=torch.int32, device="cuda")
    read = timed(lambda: buffer.view(torch.float32).amax()).least
    copy = timed(lambda: buffer[: len(buffer) // 2].copy_(buffer[len(buffer) // 2 :])).least
    left, right = (torch.randn(MATMUL, MATMUL, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = timed(lambda: left @ right).median
    tiny, launches = torch.zeros(1, device="cuda"), 400

    def empty() -> None:
        for _ in range(launches):
            tiny.add_(1)

    return {
        "read_bytes_per_second": STREAM_BYTES / read,
        "copy_bytes_per_second": STREAM_BYTES / copy,
        "bf16_operations_per_second": 2 * MATMUL**3 / product,
        "seconds_per_launch_in_graph": time_graph(empty, launches).median,
    }
