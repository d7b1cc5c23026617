"""Solving one unit of a model: the embedding, a decoder block, or the head.

A block is solved in four stages, q k v, then o, then gate and up, then down. A stage is rebuilt from its quantized
weights before the next one collects its Hessian, so that each linear is solved for the inputs that it will see at
run time ("true sequential").
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from octavo.checkpoint.formats import encode_linear, smallest_zero
from octavo.errors import NumericalError, UsageError
from octavo.kernels.stages import Heads
from octavo.model.kv_cache import KVCache, one_sequence
from octavo.model.linear import Linear, make_linear
from octavo.model.llama import Step, make_step
from octavo.model.load import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LINEARS,
    NORMS,
    ModelFolder,
    block_prefix,
    norm_shapes,
)
from octavo.quantization.calibration import Calibration
from octavo.quantization.crew import Crew
from octavo.quantization.forward import Kept, attend, gate, normalize
from octavo.quantization.gptq import factor_hessian, round_to_nearest, row_errors, solve
from octavo.quantization.hessian import PartialSum, mean_of, partial_sums
from octavo.quantization.journal import Samples
from octavo.quantization.on_gpu import Streamed, lane_to, linear_of_halves
from octavo.quantization.recipe import Recipe
from octavo.records import LinearRecord, QuantizationRecord
from octavo.schemes import Layout, QuantScheme
from octavo.weights import DenseWeight, QuantizedWeight, Weight

# Linears of a stage see the same input and share a Hessian; engines fuse them, so they share a scheme too.
STAGES = (("query", "key", "value"), ("output",), ("gate", "up"), ("down",))
SOLVE_DTYPE = torch.float32
# Of gates and ups: so few that they stay in a processor's caches, so many that a GPU is busy.
ROWS_AT_ONCE = {"cpu": 256, "cuda": 2048}


class Observer:
    """Is told how the job goes; this one listens to nothing."""

    def preparing(self, what: str) -> None:
        """Something that takes a while has begun: a text is read, a file hashed."""

    def already_done(self) -> None:
        """The output folder holds the result of this very job."""

    def started(self, units: int, done: int, needed: int, free: int) -> None:
        """The job has `units` units, of which an earlier run did `done`; bytes needed on the disk, and free."""

    def linear_solved(self, linear: LinearRecord, seconds: float) -> None:
        """One linear has its codes."""

    def unit_done(self, name: str) -> None:
        """The embedding, a decoder block or the head is on the disk; told from the thread that writes."""

    def finished(self, record: QuantizationRecord) -> None:
        """The result is whole."""


@dataclass(frozen=True)
class Job:
    """What every step of a quantization needs to know."""

    source: ModelFolder
    recipe: Recipe
    layout: Layout
    device: torch.device
    observer: Observer
    crew: Crew


class UnitSolver:
    """Collects what one unit gives: tensors for the file, and a record per linear."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.lane = lane_to(job.device)  # of weights and codes; hidden states have their own
        self.tensors: dict[str, Tensor] = {}
        self.linears: list[LinearRecord] = []
        self.seconds: dict[str, float] = {}

    def add_dense(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor as it is, in the dtype in which checkpoints hold such tensors."""
        self.tensors[name] = tensor.to(stored_dtype(tensor.dtype))
        if not torch.isfinite(self.tensors[name]).all():
            raise NumericalError(f"tensor {name} has values beyond fp16; convert the model to bfloat16 first")

    def quantize(
        self, weights: Mapping[str, DenseWeight], scheme: QuantScheme, inputs: Iterable[Tensor]
    ) -> QuantizedWeight:
        """Solve linears that see the same `inputs` together; their codes, stacked in the order of `weights`."""
        started = time.perf_counter()
        heights = [weight.shape[0] for weight in weights.values()]
        # Weights are read from their files, and copied, while the Hessian is summed.
        with ThreadPoolExecutor(max_workers=1) as reader:
            coming = [reader.submit(self.lane.fetch, weight.values) for weight in weights.values()]
            sums = self._sums_of(inputs)
        dense = torch.cat([self.lane.take(weight.result()).to(SOLVE_DTYPE) for weight in coming])
        losses: list[float | None] = [None] * len(weights)
        damping = None
        if self.job.recipe.method == "rtn":
            solved = round_to_nearest(dense, scheme, smallest_zero(self.job.layout))
        elif self.job.crew.leads:
            hessian = mean_of(sums, " and ".join(weights))
            solved, damping = self._solve(dense, hessian, scheme)
            errors = row_errors(dense, solved, hessian)
            losses = [float(part.sum()) for part in errors.split(heights)]
            self.job.crew.send_codes(solved)
        else:
            solved = self.job.crew.receive_codes((len(dense), dense.shape[1]), scheme)
        seconds = (time.perf_counter() - started) / len(dense)
        for name, weight, loss in zip(weights, _split(solved, heights), losses, strict=True):
            encoded = encode_linear(name, weight, self.job.layout)
            self.tensors |= {part: self.lane.send_home(tensor) for part, tensor in encoded.items()}
            record = LinearRecord(name, scheme.bits, scheme.group_size, scheme.symmetric, loss, damping)
            self.linears.append(record)
            self.seconds[name] = seconds * weight.shape[0]
            self.job.observer.linear_solved(record, self.seconds[name])
        return solved

    def _sums_of(self, inputs: Iterable[Tensor]) -> list[PartialSum]:
        """x^T x over the windows of all processes, where it is asked for."""
        crew = self.job.crew
        return [] if self.job.recipe.method == "rtn" else crew.joined(partial_sums(inputs, crew.runs[crew.number]))

    def _solve(self, dense: Tensor, hessian: Tensor, scheme: QuantScheme) -> tuple[QuantizedWeight, float]:
        """The codes of a weight, and the damping that they took."""
        recipe = self.job.recipe
        factored = factor_hessian(hessian, recipe.damping, recipe.act_order)
        return solve(dense, factored, scheme, recipe, smallest_zero(self.job.layout)), factored.damping


def _split(stacked: QuantizedWeight, heights: list[int]) -> Iterator[QuantizedWeight]:
    """The weights of so many rows each that were stacked."""
    parts = (stacked.codes.split(heights), stacked.scales.split(heights), stacked.zeros.split(heights))
    for codes, scales, zeros in zip(*parts, strict=True):
        yield replace(stacked, codes=codes, scales=scales, zeros=zeros)


def quantize_block(job: Job, solver: UnitSolver, layer: int, samples: Streamed) -> None:
    """Solve a decoder block stage by stage; `samples` become its outputs, computed from the quantized weights.

    Each tensor is replaced, not written to: the former ones may still be on their way to the disk.
    """
    source, config = job.source, job.source.config
    norms = {field: source.norm(layer, field) for field in norm_shapes(config)}
    for field, norm in norms.items():
        solver.add_dense(f"{block_prefix(layer)}.{NORMS[field]}.weight", norm)
    if job.recipe.method == "rtn":
        for stage in STAGES:
            _solve_stage(job, solver, layer, stage, ())
        return
    placed = {field: norm.to(job.device, SOLVE_DTYPE) for field, norm in norms.items()}
    heads = Heads(
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        window=config.windows[layer],
        query_norm=placed.get("query_norm"),
        key_norm=placed.get("key_norm"),
        norm_epsilon=config.norm_epsilon,
    )
    step = _sample_step(job, len(samples[0]))
    windows = range(len(samples))

    def normed(field: str, window: int) -> Tensor:
        return normalize(samples[window], placed[field], config.norm_epsilon)

    project = _solve_stage(job, solver, layer, STAGES[0], (normed("attention_norm", n) for n in windows))
    attended = [attend(project(normed("attention_norm", n)), heads, step) for n in windows]
    output = _solve_stage(job, solver, layer, STAGES[1], attended)
    for n in windows:
        samples[n] = samples[n] + output(attended[n])
    del attended
    gates = _solve_stage(job, solver, layer, STAGES[2], (normed("mlp_norm", n) for n in windows))

    def activate(window: int) -> Tensor:
        rows = samples[window].split(ROWS_AT_ONCE[job.device.type])
        return torch.cat([gate(gates(normalize(part, placed["mlp_norm"], config.norm_epsilon))) for part in rows])

    activated = Kept(activate, len(samples))
    down = _solve_stage(job, solver, layer, STAGES[3], activated)
    for n, inputs in enumerate(activated):
        samples[n] = samples[n] + down(inputs)


def _solve_stage(
    job: Job, solver: UnitSolver, layer: int, stage: tuple[str, ...], inputs: Iterable[Tensor]
) -> Linear:
    """The linears of a stage, as one whose outputs lie side by side; dense where the plan leaves them so."""
    source, prefix = job.source, block_prefix(layer)
    weights, biases = {}, []
    for field in stage:
        name, parts = f"{prefix}.{LINEARS[field]}", source.linear_parts(layer, field)
        assert isinstance(parts.weight, DenseWeight), "a quantized source is refused before"
        weights[name] = parts.weight
        if parts.bias is not None:
            biases.append(parts.bias)
            solver.add_dense(f"{name}.bias", parts.bias)
    bias = torch.cat(biases) if biases else None
    scheme = job.recipe.plan.scheme_for(f"{prefix}.{LINEARS[stage[0]]}")
    if scheme is None:
        for name, weight in weights.items():
            solver.add_dense(f"{name}.weight", weight.values)
        stacked: Weight = DenseWeight(torch.cat([weight.values for weight in weights.values()]))
    else:
        stacked = solver.quantize(weights, scheme, inputs)
    if job.device.type == "cuda":
        return linear_of_halves(stacked, bias, job.device)
    return make_linear(stacked, bias, job.device, SOLVE_DTYPE)


def quantize_head(job: Job, solver: UnitSolver, samples: Streamed) -> None:
    """The final norm, and the output head where it is not the embedding itself."""
    config = job.source.config
    norm = job.source.vector(f"{FINAL_NORM}.weight", (config.hidden_size,))
    solver.add_dense(f"{FINAL_NORM}.weight", norm)
    scheme = job.recipe.plan.lm_head
    if scheme is None and config.tied_embeddings:
        return
    weight = job.source.head_weight()
    assert isinstance(weight, DenseWeight), "a quantized source is refused before"
    if scheme is None:
        solver.add_dense(f"{HEAD}.weight", weight.values)
        return
    placed = norm.to(job.device, SOLVE_DTYPE)
    solver.quantize({HEAD: weight}, scheme, (normalize(sample, placed, config.norm_epsilon) for sample in samples))


def embedding_tensor(source: ModelFolder) -> tuple[str, tuple[int, int]]:
    return f"{EMBEDDING}.weight", (source.config.vocabulary_size, source.config.hidden_size)


def embed(job: Job, calibration: Calibration | None) -> Samples:
    """The hidden states that enter the first block, one tensor per calibration window, in host memory.

    Where several processes calibrate, those of this one.
    """
    if calibration is None:
        return []
    if int(calibration.tokens.max()) >= job.source.config.vocabulary_size:
        raise UsageError(f"the tokenizer of {job.source.path} gives ids beyond the model's vocabulary")
    embedding = job.source.vector(*embedding_tensor(job.source))
    return [embedding[window].to(SOLVE_DTYPE) for window in calibration.tokens[job.crew.mine]]


def _sample_step(job: Job, length: int) -> Step:
    """The step that runs one calibration window from its start; all layers share one scratch cache."""
    config = job.source.config
    batch = one_sequence(torch.zeros(length, dtype=torch.int64, device=job.device), 0, length)
    shape = (length, config.kv_heads, config.head_dim)
    keys, values = (torch.zeros(shape, device=job.device, dtype=SOLVE_DTYPE) for _ in range(2))
    cache = KVCache((keys,) * config.layers, (values,) * config.layers, length)
    return make_step(config, batch, cache)


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """Engines run half precision around quantized linears, so float32 is stored as float16."""
    return torch.float16 if dtype == torch.float32 else dtype
