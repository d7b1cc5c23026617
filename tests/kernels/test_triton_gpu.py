"""What the Triton kernels refuse, in words, on a machine that need have neither a GPU nor Triton."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from octavo.kernels import triton_gpu
from octavo.kernels.blocks import BlockParts, BlockShape, HeadParts, LinearParts
from octavo.kernels.triton_gpu import card
from octavo.schemes import QuantScheme
from random_weights import column_groups, random_dense, random_quantized

CPU, GPU = torch.device("cpu"), torch.device("cuda")
NO_GPU = "it runs on NVIDIA GPUs, not on cpu"
EIGHT = QuantScheme(8, 32, True)


def quantized(outputs, columns, group_size=32, act_order=False):
    return random_quantized(outputs, column_groups(columns, group_size, act_order), EIGHT)


@pytest.fixture(scope="module")
def parts():
    def linear(outputs, columns):
        return LinearParts(quantized(outputs, columns))

    return BlockParts(
        attention_norm=torch.ones(64),
        query=linear(64, 64),
        key=linear(32, 64),
        value=linear(32, 64),
        output=linear(64, 64),
        query_norm=None,
        key_norm=None,
        mlp_norm=torch.ones(64),
        gate=linear(96, 64),
        up=linear(96, 64),
        down=linear(64, 96),
    )


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setattr(triton_gpu, "why_not_on", lambda device: None)


def test_no_triton_is_loaded_to_say_no():
    code = """
import sys, torch
from octavo.kernels import dispatch, triton_gpu
assert triton_gpu in dispatch.KERNELS and triton_gpu in dispatch.BLOCK_KERNELS
print(triton_gpu.why_not(None, torch.device("cpu")), "triton" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == f"{NO_GPU} False\n"


def test_a_device_that_is_no_gpu(parts):
    head = HeadParts(torch.ones(64), 1e-5, parts.query)
    shape = BlockShape(32, 1e-5, None)
    assert triton_gpu.why_not(parts.query.weight, CPU) == NO_GPU
    assert triton_gpu.why_not_block(parts, shape, CPU, torch.float16) == NO_GPU
    assert triton_gpu.why_not_head(head, CPU, torch.float16) == NO_GPU


def test_a_gpu_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("a GPU is there")
    assert card.why_not_on(GPU) == "PyTorch sees no NVIDIA GPU here"


def test_gpus_that_are_too_old_and_triton_that_is_absent(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(card, "find_spec", lambda name: None)
    assert card.why_not_on(GPU) == "the package triton is not installed; `pip install triton` brings it"
    monkeypatch.setattr(card, "find_spec", lambda name: name)
    monkeypatch.setattr(card, "card_of", lambda device: card.Card(75, 40))
    assert card.why_not_on(GPU) == "the GPU has compute capability 7.5, and it needs 8.0 or newer"
    monkeypatch.setattr(card, "card_of", lambda device: card.Card(80, 108))
    assert card.why_not_on(GPU) is None


def test_layers_that_do_not_fit(parts, with_gpu):
    def objection(parts, head_dim=32, dtype=torch.float16):
        return triton_gpu.why_not_block(parts, BlockShape(head_dim, 1e-5, None), GPU, dtype)

    assert objection(parts) is None
    coded = BlockShape(32, 1e-5, None, coded_cache=True)
    assert "not in 8 bits" in triton_gpu.why_not_block(parts, coded, GPU, torch.float16)
    assert objection(parts, dtype=torch.float32) == "it computes in float16 or bfloat16, not in float32"
    assert objection(parts, 40) == "heads of 40 are no multiple of 16 up to 256"
    assert objection(parts, 272) == "heads of 272 are no multiple of 16 up to 256"
    shuffled, dense = LinearParts(quantized(32, 64, act_order=True)), LinearParts(random_dense(64, 96))
    grouped = "query, key and value: their columns are grouped in different ways"
    assert objection(replace(parts, value=shuffled)) == grouped
    assert objection(replace(parts, up=dense)) == "gate and up: some are dense and some quantized"
    assert objection(replace(parts, down=dense)) is None
    tiny = LinearParts(quantized(64, 96, 10))
    assert objection(replace(parts, down=tiny)).startswith("down: its groups are so small that 96 columns")
    wide = replace(parts, attention_norm=torch.ones(40_000), mlp_norm=torch.ones(40_000))
    assert objection(wide) == "rows of 40000 are wider than 32768"


def test_heads_that_do_not_fit(parts, with_gpu):
    head = HeadParts(torch.ones(64), 1e-5, parts.query)
    assert triton_gpu.why_not_head(head, GPU, torch.bfloat16) is None
    assert (
        triton_gpu.why_not_head(head, GPU, torch.float64) == "it computes in float16 or bfloat16, not in float64"
    )
    tiny = replace(head, projection=LinearParts(quantized(64, 96, 10)))
    assert triton_gpu.why_not_head(tiny, GPU, torch.float16).startswith("head: its groups are so small")
