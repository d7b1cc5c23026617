"""A decoder layer in stages: the parts against their definitions, and the whole against the network's own."""

import pytest
import torch

from octavo.kernels.stages import Heads
from octavo.model.kv_cache import make_cache, one_sequence
from octavo.model.llama import make_step, rms_norm, run_block
from octavo.model.load import open_folder
from octavo.quantization import forward
from octavo.quantization.forward import Kept, attend, attend_in_torch, gate, gate_in_torch, normalize
from small_models import write_family_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["Llama", "Mistral", "Qwen2", "Qwen3"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    values = {"sliding_window": 20} if request.param == "Mistral" else {}
    write_family_model(path, request.param, values)
    return open_folder(path)


def step_of(config, length):
    batch = one_sequence(torch.zeros(length, dtype=torch.int64), 0, length)
    return make_step(config, batch, make_cache(config, 1, length, CPU, torch.float32))


def heads_of(folder, block):
    config = folder.config
    return Heads(
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.windows[1],
        block.query_norm,
        block.key_norm,
        config.norm_epsilon,
    )


def close(found, expected):
    return (found - expected).norm() <= 2e-6 * expected.norm()


def test_a_layer_in_stages_is_the_layer(folder):
    config, length = folder.config, 50
    block, step = folder.block(1, CPU, torch.float32), step_of(config, length)
    hidden = torch.randn(length, config.hidden_size, generator=torch.Generator().manual_seed(0))
    inputs = normalize(hidden, block.attention_norm, config.norm_epsilon)
    projected = torch.cat([linear(inputs) for linear in (block.query, block.key, block.value)], 1)
    middle = hidden + block.output(attend(projected, heads_of(folder, block), step))
    inputs = normalize(middle, block.mlp_norm, config.norm_epsilon)
    result = middle + block.down(gate(torch.cat([block.gate(inputs), block.up(inputs)], 1)))
    assert close(result, run_block(block, 1, hidden, step))


def test_native_parts_are_their_definitions(folder):
    pytest.importorskip("octavo.kernels._native")
    config, length = folder.config, 150
    block, step = folder.block(1, CPU, torch.float32), step_of(config, length)
    generator = torch.Generator().manual_seed(1)
    projected = torch.randn(length, config.query_width + 2 * config.kv_width, generator=generator)
    heads = heads_of(folder, block)
    assert close(attend(projected, heads, step), attend_in_torch(projected, heads, step, torch.float32))
    wide = torch.randn(length, 2 * config.intermediate_size, generator=generator) * 3
    assert close(gate(wide), gate_in_torch(wide))
    weight = torch.randn(wide.shape[1], generator=generator)
    assert close(normalize(wide, weight, 1e-5), rms_norm(wide, weight, 1e-5))


@pytest.mark.parametrize("kept_bytes", [0, 3 * 8 * 5 * 4, 2**20])
def test_tensors_come_again_the_same_whether_kept_or_not(kept_bytes, monkeypatch):
    monkeypatch.setattr(forward, "KEPT_BYTES", kept_bytes)
    calls = []

    def compute(number):
        calls.append(number)
        return torch.full((5, 8), float(number))

    kept = Kept(compute, 6)
    for _ in range(2):
        assert [int(tensor[0, 0]) for tensor in kept] == [0, 1, 2, 3, 4, 5]
    recomputed = {0: [0, 1, 2, 3, 4, 5], 480: [3, 4, 5], 2**20: []}[kept_bytes]
    assert calls == [0, 1, 2, 3, 4, 5, *recomputed]
