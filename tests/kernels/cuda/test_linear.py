"""The verbs of the CUDA linear, on the CPU: emulated kernels stand where a GPU would load its own."""

import ctypes

import pytest
import torch
from torch import Tensor

from kernels.cuda.emulated import Kernels
from octavo.kernels import dispatch
from octavo.kernels.cuda import driver, layout, linear, product
from octavo.kernels.cuda.compiler import Unit
from octavo.kernels.cuda.driver import Function
from octavo.kernels.cuda.product import Blocks
from octavo.kernels.cuda.units import GATHER, Block, WideBlock, decode_unit, expand_unit, wide_unit
from octavo.model.load import open_folder
from octavo.quantization.blocks import Observer
from octavo.quantization.pipeline import Destination, quantize_folder
from octavo.quantization.recipe import Recipe
from octavo.schemes import QuantScheme, SchemePlan
from octavo.weights import QuantizedWeight, dequantize, sequential_groups
from small_models import small_calibration, write_model

CPU = torch.device("cpu")
BLOCKS = Blocks((Block(1, 1, 4), Block(2, 1, 2)), WideBlock(4, 2, 1))
PROCESSORS = 4
OUTPUTS = 46
SCHEMES = (QuantScheme(8, 128, symmetric=True), QuantScheme(4, 32, symmetric=False))
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    units = [GATHER]
    for form in (layout.Form(8, False, 1), layout.Form(4, True, 4)):
        for dtype in DTYPES[:2]:
            units += [decode_unit(form, dtype, block, gated) for block in BLOCKS.decode for gated in (False, True)]
            units.append(wide_unit(form, dtype, BLOCKS.wide))
        units += [expand_unit(form, dtype) for dtype in DTYPES]
    return Kernels(units, tmp_path_factory.mktemp("emulated"))


@pytest.fixture
def launched(emulated: Kernels, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has `linear` load emulated kernels; names each one that is launched."""
    names: list[str] = []

    def load(unit: Unit, threads: int, device: torch.device) -> Function:
        class Emulated(Function):
            def launch(self, grid: tuple[int, int], arguments: ctypes.Structure) -> None:
                names.append(unit.source)
                emulated.launch(unit, grid, threads, arguments)

        return Emulated(unit.source, ctypes.c_void_p(), ctypes.c_void_p(), device, threads, early_start=False)

    monkeypatch.setattr(product, "load", load)
    return names


def random_weight(scheme: QuantScheme, inputs: int, permuted: bool) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(0)
    groups = sequential_groups(inputs, scheme.group_size)
    size = (OUTPUTS, scheme.groups(inputs))
    zeros = torch.randint(0, 2**scheme.bits, size, generator=generator, dtype=torch.int16)
    return QuantizedWeight(
        codes=torch.randint(0, 2**scheme.bits, (OUTPUTS, inputs), generator=generator, dtype=torch.uint8),
        scales=(0.5 + torch.rand(size, generator=generator)).half() / scheme.largest_code,
        zeros=torch.full_like(zeros, scheme.middle) if scheme.symmetric else zeros,
        group_of_column=groups[torch.randperm(inputs, generator=generator)] if permuted else groups,
        scheme=scheme,
    )


def prepare(weight: QuantizedWeight, dtype: torch.dtype, gated: bool = False) -> product.Prepared:
    return product.with_kernels(layout.pack(weight, CPU), weight.shape, dtype, BLOCKS, PROCESSORS, gated)


def error(got: Tensor, inputs: Tensor, weight: QuantizedWeight) -> float:
    return relative(got, inputs.double() @ dequantize(weight, torch.float64).t())


def relative(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("inputs", [256, 301])
@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_number_of_rows_is_a_product(launched, scheme, dtype, permuted, inputs):
    weight = random_weight(scheme, inputs, permuted)
    prepared = prepare(weight, dtype)
    for count in (1, 8, 9, 16, 17, 33, 64, 65):
        rows = torch.randn(count, inputs, dtype=dtype)
        launched.clear()
        got = linear.matmul(rows, prepared)
        assert got.dtype == dtype
        assert error(got, rows, weight) < TOLERANCE[dtype]
        halves = dtype != torch.float32
        ordered = halves and (permuted or inputs % 8 != 0)
        few = "decode.cu" if count <= 16 else "wide.cu" if count <= 64 else "expand.cu"
        assert launched == ["gather.cu"] * ordered + [few if halves else "expand.cu"]


@pytest.mark.parametrize("permuted", [False, True])
def test_inputs_of_any_shape_and_place_are_taken(launched, permuted):
    weight = random_weight(SCHEMES[0], 256, permuted)
    prepared = prepare(weight, torch.float16)
    batch = torch.randn(2, 3, 256).half()
    assert linear.matmul(batch, prepared).shape == (2, 3, OUTPUTS)
    expected = linear.matmul(batch[:, 1], prepared)
    strided, shifted = torch.empty(2, 512).half(), torch.empty(2 * 256 + 1).half()[1:].view(2, 256)
    strided[:, ::2], shifted[:] = batch[:, 1], batch[:, 1]
    assert torch.equal(linear.matmul(strided[:, ::2], prepared), expected)
    assert torch.equal(linear.matmul(shifted, prepared), expected)
    assert torch.equal(linear.matmul(batch[0, 1], prepared), expected[0])
    assert linear.matmul(batch[:0], prepared).shape == (0, 3, OUTPUTS)


def test_act_order_groups_and_true_sequential_together(launched, tmp_path):
    """What a whole job solves, of columns in the order of their activations, group by group, stage after stage."""
    source = write_model(tmp_path / "dense")
    recipe = Recipe(SchemePlan(SCHEMES[1]), act_order="group")
    quantize_folder(source, Destination(tmp_path / "out"), recipe, small_calibration(), CPU, Observer())
    folder = open_folder(tmp_path / "out")
    for name, shape in {
        "self_attn.o_proj": (48, 48),
        "mlp.gate_proj": (70, 48),
        "mlp.down_proj": (48, 70),
    }.items():
        weight = folder.weight(f"model.layers.1.{name}", shape)
        assert isinstance(weight, QuantizedWeight)
        assert not torch.equal(weight.group_of_column, weight.group_of_column.sort().values)
        prepared = prepare(weight, torch.float16)
        for count in (1, 16, 33, 65):
            rows = torch.randn(count, shape[1]).half()
            assert error(linear.matmul(rows, prepared), rows, weight) < TOLERANCE[torch.float16]


def test_a_row_is_the_same_alone_and_in_company(launched):
    weight = random_weight(SCHEMES[1], 256, permuted=True)
    prepared = prepare(weight, torch.bfloat16)
    rows = torch.randn(8, 256).bfloat16()
    together = linear.matmul(rows, prepared)
    for row in range(8):
        assert torch.equal(linear.matmul(rows[row : row + 1], prepared)[0], together[row])


def test_a_cpu_is_refused_in_words():
    weight = random_weight(SCHEMES[0], 256, permuted=False)
    assert linear.why_not(weight, CPU) == "it runs on NVIDIA GPUs, not on cpu"
    assert dispatch.choose(weight, CPU).refusals["CUDA"] == "it runs on NVIDIA GPUs, not on cpu"


@pytest.mark.parametrize(
    ("cuda", "capability", "nvrtc", "objection"),
    [
        (None, (9, 0), "libnvrtc.so.13", "torch is built without CUDA, or finds no NVIDIA GPU"),
        ("13.0", (7, 5), "libnvrtc.so.13", "Card is older than Ampere (compute capability 8.0)"),
        ("13.0", (8, 0), None, "NVRTC, the compiler that CUDA builds of torch bring, is not installed"),
        ("13.0", (9, 0), "libnvrtc.so.13", None),
    ],
)
def test_cards_and_installations_are_judged(monkeypatch, cuda, capability, nvrtc, objection):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    monkeypatch.setattr(driver, "find_nvrtc", lambda: nvrtc)
    weight = random_weight(SCHEMES[0], 256, permuted=False)
    assert linear.why_not(weight, torch.device("cuda:0")) == objection


def test_scales_that_halves_cannot_hold_are_refused(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(driver, "find_nvrtc", lambda: "libnvrtc.so.13")
    weight = random_weight(SCHEMES[0], 256, permuted=False)
    wide = QuantizedWeight(
        weight.codes, weight.scales.float(), weight.zeros, weight.group_of_column, weight.scheme
    )
    assert linear.why_not(wide, torch.device("cuda:0")) == "its scales are torch.float32, not float16"


def test_few_rows_of_four_bits_get_blocks_by_their_outputs():
    def first(form: layout.Form, dtype: torch.dtype, outputs: int) -> Block:
        return product.blocks_for(form, dtype, outputs, 132).decode[0]

    assert first(layout.Form(8, False, 1), torch.float16, 27648) == Block(1, 1, 8)
    assert first(layout.Form(4, True, 1), torch.float16, 27648) == Block(1, 1, 4)
    assert first(layout.Form(4, True, 1), torch.float16, 5120) == Block(1, 2, 8)
    assert first(layout.Form(4, True, 4), torch.float16, 5120) == Block(1, 1, 8)
    assert first(layout.Form(4, False, 1), torch.bfloat16, 5120) == Block(1, 2, 8)
    assert first(layout.Form(4, False, 1), torch.bfloat16, 27648) == Block(1, 2, 4)
    assert first(layout.Form(4, False, 4), torch.bfloat16, 5120) == Block(1, 1, 8)


def test_sixteen_rows_get_blocks_by_their_outputs():
    def more(form: layout.Form, dtype: torch.dtype, outputs: int) -> Block:
        return product.blocks_for(form, dtype, outputs, 132).decode[1]

    assert more(layout.Form(8, False, 1), torch.float16, 27648) == Block(2, 1, 4)
    assert more(layout.Form(8, False, 1), torch.bfloat16, 27648) == Block(2, 2, 8)
    assert more(layout.Form(4, False, 1), torch.float16, 27648) == Block(2, 2, 4)
    assert more(layout.Form(4, False, 1), torch.float16, 5120) == Block(2, 1, 4)
    assert more(layout.Form(4, False, 1), torch.bfloat16, 27648) == Block(2, 2, 4)
    assert more(layout.Form(4, False, 1), torch.bfloat16, 5120) == Block(2, 2, 8)
    assert more(layout.Form(4, False, 4), torch.bfloat16, 5120) == Block(2, 1, 4)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_product_of_few_rows_is_ended_where_it_is_made(launched, scheme, dtype):
    weight = random_weight(scheme, 256, permuted=False)
    exact = dequantize(weight, torch.float64)
    prepared, pairs = prepare(weight, dtype), prepare(weight, dtype, gated=True)
    rows = torch.randn(9, 256, dtype=dtype)
    residual = torch.randn(9, OUTPUTS, dtype=dtype)
    got = product.decoded(rows, prepared, residual)
    expected = rows.double() @ exact.t()
    assert relative(got, expected + residual.double()) < TOLERANCE[dtype]
    gate, up = expected.unflatten(1, (-1, 2)).unbind(2)
    got = product.decoded(rows, pairs)
    assert relative(got, torch.nn.functional.silu(gate) * up) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_parts_add_up(launched, scheme, dtype):
    weight = random_weight(scheme, 1664, permuted=False)
    prepared, rows = prepare(weight, dtype), torch.randn(20, 1664, dtype=dtype)
    sums = product.parts(rows, prepared)
    assert sums.dtype == torch.float32
    assert sums.shape == (2, 20, OUTPUTS)  # two blocks of outputs leave each of four processors one part
    assert relative(sums.sum(0), rows.double() @ dequantize(weight, torch.float64).t()) < 1e-6
