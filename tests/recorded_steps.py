"""A stand-in for CUDA graphs on a CPU: operations are recorded once and repeated over the same memory.

As in a graph, nothing that Python decided while recording is decided again: a number that the host read is baked
in, and a tensor that was made anew is a place that each repetition writes again.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "the host would wait for the device"
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result


def record(step):
    """A capture (see octavo.runtime.capture) that repeats what it saw."""
    recorder = _Recorder()
    with recorder:
        step()

    def repeat():
        for function, args, kwargs, result in recorder.calls:
            again = function(*args, **kwargs)
            for place, value in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)

    return repeat
