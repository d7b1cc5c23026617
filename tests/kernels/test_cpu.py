"""The native CPU library against its definition, bit for bit: docs/decisions/0006-native-library.md."""

import subprocess
import sys
import threading
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.kernels import cpu, reference
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight, dequantize

pytest.importorskip("octavo.kernels._native", reason="Octavo is installed without its native library")
from octavo.kernels import _native

LARGEST = np.float32(32767)
POOLS = {threads: _native.Pool(threads) for threads in (1, 2, 3)}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Grid:
    """A quantized weight as arrays."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    group_of_column: np.ndarray
    bits: int

    def matrix(self) -> _native.Matrix:
        return _native.prepare_codes(
            self.codes, self.scales.view(np.int16), self.zeros, self.group_of_column, self.bits
        )

    def weight(self) -> QuantizedWeight:
        return QuantizedWeight(
            torch.from_numpy(self.codes),
            torch.from_numpy(self.scales),
            torch.from_numpy(self.zeros),
            torch.from_numpy(self.group_of_column),
            QuantScheme(self.bits, None, symmetric=False),
        )


def random_grid(rng, bits, outputs, columns, group_size, symmetric=False, act_order=False) -> Grid:
    groups = -(-columns // group_size)
    group_of_column = (np.arange(columns) // group_size).astype(np.int32)
    shape = (outputs, groups)
    zeros = np.full(shape, 2 ** (bits - 1)) if symmetric else rng.integers(-1, 2**bits + 1, shape)
    return Grid(
        rng.integers(0, 2**bits, (outputs, columns), dtype=np.uint8),
        rng.normal(0, 0.01, shape).astype(np.float16),
        zeros.astype(np.int16),
        rng.permutation(group_of_column) if act_order else group_of_column,
        bits,
    )


def random_inputs(rng, rows, columns):
    """Normal inputs, one column of which is twenty times as large."""
    inputs = rng.normal(size=(rows, columns)).astype(np.float32)
    inputs[:, rng.integers(columns)] *= 20
    return inputs


def encode(row):
    """Integers and scale of a row of inputs."""
    largest = np.abs(row).max(initial=np.float32(0))
    if not np.isfinite(row).all():
        return np.zeros(len(row), np.int64), np.float32(np.nan)
    if largest < np.float32(2) ** -100:
        return np.zeros(len(row), np.int64), np.float32(0)
    return np.rint(row * (LARGEST / largest)).astype(np.int64), largest / LARGEST


def segments(group_of_column):
    """The columns of each group in their order, at most 256 at a time."""
    for group in np.unique(group_of_column):
        columns = np.flatnonzero(group_of_column == group)
        for first in range(0, len(columns), 256):
            yield group, columns[first : first + 256]


def defined_product(grid: Grid, inputs):
    """The definition, operation by operation."""
    outputs = np.empty((len(inputs), len(grid.codes)), np.float32)
    for row, values in enumerate(inputs):
        integers, row_scale = encode(values)
        total = np.zeros(len(grid.codes), np.float32)
        for group, columns in segments(grid.group_of_column):
            steps = grid.codes[:, columns].astype(np.int64) - grid.zeros[:, [group]]
            total = total + grid.scales[:, group].astype(np.float32) * (steps @ integers[columns]).astype(
                np.float32
            )
        outputs[row] = row_scale * total
    return outputs


def product(matrix, inputs, threads=1, isa=None):
    outputs = np.full((len(inputs), matrix.outputs), 7, np.float32)
    isa = _native.best_isa() if isa is None else isa
    _native.matmul(matrix, inputs.ctypes.data, outputs.ctypes.data, len(inputs), POOLS[threads], isa)
    return outputs


def assert_same_bits(found, expected):
    np.testing.assert_array_equal(found.view(np.int32), expected.view(np.int32))


grids = st.builds(
    random_grid,
    st.integers(0, 2**32 - 1).map(np.random.default_rng),
    bits=st.sampled_from([2, 3, 4, 8]),
    outputs=st.integers(1, 70),
    columns=st.integers(1, 600),
    group_size=st.sampled_from([7, 16, 32, 64, 100, 128, 300, 600]),
    symmetric=st.booleans(),
    act_order=st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(grid=grids, rows=st.integers(1, 40) | st.integers(120, 140), seed=st.integers(0, 2**32 - 1))
def test_every_instruction_set_and_thread_count_gives_the_defined_bits(grid, rows, seed):
    inputs = random_inputs(np.random.default_rng(seed), rows, grid.codes.shape[1])
    expected, matrix = defined_product(grid, inputs), grid.matrix()
    for isa in _native.available_isas():
        for threads in POOLS:
            assert_same_bits(product(matrix, inputs, threads, isa), expected)


def test_work_worth_sharing_is_shared_without_a_trace():
    rng = np.random.default_rng(0)
    grid, inputs = random_grid(rng, 4, 333, 700, 128), random_inputs(rng, 70, 700)
    expected, matrix = defined_product(grid, inputs), grid.matrix()
    for threads in POOLS:
        assert_same_bits(product(matrix, inputs, threads), expected)


@pytest.mark.parametrize("isa", _native.available_isas(), ids=_native.name_of)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_row_does_not_depend_on_its_company(isa, bits):
    rng = np.random.default_rng(0)
    grid, inputs = random_grid(rng, bits, 50, 400, 64, act_order=True), random_inputs(rng, 37, 400)
    matrix = grid.matrix()
    together, order = product(matrix, inputs, isa=isa), rng.permutation(37)
    assert_same_bits(product(matrix, inputs[order], isa=isa), together[order])
    for row in range(37):
        assert_same_bits(product(matrix, inputs[row : row + 1], isa=isa), together[row : row + 1])


@pytest.mark.parametrize("columns", [576, 1536, 5120, 13824])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_inputs_to_16_bits_costs_little(bits, columns):
    rng = np.random.default_rng(0)
    grid, inputs = random_grid(rng, bits, 64, columns, 128), random_inputs(rng, 4, columns)
    exact = inputs.astype(np.float64) @ dequantize(grid.weight(), torch.float64).numpy().T
    error = product(grid.matrix(), inputs) - exact
    assert np.linalg.norm(error) <= 3e-4 * np.linalg.norm(exact)


@pytest.mark.parametrize("isa", _native.available_isas(), ids=_native.name_of)
@pytest.mark.parametrize(("code", "zero"), [(255, 0), (255, -1), (0, 256)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("rows", "columns"), [(9, 13824), (33, 4096)])  # 33 rows of that length are widened for
def test_the_largest_sums_do_not_overflow(isa, code, zero, sign, rows, columns):
    grid = Grid(
        np.full((17, columns), code, np.uint8),
        np.ones((17, 1), np.float16),
        np.full((17, 1), zero, np.int16),
        np.zeros(columns, np.int32),
        8,
    )
    total = np.float32(0)
    for _ in range(columns // 256):
        total += np.float32((code - zero) * sign * 32767 * 256)
    found = product(grid.matrix(), np.full((rows, columns), sign * 32767, np.float32), isa=isa)
    assert_same_bits(found, np.full((rows, 17), total))


@pytest.mark.parametrize("isa", _native.available_isas(), ids=_native.name_of)
@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("columns", [5, 300])
def test_a_row_that_is_not_finite_gives_nan(isa, strange, columns):
    rng = np.random.default_rng(0)
    grid, inputs = random_grid(rng, 8, 20, columns, 128), random_inputs(rng, 12, columns)
    inputs[[3, 11], [0, columns - 1]] = strange
    found = product(grid.matrix(), inputs, isa=isa)
    assert np.isnan(found[[3, 11]]).all()
    others = np.delete(np.arange(12), [3, 11])
    assert_same_bits(found[others], defined_product(grid, inputs[others]))


def test_rows_of_nothing_but_zeros_and_tiny_numbers():
    grid = random_grid(np.random.default_rng(0), 8, 5, 40, 16)
    inputs = np.zeros((4, 40), np.float32)
    inputs[1:, 3] = np.float32(2) ** -100, np.float32(2) ** -101, np.float32(2) ** -149
    found = product(grid.matrix(), inputs)
    assert_same_bits(found, defined_product(grid, inputs))
    assert found[1].any()
    assert not found[[0, 2, 3]].any()


@pytest.mark.parametrize("isa", _native.available_isas(), ids=_native.name_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dense_products_fuse_within_blocks_of_256_columns(isa, dtype):
    """Multiples of 2^-6 times multiples of 2^-18: float64 holds each sum, float32 does not hold each product."""
    generator = torch.Generator().manual_seed(0)
    weights = (torch.randn(37, 600, generator=generator) * 2**6).round().clamp(-255, 255) / 2**6
    weights = weights.to(dtype)
    inputs = (torch.randn(21, 600, generator=generator) * 2**18).round() / 2**18
    total = torch.zeros(21, 37)
    for block in (range(256), range(256, 512), range(512, 600)):
        inner = torch.zeros(21, 37)
        for column in block:
            exact = inputs[:, [column]].double() * weights[:, column].double() + inner.double()
            inner = exact.float()
        total += inner
    matrix = _native.prepare_dense(
        weights.data_ptr(), getattr(_native.Storage, str(dtype).removeprefix("torch.")), 37, 600
    )
    for threads in POOLS:
        assert_same_bits(product(matrix, inputs.numpy(), threads, isa), total.numpy())


@pytest.mark.parametrize("isa", _native.available_isas(), ids=_native.name_of)
def test_dense_values_of_every_kind_are_read_alike(isa):
    """All float16 there are: numbers below the normal ones, Inf and NaN too."""
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16).reshape(-1, 1)
    for values, storage in [
        (halves, _native.Storage.float16),
        (halves.view(torch.bfloat16), _native.Storage.bfloat16),
    ]:
        matrix = _native.prepare_dense(values.data_ptr(), storage, len(values), 1)
        found = product(matrix, np.ones((1, 1), np.float32), isa=isa)[0]
        np.testing.assert_array_equal(found, values.float().numpy()[:, 0])


def test_a_bias_is_added_last():
    rng = np.random.default_rng(0)
    grid, inputs = random_grid(rng, 8, 19, 64, 32), random_inputs(rng, 3, 64)
    matrix, bias = grid.matrix(), rng.normal(size=19).astype(np.float32)
    matrix.set_bias(bias)
    assert_same_bits(product(matrix, inputs), defined_product(grid, inputs) + bias)


def test_equal_orders_of_columns_are_one_form():
    rng = np.random.default_rng(0)
    one, other = (random_grid(rng, bits, 8, 96, 32) for bits in (4, 8))
    shuffled = replace(one, group_of_column=rng.permutation(one.group_of_column))
    assert _native.same_form(one.matrix(), other.matrix())
    assert not _native.same_form(one.matrix(), shuffled.matrix())


def test_the_verbs_of_a_kernel():
    rng = np.random.default_rng(0)
    weight = random_grid(rng, 8, 33, 200, 128).weight()
    prepared = cpu.prepare(weight, CPU, torch.float32)
    inputs = torch.from_numpy(random_inputs(rng, 6, 200))
    found = cpu.matmul(inputs, prepared)
    expected = reference.matmul(inputs, reference.prepare(weight, CPU, torch.float32))
    assert (found - expected).norm() <= 3e-4 * expected.norm()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(
            cpu.matmul(inputs.to(dtype), prepared), cpu.matmul(inputs.to(dtype).float(), prepared).to(dtype)
        )
    assert torch.equal(cpu.matmul(inputs.reshape(2, 3, 200), prepared), found.reshape(2, 3, 33))
    assert torch.equal(cpu.matmul(inputs.t().contiguous().t(), prepared), found)
    assert cpu.matmul(inputs[:0], prepared).shape == (0, 33)
    assert cpu.matmul(inputs[0], prepared).shape == (33,)


def test_the_smallest_matrix():
    grid = Grid(
        *(np.full((1, 1), value, kind) for value, kind in [(3, "u1"), (0.5, "f2"), (1, "i2")]),
        np.zeros(1, "i4"),
        2,
    )
    assert product(grid.matrix(), np.full((1, 1), 4, np.float32)) == [[4]]


def test_who_may_run_here():
    weight = random_grid(np.random.default_rng(0), 8, 2, 8, 8).weight()
    assert cpu.why_not(weight, CPU) is None
    assert cpu.why_not(weight, torch.device("cuda")) == "it runs on CPUs only"


BROKEN = {
    "code out of range": {"codes": np.full((3, 20), 8, np.uint8)},
    "group out of range": {"group_of_column": np.full(20, 2, np.int32)},
    "zero out of range": {"zeros": np.full((3, 2), 9, np.int16)},
    "codes of 5 bits have no layout": {"bits": 5},
    "codes, scales, zeros and groups differ in shape": {"zeros": np.zeros((3, 3), np.int16)},
}


@pytest.mark.parametrize(("complaint", "change"), BROKEN.items(), ids=BROKEN.keys())
def test_what_is_out_of_range_is_refused(complaint, change):
    grid = random_grid(np.random.default_rng(0), 3, 3, 20, 16)
    with pytest.raises(ValueError, match=complaint):
        replace(grid, **change).matrix()


def test_several_threads_of_python_share_a_pool():
    rng = np.random.default_rng(0)
    matrix, inputs = random_grid(rng, 8, 300, 256, 64).matrix(), random_inputs(rng, 16, 256)
    expected, failures = product(matrix, inputs), []

    def work():
        for _ in range(50):
            if not np.array_equal(product(matrix, inputs, threads=3), expected):
                failures.append("differs")

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


AFTER_A_FORK = """
import os
import numpy as np
from octavo.kernels import _native

matrix = _native.prepare_codes(
    np.full((512, 256), 3, np.uint8), np.full((512, 1), 0x3C00, np.int16), np.full((512, 1), 1, np.int16),
    np.zeros(256, np.int32), 8)
inputs, outputs = np.ones((8, 256), np.float32), np.zeros((8, 512), np.float32)
pool = _native.Pool(3)
for repeat in range(3):
    child = os.fork()  # the second time with threads that the child does not have
    _native.matmul(matrix, inputs.ctypes.data, outputs.ctypes.data, 8, pool)
    assert (outputs == 512).all()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_pool_survives_a_fork():
    subprocess.run([sys.executable, "-W", "ignore", "-c", AFTER_A_FORK], check=True, timeout=60)


def test_threads_start_with_the_first_product_and_their_number_is_chosen_before():
    code = """
import psutil
from octavo.kernels import _native
before = psutil.Process().num_threads()
_native.set_default_threads(3)
pool = _native.default_pool()
assert pool.threads == 3 and psutil.Process().num_threads() == before
_native.prepare_dense(0, _native.Storage.float32, 0, 0)
assert psutil.Process().num_threads() == before + 2
_native.set_default_threads(3)
for threads, error in [(2, RuntimeError), (0, ValueError)]:
    try:
        _native.set_default_threads(threads)
    except error:
        continue
    raise AssertionError(threads)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
