"""The norm and the gather against their definitions."""

import pytest
import torch

from covering import covering_cases
from octavo.kernels.triton_gpu.card import Card
from octavo.kernels.triton_gpu.product import Sums
from octavo.kernels.triton_gpu.rows import Norm, gathered, normalized
from octavo.model.llama import rms_norm

# The interpreter cuts what it stores as bfloat16 off, where a card rounds.
BOUNDS = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3}
AXES = {
    "dtype": (torch.float32, torch.float16, torch.bfloat16),
    "rows": (1, 3),
    "columns": (1, 200, 576),
    "slots": ("columns", "shuffled", "padded"),
    "splits": (0, 1, 5),
    "bias": (False, True),
}


def column_of_slot(kind, columns):
    if kind == "columns":
        return None
    order = torch.randperm(columns)
    padded = torch.full((-(-columns // 32) * 32,), -1)
    padded[torch.randperm(len(padded))[:columns]] = order
    return (order if kind == "shuffled" else padded).to(torch.int32)


def by_slot(values, column_of_slot):
    if column_of_slot is None:
        return values
    return torch.nn.functional.pad(values, (0, 1))[:, column_of_slot.long()]


def relative(got, expected):
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("case", covering_cases(AXES), ids=str)
def test_norms(case, guards):
    torch.manual_seed(0)
    dtype, rows, columns, splits = (case[name] for name in ("dtype", "rows", "columns", "splits"))
    hidden, weight = torch.randn(rows, columns).to(dtype), (1 + torch.randn(columns) / 10).to(dtype)
    order = column_of_slot(case["slots"], columns)
    norm = Norm(guards.around(weight), 1e-5, columns if order is None else len(order), order, Card(80, 1))
    bias = torch.randn(columns).to(dtype) if case["bias"] else None
    parts = torch.randn(splits, rows, columns)
    added = Sums(guards.around(parts), bias) if splits else None
    got_hidden, got = normalized(guards.around(hidden), norm, added)
    expected = hidden.double()
    if splits:
        expected = expected + parts.double().sum(0) + (0 if bias is None else bias.double())
        assert relative(got_hidden, expected) < BOUNDS[dtype]
    else:
        assert torch.equal(got_hidden, hidden)
    normed = rms_norm(got_hidden.double(), weight.double(), 1e-5)
    assert got.dtype == got_hidden.dtype == dtype
    assert relative(got, by_slot(normed, order)) < BOUNDS[dtype]
    assert got[:, by_slot(torch.ones(1, columns), order)[0] == 0].abs().sum() == 0


@pytest.mark.parametrize("kind", ["columns", "shuffled", "padded"])
def test_gather(kind, guards):
    torch.manual_seed(0)
    inputs = torch.randn(3, 1100).half()
    order = column_of_slot(kind, 1100)
    assert torch.equal(gathered(guards.around(inputs), order), by_slot(inputs, order))
