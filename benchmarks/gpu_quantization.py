"""How long one decoder block of 13B takes to be quantized on a GPU, and how much memory; for gpu.py.

The block is solved as in a job, stage by stage, by the same function; its weights and hidden states are random.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gpu_synthetic import DEVICE, VICUNA_13B
from safetensors.torch import load_file
from torch import Tensor

from octavo.checkpoint.tensors import TensorSpec
from octavo.model.load import LINEARS, NORMS, ModelFolder, block_prefix, linear_shapes, norm_shapes
from octavo.model.text_windows import sha256_of_tokens
from octavo.quantization import on_gpu
from octavo.quantization.blocks import Job, Observer, UnitSolver, quantize_block
from octavo.quantization.calibration import Calibration
from octavo.quantization.crew import Crew, dealt
from octavo.quantization.gptq import factor_hessian, output_error, solve
from octavo.quantization.pipeline import Destination, quantize_folder
from octavo.quantization.recipe import Recipe
from octavo.schemes import QuantScheme, SchemePlan

WINDOWS, LENGTH = 128, 2048
OUTLIERS = 37  # every so many columns of the hidden states are twenty times as large, as in real models
Row = dict[str, Any]


class RandomTensors:
    """The tensors of one decoder block, in host memory."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}
        for field, shape in linear_shapes(CONFIG).items():
            values = torch.randn(shape, device=DEVICE).mul_(shape[1] ** -0.5)
            self.held[f"{block_prefix(0)}.{LINEARS[field]}.weight"] = values.half().cpu()
        for field, width in norm_shapes(CONFIG).items():
            self.held[f"{block_prefix(0)}.{NORMS[field]}.weight"] = (1 + 0.1 * torch.randn(width)).half()
        self.specs = {
            name: TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.held.items()
        }

    def __contains__(self, name: object) -> bool:
        return name in self.held

    def load(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        return self.held[name]


CONFIG = replace(VICUNA_13B, layers=1, windows=(None,))


class Clock(Observer):
    """Notes when each linear was solved."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def linear_solved(self, linear: Any, seconds: float) -> None:
        self.seconds[linear.name.rpartition(".")[2]] = seconds


def one_block() -> Iterator[Row]:
    """Seconds and peak memory of a block, act-order, 8-bit-128g, and what 40 of them would take; twice."""
    tensors = RandomTensors()
    states = [random_state(window).cpu().pin_memory() for window in range(WINDOWS)]
    recipe = Recipe(SchemePlan(QuantScheme(8, 128, True)), act_order="group")
    for _ in range(2):
        clock = Clock()
        crew = Crew(0, dealt(WINDOWS, 1), DEVICE)
        job = Job(ModelFolder(Path(), CONFIG, None, tensors), recipe, "gptq", DEVICE, clock, crew)
        solver, samples = UnitSolver(job), on_gpu.Streamed(list(states), on_gpu.lane_to(DEVICE))
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        quantize_block(job, solver, 0, samples)
        samples.settle()
        solver.lane.settle()
        seconds = time.perf_counter() - started
        assert all(tensor.device.type == "cpu" for tensor in solver.tensors.values())
        yield {
            "windows": WINDOWS,
            "length": LENGTH,
            "seconds": seconds,
            "seconds_of_40_blocks": 40 * seconds,
            "seconds_of_linears": clock.seconds,
            "peak_memory_bytes": torch.cuda.max_memory_allocated(),
            "losses": {linear.name.rpartition(".")[2]: linear.loss for linear in solver.linears},
        }


def precision() -> Iterator[Row]:
    """What Hessians of halves cost: their error, and the loss of codes solved with them, both by float64's."""
    recipe = Recipe(act_order="group")
    for bits in (8, 4):
        scheme = QuantScheme(bits, 128, True)
        weight = torch.randn(1024, CONFIG.hidden_size, device=DEVICE) * CONFIG.hidden_size**-0.5
        exact = torch.zeros(CONFIG.hidden_size, CONFIG.hidden_size, dtype=torch.float64, device=DEVICE)
        rough, single = exact.float(), exact.float()
        for window in range(8):
            state = random_state(window)
            exact.addmm_(state.double().t(), state.double())
            single.addmm_(state.t(), state)
            on_gpu.add_gram(rough, state)
        found = {"halves": rough, "float32": single}
        losses = {}
        for name, hessian in found.items():
            factored = factor_hessian(hessian, recipe.damping, recipe.act_order)
            solved = solve(weight, factored, scheme, recipe, 1)
            losses[name] = output_error(weight.double(), solved, exact)
        errors = {name: float((hessian - exact).norm() / exact.norm()) for name, hessian in found.items()}
        yield {"bits": bits, "errors": errors, "losses": losses, "ratio": losses["halves"] / losses["float32"]}


def same_codes(folder: Path) -> Row:
    """A small model quantized on the CPU and on the GPU: how many codes differ, and how the losses compare."""
    tokens = torch.randint(3, 500, (16, 128), generator=torch.Generator().manual_seed(0))
    calibration = Calibration(tokens, "random", "random tokens", "0" * 64, sha256_of_tokens(tokens))
    recipe = Recipe(SchemePlan(QuantScheme(8, 32, True)), act_order="group")
    codes, losses = [], []
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        with TemporaryDirectory() as target:
            written = Destination(Path(target) / "quantized")
            record = quantize_folder(folder, written, recipe, calibration, device, Observer())
            tensors = load_file(written.folder / "model.safetensors")
        words = [tensors[name] for name in sorted(tensors) if name.endswith(".qweight")]
        codes.append(torch.cat([word.view(torch.uint8).flatten() for word in words]))
        losses.append(sum(linear.loss for linear in record.linears))
    apart = (codes[0].int() - codes[1].int()).abs()
    return {
        "model": folder.name,
        "codes_that_differ": float((apart > 0).float().mean()),
        "by_more_than_one": float((apart > 1).float().mean()),
        "loss_ratio": losses[1] / losses[0],
    }


def random_state(seed: int) -> Tensor:
    """The hidden states of one window, on the device; neighbouring columns are correlated."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    state = torch.randn(LENGTH, CONFIG.hidden_size, device=DEVICE, generator=generator)
    state += 0.5 * state.roll(1, 1)
    state[:, ::OUTLIERS] *= 20
    return state
