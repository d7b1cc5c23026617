"""Kernels that begin before the one ahead of them has ended: their start then costs no time of its own.

Programmatic dependent launch, from Hopper on (CUDA programming guide, section 4.5): so are launched the small
kernels between products, and those of CUDA C++. A kernel so launched waits by itself before it reads or writes
what others make, and every kernel of the chain waits: so where one has ended, all before it have.
"""

from typing import no_type_check

import triton
import triton.language as tl
from triton.language.extra import cuda

from octavo.kernels.triton_gpu.card import Card

HOPPER = 90


def starts_early(card: Card) -> bool:
    """Whether kernels are launched so; the interpreter knows no such thing."""
    return card.architecture >= HOPPER and not triton.knobs.runtime.interpret


@triton.jit
@no_type_check
def take_turn(early: tl.constexpr):
    """Let the next kernel begin, and wait for those before."""
    if early:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
