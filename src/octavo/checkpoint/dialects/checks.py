"""What every layout demands of its tensors: they are there, fit the linear, and hold numbers of use."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float16, Int16, Int32, Integer
from torch import Tensor

from octavo.errors import CheckpointError
from octavo.schemes import QuantScheme


def part(tensors: Mapping[str, Tensor], name: str, suffix: str, kinds: tuple[torch.dtype, ...]) -> Tensor:
    """A tensor of the linear `name`; CheckpointError where it is absent or of another kind."""
    full = f"{name}.{suffix}"
    if full not in tensors:
        raise CheckpointError(f"{full} is missing beside the other tensors of {name}; fetch the checkpoint again")
    tensor = tensors[full]
    if tensor.dtype not in kinds or tensor.dim() not in (1, 2):
        raise CheckpointError(
            f"{full} is a {tensor.dim()}-dimensional tensor of {tensor.dtype}, expected "
            f"{' or '.join(map(str, kinds))} in one or two dimensions"
        )
    return tensor


def half_scales(
    name: str, scales: Float[Tensor, "rows groups"], shape: tuple[int, int], scheme: QuantScheme
) -> Float16[Tensor, "rows groups"]:
    """Scales as kernels take them; files of March 2023 hold float32, those of llm-compressor often bfloat16.

    float32 is rounded, as the loaders of its own time did when float16 came.
    """
    rows, columns = shape
    halves = scales.to(torch.float16)
    if scales.shape != (rows, scheme.groups(columns)) or not torch.isfinite(halves).all():
        raise CheckpointError(f"{name}.scales do not fit a weight of {rows} x {columns} in {scheme}")
    return halves.contiguous()


def groups_within(name: str, group_of_column: Int32[Tensor, "..."], columns: int, groups: int) -> None:
    """CheckpointError where an index of columns has another width, or points outside the scales."""
    if group_of_column.shape != (columns,):
        raise CheckpointError(f"{name} has shape {list(group_of_column.shape)}, expected [{columns}]")
    if columns and (group_of_column.min() < 0 or group_of_column.max() >= groups):
        raise CheckpointError(f"{name} points outside its {groups} groups")


def as_zeros(zeros: Integer[Tensor, "rows groups"]) -> Int16[Tensor, "rows groups"]:
    """Zeros in the dtype of `QuantizedWeight`."""
    return zeros.to(torch.int16).contiguous()


def symmetric_if_true(scheme: QuantScheme, zeros: Integer[Tensor, "rows groups"]) -> QuantScheme:
    """The scheme, without its claim of symmetry where the zeros belie it: old configurations claim it unasked."""
    if scheme.symmetric and (zeros != scheme.middle).any():
        return QuantScheme(scheme.bits, scheme.group_size, symmetric=False)
    return scheme
