"""2-, 3-, 4- and 8-bit codes to int32 words and back.

Little-endian by bit position. With 2, 4 and 8 bits a word holds 32 / bits codes, the first in the lowest bits.
With 3 bits, 32 codes fill three words as one 96-bit number, so that codes 10 and 21 straddle two words. A width
that does not fill its last word (or three words) is padded with zero codes. Source: GPTQ-for-LLaMa,
`quant_linear.py`, the layout that AutoGPTQ calls "gptq".
"""

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
    padding = -count % CODES_PER_UNIT
    units = torch.nn.functional.pad(codes.long(), (0, padding)).unflatten(-1, (-1, CODES_PER_UNIT))
    words = torch.zeros(*units.shape[:-1], bits, dtype=torch.int64, device=codes.device)
    for index in range(CODES_PER_UNIT):
        word, offset = divmod(index * bits, 32)
        words[..., word] |= (units[..., index] << offset) & 0xFFFFFFFF
        if offset + bits > 32:
            words[..., word + 1] |= units[..., index] >> (32 - offset)
    signed = torch.where(words >= 2**31, words - 2**32, words)
    return signed.to(torch.int32).flatten(-2)[..., : packed_width(count, bits)].contiguous()


def unpack(words: Int32[Tensor, "*rows words"], bits: int, count: int) -> UInt8[Tensor, "*rows count"]:
    """The first `count` codes of packed words."""
    padding = -words.shape[-1] % bits
    units = torch.nn.functional.pad(words.long() & 0xFFFFFFFF, (0, padding)).unflatten(-1, (-1, bits))
    codes = torch.empty(*units.shape[:-1], CODES_PER_UNIT, dtype=torch.uint8, device=words.device)
    mask = 2**bits - 1
    for index in range(CODES_PER_UNIT):
        word, offset = divmod(index * bits, 32)
        code = units[..., word] >> offset
        if offset + bits > 32:
            code = code | (units[..., word + 1] << (32 - offset))
        codes[..., index] = code & mask
    return codes.flatten(-2)[..., :count].contiguous()
