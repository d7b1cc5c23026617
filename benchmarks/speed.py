"""Speed of SmolLM2-135M, dense and in 8 bits: prefill and decode, beside what the memory bus allows.

    .venv/bin/python benchmarks/speed.py

The models take turns, so that a noisy machine is noisy for all; medians and spread are over the turns.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from measuring import CACHE, finish, show

import octavo
from octavo.conversion.from_gguf import convert_gguf
from octavo.model.llama import LlamaModel
from octavo.runtime.generation import generate_tokens

TURNS, PROMPT, NEW_TOKENS = 5, 512, 32
BANDWIDTH_BYTES = 2**30


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="octavo-speed-") as work:
        dense, eight = Path(work) / "dense", Path(work) / "8bit"
        convert_gguf(CACHE / "smollm2.gguf", dense)
        plain = octavo.Recipe(method="rtn", act_order="none", scale_search="none")  # as fast to run as any
        octavo.quantize(dense, eight, plain)
        models = {"dense": octavo.load(dense).network, "8-bit-128g": octavo.load(eight).network}
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    bandwidths = []
    for turn in range(TURNS + 1):
        bandwidths.append(read_bandwidth())
        for name, model in models.items():
            measured = rates(model)
            if turn:  # the first turn warms up
                turns[name].append(measured)
    bandwidth = max(bandwidths)
    show(f"read bandwidth: {bandwidth / 1e9:.1f} GB/s (best of {len(bandwidths)})")
    results = {}
    for name, measured in turns.items():
        prefill, decode = (summary(list(values)) for values in zip(*measured, strict=True))
        fraction = decode["median"] * bytes_per_token(models[name]) / bandwidth
        results[name] = {"prefill_per_second": prefill, "decode_per_second": decode, "bus_fraction": fraction}
        spread = f"({decode['least']:.1f} … {decode['most']:.1f})"
        show(
            f"{name}: prefill of {PROMPT} {prefill['median']:.0f} tokens/s, "
            f"decode {decode['median']:.1f} tokens/s {spread}, {100 * fraction:.0f} % of the bus"
        )
    return finish("speed", {"bandwidth": bandwidth, "models": results}, [])


def rates(model: LlamaModel) -> tuple[float, float]:
    """Tokens per second of prefill, and of decode after it."""
    prompt = torch.randint(3, 1000, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
    started = time.perf_counter()
    tokens = generate_tokens(model, prompt, octavo.SamplingParams(), NEW_TOKENS + 1, end_ids=())
    next(tokens)
    prefilled = time.perf_counter()
    count = sum(1 for _ in tokens)
    return PROMPT / (prefilled - started), count / (time.perf_counter() - prefilled)


def bytes_per_token(model: LlamaModel) -> int:
    """Bytes of weights that a token reads: the reference path holds all of them dequantized, in float32."""
    config = model.config
    block = config.hidden_size * (2 * config.query_width + 2 * config.kv_width + 3 * config.intermediate_size)
    return 4 * (config.layers * block + config.vocabulary_size * config.hidden_size)


def read_bandwidth() -> float:
    """Bytes per second of summing a buffer larger than any cache."""
    buffer = torch.ones(BANDWIDTH_BYTES // 4)
    started = time.perf_counter()
    buffer.sum()
    return BANDWIDTH_BYTES / (time.perf_counter() - started)


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


if __name__ == "__main__":
    sys.exit(main())
