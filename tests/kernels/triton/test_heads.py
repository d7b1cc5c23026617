"""Cosine and sine of the rotation, in float32."""

import torch
import triton
import triton.language as tl

from octavo.kernels.triton_gpu.heads import cosine_and_sine


@triton.jit
def both(angles, cosines, sines, count: tl.constexpr):
    at = tl.arange(0, count)
    cosine, sine = cosine_and_sine(tl.load(angles + at))
    tl.store(cosines + at, cosine)
    tl.store(sines + at, sine)


def test_cosine_and_sine():
    angles = torch.cat((torch.linspace(-7, 7, 1000), torch.linspace(0, 130_000, 3096)))
    cosines, sines = torch.empty_like(angles), torch.empty_like(angles)
    both[(1,)](angles, cosines, sines, 4096)
    assert (cosines - angles.double().cos()).abs().max() < 3e-6
    assert (sines - angles.double().sin()).abs().max() < 3e-6
    assert (cosines - angles.double().cos())[:1000].abs().max() < 1.5e-7
    assert (sines - angles.double().sin())[:1000].abs().max() < 1.5e-7
