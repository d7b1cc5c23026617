"""A step of work, fixed once and repeated at little cost: a CUDA graph, or, on a CPU, the step itself.

A captured step reads and writes the same memory each time; what changes from step to step lies in that memory.
"""

from collections.abc import Callable

import torch

Step = Callable[[], None]
Capture = Callable[[Step], Step]  # makes a step repeatable; it may run the step meanwhile
WARM_UPS = 2  # runs before capture: libraries make their handles and workspaces in the first


def run_each_time(step: Step) -> Step:
    """The step itself: what a CPU does, and what a captured step is tested against."""
    return step


class CudaGraphs:
    """Captures steps as CUDA graphs that share one pool of memory, so they must not run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                step()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            step()
        return graph.replay


def capture_for(device: torch.device) -> Capture:
    """What a device gains from: graphs on a GPU, nothing on a CPU."""
    return CudaGraphs(device) if device.type == "cuda" else run_each_time
