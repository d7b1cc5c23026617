"""AWQ's layout "gemm", read only: 4 bits, packed along the outputs, in an order of its own.

| tensor    | shape                         | dtype   |
|-----------|-------------------------------|---------|
| `qweight` | [in_features, out_features/8] | int32   |
| `qzeros`  | [groups, out_features/8]      | int32   |
| `scales`  | [groups, out_features]        | float16 |

Zeros are stored as they are, and neighbouring columns share a group.
Source: AutoAWQ, `awq/utils/packing_utils.py`.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int32, UInt8
from torch import Tensor

from octavo.checkpoint.configuration import FileQuantization
from octavo.checkpoint.dialects.checks import as_zeros, half_scales, part
from octavo.checkpoint.packing import unpack
from octavo.errors import CheckpointError
from octavo.weights import QuantizedWeight, sequential_groups

SUFFIXES = ("qweight", "qzeros", "scales")
BITS = 4
CODES_PER_WORD = 8
# Which four bits of a word hold output 0, 1, … 7, counted from the lowest.
PLACES = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])


def decode(
    name: str, tensors: Mapping[str, Tensor], shape: tuple[int, int], quantization: FileQuantization
) -> QuantizedWeight:
    """The weight of shape (out_features, in_features) that a linear's tensors hold."""
    rows, columns = shape
    scheme = quantization.default
    qweight, qzeros = (part(tensors, name, suffix, (torch.int32,)) for suffix in ("qweight", "qzeros"))
    scales = part(tensors, name, "scales", (torch.float16, torch.bfloat16, torch.float32))
    words, rest = divmod(rows, CODES_PER_WORD)
    if rest or qweight.shape != (columns, words) or qzeros.shape != (scheme.groups(columns), words):
        raise CheckpointError(
            f"{name}.qweight of shape {list(qweight.shape)} with qzeros of {list(qzeros.shape)} is not the awq "
            f"layout of a weight of {rows} x {columns} in {scheme}"
        )
    zeros = _unpack(qzeros)
    return QuantizedWeight(
        codes=_unpack(qweight).t().contiguous(),
        scales=half_scales(name, scales.t(), shape, scheme),
        zeros=as_zeros(zeros.t()),
        group_of_column=sequential_groups(columns, scheme.group_size),
        scheme=scheme,
    )


def _unpack(words: Int32[Tensor, "rows words"]) -> UInt8[Tensor, "rows count"]:
    fields = unpack(words, BITS, words.shape[1] * CODES_PER_WORD)
    return fields.reshape(len(fields), -1, CODES_PER_WORD)[..., PLACES].flatten(1)
