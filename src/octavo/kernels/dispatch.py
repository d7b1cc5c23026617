"""Chooses the kernel of a quantized linear, and says why the others were passed over.

A kernel is a module with `NAME` and three verbs: `why_not(weight, device)`, `prepare(weight, device, dtype)` and
`matmul(inputs, prepared)`. No bias; float32 accumulation; output dtype = input dtype; nothing is compiled, tuned
or synchronized outside `prepare`.
"""

from dataclasses import dataclass
from types import ModuleType

import torch

from octavo.kernels import reference
from octavo.weights import QuantizedWeight

KERNELS: tuple[ModuleType, ...] = (reference,)  # in order of preference; this is the whole registry


@dataclass(frozen=True)
class Choice:
    """The kernel chosen for a weight, and what each one that comes before it objected."""

    kernel: ModuleType
    refusals: dict[str, str]


def choose(weight: QuantizedWeight, device: torch.device) -> Choice:
    """The first kernel that does not object to a weight on a device."""
    refusals: dict[str, str] = {}
    for kernel in KERNELS:
        objection = kernel.why_not(weight, device)
        if objection is None:
            return Choice(kernel, refusals)
        refusals[kernel.NAME] = objection
    raise AssertionError("the reference kernel never objects")
