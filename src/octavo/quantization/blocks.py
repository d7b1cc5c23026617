"""Solving one unit of a model: the embedding, a decoder block, or the head.

A block is solved in four stages, q k v, then o, then gate and up, then down. A stage is rebuilt from its quantized
weights before the next one collects its Hessian, so that each linear is solved for the inputs that it will see at
run time ("true sequential").
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from octavo.checkpoint.formats import encode_linear, smallest_zero
from octavo.errors import NumericalError, UsageError
from octavo.model.kv_cache import KVCache, one_sequence
from octavo.model.linear import make_linear
from octavo.model.llama import Block, Step, attend, gated, make_step, rms_norm
from octavo.model.load import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LINEARS,
    NORMS,
    ModelFolder,
    block_prefix,
    has_bias,
    linear_shapes,
    norm_shapes,
)
from octavo.quantization.calibration import Calibration
from octavo.quantization.gptq import factor_hessian, output_error, round_to_nearest, solve
from octavo.quantization.hessian import hessian_of
from octavo.quantization.journal import Samples
from octavo.quantization.recipe import Recipe
from octavo.records import LinearRecord, QuantizationRecord
from octavo.schemes import Layout, QuantScheme
from octavo.weights import DenseWeight, QuantizedWeight

# Linears of a stage see the same input and share a Hessian; engines fuse them, so they share a scheme too.
STAGES = (("query", "key", "value"), ("output",), ("gate", "up"), ("down",))
SOLVE_DTYPE = torch.float32


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
        """The embedding, a decoder block or the head is on the disk."""

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


class UnitSolver:
    """Collects what one unit gives: tensors for the file, and a record per linear."""

    def __init__(self, job: Job) -> None:
        self.job = job
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
    ) -> dict[str, QuantizedWeight]:
        """Solve linears that see the same `inputs` together; their codes, by name."""
        started = time.perf_counter()
        dense = {name: weight.values.to(self.job.device, SOLVE_DTYPE) for name, weight in weights.items()}
        if self.job.recipe.method == "rtn":
            zero = smallest_zero(self.job.layout)
            solved = {name: round_to_nearest(values, scheme, zero) for name, values in dense.items()}
            losses: Mapping[str, float | None] = dict.fromkeys(solved)
            damping = None
        else:
            solved, losses, damping = self._solve(dense, scheme, inputs)
        seconds = time.perf_counter() - started
        rows = sum(len(values) for values in dense.values())
        for name, weight in solved.items():
            self.tensors |= encode_linear(name, weight, self.job.layout)
            record = LinearRecord(name, scheme.bits, scheme.group_size, scheme.symmetric, losses[name], damping)
            self.linears.append(record)
            self.seconds[name] = seconds * weight.shape[0] / rows
            self.job.observer.linear_solved(record, self.seconds[name])
        return solved

    def _solve(
        self, dense: Mapping[str, Tensor], scheme: QuantScheme, inputs: Iterable[Tensor]
    ) -> tuple[dict[str, QuantizedWeight], dict[str, float], float]:
        """GPTQ over the stacked rows of linears with one input."""
        recipe = self.job.recipe
        hessian = hessian_of(inputs, " and ".join(dense))
        factored = factor_hessian(hessian, recipe.damping, recipe.act_order)
        stacked = solve(torch.cat(list(dense.values())), factored, scheme, recipe, smallest_zero(self.job.layout))
        solved, losses, first = {}, {}, 0
        for name, values in dense.items():
            rows = slice(first, first + len(values))
            first += len(values)
            solved[name] = replace(
                stacked, codes=stacked.codes[rows], scales=stacked.scales[rows], zeros=stacked.zeros[rows]
            )
            losses[name] = output_error(values, solved[name], hessian)
        return solved, losses, factored.damping


def quantize_block(job: Job, solver: UnitSolver, layer: int, samples: Samples) -> Samples:
    """Solve a decoder block stage by stage; its outputs, computed from the quantized weights."""
    source, config = job.source, job.source.config
    for field, shape in norm_shapes(config).items():
        name = f"{block_prefix(layer)}.{NORMS[field]}.weight"
        solver.add_dense(name, source.vector(name, shape))
    if job.recipe.method == "rtn":
        for stage in STAGES:
            _solve_stage(job, solver, layer, stage, ())
        return []
    block = source.block(layer, job.device, SOLVE_DTYPE)
    step = _sample_step(job, len(samples[0]))

    def solved(block: Block, stage: tuple[str, ...], inputs: Iterable[Tensor]) -> Block:
        return replace(block, **_solve_stage(job, solver, layer, stage, inputs))

    def normed(norm: Tensor) -> Iterable[Tensor]:
        return (rms_norm(sample, norm, config.norm_epsilon) for sample in samples)

    block = solved(block, STAGES[0], normed(block.attention_norm))
    attended = [attend(block, layer, inputs, step) for inputs in normed(block.attention_norm)]
    block = solved(block, STAGES[1], attended)
    for number, states in enumerate(attended):
        samples[number] += block.output(states)
    block = solved(block, STAGES[2], normed(block.mlp_norm))
    block = solved(block, STAGES[3], (gated(block, inputs) for inputs in normed(block.mlp_norm)))
    for number, inputs in enumerate(normed(block.mlp_norm)):
        samples[number] += block.down(gated(block, inputs))
    return samples


def _solve_stage(
    job: Job, solver: UnitSolver, layer: int, stage: tuple[str, ...], inputs: Iterable[Tensor]
) -> dict[str, Any]:
    """The quantized linears of a stage, by field of Block; none where the plan leaves them dense."""
    source, prefix = job.source, block_prefix(layer)
    shapes = linear_shapes(source.config)
    names = {field: f"{prefix}.{LINEARS[field]}" for field in stage}
    weights, biases = {}, {}
    for field, name in names.items():
        weight = source.weight(name, shapes[field])
        assert isinstance(weight, DenseWeight), "a quantized source is refused before"
        weights[name] = weight
        if has_bias(source.config, field):
            biases[field] = source.vector(f"{name}.bias", shapes[field][:1])
            solver.add_dense(f"{name}.bias", biases[field])
    scheme = job.recipe.plan.scheme_for(names[stage[0]])
    if scheme is None:
        for name, weight in weights.items():
            solver.add_dense(f"{name}.weight", weight.values)
        return {}
    quantized = solver.quantize(weights, scheme, inputs)
    return {
        field: make_linear(quantized[name], biases.get(field), job.device, SOLVE_DTYPE)
        for field, name in names.items()
    }


def quantize_head(job: Job, solver: UnitSolver, samples: Samples) -> None:
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
    solver.quantize({HEAD: weight}, scheme, (rms_norm(sample, placed, config.norm_epsilon) for sample in samples))


def embedding_tensor(source: ModelFolder) -> tuple[str, tuple[int, int]]:
    return f"{EMBEDDING}.weight", (source.config.vocabulary_size, source.config.hidden_size)


def embed(job: Job, calibration: Calibration | None) -> Samples:
    """The hidden states that enter the first block, one tensor per calibration window."""
    if calibration is None:
        return []
    if int(calibration.tokens.max()) >= job.source.config.vocabulary_size:
        raise UsageError(f"the tokenizer of {job.source.path} gives ids beyond the model's vocabulary")
    embedding = job.source.vector(*embedding_tensor(job.source))
    return [embedding[window].to(job.device, SOLVE_DTYPE) for window in calibration.tokens]


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
