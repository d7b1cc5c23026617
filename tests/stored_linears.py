"""Random quantized linears, and when two of them are the same."""

import torch

from octavo.weights import QuantizedWeight, sequential_groups


def quantized(rows, columns, scheme, seed=0, smallest_zero=1):
    generator = torch.Generator().manual_seed(seed)
    groups = scheme.groups(columns)
    zeros = torch.randint(smallest_zero, 2**scheme.bits, (rows, groups), generator=generator)
    return QuantizedWeight(
        codes=torch.randint(0, 2**scheme.bits, (rows, columns), generator=generator).to(torch.uint8),
        scales=(torch.rand(rows, groups, generator=generator) + 0.01).to(torch.float16),
        zeros=(torch.full_like(zeros, scheme.middle) if scheme.symmetric else zeros).to(torch.int16),
        group_of_column=sequential_groups(columns, scheme.group_size),
        scheme=scheme,
    )


def same(first, second):
    return first.scheme == second.scheme and all(
        torch.equal(getattr(first, name), getattr(second, name))
        for name in ("codes", "scales", "zeros", "group_of_column")
    )


def in_random_order(weight, seed=0):
    """The same columns in another order, so that their groups are spread out, as act-order leaves them."""
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(seed))
    codes, group_of_column = weight.codes[:, order].contiguous(), weight.group_of_column[order].contiguous()
    return QuantizedWeight(codes, weight.scales, weight.zeros, group_of_column, weight.scheme)
