"""Chooses the kernel of a linear, of a decoder layer or of the head, and says why the others were passed over.

A kernel of linears is a module with `NAME` and three verbs: `why_not(weight, device)`, `prepare(weight, device,
dtype)` and `matmul(inputs, prepared)`. No bias; float32 accumulation; output dtype = input dtype; nothing is
compiled, tuned or synchronized outside `prepare`. The verbs of whole layers are listed in `blocks`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch

from octavo.kernels import cpu, cpu_blocks, reference, triton_gpu
from octavo.kernels.blocks import BlockParts, BlockShape, HeadParts
from octavo.kernels.cuda import linear as cuda
from octavo.weights import QuantizedWeight

# In order of preference; these two lines are the whole registry.
KERNELS: tuple[ModuleType, ...] = (cuda, triton_gpu, cpu, reference)
BLOCK_KERNELS: tuple[ModuleType, ...] = (triton_gpu, cpu_blocks)


@dataclass(frozen=True)
class Choice:
    """The kernel chosen, None where no kernel runs the layer whole, and what each one before it objected."""

    kernel: ModuleType | None
    refusals: dict[str, str]

    @property
    def name(self) -> str:
        return "part by part" if self.kernel is None else str(self.kernel.NAME)


def choose(weight: QuantizedWeight, device: torch.device) -> Choice:
    """The first kernel that does not object to a weight on a device; the reference never does."""
    return _first_willing(KERNELS, lambda kernel: kernel.why_not(weight, device))


def choose_block(
    kernels: Sequence[ModuleType],
    parts: BlockParts,
    shape: BlockShape,
    device: torch.device,
    dtype: torch.dtype,
) -> Choice:
    """The first of `kernels` that runs a decoder layer whole."""
    return _first_willing(kernels, lambda kernel: kernel.why_not_block(parts, shape, device, dtype))


def choose_head(
    kernels: Sequence[ModuleType], parts: HeadParts, device: torch.device, dtype: torch.dtype
) -> Choice:
    """The first of `kernels` that runs the final norm and the projection to logits."""
    return _first_willing(kernels, lambda kernel: kernel.why_not_head(parts, device, dtype))


def _first_willing(kernels: Sequence[ModuleType], objection_of: Callable[[ModuleType], str | None]) -> Choice:
    refusals: dict[str, str] = {}
    for kernel in kernels:
        objection = objection_of(kernel)
        if objection is None:
            return Choice(kernel, refusals)
        refusals[kernel.NAME] = objection
    return Choice(None, refusals)
