"""On-disk layouts of a quantized linear to `QuantizedWeight` and back, and the configuration that names them.

| tensor    | shape                                   | dtype   |
|-----------|-----------------------------------------|---------|
| `qweight` | [packed(in_features), out_features]     | int32   |
| `qzeros`  | [groups, packed(out_features)]          | int32   |
| `scales`  | [groups, out_features]                  | float16 |
| `g_idx`   | [in_features]                           | int32   |

`gptq` (version 1) stores each zero minus one, `gptq_v2` the zero itself; this file alone knows. `scales` tell
the true output width and `g_idx` the true input width where words are padded. Specification: docs/formats.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from octavo.checkpoint.packing import pack, packed_width, unpack
from octavo.checkpoint.tensors import TensorSpec
from octavo.errors import CheckpointError, UnsupportedModelError, UsageError
from octavo.records import read_json
from octavo.schemes import STORABLE_BITS, Layout, QuantScheme, SchemePlan
from octavo.weights import QuantizedWeight

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class FileQuantization:
    """What a checkpoint's configuration says of its quantized linears.

    `mixed`: some linears differ from `default` (the configuration has `dynamic` rules); their own tensors say
    how. Which linears are quantized at all is read off the tensors too.
    """

    layout: Layout
    default: QuantScheme
    mixed: bool
    lm_head: bool


def linear_specs(name: str, shape: tuple[int, int], scheme: QuantScheme) -> list[TensorSpec]:
    """The tensors that a quantized linear of shape (out_features, in_features) will take."""
    rows, columns = shape
    groups = scheme.groups(columns)
    return [
        TensorSpec(f"{name}.qweight", torch.int32, (packed_width(columns, scheme.bits), rows)),
        TensorSpec(f"{name}.qzeros", torch.int32, (groups, packed_width(rows, scheme.bits))),
        TensorSpec(f"{name}.scales", torch.float16, (groups, rows)),
        TensorSpec(f"{name}.g_idx", torch.int32, (columns,)),
    ]


def smallest_zero(layout: Layout) -> int:
    """The least zero that a layout can store: version 1 writes it minus one and has no sign."""
    return 1 if layout == "gptq" else 0


def encode_linear(name: str, weight: QuantizedWeight, layout: Layout) -> dict[str, Tensor]:
    """The tensors of a quantized linear as a layout stores them; CheckpointError where it cannot."""
    bits = weight.scheme.bits
    stored_zeros = weight.zeros.long() - smallest_zero(layout)
    if ((stored_zeros < 0) | (stored_zeros > weight.scheme.largest_code)).any():
        raise CheckpointError(
            f"{name} has a zero point that the {layout} layout cannot store; write it as gptq_v2"
        )
    return {
        f"{name}.qweight": pack(weight.codes, bits).t().contiguous(),
        f"{name}.qzeros": pack(stored_zeros.t(), bits),
        f"{name}.scales": weight.scales.to(torch.float16).t().contiguous(),
        f"{name}.g_idx": weight.group_of_column,
    }


def decode_linear(
    name: str, tensors: Mapping[str, Tensor], shape: tuple[int, int], quantization: FileQuantization
) -> QuantizedWeight:
    """The weight of shape (out_features, in_features) that a layout's four tensors hold."""
    qweight, qzeros, scales, group_of_column = (tensors[f"{name}.{suffix}"] for suffix in SUFFIXES)
    rows, columns = shape
    if group_of_column.shape != (columns,):
        raise CheckpointError(f"{name}.g_idx has shape {list(group_of_column.shape)}, expected [{columns}]")
    if group_of_column.min() < 0 or group_of_column.max() >= scales.shape[0]:
        raise CheckpointError(f"{name}.g_idx points outside its {scales.shape[0]} groups")
    scheme = _scheme_of(name, tensors, shape, quantization)
    if scales.shape != (scheme.groups(columns), rows) or not torch.isfinite(scales).all():
        raise CheckpointError(f"{name}.scales do not fit a weight of {rows} x {columns} in {scheme}")
    if qzeros.shape != (scales.shape[0], packed_width(rows, scheme.bits)):
        raise CheckpointError(f"{name}.qzeros do not fit a weight of {rows} x {columns} in {scheme}")
    zeros = unpack(qzeros, scheme.bits, rows).t().to(torch.int16) + smallest_zero(quantization.layout)
    return QuantizedWeight(
        codes=unpack(qweight.t(), scheme.bits, columns),
        scales=scales.t().contiguous(),
        zeros=zeros.contiguous(),
        group_of_column=group_of_column,
        scheme=scheme,
    )


def _scheme_of(
    name: str, tensors: Mapping[str, Tensor], shape: tuple[int, int], quantization: FileQuantization
) -> QuantScheme:
    """The declared scheme, or, in a mixed checkpoint, the one that the shapes of the tensors imply."""
    rows, columns = shape
    qweight, group_of_column = tensors[f"{name}.qweight"], tensors[f"{name}.g_idx"]
    declared = quantization.default
    fitting = [bits for bits in STORABLE_BITS if qweight.shape == (packed_width(columns, bits), rows)]
    largest_group = int(torch.bincount(group_of_column.long()).max())
    group_size = None if largest_group == columns else largest_group
    if group_size is None and (declared.group_size or columns) >= columns:
        group_size = declared.group_size
    if declared.bits in fitting and group_size == declared.group_size:
        return declared
    if not fitting or not quantization.mixed:
        raise CheckpointError(
            f"{name}.qweight of shape {list(qweight.shape)} in groups of {largest_group} is not the {declared} "
            f"that the configuration declares for a weight of {rows} x {columns}"
        )
    bits = declared.bits if declared.bits in fitting else fitting[0]
    return QuantScheme(bits, group_size, declared.symmetric)


def quantization_config(plan: SchemePlan, layout: Layout, desc_act: bool, meta: dict[str, Any]) -> dict[str, Any]:
    """The `quantization_config` block of config.json, with the keys that other engines require.

    `desc_act` says whether columns were grouped in order of activation, so that `g_idx` matters at run time.
    """
    dynamic: dict[str, dict[str, Any]] = {}
    for rule in plan.rules:
        if rule.scheme is None:
            dynamic[f"-:{rule.regular_expression}"] = {}
        else:
            dynamic[f"+:{rule.regular_expression}"] = _scheme_entries(rule.scheme)
    if plan.lm_head is not None and plan.lm_head != plan.default:
        dynamic["+:lm_head$"] = _scheme_entries(plan.lm_head)
    return {
        "quant_method": "gptq",
        **_scheme_entries(plan.default),
        "desc_act": desc_act,
        "lm_head": plan.lm_head is not None,
        "checkpoint_format": layout,
        "pack_dtype": "int32",
        **({"dynamic": dynamic} if dynamic else {}),
        "meta": meta,
    }


def _scheme_entries(scheme: QuantScheme) -> dict[str, Any]:
    return {"bits": scheme.bits, "group_size": scheme.group_size or -1, "sym": scheme.symmetric}


def read_quantization(folder: Path) -> FileQuantization | None:
    """What config.json, or quantize_config.json beside it, says of the quantization; None for a dense model."""
    values = read_json(folder / "config.json").get("quantization_config")
    source = folder / "config.json"
    if values is None and (folder / "quantize_config.json").exists():
        source = folder / "quantize_config.json"
        values = read_json(source)
    if values is None:
        return None
    if not isinstance(values, dict):
        raise CheckpointError(f"quantization_config in {source} is no object")
    method = values.get("quant_method", "gptq")
    layout = values.get("checkpoint_format", values.get("format", "gptq"))
    if method != "gptq" or layout not in get_args(Layout):
        raise UnsupportedModelError(
            f"{source} declares quantization {method!r} in format {layout!r}; Octavo reads gptq and gptq_v2"
        )
    bits, group_size, symmetric = values.get("bits"), values.get("group_size"), values.get("sym", True)
    if type(bits) is not int or type(group_size) is not int or type(symmetric) is not bool:
        raise CheckpointError(f"{source} lacks usable bits, group_size and sym")
    try:
        scheme = QuantScheme(bits, None if group_size == -1 else group_size, symmetric)
    except UsageError as error:
        raise CheckpointError(f"{source}: {error}") from error
    known: Layout = "gptq_v2" if layout == "gptq_v2" else "gptq"
    return FileQuantization(known, scheme, bool(values.get("dynamic")), values.get("lm_head") is True)
