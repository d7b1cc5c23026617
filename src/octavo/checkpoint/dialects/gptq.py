"""GPTQ's own layouts: version 1, version 2, and their ancestors of March 2023.

| tensor    | shape                                   | dtype   | before April 2023                             |
|-----------|-----------------------------------------|---------|-----------------------------------------------|
| `qweight` | [packed(in_features), out_features]     | int32   |                                               |
| `qzeros`  | [groups, packed(out_features)]          | int32   | `zeros` [out_features, 1], float: scale * zero |
| `scales`  | [groups, out_features]                  | float16 | float32; with `zeros` [out_features, 1]       |
| `g_idx`   | [in_features]                           | int32   | absent                                        |

Version 1 (`gptq`) stores each zero minus one, version 2 (`gptq_v2`) the zero itself; only this file knows.
`scales` tell the true output width and `g_idx` the true input width where words are padded.
Specification: docs/formats.md; sources: GPTQ-for-LLaMa, `quant_linear.py` and its history; GPTQModel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int32, Integer, UInt8
from torch import Tensor

from octavo.checkpoint.configuration import FileQuantization
from octavo.checkpoint.dialects.checks import as_zeros, groups_within, half_scales, part, symmetric_if_true
from octavo.checkpoint.packing import pack, packed_width, unpack
from octavo.checkpoint.tensors import TensorSpec
from octavo.errors import CheckpointError
from octavo.schemes import STORABLE_BITS, QuantScheme
from octavo.weights import QuantizedWeight, sequential_groups

Version = Literal["gptq", "gptq_v2"]

SUFFIXES = ("qweight", "qzeros", "zeros", "scales", "g_idx")
SCALE_KINDS = (torch.float16, torch.bfloat16, torch.float32)
# How far scale * zero, rounded to float32, may lie from a whole number of scales.
WHOLE = 1e-3


def smallest_zero(version: Version) -> int:
    """The least zero that a version can store: version 1 writes it minus one and has no sign."""
    return 1 if version == "gptq" else 0


def specs(name: str, shape: tuple[int, int], scheme: QuantScheme) -> list[TensorSpec]:
    """The tensors that a quantized linear of shape (out_features, in_features) will take."""
    rows, columns = shape
    groups = scheme.groups(columns)
    return [
        TensorSpec(f"{name}.qweight", torch.int32, (packed_width(columns, scheme.bits), rows)),
        TensorSpec(f"{name}.qzeros", torch.int32, (groups, packed_width(rows, scheme.bits))),
        TensorSpec(f"{name}.scales", torch.float16, (groups, rows)),
        TensorSpec(f"{name}.g_idx", torch.int32, (columns,)),
    ]


def encode(name: str, weight: QuantizedWeight, version: Version) -> dict[str, Tensor]:
    """The tensors of a quantized linear; CheckpointError for a zero that the version cannot store."""
    bits = weight.scheme.bits
    stored_zeros = weight.zeros.long() - smallest_zero(version)
    if ((stored_zeros < 0) | (weight.zeros > weight.scheme.largest_code)).any():
        raise CheckpointError(
            f"{name} has a zero point that the {version} layout cannot store; write it as gptq_v2"
        )
    return {
        f"{name}.qweight": pack(weight.codes, bits).t().contiguous(),
        f"{name}.qzeros": pack(stored_zeros.t(), bits),
        f"{name}.scales": weight.scales.to(torch.float16).t().contiguous(),
        f"{name}.g_idx": weight.group_of_column,
    }


def decode(
    name: str, tensors: Mapping[str, Tensor], shape: tuple[int, int], quantization: FileQuantization
) -> QuantizedWeight:
    """The weight of shape (out_features, in_features) that a linear's tensors hold."""
    columns = shape[1]
    qweight = part(tensors, name, "qweight", (torch.int32,))
    stored_scales = part(tensors, name, "scales", SCALE_KINDS)
    if f"{name}.zeros" in tensors:
        scheme = _scheme_of(name, tensors, shape, quantization, groups=1)
        scales = half_scales(name, stored_scales, shape, scheme)
        zeros = _zeros_of_products(name, tensors, shape, scheme)
        group_of_column = sequential_groups(columns, None)
    else:
        scheme = _scheme_of(name, tensors, shape, quantization, stored_scales.shape[0])
        scales = half_scales(name, stored_scales.t(), shape, scheme)
        zeros = _stored_zeros(name, tensors, shape, scheme, quantization)
        group_of_column = _groups_of_columns(name, tensors, columns, scheme, quantization)
        groups_within(f"{name}.g_idx", group_of_column, columns, scales.shape[1])
    return QuantizedWeight(
        codes=unpack(qweight.t(), scheme.bits, columns),
        scales=scales,
        zeros=as_zeros(zeros),
        group_of_column=group_of_column,
        scheme=symmetric_if_true(scheme, zeros),
    )


def _scheme_of(
    name: str, tensors: Mapping[str, Tensor], shape: tuple[int, int], quantization: FileQuantization, groups: int
) -> QuantScheme:
    """The declared scheme, or, in a mixed checkpoint, the one that the shapes of the tensors imply."""
    rows, columns = shape
    qweight = tensors[f"{name}.qweight"]
    declared = quantization.default
    group_size = declared.group_size
    if f"{name}.g_idx" in tensors:
        index = part(tensors, name, "g_idx", (torch.int32,))
        groups_within(f"{name}.g_idx", index, columns, groups)
        group_size = group_size_of(index, declared)
    fitting = bits_of(qweight.shape, shape)
    fits_groups = groups == declared.groups(columns)
    if declared.bits in fitting and group_size == declared.group_size and fits_groups:
        return declared
    if not fitting or not quantization.mixed or f"{name}.g_idx" not in tensors:
        raise CheckpointError(
            f"{name}.qweight of shape {list(qweight.shape)} with {groups} groups is not the {declared} that the "
            f"configuration declares for a weight of {rows} x {columns}"
        )
    bits = declared.bits if declared.bits in fitting else fitting[0]
    return QuantScheme(bits, group_size, declared.symmetric)


def bits_of(packed: tuple[int, ...], shape: tuple[int, int]) -> list[int]:
    """The numbers of bits with which a `qweight` of shape `packed` holds a weight of `shape`."""
    rows, columns = shape
    return [bits for bits in STORABLE_BITS if packed == (packed_width(columns, bits), rows)]


def group_size_of(group_of_column: Int32[Tensor, " in_features"], declared: QuantScheme) -> int | None:
    """Columns of the largest group: the group size, for only the last group may be ragged.

    Where a single group holds all columns, any declared size that is no smaller is as good.
    """
    columns = len(group_of_column)
    largest = int(torch.bincount(group_of_column.long()).max()) if columns else 0
    if largest == columns:
        return declared.group_size if (declared.group_size or columns) >= columns else None
    return largest


def _groups_of_columns(
    name: str, tensors: Mapping[str, Tensor], columns: int, scheme: QuantScheme, quantization: FileQuantization
) -> Int32[Tensor, " in_features"]:
    """`g_idx`, or neighbouring columns where a file of March 2023 has none."""
    if f"{name}.g_idx" in tensors:
        return tensors[f"{name}.g_idx"]
    if quantization.ordered and scheme.groups(columns) > 1:
        raise CheckpointError(
            f"{name}.g_idx is missing, and without it columns that were grouped in order of activation cannot be "
            "told apart; quantize the model again"
        )
    return sequential_groups(columns, scheme.group_size)


def _zeros_of_products(
    name: str, tensors: Mapping[str, Tensor], shape: tuple[int, int], scheme: QuantScheme
) -> Integer[Tensor, "rows groups"]:
    """Zeros from the products `scale * zero` that the first files hold, one group per row."""
    products = part(tensors, name, "zeros", SCALE_KINDS).float()
    scales = tensors[f"{name}.scales"].float()
    if products.shape != (shape[0], 1):
        raise CheckpointError(f"{name}.zeros have shape {list(products.shape)}, expected [{shape[0]}, 1]")
    zeros = products / scales
    whole = zeros.round()
    if not (torch.isfinite(zeros).all() and (zeros - whole).abs().max() <= WHOLE * scheme.largest_code):
        raise CheckpointError(f"{name}.zeros are no whole multiples of its scales; fetch the checkpoint again")
    if whole.min() < 0 or whole.max() > scheme.largest_code:
        raise CheckpointError(f"{name}.zeros lie outside 0 … {scheme.largest_code}; fetch the checkpoint again")
    return whole.long()


def _stored_zeros(
    name: str,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, int],
    scheme: QuantScheme,
    quantization: FileQuantization,
) -> Integer[Tensor, "rows groups"]:
    rows, columns = shape
    qzeros = part(tensors, name, "qzeros", (torch.int32,))
    if qzeros.shape != (scheme.groups(columns), packed_width(rows, scheme.bits)):
        raise CheckpointError(f"{name}.qzeros do not fit a weight of {rows} x {columns} in {scheme}")
    stored = unpack(qzeros, scheme.bits, rows)
    if quantization.dialect == "gptq_v2":
        return stored.t().long()
    wrapped = wrapped_zeros(stored, scheme.bits)
    if wrapped.lost:
        raise CheckpointError(
            f"{name}.qzeros hold {wrapped.lost} zeros that a neighbour of 0, stored minus one, has overwritten; "
            "the file cannot be repaired, quantize the model again"
        )
    # Stored minus one, a zero of 0 became all ones.
    return torch.where(wrapped.fields, 0, stored.long() + 1).t()


@dataclass(frozen=True)
class WrappedZeros:
    """Zeros of version 1 that were 0: minus one, they have all bits set. `lost`: how many that destroyed."""

    fields: Bool[Tensor, "groups rows"]
    lost: int


def wrapped_zeros(stored: UInt8[Tensor, "groups rows"], bits: int) -> WrappedZeros:
    """What of a linear's stored zeros has wrapped.

    A packer that did not mask its fields (GPTQ-for-LLaMa's) wrote minus one over all higher fields of the word,
    and what they held is lost. A sound field above a wrapped one shows that the packer did mask.
    """
    fields = stored == 2**bits - 1
    if not fields.any():
        return WrappedZeros(fields, 0)
    positions = torch.arange(stored.shape[1]) * bits
    word, offset = positions // 32, positions % 32
    before = fields.cumsum(1) - fields.long()
    above_wrapped = before > before[:, torch.searchsorted(word, word)]
    # Of a field that straddles two words, only the bits in the lower word can have been overwritten.
    reach = 2 ** (32 - offset).clamp(max=bits) - 1
    masked = bool((above_wrapped & ((stored & reach) != reach)).any())
    return WrappedZeros(fields, 0 if masked else int(above_wrapped.sum()))
