"""The layout "pack-quantized" of the library compressed-tensors, which llm-compressor writes and vLLM reads.

| tensor              | shape                               | dtype               | present       |
|---------------------|-------------------------------------|---------------------|---------------|
| `weight_packed`     | [out_features, packed(in_features)] | int32               |               |
| `weight_scale`      | [out_features, groups]              | float16 or bfloat16 |               |
| `weight_shape`      | [2]: out_features, in_features      | int64               |               |
| `weight_zero_point` | [packed(out_features), groups]      | int32               | if asymmetric |
| `weight_g_idx`      | [in_features]                       | int32               | if ordered    |

Codes and zeros are packed as GPTQ packs them, and hold what GPTQ's version 2 holds: the library's signed numbers,
moved up by half their range. Source: compressed-tensors, `pack_quantized.py`.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int32, Integer
from torch import Tensor

from octavo.checkpoint.configuration import FileQuantization
from octavo.checkpoint.dialects.checks import as_zeros, groups_within, half_scales, part
from octavo.checkpoint.packing import pack, packed_width, unpack
from octavo.checkpoint.tensors import TensorSpec
from octavo.errors import CheckpointError
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight, sequential_groups

SUFFIXES = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
BITS = (4, 8)
SCALE_KINDS = (torch.float16, torch.bfloat16, torch.float32)


def specs(name: str, shape: tuple[int, int], scheme: QuantScheme) -> list[TensorSpec]:
    """The tensors that a quantized linear of shape (out_features, in_features) will take."""
    rows, columns = shape
    groups = scheme.groups(columns)
    found = [
        TensorSpec(f"{name}.weight_packed", torch.int32, (rows, packed_width(columns, scheme.bits))),
        TensorSpec(f"{name}.weight_scale", torch.float16, (rows, groups)),
        TensorSpec(f"{name}.weight_shape", torch.int64, (2,)),
    ]
    if not scheme.symmetric:
        zeros = (packed_width(rows, scheme.bits), groups)
        found.append(TensorSpec(f"{name}.weight_zero_point", torch.int32, zeros))
    return found


def encode(name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    """The tensors of a quantized linear; CheckpointError for what engines would not read back."""
    scheme = weight.scheme
    if scheme.bits not in BITS:
        raise CheckpointError(f"{name} has {scheme.bits} bits, and compressed-tensors holds 4 or 8; write gptq_v2")
    if not torch.equal(weight.group_of_column, sequential_groups(weight.shape[1], scheme.group_size)):
        raise CheckpointError(
            f"{name} has columns that were grouped in order of activation, which engines no longer read from "
            "compressed-tensors; write it as gptq"
        )
    if ((weight.zeros < 0) | (weight.zeros > scheme.largest_code)).any():
        raise CheckpointError(f"{name} has a zero point outside 0 … {scheme.largest_code}; quantize it again")
    encoded = {
        f"{name}.weight_packed": pack(weight.codes, scheme.bits),
        f"{name}.weight_scale": weight.scales.to(torch.float16),
        f"{name}.weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }
    if not scheme.symmetric:
        encoded[f"{name}.weight_zero_point"] = pack(weight.zeros.t(), scheme.bits).t().contiguous()
    return encoded


def decode(
    name: str, tensors: Mapping[str, Tensor], shape: tuple[int, int], quantization: FileQuantization
) -> QuantizedWeight:
    """The weight of shape (out_features, in_features) that a linear's tensors hold."""
    rows, columns = shape
    packed = part(tensors, name, "weight_packed", (torch.int32,))
    scales = part(tensors, name, "weight_scale", SCALE_KINDS)
    stated = part(tensors, name, "weight_shape", (torch.int64, torch.int32))
    if stated.tolist() != [rows, columns]:
        raise CheckpointError(f"{name}.weight_shape is {stated.tolist()}, expected [{rows}, {columns}]")
    scheme = _scheme_of(name, tensors, shape, quantization)
    return QuantizedWeight(
        codes=unpack(packed, scheme.bits, columns),
        scales=half_scales(name, scales, shape, scheme),
        zeros=as_zeros(_zeros(name, tensors, shape, scheme)),
        group_of_column=_groups_of_columns(name, tensors, columns, scheme),
        scheme=scheme,
    )


def _scheme_of(
    name: str, tensors: Mapping[str, Tensor], shape: tuple[int, int], quantization: FileQuantization
) -> QuantScheme:
    """The declared scheme, or, where several are, the one that the shapes of the tensors imply."""
    rows, columns = shape
    declared = quantization.default
    packed, groups = tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_scale"].shape[-1]
    fitting = [bits for bits in BITS if packed.shape == (rows, packed_width(columns, bits))]
    symmetric = f"{name}.weight_zero_point" not in tensors
    if declared.bits in fitting and groups == declared.groups(columns) and symmetric == declared.symmetric:
        return declared
    whole = groups > 0 and columns % groups == 0
    if not fitting or not quantization.mixed or not whole:
        raise CheckpointError(
            f"{name}.weight_packed of shape {list(packed.shape)} with {groups} groups is not the {declared} that "
            f"the configuration declares for a weight of {rows} x {columns}"
        )
    return QuantScheme(fitting[0], None if groups == 1 else columns // groups, symmetric)


def _zeros(
    name: str, tensors: Mapping[str, Tensor], shape: tuple[int, int], scheme: QuantScheme
) -> Integer[Tensor, "rows groups"]:
    rows, columns = shape
    groups = scheme.groups(columns)
    if scheme.symmetric:
        return torch.full((rows, groups), scheme.middle)
    words = part(tensors, name, "weight_zero_point", (torch.int32,))
    if words.shape != (packed_width(rows, scheme.bits), groups):
        raise CheckpointError(f"{name}.weight_zero_point does not fit a weight of {rows} x {columns} in {scheme}")
    return unpack(words.t(), scheme.bits, rows).t()


def _groups_of_columns(
    name: str, tensors: Mapping[str, Tensor], columns: int, scheme: QuantScheme
) -> Int32[Tensor, " in_features"]:
    """`weight_g_idx`; absent or all -1, it says that neighbouring columns share a group."""
    if f"{name}.weight_g_idx" not in tensors:
        return sequential_groups(columns, scheme.group_size)
    index = part(tensors, name, "weight_g_idx", (torch.int32,))
    if (index == -1).all():
        return sequential_groups(columns, scheme.group_size)
    groups_within(f"{name}.weight_g_idx", index, columns, scheme.groups(columns))
    return index
