"""What a weight is: dense, or codes on a grid with `w = scale * (code - zero)`.

These are the nouns that every other room speaks of. A quantized weight has one form in memory; the layouts of
files live in `checkpoint.formats`, those of kernels in `kernels`.
"""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int16, Int32, UInt8
from torch import Tensor

from octavo.errors import UsageError

STORABLE_BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class QuantScheme:
    """What a checkpoint can say about a quantized linear.

    `group_size` is the number of input columns that share a scale and a zero; None is one group per output row.
    """

    bits: int
    group_size: int | None
    symmetric: bool

    def __post_init__(self) -> None:
        if self.bits not in STORABLE_BITS:
            raise UsageError(f"{self.bits} bits cannot be stored; choose 2, 3, 4 or 8")
        if self.group_size is not None and self.group_size < 1:
            raise UsageError(
                f"group size {self.group_size} is not a positive number of columns; "
                "use 128, 64, 32, or -1 for one group per row"
            )

    @property
    def largest_code(self) -> int:
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero of every group of a symmetric weight."""
        return 1 << (self.bits - 1)

    def groups(self, in_features: int) -> int:
        """Number of groups of a row; the last one may be ragged."""
        return 1 if self.group_size is None else -(-in_features // self.group_size)

    def __str__(self) -> str:
        group = "row" if self.group_size is None else f"{self.group_size}g"
        return f"{self.bits}-bit-{group} {'symmetric' if self.symmetric else 'asymmetric'}"


@dataclass(frozen=True)
class SchemeRule:
    """An exception to a plan's default: `scheme` None keeps the linears that match `pattern` dense.

    `pattern` is a module name with `*` and `?`; it may leave out leading parts: `down_proj`, `layers.0.*`.
    """

    pattern: str
    scheme: QuantScheme | None

    @property
    def regular_expression(self) -> str:
        """The pattern as the regular expression that `dynamic` entries of checkpoints use."""
        wildcards = {"*": ".*", "?": "."}
        return r"(.*\.)?" + "".join(wildcards.get(c, re.escape(c)) for c in self.pattern) + "$"

    def matches(self, name: str) -> bool:
        return re.match(self.regular_expression, name) is not None


@dataclass(frozen=True)
class SchemePlan:
    """Which scheme each linear gets: the first rule that matches its name, else the default.

    The output head is dense unless `lm_head` names a scheme.
    """

    default: QuantScheme
    rules: tuple[SchemeRule, ...] = ()
    lm_head: QuantScheme | None = None

    def scheme_for(self, name: str) -> QuantScheme | None:
        """Scheme of the linear `name`, such as `model.layers.0.mlp.up_proj`; None leaves it dense."""
        if name == "lm_head":
            return self.lm_head
        for rule in self.rules:
            if rule.matches(name):
                return rule.scheme
        return self.default


@dataclass(frozen=True)
class DenseWeight:
    """A weight stored as it is."""

    values: Float[Tensor, "out_features in_features"]

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)"""
        return self.values.shape[0], self.values.shape[1]


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes, and the grid they stand on.

    `scales` hold exactly the file's values: fp16, normal, finite. `zeros` are the true zeros: our solver gives
    0 … 2^bits - 1, old files may hold -1 … 2^bits.
    """

    codes: UInt8[Tensor, "out_features in_features"]
    scales: Float[Tensor, "out_features groups"]
    zeros: Int16[Tensor, "out_features groups"]
    group_of_column: Int32[Tensor, " in_features"]
    scheme: QuantScheme

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)"""
        return self.codes.shape[0], self.codes.shape[1]


Weight = DenseWeight | QuantizedWeight


def dequantize(
    weight: QuantizedWeight, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "out_features in_features"]:
    """`w[n, k] = scales[n, g] * (codes[n, k] - zeros[n, g])`, `g = group_of_column[k]`, computed in `dtype`."""
    group = weight.group_of_column.long()
    steps = weight.codes.to(dtype) - weight.zeros.to(dtype)[:, group]
    return weight.scales.to(dtype)[:, group] * steps


def sequential_groups(in_features: int, group_size: int | None) -> Int32[Tensor, " in_features"]:
    """`group_of_column` of neighbouring columns: 0, 0, …, 1, 1, …"""
    return (torch.arange(in_features) // (group_size or max(in_features, 1))).to(torch.int32)
