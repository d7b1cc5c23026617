"""The CUDA kernels, executed on the CPU, against float64: every scheme, order of columns and ragged shape."""

import itertools

import pytest
import torch
from torch import Tensor

from kernels.cuda.emulated import Guarded, Kernels
from octavo.kernels.cuda import layout
from octavo.kernels.cuda.units import (
    EXPAND_STEPS,
    EXPAND_THREADS,
    GATHER,
    GATHER_THREADS,
    Block,
    DecodeArguments,
    ExpandArguments,
    GatherArguments,
    Rows,
    WideArguments,
    WideBlock,
    decode_unit,
    expand_unit,
    offsets_of,
    wide_unit,
)
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight, dequantize, sequential_groups

CPU = torch.device("cpu")
BLOCKS = (Block(1, 1, 8), Block(1, 2, 5), Block(2, 1, 4), Block(4, 1, 3))
WIDE, WIDE_COUNT, SPLITS = WideBlock(4, 2, 2), 41, 2  # two blocks of rows, the second ragged
ROWS = {1: (1, 7), 2: (16,), 4: (29,)}  # by groups of eight
GROUP_SIZES = (128, 64, 32, 48, None)
ORDERS = ("sequential", "permuted", "uneven")
SHAPES = ((16, 128), (37, 328), (33, 712), (5, 24))  # outputs, inputs
HALVES = (torch.float16, torch.bfloat16)
ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8, torch.float32: 2**-24}
SUMMATION = 2e-6


def variants(form: layout.Form) -> list[tuple[torch.dtype, Block]]:
    """Each block in one of the dtypes; in which one differs between neighbouring forms."""
    turned = form.zeros_differ ^ (form.scales_per_step == 2)
    return list(zip(HALVES[::-1] * 2 if turned else HALVES * 2, BLOCKS, strict=True))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """Every kernel that the tests run."""
    units = [GATHER]
    for form in itertools.starmap(layout.Form, itertools.product((8, 4), (False, True), (1, 2, 4))):
        units += [decode_unit(form, dtype, block) for dtype, block in variants(form)]
        units += [expand_unit(form, dtype) for dtype in ROUNDING]
        units += [wide_unit(form, dtype, WIDE) for dtype in HALVES]
    return Kernels(units, tmp_path_factory.mktemp("emulated"))


def random_weight(scheme: QuantScheme, shape: tuple[int, int], order: str) -> QuantizedWeight:
    """Codes and zeros of the whole range; "uneven" puts columns into groups at random."""
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = shape
    groups = scheme.groups(inputs)
    group_of_column = sequential_groups(inputs, scheme.group_size)
    if order == "permuted":
        group_of_column = group_of_column[torch.randperm(inputs, generator=generator)]
    if order == "uneven":
        group_of_column = torch.randint(0, groups, (inputs,), generator=generator, dtype=torch.int32)
    zeros = torch.full((outputs, groups), scheme.middle, dtype=torch.int16)
    if not scheme.symmetric:
        zeros = torch.randint(-1, 2**scheme.bits + 1, zeros.shape, generator=generator, dtype=torch.int16)
        zeros[0, 0], zeros[-1, -1] = -1, 2**scheme.bits
    return QuantizedWeight(
        codes=torch.randint(0, 2**scheme.bits, shape, generator=generator, dtype=torch.uint8),
        scales=(0.5 + torch.rand(outputs, groups, generator=generator)).half() / scheme.largest_code,
        zeros=zeros,
        group_of_column=group_of_column,
        scheme=scheme,
    )


def random_rows(count: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers and outliers; those of bfloat16 lie beyond float16."""
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count, columns, generator=generator)
    rows[:, ::37] *= 1e6 if dtype == torch.bfloat16 else 20
    return rows.to(dtype)


def assert_as_exact(got: Tensor, rows: Tensor, weight: QuantizedWeight) -> None:
    """Each output is the exact one, rounded once to its dtype after a summation in float32."""
    exact_weight, exact_rows = dequantize(weight, torch.float64), rows.double()
    exact = exact_rows @ exact_weight.t()
    bound = exact.abs() * ROUNDING[got.dtype] + exact_rows.abs() @ exact_weight.abs().t() * SUMMATION
    assert bool(((got.double() - exact).abs() <= bound).all())


def decode(kernels: Kernels, packed: layout.Packed, rows: Tensor, outputs: int, block: Block) -> Tensor:
    """What `linear` does for few rows, on guarded memory."""
    codes, scales, activations = Guarded.of(packed.codes), Guarded.of(packed.scales), Guarded.of(rows)
    result = Guarded((len(rows), outputs), rows.dtype)
    arguments = DecodeArguments(
        codes.address,
        scales.address,
        Rows(activations.address, *rows.shape, rows.shape[1]),
        None,
        result.address,
        outputs,
        packed.steps,
        offsets_of(packed),
    )
    grid = (-(-outputs // block.outputs), 1)
    kernels.launch(decode_unit(packed.form, rows.dtype, block), grid, block.threads, arguments)
    result.check()
    return result.tensor


def wide(kernels: Kernels, packed: layout.Packed, rows: Tensor, outputs: int) -> Tensor:
    """What `product` does for some dozens of rows, on guarded memory: sums of each split."""
    codes, scales, activations = Guarded.of(packed.codes), Guarded.of(packed.scales), Guarded.of(rows)
    result, row_blocks = Guarded((SPLITS, len(rows), outputs), torch.float32), -(-len(rows) // WIDE.rows)
    arguments = WideArguments(
        codes.address,
        scales.address,
        Rows(activations.address, *rows.shape, rows.shape[1]),
        result.address,
        outputs,
        packed.steps,
        -(-outputs // layout.TILE_ROWS),
        row_blocks,
        offsets_of(packed),
    )
    grid = (-(-outputs // WIDE.outputs) * row_blocks, SPLITS)
    kernels.launch(wide_unit(packed.form, rows.dtype, WIDE), grid, WIDE.threads, arguments)
    result.check()
    return result.tensor


def gather(kernels: Kernels, rows: Tensor, order: Tensor) -> Tensor:
    """Rows in the order of slots."""
    inputs, columns = Guarded.of(rows), Guarded.of(order)
    result = Guarded((len(rows), len(order)), rows.dtype)
    arguments = GatherArguments(inputs.address, columns.address, result.address, rows.shape[1], len(order))
    kernels.launch(GATHER, (-(-len(order) // GATHER_THREADS), len(rows)), GATHER_THREADS, arguments)
    result.check()
    return result.tensor


def expand(kernels: Kernels, packed: layout.Packed, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight as numbers, as many slots of it as `shape` is wide."""
    codes, scales, result = Guarded.of(packed.codes), Guarded.of(packed.scales), Guarded(shape, dtype)
    arguments = ExpandArguments(
        codes.address, scales.address, result.address, *shape, packed.steps, offsets_of(packed)
    )
    grid = (-(-packed.steps // EXPAND_STEPS), -(-shape[0] // layout.TILE_ROWS))
    kernels.launch(expand_unit(packed.form, dtype), grid, EXPAND_THREADS, arguments)
    result.check()
    return result.tensor


def arranged(kernels: Kernels, packed: layout.Packed, rows: Tensor) -> Tensor:
    """Rows as `decode` takes them."""
    return rows if packed.column_of_slot is None else gather(kernels, rows, packed.column_of_slot)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_few_rows_are_the_exact_product_rounded_once(kernels, bits, group_size, symmetric):
    scheme = QuantScheme(bits, group_size, symmetric)
    for order, shape in itertools.product(ORDERS, SHAPES):
        weight = random_weight(scheme, shape, order)
        packed = layout.pack(weight, CPU)
        for dtype, block in variants(packed.form):
            for count in ROWS[block.row_groups]:
                rows = random_rows(count, shape[1], dtype)
                got = decode(kernels, packed, arranged(kernels, packed, rows), shape[0], block)
                assert_as_exact(got, rows, weight)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_dozens_of_rows_are_sums_of_the_exact_product(kernels, bits, group_size, symmetric):
    scheme = QuantScheme(bits, group_size, symmetric)
    for order, shape, dtype in zip(ORDERS, SHAPES[1:], (*HALVES, HALVES[0]), strict=True):
        weight = random_weight(scheme, shape, order)
        packed, rows = layout.pack(weight, CPU), random_rows(WIDE_COUNT, shape[1], dtype)
        sums = wide(kernels, packed, arranged(kernels, packed, rows), shape[0])
        assert_as_exact(sums.sum(0), rows, weight)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_an_expanded_weight_is_the_dequantized_one(kernels, bits, symmetric):
    for group_size, order, shape in itertools.product(GROUP_SIZES, ORDERS, SHAPES):
        weight = random_weight(QuantScheme(bits, group_size, symmetric), shape, order)
        packed = layout.pack(weight, CPU)
        for dtype in ROUNDING:
            expected = dequantize(weight).to(dtype)
            if packed.column_of_slot is None:
                assert torch.equal(expand(kernels, packed, shape, dtype), expected)
            else:
                used = packed.column_of_slot >= 0
                got = expand(kernels, packed, (shape[0], packed.slots), dtype)
                assert torch.equal(got[:, used], expected[:, packed.column_of_slot[used]])
                assert bool(torch.isfinite(got).all())


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_not_finite_stays_in_its_row(kernels, dtype):
    weight = random_weight(QuantScheme(8, 128, symmetric=True), (16, 128), "sequential")
    packed = layout.pack(weight, CPU)
    block = next(block for of, block in variants(packed.form) if of == dtype)
    rows = random_rows(4, 128, dtype)
    rows[1, 5], rows[2, 7] = float("nan"), float("inf")
    got = decode(kernels, packed, rows, 16, block)
    assert bool(got[1].isnan().all())
    assert not bool(got[2].isfinite().any())
    assert_as_exact(got[[0, 3]], rows[[0, 3]], weight)


def test_rows_of_tiny_bfloats_and_of_zeros_keep_their_size(kernels):
    weight = random_weight(QuantScheme(8, 128, symmetric=True), (16, 128), "sequential")
    packed = layout.pack(weight, CPU)
    block = next(block for of, block in variants(packed.form) if of == torch.bfloat16)
    rows = random_rows(3, 128, torch.bfloat16) * torch.tensor([[1e-30], [0.0], [1e25]]).bfloat16()
    assert_as_exact(decode(kernels, packed, rows, 16, block), rows, weight)
