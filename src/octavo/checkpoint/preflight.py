"""Where a checkpoint will load, engine by engine, and the rule that decides: all rules in one table, with sources.

The rules are those of the engines' own code in the summer of 2026. Nothing here knows a model: the caller says
which linears engines fuse, and how they split them over devices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from octavo.checkpoint.configuration import Dialect
from octavo.schemes import QuantScheme

DEGREES = (1, 2, 4, 8)  # of tensor parallelism

MARLIN_GROUPS = (None, 32, 64, 128)
MARLIN_OUTPUTS, MARLIN_INPUTS = 64, 128  # multiples that each device must hold
GPTQMODEL_GROUPS = (None, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class FusedLinears:
    """Linears with one input that engines run as one; a linear that is alone is a tuple of one.

    `split`: what of them each device holds a part of. A scheme of None is a dense linear.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]  # (out_features, in_features)
    schemes: tuple[QuantScheme | None, ...]
    split: Literal["outputs", "inputs"]


@dataclass(frozen=True)
class CheckpointFacts:
    """What decides whether an engine loads a folder. `dialect` is None for a dense model.

    `declared`: config.json has a quantization_config. `outdated`: what marks a layout from before April 2023, if
    anything does. `ordered`: columns were grouped in order of activation, so that g_idx matters.
    """

    dialect: Dialect | None
    declared: bool
    outdated: str | None
    ordered: bool
    standard_names: bool
    heads: int
    linears: tuple[FusedLinears, ...]

    @property
    def quantized(self) -> list[tuple[str, tuple[int, int], QuantScheme]]:
        """Name, shape and scheme of each quantized linear."""
        return [
            (name, shape, scheme)
            for fused in self.linears
            for name, shape, scheme in zip(fused.names, fused.shapes, fused.schemes, strict=True)
            if scheme is not None
        ]


@dataclass(frozen=True)
class Rule:
    """`objection` says what stands against a checkpoint at a degree of tensor parallelism; None where nothing."""

    source: str
    objection: Callable[[CheckpointFacts, int], str | None]


@dataclass(frozen=True)
class Engine:
    """A program that loads checkpoints, and all that it demands."""

    name: str
    degrees: tuple[int, ...]
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Verdict:
    """At which degrees an engine loads a checkpoint; what stands against the first at which it does not, and where
    that is written."""

    engine: str
    degrees: tuple[int, ...]
    objection: str | None
    source: str | None


def preflight(facts: CheckpointFacts) -> list[Verdict]:
    """What each engine makes of a checkpoint."""
    return [_verdict(engine, facts) for engine in ENGINES]


def _verdict(engine: Engine, facts: CheckpointFacts) -> Verdict:
    objections = {degree: _first_objection(engine, facts, degree) for degree in engine.degrees}
    loads = tuple(degree for degree, found in objections.items() if found is None)
    objection, source = next((found for found in objections.values() if found is not None), (None, None))
    return Verdict(engine.name, loads, objection, source)


def _first_objection(engine: Engine, facts: CheckpointFacts, degree: int) -> tuple[str, str] | None:
    for rule in engine.rules:
        objection = rule.objection(facts, degree)
        if objection is not None:
            return objection, rule.source
    return None


def _undeclared(facts: CheckpointFacts, _: int) -> str | None:
    if facts.dialect is None or facts.declared:
        return None
    return "config.json has no quantization_config; octavo convert writes one"


def _outdated(facts: CheckpointFacts, _: int) -> str | None:
    return None if facts.outdated is None else f"{facts.outdated}; octavo convert --to gptq brings it up to date"


def _other_names(facts: CheckpointFacts, _: int) -> str | None:
    return None if facts.standard_names else "its weights are not in model.safetensors, and no index names them"


def _dialect_in(*dialects: Dialect) -> Callable[[CheckpointFacts, int], str | None]:
    def objection(facts: CheckpointFacts, _: int) -> str | None:
        if facts.dialect is None or facts.dialect in dialects:
            return None
        return f"it reads {', '.join(dialects)}, not {facts.dialect}"

    return objection


def _schemes(bits: tuple[int, ...], *, asymmetric: bool) -> Callable[[CheckpointFacts, int], str | None]:
    """Of awq, which is asymmetric by nature, only the bits count."""

    def objection(facts: CheckpointFacts, _: int) -> str | None:
        for name, _shape, scheme in facts.quantized:
            if scheme.bits not in bits:
                return f"{name} has {scheme.bits} bits, and it takes {' or '.join(map(str, bits))}"
            if not (scheme.symmetric or asymmetric or facts.dialect == "awq"):
                return f"{name} is asymmetric, and it takes symmetric weights only"
        return None

    return objection


def _groups(sizes: tuple[int | None, ...]) -> Callable[[CheckpointFacts, int], str | None]:
    def objection(facts: CheckpointFacts, _: int) -> str | None:
        for name, _shape, scheme in facts.quantized:
            if scheme.group_size not in sizes:
                taken = ", ".join("-1" if size is None else str(size) for size in sizes)
                return f"{name} has groups of {scheme.group_size}, and it takes {taken}"
        return None

    return objection


def _fused_differ(facts: CheckpointFacts, _: int) -> str | None:
    for fused in facts.linears:
        if len(set(fused.schemes)) > 1:
            return f"{' and '.join(fused.names)} are fused, and their schemes differ"
    return None


def _multiples(outputs: int, inputs: int) -> Callable[[CheckpointFacts, int], str | None]:
    """What a device holds of fused linears: multiples of `outputs` rows and `inputs` columns, and whole groups."""

    def objection(facts: CheckpointFacts, degree: int) -> str | None:
        for fused in facts.linears:
            scheme = fused.schemes[0]
            if scheme is None:
                continue
            columns = fused.shapes[0][1]
            rows = sum(shape[0] for shape in fused.shapes)
            parts = (rows, degree, "rows", outputs), (columns, 1, "columns", inputs)
            if fused.split == "inputs":
                parts = (rows, 1, "rows", outputs), (columns, degree, "columns", inputs)
            for size, devices, what, multiple in parts:
                if size % (devices * multiple):
                    names = " and ".join(fused.names)
                    return f"the {size} {what} of {names} / {devices} are no multiple of {multiple}"
            held = columns // degree if fused.split == "inputs" else columns
            if scheme.group_size is not None and held % scheme.group_size:
                return f"{held} columns of {fused.names[0]} are no whole groups of {scheme.group_size}"
        return None

    return objection


def _heads(facts: CheckpointFacts, degree: int) -> str | None:
    return f"{facts.heads} attention heads do not divide by {degree}" if facts.heads % degree else None


def _ordered_compressed(facts: CheckpointFacts, _: int) -> str | None:
    if facts.dialect == "compressed-tensors" and facts.ordered:
        return "act-order by group is deprecated in compressed-tensors"
    return None


def _no_gguf(_facts: CheckpointFacts, _: int) -> str | None:
    return "it reads GGUF only; octavo convert MODEL FILE.gguf writes one"


DECLARED = Rule("docs.vllm.ai, quantization: the method is taken from quantization_config", _undeclared)
UP_TO_DATE = Rule("GPTQ-for-LLaMa, quant_linear.py before 2023-03-31; no engine of today reads it", _outdated)
FUSED = Rule("vLLM, utils/gptq_utils.py: shards of a fused layer must share one scheme", _fused_differ)
MARLIN_SHAPES = Rule(
    "vLLM, utils/marlin_utils.py: verify_marlin_supports_shape", _multiples(MARLIN_OUTPUTS, MARLIN_INPUTS)
)
SPLIT_HEADS = Rule("vLLM and SGLang, models/llama.py: heads are split evenly", _heads)
MARLIN_GROUP_SIZES = Rule("vLLM, utils/marlin_utils.py: MARLIN_SUPPORTED_GROUP_SIZES", _groups(MARLIN_GROUPS))
NO_ORDER = Rule("llm-compressor, actorder: group is deprecated", _ordered_compressed)

ENGINES = (
    Engine(
        "vLLM, GPU",
        DEGREES,
        (
            DECLARED,
            UP_TO_DATE,
            Rule("vLLM, auto_gptq.py: TYPE_MAP", _schemes((4, 8), asymmetric=False)),
            MARLIN_GROUP_SIZES,
            FUSED,
            MARLIN_SHAPES,
            SPLIT_HEADS,
            NO_ORDER,
        ),
    ),
    Engine(
        "vLLM, CPU",
        DEGREES,
        (
            DECLARED,
            UP_TO_DATE,
            Rule(
                "vLLM, utils/marlin_utils.py: _query_cpu_marlin_supported_quant_types",
                _schemes((4,), asymmetric=False),
            ),
            MARLIN_GROUP_SIZES,
            FUSED,
            Rule("vLLM, kernels/linear/mixed_precision/cpu.py: multiples of 32", _multiples(32, 32)),
            SPLIT_HEADS,
            NO_ORDER,
        ),
    ),
    Engine(
        "SGLang",
        DEGREES,
        (
            DECLARED,
            UP_TO_DATE,
            Rule("SGLang, quantization/gptq.py: GPTQMarlinConfig.TYPE_MAP", _schemes((4, 8), asymmetric=False)),
            MARLIN_GROUP_SIZES,
            FUSED,
            MARLIN_SHAPES,
            SPLIT_HEADS,
            NO_ORDER,
        ),
    ),
    Engine(
        "Transformers + GPTQModel",
        (1,),
        (
            Rule("transformers, quantizers/auto.py: quantization_config is required", _undeclared),
            UP_TO_DATE,
            Rule("transformers, modeling_utils.py: SAFE_WEIGHTS_NAME or its index", _other_names),
            Rule("GPTQModel, qlinear/torch.py: SUPPORTS_BITS", _schemes((2, 3, 4, 8), asymmetric=True)),
            Rule("GPTQModel, qlinear/torch.py: SUPPORTS_GROUP_SIZE", _groups(GPTQMODEL_GROUPS)),
        ),
    ),
    Engine(
        "ExLlamaV2",
        (1,),
        (
            UP_TO_DATE,
            Rule("ExLlamaV2, module.py: load_weight; it adds one to stored zeros", _dialect_in("gptq")),
            Rule("ExLlamaV2, ext_qmatrix.cpp: eight codes to a word", _schemes((4,), asymmetric=True)),
            Rule("ExLlamaV2, q_matrix.cu: multiples of 32", _multiples(32, 32)),
        ),
    ),
    Engine("llama.cpp", (1,), (Rule("llama.cpp, issue 10965: no GPTQ", _no_gguf),)),
    Engine("Octavo", (1,), ()),
)
