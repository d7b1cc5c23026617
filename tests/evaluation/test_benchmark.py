"""The benchmark's check against the windowed evaluation of the same tokens, and what it measures."""

import pytest
import torch

from conftest import shared
from octavo.evaluation import benchmark, scoring
from octavo.evaluation.benchmark import MemoryMeter, decode_window, first_token_seconds, read_bandwidth
from octavo.evaluation.scoring import score
from octavo.model.llama import FusedBlock
from octavo.model.load import load_model
from small_models import write_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory):
    return load_model(write_model(tmp_path_factory.mktemp("model")), CPU, torch.float32)


@pytest.mark.parametrize(("length", "rows_at_once"), [(40, 256), (40, 13), (40, 39), (40, 1), (2, 256)])
def test_the_check_is_the_windowed_loss(
    small, monkeypatch: pytest.MonkeyPatch, length: int, rows_at_once: int
) -> None:
    for module in (scoring, benchmark):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", rows_at_once)
    window = torch.randint(0, 61, (length,), generator=torch.Generator().manual_seed(1))
    decoding = decode_window(small, window, True, MemoryMeter(CPU))
    (expected,) = score(small, window[None], lambda losses: None)
    assert decoding.loss == pytest.approx(expected, rel=1e-5)
    assert len(decoding.seconds) == length and min(decoding.seconds) > 0
    assert decoding.allocated is None


def test_a_quantized_model_gives_the_same_bits_where_a_kernel_runs_it_whole(stories_folder, tmp_path) -> None:
    import octavo
    from octavo.quantization.recipe import Recipe

    recipe = Recipe(method="rtn", act_order="none", scale_search="none")
    octavo.quantize(stories_folder, tmp_path / "out", recipe)
    model = octavo.load(tmp_path / "out", device="cpu")
    text = shared("corpora/calibration/tinystories.txt").read_text()[:2000]
    window = torch.tensor(model.tokenizer.encode(text, control_tokens=False, beginning=True)[:300])
    decoding = decode_window(model.network, window, True, MemoryMeter(CPU))
    (expected,) = score(model.network, window[None], lambda losses: None)
    assert decoding.loss == pytest.approx(expected, rel=1e-5)
    if all(isinstance(block, FusedBlock) for block in model.network.blocks):
        assert decoding.loss == expected


def test_without_a_check_there_is_no_loss(small) -> None:
    decoding = decode_window(small, torch.arange(10), False, MemoryMeter(CPU))
    assert decoding.loss is None
    assert decoding.median_seconds == sorted(decoding.seconds)[4] / 2 + sorted(decoding.seconds)[5] / 2


def test_the_warm_up_is_not_counted(small, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    forward = benchmark.forward
    monkeypatch.setattr(
        benchmark,
        "forward",
        lambda model, batch, cache: fed.append(int(batch.tokens)) or forward(model, batch, cache),
    )
    decoding = decode_window(small, torch.arange(20, 32), True, MemoryMeter(CPU))
    assert fed == [0] * benchmark.WARM_UP_TOKENS + list(range(20, 32))
    assert len(decoding.seconds) == 12


def test_the_first_token_comes_after_the_whole_prompt(small, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[tuple[int, int]] = []
    forward = benchmark.forward

    def heard(model, batch, cache):
        rows.append((int(batch.tokens), int(batch.positions)))
        return forward(model, batch, cache)

    monkeypatch.setattr(benchmark, "forward", heard)
    assert first_token_seconds(small, torch.arange(30)) > 0
    assert rows == [(29, 29)]


@pytest.mark.skipif(not benchmark._STATUS.exists(), reason="the system does not tell what a process holds")
def test_the_peak_of_memory_is_seen_and_forgotten() -> None:
    meter = MemoryMeter(CPU)
    assert meter.allocated() is None
    before = meter.peak()
    torch.ones(50 * 2**20)  # 200 MiB, gone at once
    peak = meter.peak()
    assert before is not None and peak is not None
    assert 190 * 2**20 < peak - before < 260 * 2**20
    again = MemoryMeter(CPU).peak()
    assert again is not None and again < 50 * 2**20


def test_where_the_system_does_not_tell_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(benchmark, "_STATUS", tmp_path / "absent")
    assert MemoryMeter(CPU).peak() is None


def test_the_bandwidth_is_that_of_a_large_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "BANDWIDTH_BYTES", 64 * 2**20)
    ticks = iter([0.0, 2.0, 10.0, 10.5, 20.0, 21.0, 30.0, 34.0, 40.0, 48.0])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(ticks))
    assert read_bandwidth(CPU) == 64 * 2**20 / 0.5
