"""Random linears for tests of kernels."""

import torch

from octavo.schemes import QuantScheme
from octavo.weights import DenseWeight, QuantizedWeight, sequential_groups


def column_groups(columns: int, group_size: int | None, act_order: bool) -> torch.Tensor:
    """`group_of_column`, shuffled for act-order."""
    groups = sequential_groups(columns, group_size)
    return groups[torch.randperm(columns)] if act_order else groups


def random_quantized(outputs: int, groups_of_columns: torch.Tensor, scheme: QuantScheme) -> QuantizedWeight:
    """Codes anywhere on the grid; asymmetric zeros wherever old files may have them, from -1 to 2^bits."""
    columns = len(groups_of_columns)
    shape = (outputs, int(groups_of_columns.max()) + 1)
    zeros = (
        torch.full(shape, scheme.middle) if scheme.symmetric else torch.randint(-1, scheme.largest_code + 2, shape)
    )
    return QuantizedWeight(
        codes=torch.randint(0, scheme.largest_code + 1, (outputs, columns), dtype=torch.uint8),
        scales=((0.1 + torch.rand(shape)) * columns**-0.5 / scheme.largest_code).half(),
        zeros=zeros.to(torch.int16),
        group_of_column=groups_of_columns.to(torch.int32),
        scheme=scheme,
    )


def random_dense(outputs: int, columns: int) -> DenseWeight:
    """Values that half precision holds exactly."""
    return DenseWeight((torch.randn(outputs, columns) * columns**-0.5).half().float())
