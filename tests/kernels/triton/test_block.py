"""Whole layers and the head against the network's own, in float64: one row per sequence, and prompts."""

import itertools

import pytest
import torch

from covering import covering_cases
from octavo.kernels import triton_gpu
from octavo.kernels.attention import SequencePages
from octavo.kernels.blocks import BlockParts, BlockShape, HeadParts, LayerCache, LinearParts, Rows
from octavo.kernels.triton_gpu import block
from octavo.kernels.triton_gpu.card import Card, Place
from octavo.model import llama
from octavo.model.config import LlamaConfig, RopeScaling
from octavo.model.kv_cache import KVCache
from octavo.model.linear import make_linear
from octavo.schemes import QuantScheme
from octavo.weights import DenseWeight, dequantize
from random_weights import column_groups, random_dense, random_quantized

CPU = torch.device("cpu")
HIDDEN, MLP, EPSILON = 96, 150, 1e-5
# Each of the layer's five roundings to half precision is seen in the result.
BOUNDS = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1.2e-2}
# How many rows each sequence appends to how long a past.
DECODE = ((1,), (0,)), ((1, 1, 1), (99, 0, 64)), ((1, 1), (300, 63))
PROMPTS = ((37,), (0,)), ((9, 1, 30), (20, 5, 0))
AXES = {
    "storage": ((8, 32, True), (8, 64, False), (4, 128, True), (4, 32, False), (3, None, False), None),
    "act_order": (False, True),
    "heads": ((4, 4, 32), (4, 2, 48), (6, 1, 16), (2, 1, 256)),
    "bias": (False, True),
    "head_norms": (False, True),
    "window": (None, 40),
    "page_size": (16, 64, 512),
    "counts": (*DECODE, *PROMPTS),
    "dtype": (torch.float16, torch.float32, torch.bfloat16),
    "processors": (1, 40),
}


def make_parts(case) -> BlockParts:
    heads, kv_heads, head_dim = case["heads"]
    storage, with_bias = case["storage"], case["bias"]

    def linear(outputs, columns, groups, bias):
        if storage is None:
            weight = random_dense(outputs, columns)
        else:
            weight = random_quantized(outputs, groups, QuantScheme(*storage))
        return LinearParts(weight, (torch.randn(outputs) / 4).bfloat16().float() if bias and with_bias else None)

    def groups(columns):
        return column_groups(columns, None if storage is None else storage[1], case["act_order"])

    def norm(width):
        return (1 + torch.randn(width) / 10).bfloat16().float()

    width, kv_width = heads * head_dim, kv_heads * head_dim
    attention_groups, mlp_groups = groups(HIDDEN), groups(HIDDEN)
    return BlockParts(
        attention_norm=norm(HIDDEN),
        query=linear(width, HIDDEN, attention_groups, True),
        key=linear(kv_width, HIDDEN, attention_groups, False),
        value=linear(kv_width, HIDDEN, attention_groups, True),
        output=linear(HIDDEN, width, groups(width), True),
        query_norm=norm(head_dim) if case["head_norms"] else None,
        key_norm=norm(head_dim) if case["head_norms"] else None,
        mlp_norm=norm(HIDDEN),
        gate=linear(MLP, HIDDEN, mlp_groups, False),
        up=linear(MLP, HIDDEN, mlp_groups, True),
        down=linear(HIDDEN, MLP, groups(MLP), True),
    )


def make_rows(case) -> Rows:
    """Sequences whose pages lie anywhere, as many as the longest needs, for each."""
    (counts, pasts), page_size, head_dim = case["counts"], case["page_size"], case["heads"][2]
    lengths = [past + count for count, past in zip(counts, pasts, strict=True)]
    each = -(-max(lengths) // page_size)
    table = torch.randperm(len(counts) * each).view(-1, each)
    positions = torch.cat([torch.arange(past, length) for past, length in zip(pasts, lengths, strict=True)])
    sequence = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    starts = torch.tensor([0, *itertools.accumulate(counts)])
    frequencies = 10000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
    return Rows(
        angles=positions.float()[:, None] * frequencies,
        temperature=1.1,
        write_slots=table[sequence, positions // page_size] * page_size + positions % page_size,
        pages=SequencePages(torch.tensor(lengths), starts, table, page_size, max(counts), max(lengths)),
    )


def make_cache(case, rows, guards) -> LayerCache:
    _, kv_heads, head_dim = case["heads"]
    shape = (rows.pages.page_table.numel() * case["page_size"], kv_heads, head_dim)
    return LayerCache(*(guards.around(torch.randn(shape).to(case["dtype"])) for _ in range(2)))


def expected_of(parts, case, rows, cache, hidden):
    """The layer of the model, in float64; and the cache after it."""

    def linear(part):
        weight = part.weight
        values = (
            weight.values.to(case["dtype"])
            if isinstance(weight, DenseWeight)
            else dequantize(weight, torch.float64)
        )
        return make_linear(DenseWeight(values.double()), part.bias, CPU, torch.float64)

    fields = {
        name: linear(part) if isinstance(part, LinearParts) else part if part is None else part.double()
        for name, part in vars(parts).items()
    }
    wide = LayerCache(cache.keys.double(), cache.values.double())
    step = llama.Step(make_config(case), rows, KVCache((wide.keys,), (wide.values,), case["page_size"]))
    return llama.run_block(llama.Block(**fields), 0, hidden.double(), step), wide


def make_config(case) -> LlamaConfig:
    heads, kv_heads, head_dim = case["heads"]
    return LlamaConfig(
        architecture="LlamaForCausalLM",
        vocabulary_size=1,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        layers=1,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=512,
        norm_epsilon=EPSILON,
        rope_theta=10000.0,
        rope_scaling=RopeScaling(),
        tied_embeddings=False,
        attention_bias=case["bias"],
        output_bias=case["bias"],
        query_key_norm=case["head_norms"],
        windows=(case["window"],),
    )


def relative(got, expected) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("case", covering_cases(AXES), ids=str)
def test_layers(case, guards):
    torch.manual_seed(0)
    parts, rows = make_parts(case), make_rows(case)
    cache, dtype = make_cache(case, rows, guards), case["dtype"]
    hidden = torch.randn(len(rows.angles), HIDDEN).to(dtype)
    expected, written = expected_of(parts, case, rows, cache, hidden)
    shape = BlockShape(case["heads"][2], EPSILON, case["window"])
    prepared = block.prepare_block(parts, shape, Place(CPU, dtype, Card(90, case["processors"])))
    got = block.run_block(guards.around(hidden), rows, cache, prepared)
    assert got.dtype == dtype
    assert relative(got, expected) < BOUNDS[dtype]
    assert relative(cache.keys, written.keys) < BOUNDS[dtype]
    assert relative(cache.values, written.values) < BOUNDS[dtype]
    others = torch.ones(len(cache.keys), dtype=torch.bool)
    others[rows.write_slots] = False
    assert torch.equal(cache.keys[others].double(), written.keys[others])
    assert torch.equal(cache.values[others].double(), written.values[others])


HEAD_AXES = {
    "bits": (4, 8, None),
    "rows": (1, 5, 40),
    "dtype": (torch.float16, torch.float32, torch.bfloat16),
    "processors": (1, 40),
}


@pytest.mark.parametrize("case", covering_cases(HEAD_AXES), ids=str)
def test_heads(case, guards):
    torch.manual_seed(0)
    dtype, bits, vocabulary = case["dtype"], case["bits"], 61
    if bits is None:
        weight = random_dense(vocabulary, HIDDEN)
        exact = weight.values.to(dtype).double()
    else:
        weight = random_quantized(vocabulary, column_groups(HIDDEN, 32, True), QuantScheme(bits, 32, False))
        exact = dequantize(weight, torch.float64)
    norm = (1 + torch.randn(HIDDEN) / 10).bfloat16().float()
    place = Place(CPU, dtype, Card(90, case["processors"]))
    prepared = block.prepare_head(HeadParts(norm, EPSILON, LinearParts(weight)), place)
    hidden = torch.randn(case["rows"], HIDDEN).to(dtype)
    got = block.run_head(guards.around(hidden), prepared)
    assert got.dtype == dtype
    assert relative(got, llama.rms_norm(hidden.double(), norm.double(), EPSILON) @ exact.t()) < BOUNDS[dtype]


@pytest.mark.parametrize("shape", [(7, 96), (2, 3, 96), (96,)])
def test_matmul_takes_any_rows(shape, guards, monkeypatch):
    monkeypatch.setattr(triton_gpu, "place_on", lambda device, dtype: Place(device, dtype, Card(90, 40)))
    torch.manual_seed(0)
    weight = random_quantized(40, column_groups(96, 32, True), QuantScheme(4, 32, False))
    inputs = torch.randn(96, *shape[:-1]).half().movedim(0, -1)  # and not contiguous
    got = triton_gpu.matmul(inputs, triton_gpu.prepare(weight, CPU, torch.float16))
    expected = inputs.double() @ dequantize(weight, torch.float64).t()
    assert got.shape == (*shape[:-1], 40)
    assert relative(got, expected) < 5e-4
