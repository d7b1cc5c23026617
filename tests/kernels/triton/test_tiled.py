"""Layers whose products are made by CUDA C++, here on an emulated machine, and ended by interpreted Triton."""

import ctypes

import pytest
import torch

from kernels.cuda.emulated import Kernels
from kernels.triton.test_block import (
    BOUNDS,
    CPU,
    DECODE,
    EPSILON,
    HIDDEN,
    PROMPTS,
    expected_of,
    make_cache,
    make_parts,
    make_rows,
    relative,
)
from octavo.kernels.blocks import BlockShape
from octavo.kernels.cuda import product
from octavo.kernels.cuda.compiler import Unit
from octavo.kernels.cuda.driver import Function
from octavo.kernels.triton_gpu import block, tiled
from octavo.kernels.triton_gpu.card import Card, Place
from octavo.kernels.triton_gpu.tiled import TiledProduct

CASE = {
    "heads": (4, 2, 48),
    "head_norms": False,
    "window": None,
    "page_size": 64,
    "act_order": True,
    "bias": False,
    "storage": (8, 32, True),
    "dtype": torch.float16,
}
MANY = ((70,), (0,))
CASES = [
    {"counts": DECODE[1]},
    {"counts": DECODE[2], "storage": (4, 32, False), "bias": True, "dtype": torch.bfloat16},
    {"counts": DECODE[1], "act_order": False, "storage": (4, 128, True)},
    {"counts": PROMPTS[1], "dtype": torch.bfloat16},
    {"counts": PROMPTS[0], "storage": (4, 32, False), "bias": True},
    {"counts": MANY, "bias": True},
    {"counts": MANY, "storage": (4, 32, False)},
]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """Kernels by unit, each built when it is first asked for."""
    built: dict[Unit, Kernels] = {}

    def kernel(unit):
        if unit not in built:
            built[unit] = Kernels([unit], tmp_path_factory.mktemp("emulated"))
        return built[unit]

    return kernel


@pytest.fixture
def launched(kernels, monkeypatch) -> list[str]:
    """Has products load emulated kernels, on a CPU; names each one that is launched."""
    names: list[str] = []

    def load(unit, threads, device):
        class Emulated(Function):
            def launch(self, grid, arguments):
                names.append(unit.source)
                kernels(unit).launch(unit, grid, threads, arguments)

        return Emulated(unit.source, ctypes.c_void_p(), ctypes.c_void_p(), device, threads, early_start=False)

    monkeypatch.setattr(product, "load", load)
    monkeypatch.setattr(tiled, "indexed", lambda device: device)
    monkeypatch.setattr(
        tiled, "tuned_blocks", lambda packed, shape, dtype: product.blocks_for(packed.form, dtype, shape[0], 4)
    )
    monkeypatch.setattr(block, "why_not_tiled", lambda place: None)
    return names


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_layers(changes, launched, guards):
    torch.manual_seed(0)
    case = {**CASE, **changes}
    parts, rows = make_parts(case), make_rows(case)
    cache, dtype = make_cache(case, rows, guards), case["dtype"]
    hidden = torch.randn(len(rows.angles), HIDDEN).to(dtype)
    expected, written = expected_of(parts, case, rows, cache, hidden)
    place = Place(CPU, dtype, Card(90, 4))
    prepared = block.prepare_block(parts, BlockShape(case["heads"][2], EPSILON, case["window"]), place)
    assert isinstance(prepared.down, TiledProduct)
    launched.clear()
    got = block.run_block(guards.around(hidden), rows, cache, prepared)
    assert relative(got, expected) < BOUNDS[dtype]
    assert relative(cache.keys, written.keys) < BOUNDS[dtype]
    count = len(hidden)
    few = "decode.cu" if count <= 16 else "wide.cu" if count <= 64 else "expand.cu"
    ended_apart = case["bias"] and count <= 16  # few rows are ended by `decode.cu`, but not with a bias
    assert launched == ([few, few, "wide.cu", "wide.cu"] if ended_apart else [few] * 4)


def test_quantized_weights_of_float32_layers_are_triton_s_own():
    assert tiled.why_not_tiled(Place(CPU, torch.float16, Card(90, 4))) == "it runs on NVIDIA GPUs, not on cpu"
    objection = tiled.why_not_tiled(Place(torch.device("cuda"), torch.float32, Card(90, 4)))
    assert objection == "it multiplies few rows of 16-bit numbers only"
