"""The column loop in CUDA C++, on emulated kernels, against its definition."""

import ctypes

import pytest
import torch

from kernels.cuda.emulated import Kernels
from octavo.kernels.cuda import solver
from octavo.kernels.cuda.compiler import Unit
from octavo.kernels.cuda.driver import Function
from octavo.kernels.cuda.units import COLUMNS, SEARCH
from octavo.kernels.solver import GridRule
from octavo.quantization import columns as definition
from octavo.quantization.grid import shrinks
from octavo.schemes import QuantScheme

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels([SEARCH, COLUMNS], tmp_path_factory.mktemp("emulated"))


@pytest.fixture(autouse=True)
def launched(emulated: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the solver load emulated kernels."""

    def load(unit: Unit, threads: int, device: torch.device) -> Function:
        class Emulated(Function):
            def launch(self, grid: tuple[int, int], arguments: ctypes.Structure) -> None:
                emulated.launch(unit, grid, threads, arguments)

        return Emulated(unit.source, ctypes.c_void_p(), ctypes.c_void_p(), device, threads, early_start=False)

    monkeypatch.setattr(solver, "load", load)
    monkeypatch.setattr(solver, "indexed", lambda device: device)


def problem(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight with a row of zeros, an upper factor with a positive diagonal, an order, importance."""
    generator = torch.Generator().manual_seed(rows + columns)
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    weight[1] = 0
    factor = torch.randn(columns, columns, generator=generator).triu(1) * 0.05
    factor += torch.diag(torch.rand(columns, generator=generator) + 0.5)
    importance = torch.rand(columns, generator=generator) + 0.01
    return weight, factor, torch.argsort(importance, descending=True), importance


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(8, 128), (4, 32), (3, 48), (2, None)])
def test_the_codes_are_those_of_the_definition(bits, group_size, symmetric, static):
    weight, factor, order, importance = problem(70, 300)
    search = "hessian" if bits < 8 else "none"
    rule = GridRule(QuantScheme(bits, group_size, symmetric), static, 1, shrinks(bits, search))
    codes, scales, zeros = solver.solve_columns(weight, factor, order, importance, rule)
    expected, expected_scales, expected_zeros = definition.solve_columns(weight, factor, order, importance, rule)
    apart = (codes.int() - expected.int()).abs()
    # Sums in another order turn a code that lies between two others, and what follows it in its row.
    assert (apart > 0).float().mean() < 2e-3
    assert apart.max() <= 1
    assert (scales != expected_scales).float().mean() < 1e-2
    assert (zeros != expected_zeros).float().mean() < 1e-2


def test_static_grids_are_exactly_those_of_the_definition():
    weight, factor, order, importance = problem(9, 200)
    rule = GridRule(QuantScheme(4, 64, False), True, 1, shrinks(4, "hessian"))
    _, scales, zeros = solver.solve_columns(weight, factor, order, importance, rule)
    _, expected_scales, expected_zeros = definition.solve_columns(weight, factor, order, importance, rule)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(zeros, expected_zeros)


def test_what_no_half_can_hold_is_left_for_the_host_to_refuse():
    weight, factor, order, importance = problem(3, 40)
    weight[0, 3], weight[2, 5] = 1e9, float("nan")
    rule = GridRule(QuantScheme(8, 128, True), True, 0, shrinks(8, "none"))
    _, scales, _ = solver.solve_columns(weight, factor, order, importance, rule)
    assert [bool((scales[row] <= 65504).all()) for row in range(3)] == [False, True, False]


def test_a_cpu_and_other_dtypes_are_refused_in_words():
    assert solver.why_not(CPU, torch.float32) == "it runs on NVIDIA GPUs, not on cpu"
    assert solver.why_not(CPU, torch.float64) == "it solves in float32"
