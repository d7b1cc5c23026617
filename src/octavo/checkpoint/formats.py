"""A quantized linear, by whatever name its folder stores it: one way in and one way out for all dialects."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from octavo.checkpoint.configuration import Dialect, FileQuantization
from octavo.checkpoint.dialects import awq, compressed_tensors, gptq
from octavo.checkpoint.tensors import TensorSpec
from octavo.errors import CheckpointError
from octavo.schemes import Layout, QuantScheme
from octavo.weights import QuantizedWeight, dequantize

SUFFIXES: dict[Dialect, tuple[str, ...]] = {
    "gptq": gptq.SUFFIXES,
    "gptq_v2": gptq.SUFFIXES,
    "awq": awq.SUFFIXES,
    "compressed-tensors": compressed_tensors.SUFFIXES,
}
CODES = ("qweight", "weight_packed")  # one of them is there where a linear is quantized
EVERY_SUFFIX = tuple(dict.fromkeys(suffix for suffixes in SUFFIXES.values() for suffix in suffixes))


@runtime_checkable
class TensorSource(Protocol):
    """Where named tensors come from: a folder of safetensors files, or, in conversions, another container."""

    specs: dict[str, TensorSpec]

    def __contains__(self, name: object) -> bool: ...

    def load(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor: ...


def holds_codes(name: str, tensors: TensorSource) -> bool:
    """Whether the linear `name` is stored quantized."""
    return any(f"{name}.{suffix}" in tensors for suffix in CODES)


def load_linear(
    name: str, shape: tuple[int, int], tensors: TensorSource, quantization: FileQuantization
) -> QuantizedWeight:
    """The quantized weight of shape (out_features, in_features); CheckpointError for unsound tensors."""
    present = (f"{name}.{suffix}" for suffix in SUFFIXES[quantization.dialect])
    return decode_linear(
        name, {part: tensors.load(part) for part in present if part in tensors}, shape, quantization
    )


def decode_linear(
    name: str, tensors: dict[str, Tensor], shape: tuple[int, int], quantization: FileQuantization
) -> QuantizedWeight:
    """The weight of shape (out_features, in_features) that a linear's tensors hold."""
    decoders = {"awq": awq.decode, "compressed-tensors": compressed_tensors.decode}
    return decoders.get(quantization.dialect, gptq.decode)(name, tensors, shape, quantization)


def linear_specs(name: str, shape: tuple[int, int], scheme: QuantScheme, layout: Layout) -> list[TensorSpec]:
    """The tensors that a quantized linear of shape (out_features, in_features) will take."""
    if layout == "compressed-tensors":
        return compressed_tensors.specs(name, shape, scheme)
    return gptq.specs(name, shape, scheme)


def encode_linear(name: str, weight: QuantizedWeight, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a quantized linear as a layout stores them; CheckpointError where it cannot."""
    if layout == "compressed-tensors":
        return compressed_tensors.encode(name, weight)
    return gptq.encode(name, weight, layout)


def smallest_zero(layout: Layout) -> int:
    """The least zero that a layout can store."""
    return 0 if layout == "compressed-tensors" else gptq.smallest_zero(layout)


def why_not_stored(scheme: QuantScheme, layout: Layout, ordered: bool) -> str | None:
    """Why a layout cannot hold linears of a scheme; None where it can.

    `ordered`: columns are grouped in order of activation.
    """
    if layout != "compressed-tensors":
        return None
    if scheme.bits not in compressed_tensors.BITS:
        return f"compressed-tensors holds 4 or 8 bits, not {scheme.bits}; choose --format gptq_v2"
    if ordered:
        return "compressed-tensors has no place for columns in order of activation; choose --act-order static"
    return None


def dense_half(name: str, weight: QuantizedWeight) -> Tensor:
    """A quantized weight, dequantized and rounded to float16; CheckpointError where that overflows."""
    values = dequantize(weight).to(torch.float16)
    if not torch.isfinite(values).all():
        raise CheckpointError(f"{name} has weights beyond float16; keep it quantized")
    return values
