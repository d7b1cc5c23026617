"""Products of halves against float64, and copies beside the work, on a CPU: a late lane stands in for a GPU's."""

from collections.abc import Callable

import pytest
import torch

from octavo.quantization import blocks, pipeline
from octavo.quantization.blocks import Observer
from octavo.quantization.on_gpu import (
    Arrival,
    Lane,
    Streamed,
    add_gram,
    halves,
    lane_to,
    linear_of_halves,
)
from octavo.quantization.pipeline import Destination, quantize_folder
from octavo.quantization.recipe import Recipe
from octavo.schemes import QuantScheme, SchemePlan
from octavo.weights import DenseWeight, QuantizedWeight, dequantize, sequential_groups
from small_models import small_calibration, write_model

CPU = torch.device("cpu")
ROUNDING = 2.0**-11  # of a number that becomes a half


def inputs(largest: float) -> torch.Tensor:
    """Rows of which one reaches far beyond what halves hold."""
    rows = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    rows[2] *= largest
    return rows


@pytest.mark.parametrize("each_row", [True, False])
def test_large_values_are_divided_by_powers_of_two(each_row):
    rows = inputs(1e7)
    rounded, factors = halves(rows, each_row=each_row)
    assert torch.equal(factors.log2(), factors.log2().round())
    assert bool((factors > 1).any())
    assert factors.shape == ((6, 1) if each_row else (1, 1))
    largest = rows.abs().amax(1, keepdim=True) if each_row else rows.abs().amax()
    assert bool(((rounded.float() * factors - rows).abs() <= ROUNDING * rows.abs() + 2**-38 * largest).all())
    unscaled, ones = halves(inputs(1.0), each_row=each_row)
    assert bool((ones == 1).all())
    assert torch.equal(unscaled, inputs(1.0).half())


def test_a_gram_matrix_of_halves_is_close_to_the_exact_one():
    total, rows = torch.full((64, 64), 3.0), inputs(1e6)
    add_gram(total, rows)
    exact = 3.0 + rows.double().t() @ rows.double()
    assert float((total - exact).norm() / exact.norm()) < ROUNDING


@pytest.mark.parametrize("quantized", [False, True])
def test_a_linear_of_halves_is_close_to_the_exact_one(quantized):
    generator = torch.Generator().manual_seed(1)
    exact = torch.randn(5, 64, generator=generator)
    weight = DenseWeight(exact)
    if quantized:
        codes = torch.randint(0, 256, (5, 64), generator=generator, dtype=torch.uint8)
        zeros = torch.full((5, 2), 128, dtype=torch.int16)
        scheme = QuantScheme(8, 32, True)
        weight = QuantizedWeight(codes, torch.full((5, 2), 0.01).half(), zeros, sequential_groups(64, 32), scheme)
        exact = dequantize(weight)
    bias, rows = torch.randn(5, generator=generator), inputs(1e6)
    got = linear_of_halves(weight, bias, CPU)(rows)
    expected = rows.double() @ exact.double().t() + bias
    assert bool(((got - expected).norm(dim=1) / expected.norm(dim=1) < 2 * ROUNDING).all())


class LateLane(Lane):
    """Stands in for a GPU's: what is copied holds NaN until the moment that the lane promises it for."""

    def __init__(self) -> None:
        self.going_home: list[Callable[[], None]] = []
        self.coming: dict[int, Callable[[], None]] = {}

    def fetch(self, values: torch.Tensor) -> Arrival:
        self.settle()  # what was sent home before is there, for the device that fetches; the host learns nothing
        late, copy = self._late_copy(values)
        self.coming[id(late)] = copy
        return Arrival(late)

    def take(self, arrival: Arrival) -> torch.Tensor:
        self.coming.pop(id(arrival.values))()
        return arrival.values

    def send_home(self, values: torch.Tensor) -> torch.Tensor:
        late, copy = self._late_copy(values)
        self.going_home.append(copy)
        return late

    def settle(self) -> None:
        while self.going_home:
            self.going_home.pop(0)()

    @staticmethod
    def _late_copy(values: torch.Tensor) -> tuple[torch.Tensor, Callable[[], None]]:
        late = torch.full_like(values, float("nan") if values.is_floating_point() else 77)
        return late, lambda: late.copy_(values)


def test_states_are_read_when_they_have_come_and_written_when_they_are_made():
    first = [torch.full((2, 3), float(number)) for number in range(4)]
    states, lane = list(first), LateLane()
    streamed = Streamed(states, lane)
    for number in range(len(streamed)):
        streamed[number] = streamed[number] + 10
    assert [float(state[0, 0]) for state in streamed] == [10, 11, 12, 13]
    for number in range(len(streamed)):
        streamed[number] = streamed[number] * 2
    assert bool(states[3].isnan().all())  # nobody may read it yet
    streamed.settle()
    assert [float(state[0, 0]) for state in states] == [20, 22, 24, 26]
    assert [float(state[0, 0]) for state in first] == [0, 1, 2, 3]  # these may still be on their way to the disk


def test_a_state_that_is_replaced_is_not_taken_from_a_former_copy():
    streamed = Streamed([torch.zeros(1, 1), torch.ones(1, 1)], LateLane())
    assert float(streamed[0]) == 0  # sends state 1 on its way
    streamed[1] = torch.full((1, 1), 5.0)
    assert float(streamed[1]) == 5


def test_a_job_beside_which_everything_is_copied_gives_what_one_gives_that_copies_nothing(tmp_path, monkeypatch):
    source = write_model(tmp_path / "model")
    recipe = Recipe(SchemePlan(QuantScheme(4, 16, symmetric=False)), act_order="group")
    written = []
    for copies in (False, True):
        if copies:
            for module in (blocks, pipeline):
                monkeypatch.setattr(module, "lane_to", lambda device: LateLane())
        target = Destination(tmp_path / str(copies))
        quantize_folder(source, target, recipe, small_calibration(), CPU, Observer())
        written.append({path.name: path.read_bytes() for path in target.folder.iterdir()})
    for files in written:
        files.pop("octavo-run.json")
    assert written[0] == written[1]


def test_nothing_is_copied_on_a_cpu():
    lane, values = lane_to(CPU), torch.zeros(2, 3)
    assert lane.take(lane.fetch(values)) is values
    assert lane.send_home(values) is values
