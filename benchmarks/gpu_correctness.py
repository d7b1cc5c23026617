"""Every kernel on the card against float64, on random data, with outputs poisoned beforehand."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from gpu_synthetic import DEVICE, VICUNA_13B, Storage, block_shape, random_block, random_head, random_weight
from torch import Tensor

import octavo
from octavo.kernels.attention import SequencePages
from octavo.kernels.blocks import BlockParts, LayerCache, LinearParts, Rows
from octavo.model.config import LlamaConfig
from octavo.model.kv_cache import KVCache
from octavo.model.linear import make_linear
from octavo.model.llama import Block, Step, run_block
from octavo.schemes import QuantScheme
from octavo.weights import DenseWeight, QuantizedWeight, dequantize

# Rounding of inputs and outputs to half precision, and of what a kernel keeps in it.
LINEAR_BOUND = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
BLOCK_BOUND = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
SMALL = replace(
    VICUNA_13B,
    hidden_size=512,
    intermediate_size=1408,
    heads=8,
    kv_heads=2,
    head_dim=64,
    layers=1,
    windows=(None,),
)
PAGE = 16
DTYPES = (torch.float16, torch.bfloat16)
ROWS = (1, 2, 5, 8, 17, 33, 128, 600)
LINEAR_CASES, BLOCK_CASES = 36, 12
Row = dict[str, Any]


def linears(kernels: tuple[ModuleType, ...]) -> Iterator[Row]:
    """Products of schemes, shapes and rows drawn at random: each combination is another compilation."""
    schemes = itertools.product((8, 4, 3, 2), (128, 32, None), (True, False), (False, True))
    shapes = ((512, 1024), (300, 577), (5120, 5120))
    drawn = random.Random(0)
    cases = drawn.sample(list(itertools.product(schemes, shapes, DTYPES)), LINEAR_CASES)
    for kernel, ((bits, group, symmetric, act_order), shape, dtype) in itertools.product(kernels, cases):
        storage = Storage(QuantScheme(bits, group, symmetric), act_order)
        order = torch.randperm(shape[1], device=DEVICE) if act_order else None
        weight = random_weight(*shape, storage, order)
        assert isinstance(weight, QuantizedWeight)
        if kernel.why_not(weight, DEVICE) is not None:
            continue
        exact = dequantize(weight, torch.float64)
        prepared = kernel.prepare(weight, DEVICE, dtype)
        for rows in drawn.sample(ROWS, 3):
            inputs = torch.randn(rows, shape[1], device=DEVICE, dtype=dtype)
            expected = inputs.double() @ exact.t()
            poison(rows * shape[0])
            error = relative(kernel.matmul(inputs, prepared), expected)
            yield {
                "kernel": kernel.NAME,
                "what": f"{storage} {list(shape)} × {rows} {dtype}",
                "error": error,
                "bound": LINEAR_BOUND[dtype],
            }


def blocks(kernel: ModuleType) -> Iterator[Row]:
    """A whole layer against its twin in float64: several sequences, decode and prefill, windows and groups."""
    schemes = (None, QuantScheme(8, 128, True), QuantScheme(4, 128, True), QuantScheme(4, 64, False))
    cases = list(itertools.product(DTYPES, schemes, (False, True), (None, 20)))
    for dtype, scheme, act_order, window in random.Random(0).sample(cases, BLOCK_CASES):
        storage = Storage(scheme, act_order, dtype)
        parts, shape = random_block(SMALL, storage), replace(block_shape(SMALL), window=window)
        if kernel.why_not_block(parts, shape, DEVICE, dtype) is not None:
            continue
        prepared, twin = kernel.prepare_block(parts, shape, DEVICE, dtype), _twin(parts)
        for counts, cached in (([1], [0]), ([1] * 5, [3, 40, 0, 17, 63]), ([37], [0]), ([9, 1, 30], [20, 5, 0])):
            error = _block_error(kernel, prepared, twin, _Case(counts, cached, dtype, window))
            yield {
                "kernel": kernel.NAME,
                "what": f"layer, {storage}, {dtype}, window {window}, rows {counts} after {cached}",
                "error": error,
                "bound": BLOCK_BOUND[dtype],
            }


class _Case:
    """Rows of several sequences and a cache with their past."""

    def __init__(self, counts: list[int], cached: list[int], dtype: torch.dtype, window: int | None) -> None:
        pages_each = 5
        table = torch.randperm(len(counts) * pages_each, device=DEVICE).view(len(counts), pages_each)
        positions = torch.cat(
            [torch.arange(past, past + count) for count, past in zip(counts, cached, strict=True)]
        ).to(DEVICE)
        sequence = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(DEVICE)
        lengths = torch.tensor(counts, device=DEVICE) + torch.tensor(cached, device=DEVICE)
        starts = torch.tensor([0, *itertools.accumulate(counts)], device=DEVICE)
        pages = SequencePages(lengths, starts, table, PAGE, max(counts), int(lengths.max()))
        frequencies = 10000.0 ** -(torch.arange(0, SMALL.head_dim, 2, device=DEVICE) / SMALL.head_dim)
        slots = table[sequence, positions // PAGE] * PAGE + positions % PAGE
        self.rows = Rows(positions.float()[:, None] * frequencies, 1.0, slots, pages)
        self.hidden = torch.randn(len(positions), SMALL.hidden_size, device=DEVICE, dtype=dtype)
        size = (len(counts) * pages_each * PAGE, SMALL.kv_heads, SMALL.head_dim)
        self.keys, self.values = (torch.randn(size, device=DEVICE, dtype=dtype) for _ in range(2))
        self.config: LlamaConfig = replace(SMALL, windows=(window,))


def _block_error(kernel: ModuleType, prepared: Any, twin: Block, case: _Case) -> float:
    wide = KVCache((case.keys.double(),), (case.values.double(),), PAGE)
    expected = run_block(twin, 0, case.hidden.double(), Step(case.config, case.rows, wide))
    cache = LayerCache(case.keys.clone(), case.values.clone())
    poison(case.hidden.numel())
    got = kernel.run_block(case.hidden, case.rows, cache, prepared)
    written = relative(cache.keys, wide.keys[0]) + relative(cache.values, wide.values[0])
    change = expected - case.hidden.double()
    return max(float((got.double() - expected).norm() / change.norm()), written)


def _twin(parts: BlockParts) -> Block:
    """The layer of the model room, in float64."""
    fields: dict[str, Any] = {}
    for name, part in vars(parts).items():
        if isinstance(part, LinearParts):
            weight = part.weight
            exact = (
                weight.values.double() if isinstance(weight, DenseWeight) else dequantize(weight, torch.float64)
            )
            fields[name] = make_linear(DenseWeight(exact), part.bias, DEVICE, torch.float64)
        else:
            fields[name] = None if part is None else part.double()
    return Block(**fields)


def heads(kernel: ModuleType) -> Iterator[Row]:
    """The final norm and the projection."""
    for dtype, rows in itertools.product((torch.float16, torch.bfloat16), (1, 5, 64)):
        parts = random_head(replace(VICUNA_13B, vocabulary_size=3001, hidden_size=512), dtype)
        hidden = torch.randn(rows, 512, device=DEVICE, dtype=dtype)
        weight = parts.projection.weight
        assert isinstance(weight, DenseWeight)
        wide = hidden.double()
        normed = (
            wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + parts.norm_epsilon) * parts.norm.double()
        )
        poison(rows * 3001)
        got = kernel.run_head(hidden, kernel.prepare_head(parts, DEVICE, dtype))
        error = relative(got, normed @ weight.values.double().t())
        yield {
            "kernel": kernel.NAME,
            "what": f"head × {rows} {dtype}",
            "error": error,
            "bound": LINEAR_BOUND[dtype],
        }


def same_text(folder: Path) -> Row:
    """A real model on the GPU against itself on the CPU: the tokens of a greedy continuation."""
    written = []
    for device in ("cpu", "cuda"):
        model = octavo.load(folder, device)
        written.append("".join(model.generate("Once upon a time", max_new_tokens=60)))
    return {
        "what": f"text of {folder.name}",
        "same": written[0] == written[1],
        "cpu": written[0],
        "gpu": written[1],
    }


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def poison(elements: int) -> None:
    """Leave NaN in the memory that the next outputs are likely to get."""
    held = [torch.full((size,), float("nan"), device=DEVICE) for size in (elements, 4 * elements, 16 * elements)]
    del held
