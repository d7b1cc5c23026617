"""How a folder without configuration is quantized, from the shapes and values of its tensors, with the evidence.

GPTQ-for-LLaMa wrote bits and group size into file names only. Shapes give them back; whether zeros are stored
minus one, and whether they vary, the values tell.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from octavo.checkpoint.configuration import Dialect, FileQuantization
from octavo.checkpoint.dialects.gptq import bits_of, group_size_of
from octavo.checkpoint.formats import TensorSource
from octavo.checkpoint.packing import pack, unpack
from octavo.errors import CheckpointError
from octavo.schemes import QuantScheme
from octavo.weights import sequential_groups

Shapes = Mapping[str, tuple[int, int]]

# How many standard errors a mean must lie from the middle between two answers, to decide between them.
DECISIVE = 4


@dataclass(frozen=True)
class _Groups:
    """What the groups of all linears have in common, and by what that is known."""

    size: int | None
    ordered: bool
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class _Zeros:
    """Which version stored the zeros, whether they are constant, and by what that is known."""

    dialect: Dialect
    symmetric: bool
    evidence: str


def infer_quantization(tensors: TensorSource, linears: Shapes) -> FileQuantization | None:
    """How `linears`, (out_features, in_features) by name, are stored; None where none of them is quantized.

    Raises CheckpointError where the tensors admit no answer, or more than one.
    """
    shapes = {name: shape for name, shape in linears.items() if f"{name}.qweight" in tensors}
    if not shapes:
        return None
    bits = {name: _bits(name, shape, tensors) for name, shape in shapes.items()}
    common, _ = Counter(bits.values()).most_common(1)[0]
    first = next(name for name in shapes if bits[name] == common)
    words, columns = tensors.specs[f"{first}.qweight"].shape[0], shapes[first][1]
    groups = _groups(tensors, shapes)
    zeros = _zeros(tensors, shapes, bits, groups.size)
    scheme = QuantScheme(common, groups.size, zeros.symmetric)
    alike = all(
        bits[name] == common and scheme.groups(shape[1]) == _group_count(name, tensors)
        for name, shape in shapes.items()
    )
    evidence = (
        f"{common} bits: {first} has {words} words for {columns} columns",
        *groups.evidence,
        zeros.evidence,
    )
    return FileQuantization(zeros.dialect, scheme, not alike, groups.ordered, evidence)


def _bits(name: str, shape: tuple[int, int], tensors: TensorSource) -> int:
    packed = tensors.specs[f"{name}.qweight"].shape
    fitting = bits_of(packed, shape)
    if len(fitting) != 1:
        raise CheckpointError(
            f"{name}.qweight of shape {list(packed)} holds a weight of {shape[0]} x {shape[1]} in "
            f"{' or '.join(map(str, fitting)) or 'no number of'} bits; add a quantize_config.json that says how"
        )
    return fitting[0]


def _group_count(name: str, tensors: TensorSource) -> int:
    """Rows of scales; files of March 2023 hold them as columns, and have one group per output."""
    if f"{name}.qzeros" not in tensors or f"{name}.scales" not in tensors:
        return 1
    return tensors.specs[f"{name}.scales"].shape[0]


def _groups(tensors: TensorSource, shapes: Shapes) -> _Groups:
    counts = {name: count for name in shapes if (count := _group_count(name, tensors)) > 1}
    if not counts:
        return _Groups(None, False, ("one group per output: no linear has more than one row of scales",))
    indexed = [name for name in counts if f"{name}.g_idx" in tensors]
    if len(indexed) < len(counts):
        return _divided_groups({name: (shapes[name][1], count) for name, count in counts.items()})
    sizes: Counter[int] = Counter()
    unsorted = []
    for name in indexed:
        index = tensors.load(f"{name}.g_idx", (shapes[name][1],))
        if index.dtype != torch.int32 or index.min() < 0 or index.max() >= counts[name]:
            raise CheckpointError(
                f"{name}.g_idx points outside its {counts[name]} groups; fetch the checkpoint again"
            )
        size = group_size_of(index, QuantScheme(8, None, True))
        sizes[size or len(index)] += 1
        if (index.diff() < 0).any():
            unsorted.append(name)
    size, _ = sizes.most_common(1)[0]
    order = f"act-order: {unsorted[0]}.g_idx does not ascend" if unsorted else "no act-order: each g_idx ascends"
    return _Groups(size, bool(unsorted), (f"groups of {size}: that many columns share an entry of g_idx", order))


def _divided_groups(counts: Mapping[str, tuple[int, int]]) -> _Groups:
    """The size that gives each linear its number of groups; `counts` are (columns, groups) by name.

    A width that the size does not divide leaves a range: 5 groups of 576 columns may be of 116 … 143.
    """
    least = max(-(-columns // groups) for columns, groups in counts.values())
    most = min((columns - 1) // (groups - 1) for columns, groups in counts.values())
    usual = [1 << power for power in range(16) if least <= 1 << power <= most]
    dividing = {
        columns // groups: name
        for name, (columns, groups) in counts.items()
        if columns % groups == 0 and least <= columns // groups <= most
    }
    sizes = usual or sorted(dividing)
    if len(sizes) != 1:
        raise CheckpointError(
            f"groups of {least} … {most} columns all fit the scales of the linears, and there is no g_idx; "
            "add a quantize_config.json with bits and group_size"
        )
    (size,) = sizes
    name = dividing.get(size, next(iter(counts)))
    columns, groups = counts[name]
    reason = f"groups of {size}: {name} has {groups} for {columns} columns, and so with each other linear"
    return _Groups(size, False, (reason, "no act-order: there is no g_idx"))


def _zeros(tensors: TensorSource, shapes: Shapes, bits: Mapping[str, int], group_size: int | None) -> _Zeros:
    """Symmetric where all zeros are constant; the constant tells the version, else the codes' mean does."""
    constants: set[Dialect] = {"gptq", "gptq_v2"}
    for name, (rows, _) in shapes.items():
        if f"{name}.qzeros" not in tensors:
            return _Zeros("gptq", False, f"the layout of March 2023: {name}.zeros hold scale times zero")
        words = tensors.load(f"{name}.qzeros")
        middle = 1 << (bits[name] - 1)
        for dialect, stored in (("gptq", middle - 1), ("gptq_v2", middle)):
            row = pack(torch.full((rows,), stored), bits[name])
            if words.shape[-1:] != row.shape or not (words == row).all():
                constants.discard(dialect)
        if not constants:
            return _version_by_mean(name, tensors, shapes[name], QuantScheme(bits[name], group_size, False))
    dialect = constants.pop()
    version = "minus one, version 1" if dialect == "gptq" else "as they are, version 2"
    return _Zeros(dialect, True, f"symmetric: each zero is the middle of the range, stored {version}")


def _version_by_mean(name: str, tensors: TensorSource, shape: tuple[int, int], scheme: QuantScheme) -> _Zeros:
    """Weights average to nothing, so codes average to their zeros, and lie one above what version 1 stored."""
    rows, columns = shape
    codes = unpack(tensors.load(f"{name}.qweight").t(), scheme.bits, columns).float()
    indexed = f"{name}.g_idx" in tensors
    group = tensors.load(f"{name}.g_idx") if indexed else sequential_groups(columns, scheme.group_size)
    stored = unpack(tensors.load(f"{name}.qzeros"), scheme.bits, rows).t().float()
    steps = codes - stored[:, group.long()]
    mean, error = float(steps.mean()), float(steps.std()) / steps.numel() ** 0.5
    seen = f"asymmetric: zeros vary; codes of {name} lie {mean:.2f} ± {error:.2f} steps above the stored ones"
    if mean < 0.5 - DECISIVE * error:
        return _Zeros("gptq_v2", False, f"{seen}, so they are stored as they are, version 2")
    if mean > 0.5 + DECISIVE * error:
        return _Zeros("gptq", False, f"{seen}, so they are stored minus one, version 1")
    return _Zeros("gptq", False, f"{seen}, which does not decide; files without configuration are of version 1")
