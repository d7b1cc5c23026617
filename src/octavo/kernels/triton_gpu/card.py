"""The GPU that kernels are launched on, and why there may be none for Triton."""

from dataclasses import dataclass
from importlib.util import find_spec

import torch

OLDEST = 80  # compute capability 8.0: the first with asynchronous copies and bfloat16 products


@dataclass(frozen=True)
class Card:
    """What the shape of a launch depends on: compute capability (90 is 9.0) and number of multiprocessors."""

    architecture: int
    processors: int


def card_of(device: torch.device) -> Card:
    """The card behind a CUDA device."""
    properties = torch.cuda.get_device_properties(device)
    return Card(10 * properties.major + properties.minor, properties.multi_processor_count)


@dataclass(frozen=True)
class Place:
    """Where a layer runs, and the dtype of what runs through it."""

    device: torch.device
    dtype: torch.dtype
    card: Card


def place_on(device: torch.device, dtype: torch.dtype) -> Place:
    """The place of layers on a CUDA device."""
    return Place(device, dtype, card_of(device))


def why_not_on(device: torch.device) -> str | None:
    """Why no Triton kernel runs on a device; None where they do."""
    if device.type != "cuda":
        return f"it runs on NVIDIA GPUs, not on {device.type}"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "PyTorch sees no NVIDIA GPU here"
    if find_spec("triton") is None:
        return "the package triton is not installed; `pip install triton` brings it"
    architecture = card_of(device).architecture
    if architecture < OLDEST:
        return f"the GPU has compute capability {architecture / 10}, and it needs {OLDEST / 10} or newer"
    return None
