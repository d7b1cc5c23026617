"""2-, 3-, 4- and 8-bit codes to int32 words and back.

Little-endian by bit position. With 2, 4 and 8 bits a word holds 32 / bits codes, the first in the lowest bits.
With 3 bits, 32 codes fill three words as one 96-bit number, so that codes 10 and 21 straddle two words. A width
that does not fill its last word (or three words) is padded with zero codes. Source: GPTQ-for-LLaMa,
`quant_linear.py`, the layout that AutoGPTQ calls "gptq".
"""

import math

import torch
from jaxtyping import Int32, Integer, UInt8
from torch import Tensor

# 32 codes of `bits` bits fill `bits` words, whatever the width: the unit in which all layouts repeat.
CODES_PER_UNIT = 32


def packed_width(count: int, bits: int) -> int:
    """Words that hold `count` codes."""
    if bits == 3:
        return -(-count // CODES_PER_UNIT) * 3
    return -(-count * bits // 32)


def pack(codes: Integer[Tensor, "*rows count"], bits: int) -> Int32[Tensor, "*rows words"]:
    """Pack codes 0 … 2^bits - 1 along the last dimension."""
    count = codes.shape[-1]
    padded = torch.nn.functional.pad(codes.to(torch.uint8), (0, -count % CODES_PER_UNIT))
    run_codes, run_bytes = _run(bits)
    runs = padded.unflatten(-1, (-1, run_codes))
    packed = torch.zeros(*runs.shape[:-1], run_bytes, dtype=torch.uint8, device=codes.device)
    for index in range(run_codes):
        byte, offset = divmod(index * bits, 8)
        packed[..., byte] |= runs[..., index] << offset
        if offset + bits > 8:
            packed[..., byte + 1] |= runs[..., index] >> (8 - offset)
    words = packed.flatten(-2).view(torch.int32)  # little-endian, as every machine is that torch runs on
    return words[..., : packed_width(count, bits)].contiguous()


def unpack(words: Int32[Tensor, "*rows words"], bits: int, count: int) -> UInt8[Tensor, "*rows count"]:
    """The first `count` codes of packed words."""
    run_codes, run_bytes = _run(bits)
    # A copy, for `contiguous` leaves a lone column as it is, whose stride no view takes.
    packed = words.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    packed = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % run_bytes)).unflatten(-1, (-1, run_bytes))
    codes = torch.empty(*packed.shape[:-1], run_codes, dtype=torch.uint8, device=words.device)
    mask = 2**bits - 1
    for index in range(run_codes):
        byte, offset = divmod(index * bits, 8)
        code = packed[..., byte] >> offset
        if offset + bits > 8:
            code = code | (packed[..., byte + 1] << (8 - offset))
        codes[..., index] = code & mask
    return codes.flatten(-2)[..., :count].contiguous()


def _run(bits: int) -> tuple[int, int]:
    """The shortest run of codes that fills whole bytes, and these bytes."""
    length = math.lcm(bits, 8)
    return length // bits, length // 8
