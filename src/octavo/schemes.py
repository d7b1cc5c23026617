"""How weights may be stored: bits, groups, symmetry, and which linear gets what. Loads without torch."""

import re
from dataclasses import dataclass
from typing import Literal

from octavo.errors import UsageError

STORABLE_BITS = (2, 3, 4, 8)

Layout = Literal["gptq", "gptq_v2", "compressed-tensors"]  # what is written; gptq stores each zero minus one
ConversionTarget = Literal[Layout, "dense"]  # what a conversion may make of quantized linears


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
