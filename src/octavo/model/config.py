"""LlamaConfig from config.json; what we cannot run is refused by name.

One network covers the family: Llama, Mistral, Qwen2 and Qwen3 differ by fields, not by code.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.records import read_json

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn"]

# Limits that no published model comes near; a config beyond them is damaged or hostile.
LARGEST_COUNT = 2**24
DEFAULT_WINDOW = 4096  # what Mistral and Qwen mean when they leave it out


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained context; names follow config.json."""

    type: RopeType = "default"
    factor: float = 1.0
    original_context: int = 0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    whole_dimensions: bool = True
    attention_factor: float = 1.0


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a LLaMA-family network."""

    architecture: str
    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    norm_epsilon: float
    rope_theta: float
    rope_scaling: RopeScaling
    tied_embeddings: bool
    attention_bias: bool
    output_bias: bool
    query_key_norm: bool
    windows: tuple[int | None, ...]

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class _Family:
    """What an architecture fixes that config.json does not say."""

    attention_bias: bool | None = None
    query_key_norm: bool = False
    sliding_window: Literal["never", "always", "optional"] = "never"


FAMILIES = {
    "LlamaForCausalLM": _Family(),
    "MistralForCausalLM": _Family(attention_bias=False, sliding_window="always"),
    "Qwen2ForCausalLM": _Family(attention_bias=True, sliding_window="optional"),
    "Qwen3ForCausalLM": _Family(query_key_norm=True, sliding_window="optional"),
}


class _Fields:
    """Typed access to config.json, so that a wrong type is one sentence and not a traceback."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    def count(self, name: str, default: int | None = None) -> int:
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not int or not 0 < value <= LARGEST_COUNT:
            raise CheckpointError(f"{name} in {self.path} is {value!r}, expected a positive whole number")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise CheckpointError(f"{name} in {self.path} is {value!r}, expected a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        value = default if value is None else value
        if type(value) is not bool:
            raise CheckpointError(f"{name} in {self.path} is {value!r}, expected true or false")
        return value


def read_config(folder: Path) -> LlamaConfig:
    """The configuration of a model folder; UnsupportedModelError names what Octavo does not run."""
    path = folder / "config.json"
    if folder.suffix == ".gguf" and folder.is_file():
        raise CheckpointError(
            f"{folder} is no folder; give the path of a model folder that octavo convert makes of it"
        )
    if not path.exists():
        raise CheckpointError(f"{folder} holds no config.json, so it is no model folder")
    values = read_json(path)
    return config_from_values(values, path)


def config_from_values(values: dict[str, Any], path: Path) -> LlamaConfig:
    """The configuration in the values of a config.json; `path` is for messages."""
    fields = _Fields(path, values)
    architectures = values.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        raise UnsupportedModelError(
            f"{path} describes architecture {architecture!r}; Octavo runs {', '.join(FAMILIES)}"
        )
    _refuse_unknown_parts(fields)
    family = FAMILIES[architecture]
    hidden, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    kv_heads, layers = fields.count("num_key_value_heads", heads), fields.count("num_hidden_layers")
    head_dim = fields.count("head_dim", max(hidden // heads, 1))
    context = fields.count("max_position_embeddings", 2048)
    if heads % kv_heads or head_dim % 2:
        raise CheckpointError(
            f"{path} has {heads} heads over {kv_heads} key/value heads of {head_dim}, which does not divide"
        )
    declared_bias = fields.flag("attention_bias", False)
    theta, scaling = _rope(fields, context)
    return LlamaConfig(
        architecture=architecture,
        vocabulary_size=fields.count("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.count("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=context,
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=fields.flag("tie_word_embeddings", False),
        attention_bias=declared_bias if family.attention_bias is None else family.attention_bias,
        output_bias=declared_bias if family.attention_bias is None else False,
        query_key_norm=family.query_key_norm,
        windows=_windows(fields, family, layers),
    )


def _refuse_unknown_parts(fields: _Fields) -> None:
    """Parts that other members of the family have and this network does not."""
    activation = fields.values.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(f"{fields.path} uses activation {activation!r}; Octavo runs silu")
    for name in ("mlp_bias", "use_bias"):
        if fields.values.get(name):
            raise UnsupportedModelError(f"{fields.path} has {name}, which Octavo does not run")
    rotary = fields.values.get("rope_parameters") or fields.values.get("rope_scaling") or {}
    if isinstance(rotary, dict) and any(isinstance(value, dict) for value in rotary.values()):
        raise UnsupportedModelError(f"{fields.path} has rotary settings per layer type, which Octavo does not run")
    partial = rotary.get("partial_rotary_factor") if isinstance(rotary, dict) else None
    if fields.number("partial_rotary_factor", 1.0) != 1.0 or partial not in (None, 1.0):
        raise UnsupportedModelError(f"{fields.path} rotates only part of each head, which Octavo does not run")


def _windows(fields: _Fields, family: _Family, layers: int) -> tuple[int | None, ...]:
    """The attention window of each layer, None where it sees the whole past."""
    optional = family.sliding_window == "optional"
    off = family.sliding_window == "never" or (optional and not fields.flag("use_sliding_window", False))
    if off or fields.values.get("sliding_window", DEFAULT_WINDOW) is None:
        return (None,) * layers
    size = fields.count("sliding_window", DEFAULT_WINDOW)
    kinds = fields.values.get("layer_types")
    if kinds is None:
        full_layers = fields.count("max_window_layers", 28) if optional else 0
        return tuple(None if layer < full_layers else size for layer in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise CheckpointError(f"layer_types in {fields.path} does not name each of its {layers} layers")
    known = {"full_attention": None, "sliding_attention": size}
    for kind in kinds:
        if kind not in known:
            raise UnsupportedModelError(f"{fields.path} has a layer of type {kind!r}, which Octavo does not run")
    return tuple(known[kind] for kind in kinds)


def _rope(fields: _Fields, context: int) -> tuple[float, RopeScaling]:
    """Base and scaling of the rotary embedding, from `rope_scaling` or transformers 5's `rope_parameters`."""
    parameters = fields.values.get("rope_parameters") or {}
    scaling = fields.values.get("rope_scaling") or parameters
    if not isinstance(scaling, dict) or not isinstance(parameters, dict):
        raise CheckpointError(f"rope_scaling in {fields.path} is no object")
    inner = _Fields(fields.path, scaling)
    theta = inner.number("rope_theta", fields.number("rope_theta", 10000.0))
    kind: Any = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in get_args(RopeType):
        raise UnsupportedModelError(
            f"{fields.path} has rope type {kind!r}; Octavo runs {', '.join(get_args(RopeType))}"
        )
    factor = inner.number("factor", 1.0)
    return theta, RopeScaling(
        type=kind,
        factor=factor,
        # dynamic scaling starts where the model's own context ends, whatever the config says besides
        original_context=context
        if kind == "dynamic"
        else inner.count("original_max_position_embeddings", context),
        low_frequency_factor=inner.number("low_freq_factor", 1.0),
        high_frequency_factor=inner.number("high_freq_factor", 4.0),
        beta_fast=inner.number("beta_fast", 32.0),
        beta_slow=inner.number("beta_slow", 1.0),
        whole_dimensions=inner.flag("truncate", True),
        attention_factor=_attention_factor(inner, kind, factor),
    )


def _attention_factor(scaling: _Fields, kind: RopeType, factor: float) -> float:
    """YaRN's temperature on the rotated queries and keys (https://arxiv.org/abs/2309.00071, equation 22)."""
    if kind != "yarn":
        return 1.0

    def temperature(scale: float, strength: float) -> float:
        return 1.0 if scale <= 1 else 0.1 * strength * math.log(scale) + 1.0

    if scaling.values.get("mscale") and scaling.values.get("mscale_all_dim"):
        default = temperature(factor, scaling.number("mscale", 1.0)) / temperature(
            factor, scaling.number("mscale_all_dim", 1.0)
        )
    else:
        default = temperature(factor, 1.0)
    return scaling.number("attention_factor", default)
