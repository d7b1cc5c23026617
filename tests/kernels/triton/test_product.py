"""Products of packed weights against float64: every pair of what a weight, its inputs and their launch can be."""

import pytest
import torch

from covering import Case, covering_cases, every_case
from octavo.kernels.triton_gpu.card import Card
from octavo.kernels.triton_gpu.layout import DENSE_BITS, PackedWeight, pack
from octavo.kernels.triton_gpu.product import Product, finished, summed_later
from octavo.kernels.triton_gpu.tuning import FUSED_ROWS
from octavo.schemes import QuantScheme
from octavo.weights import DenseWeight, Weight, dequantize
from random_weights import column_groups, random_dense, random_quantized

CPU = torch.device("cpu")
# Rounding of the result, relative to its norm; the interpreter cuts bfloat16 off, where a card rounds.
BOUNDS = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3}
AXES = {
    "bits": (2, 3, 4, 8, DENSE_BITS),
    "group_size": (32, 64, 128, 48, None),
    "symmetric": (True, False),
    "act_order": (False, True),
    "rows": (1, 2, 5, 17, 33, 128),
    "shape": ((64, 256), (40, 200), (128, 576)),
    "dtype": (torch.float16, torch.float32, torch.bfloat16),
    "processors": (1, 40),
    "ends": ("sums", "plain", "bias", "residual", "gated", "gated with bias"),
}


def make_weight(case: Case) -> Weight:
    outputs, columns = case["shape"]
    if case["bits"] == DENSE_BITS:
        return random_dense(outputs, columns)
    groups = column_groups(columns, case["group_size"], case["act_order"])
    return random_quantized(outputs, groups, QuantScheme(case["bits"], case["group_size"], case["symmetric"]))


def by_slot(inputs: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
    """The definition of slots: each is a column, or zero."""
    if weight.column_of_slot is None:
        return inputs
    return torch.nn.functional.pad(inputs, (0, 1))[:, weight.column_of_slot.long()].contiguous()


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


def guarded(weight: PackedWeight, guards) -> PackedWeight:
    placed = {
        name: guards.around(value) for name, value in vars(weight).items() if isinstance(value, torch.Tensor)
    }
    return PackedWeight(**{**vars(weight), **placed})


def check(case: Case, guards) -> None:
    torch.manual_seed(0)
    weight, (outputs, columns), dtype, ends = make_weight(case), case["shape"], case["dtype"], case["ends"]
    exact = weight.values.double() if isinstance(weight, DenseWeight) else dequantize(weight, torch.float64)
    inputs = torch.randn(case["rows"], columns).to(dtype)
    bias = torch.randn(outputs).to(dtype) if "bias" in ends else None
    gated = ends.startswith("gated")
    residual = torch.randn(case["rows"], outputs).to(dtype) if ends == "residual" else None
    packed = guarded(pack([weight], CPU, dtype), guards)
    product = Product(packed, bias, gated, Card(90, case["processors"]))
    slots = guards.around(by_slot(inputs, packed))

    expected = inputs.double() @ exact.t()
    if dtype == torch.bfloat16 and case["bits"] == DENSE_BITS:
        expected = inputs.double() @ exact.bfloat16().double().t()
    if ends == "sums":
        sums = summed_later(slots, product).parts
        bound = BOUNDS[torch.float32] if sums.dtype == torch.float32 else BOUNDS[dtype]
        assert relative(sums.double().sum(0), expected) < bound
        return
    if bias is not None:
        expected = expected + bias.double()
    if gated:
        gate, up = expected.unflatten(1, (-1, 2)).unbind(2)
        expected = torch.nn.functional.silu(gate) * up
    if residual is not None:
        expected = expected + residual.double()
    got = finished(slots, product, residual)
    assert got.dtype == dtype
    assert relative(got, expected) < BOUNDS[dtype]


@pytest.mark.parametrize("case", covering_cases(AXES), ids=str)
def test_products(case, guards):
    check(case, guards)


def every_weight() -> list[Case]:
    """Every weight with every number of rows; the other axes take turns."""
    others = ("dtype", "processors", "ends")
    cases = every_case({name: values for name, values in AXES.items() if name not in others})
    turns = every_case({name: AXES[name] for name in others})
    return [{**case, **turns[number % len(turns)]} for number, case in enumerate(cases)]


@pytest.mark.proof
@pytest.mark.parametrize("case", every_weight(), ids=str)
def test_every_product(case, guards):
    check(case, guards)


@pytest.mark.parametrize("bits", [2, 4, 8, DENSE_BITS])
@pytest.mark.parametrize("symmetric", [True, False])
def test_products_of_many_rows_are_dense(bits, symmetric, guards):
    case = {"bits": bits, "group_size": 64, "symmetric": symmetric, "act_order": True, "rows": FUSED_ROWS + 1}
    check({**case, "shape": (40, 200), "dtype": torch.float16, "processors": 1, "ends": "gated with bias"}, guards)


def test_codes_meet_no_rounding(guards):
    """All 256 codes, and zeros at both ends of what files hold, come out as they are: exact integers."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(3, 1)
    weight = random_quantized(3, column_groups(256, None, False), QuantScheme(8, None, False))
    zeros = torch.tensor([[-1], [128], [256]], dtype=torch.int16)
    weight = type(weight)(codes, torch.ones(3, 1).half(), zeros, weight.group_of_column, weight.scheme)
    packed = pack([weight], CPU, torch.float16)
    product = Product(packed, None, False, Card(90, 1))
    got = finished(torch.eye(256, dtype=torch.float16), product)
    assert torch.equal(got.int(), torch.arange(256)[:, None] - zeros[:, 0].int())
