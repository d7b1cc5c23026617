"""Codes and scales of a quantized weight to ggml's blocks of 32, without rounding them again.

| type | a block                                                        | value                  |
|------|----------------------------------------------------------------|------------------------|
| Q8_0 | d: float16, q: 32 x int8                                       | d * q                  |
| Q4_0 | d: float16, q: 16 bytes, element i low, i + 16 high            | d * (q - 8)            |
| Q4_1 | d, m: float16, q: 16 bytes, in the same order                  | d * q + m              |

Source: ggml, `ggml-common.h` and `ggml-quants.c`.
"""

import numpy as np
import torch
from jaxtyping import Float16, Integer, UInt8
from torch import Tensor

from octavo.errors import CheckpointError
from octavo.weights import QuantizedWeight

BLOCK = 32  # elements
Bytes = UInt8[np.ndarray, "rows bytes"]


def fills_blocks(columns: int, group_size: int | None) -> bool:
    """Whether each block of a row lies in one group of neighbouring columns."""
    return columns % BLOCK == 0 and (group_size is None or group_size % BLOCK == 0)


def q8_0(weight: QuantizedWeight) -> Bytes:
    """The steps `code - zero` as they are; each must fit into a signed byte."""
    steps = _steps(weight)
    if steps.min() < -128 or steps.max() > 127:
        raise CheckpointError("a code lies more than a signed byte from its zero, which Q8_0 cannot hold")
    return _joined(_block_values(weight, weight.scales), steps.to(torch.int8).view(torch.uint8))


def q4_0(weight: QuantizedWeight) -> Bytes:
    """The steps `code - zero` moved up by 8; each must lie in -8 … 7."""
    steps = _steps(weight)
    if steps.min() < -8 or steps.max() > 7:
        raise CheckpointError("a code lies more than 8 steps from its zero, which Q4_0 cannot hold")
    return _joined(_block_values(weight, weight.scales), _nibbles(steps + 8))


def q4_1(weight: QuantizedWeight) -> Bytes:
    """Codes as they are, and `-scale * zero` rounded to float16: the one number that is not exact."""
    minimum = -weight.scales.float() * weight.zeros.float()
    scales, minima = _block_values(weight, weight.scales), _block_values(weight, minimum.half())
    return _joined(torch.cat([scales, minima], 2), _nibbles(_in_blocks(weight.codes)))


def _steps(weight: QuantizedWeight) -> Integer[Tensor, "rows blocks 32"]:
    steps = weight.codes.short() - weight.zeros[:, weight.group_of_column.long()]
    return _in_blocks(steps)


def _in_blocks(elements: Integer[Tensor, "rows columns"]) -> Integer[Tensor, "rows blocks 32"]:
    return elements.reshape(len(elements), -1, BLOCK)


def _block_values(
    weight: QuantizedWeight, values: Float16[Tensor, "rows groups"]
) -> UInt8[Tensor, "rows blocks 2"]:
    """A number per group as the bytes of a number per block."""
    group_of_block = weight.group_of_column[::BLOCK].long()
    return values[:, group_of_block].contiguous()[..., None].view(torch.uint8)


def _nibbles(fields: Integer[Tensor, "rows blocks 32"]) -> UInt8[Tensor, "rows blocks 16"]:
    halves = fields.to(torch.uint8)
    return halves[..., : BLOCK // 2] | halves[..., BLOCK // 2 :] << 4


def _joined(head: UInt8[Tensor, "rows blocks head"], body: UInt8[Tensor, "rows blocks body"]) -> Bytes:
    return torch.cat([head, body], 2).flatten(1).numpy()
