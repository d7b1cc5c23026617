"""What a folder's configuration says of its quantized linears, read and written; the tensors say the rest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from octavo.errors import CheckpointError, UnsupportedModelError, UsageError
from octavo.records import read_json
from octavo.schemes import Layout, QuantScheme, SchemePlan

Dialect = Layout | Literal["awq"]  # what is read; what is written is a Layout

ALL_LINEARS = "Linear"  # the class that compressed-tensors gives its default scheme to
PACKED_FORMAT = "pack-quantized"


@dataclass(frozen=True)
class FileQuantization:
    """How the linears of a folder are stored. Which of them are quantized is read off the tensors.

    `mixed`: some linears differ from `default`; their own tensors say how. `ordered`: columns were grouped in
    order of activation. `evidence`: where no configuration says all this, what it was inferred from.
    """

    dialect: Dialect
    default: QuantScheme
    mixed: bool = False
    ordered: bool = False
    evidence: tuple[str, ...] = ()


def read_quantization(folder: Path) -> FileQuantization | None:
    """What config.json, or quantize_config.json beside it, says; None where neither speaks of a quantization.

    Raises UnsupportedModelError for a method that is not read, CheckpointError for values that make no sense.
    """
    source = folder / "config.json"
    values = read_json(source).get("quantization_config")
    if values is None and (folder / "quantize_config.json").exists():
        source = folder / "quantize_config.json"
        values = read_json(source)
    if values is None:
        return None
    if not isinstance(values, dict):
        raise CheckpointError(f"quantization_config in {source} is no object")
    method = values.get("quant_method", "gptq")
    readers = {"gptq": _read_gptq, "awq": _read_awq, "compressed-tensors": _read_compressed}
    if not isinstance(method, str) or method not in readers:
        raise UnsupportedModelError(
            f"{source} declares quantization {method!r}; Octavo reads {', '.join(readers)}"
        )
    return readers[method](values, source)


def _read_gptq(values: dict[str, Any], source: Path) -> FileQuantization:
    layout = values.get("checkpoint_format", values.get("format", "gptq"))
    if layout not in ("gptq", "gptq_v2") or values.get("is_marlin_format"):
        raise UnsupportedModelError(f"{source} declares gptq in format {layout!r}; Octavo reads gptq and gptq_v2")
    if values.get("pack_dtype", "int32") != "int32":
        raise UnsupportedModelError(
            f"{source} packs codes into {values['pack_dtype']!r}; Octavo reads those packed into int32"
        )
    # AutoGPTQ took an absent `sym` for true; where zeros say otherwise, decoding believes them.
    scheme = _scheme(values.get("bits"), values.get("group_size"), values.get("sym", True), source)
    return FileQuantization(layout, scheme, bool(values.get("dynamic")), values.get("desc_act") is True)


def _read_awq(values: dict[str, Any], source: Path) -> FileQuantization:
    version = values.get("version", "gemm")
    bits = values.get("bits", values.get("w_bit"))
    if not isinstance(version, str) or version.lower() != "gemm" or bits != 4:
        raise UnsupportedModelError(
            f"{source} declares awq of version {version!r} with {bits!r} bits; Octavo reads gemm with 4 bits"
        )
    scheme = _scheme(bits, values.get("group_size", values.get("q_group_size")), False, source)
    return FileQuantization("awq", scheme)


def _read_compressed(values: dict[str, Any], source: Path) -> FileQuantization:
    groups = values.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"{source} has no config_groups, which say how its linears are stored")
    schemes, ordered = [], False
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            raise CheckpointError(f"config_groups.{name} in {source} says nothing of weights")
        form = group.get("format") or values.get("format")
        if form != PACKED_FORMAT or group.get("input_activations") or weights.get("type", "int") != "int":
            raise UnsupportedModelError(
                f"config_groups.{name} in {source} is {form!r} with type {weights.get('type')!r}; of "
                f"compressed-tensors Octavo reads integers in {PACKED_FORMAT}, without quantized activations"
            )
        strategy = weights.get("strategy")
        if strategy not in ("group", "channel") or weights.get("num_bits") not in (4, 8):
            raise UnsupportedModelError(
                f"config_groups.{name} in {source} has {weights.get('num_bits')!r} bits by {strategy!r}; Octavo "
                "reads 4 and 8 bits, by group or by channel"
            )
        size = weights.get("group_size") if strategy == "group" else -1
        schemes.append(_scheme(weights["num_bits"], size, weights.get("symmetric", True), source))
        ordered |= weights.get("actorder") in ("group", "dynamic", True)
    return FileQuantization("compressed-tensors", schemes[0], len(set(schemes)) > 1, ordered)


def _scheme(bits: Any, group_size: Any, symmetric: Any, source: Path) -> QuantScheme:
    if type(bits) is not int or type(group_size) is not int or type(symmetric) is not bool:
        raise CheckpointError(f"{source} lacks usable bits, group_size and sym")
    try:
        return QuantScheme(bits, None if group_size == -1 else group_size, symmetric)
    except UsageError as error:
        raise CheckpointError(f"{source}: {error}") from error


def quantization_config(plan: SchemePlan, layout: Layout, desc_act: bool, meta: dict[str, Any]) -> dict[str, Any]:
    """The `quantization_config` block of config.json, with the keys that other engines require.

    `desc_act` says whether columns were grouped in order of activation, so that `g_idx` matters at run time.
    """
    if layout == "compressed-tensors":
        return _compressed_config(plan)  # that library wants no key of ours, such as `meta`
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


def _compressed_config(plan: SchemePlan) -> dict[str, Any]:
    """As the library compressed-tensors writes it: a name goes before a class, and `ignore` before both."""
    targets: dict[QuantScheme, list[str]] = {plan.default: [ALL_LINEARS]}
    ignored = [] if plan.lm_head is not None else ["lm_head"]
    for rule in plan.rules:
        if rule.scheme is None:
            ignored.append(f"re:{rule.regular_expression}")
        else:
            targets.setdefault(rule.scheme, []).append(f"re:{rule.regular_expression}")
    if plan.lm_head is not None and plan.lm_head != plan.default:
        targets.setdefault(plan.lm_head, []).append("lm_head")
    return {
        "quant_method": "compressed-tensors",
        "format": PACKED_FORMAT,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {
                "targets": names,
                "weights": _compressed_weights(scheme),
                "input_activations": None,
                "output_activations": None,
            }
            for number, (scheme, names) in enumerate(targets.items())
        },
        "ignore": ignored,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _compressed_weights(scheme: QuantScheme) -> dict[str, Any]:
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
        "dynamic": False,
        "actorder": None,
    }
