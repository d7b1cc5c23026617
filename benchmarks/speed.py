"""Speed of SmolLM2-135M on this CPU beside llama.cpp on the same weights: prefill, decode, and the memory bus.

    .venv/bin/python benchmarks/speed.py [--threads N] [--turns N] [--without-peer]

All take turns in one run, so that a noisy machine is noisy for all; medians and spread are over the turns. The
peer lives in an environment of its own, .cache/llama-cpp, which scripts/peers makes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from measuring import CACHE, ROOT, finish, show

import octavo
from octavo.checkpoint.tensors import TensorFolder
from octavo.conversion.from_gguf import convert_gguf
from octavo.kernels.cpu import read_bandwidth, set_threads
from octavo.model.llama import LlamaModel
from octavo.runtime.generation import generate_tokens
from octavo.schemes import QuantScheme, SchemePlan

PROMPT, NEW_TOKENS = 512, 64
EIGHT, FOUR = QuantScheme(8, 128, True), QuantScheme(4, 128, True)
PLANS = {
    "8-bit-128g": SchemePlan(EIGHT),
    "8-bit-128g, 8-bit head": SchemePlan(EIGHT, lm_head=EIGHT),
    "4-bit-128g": SchemePlan(FOUR),
    "4-bit-128g, 8-bit head": SchemePlan(FOUR, lm_head=EIGHT),
}
# What is compared: our model, theirs, and the least ratios of decode and of prefill.
BARS = [("8-bit-128g, 8-bit head", "Q8_0", 1.4, 1.4), ("4-bit-128g, 8-bit head", "Q4_0", 1.2, 1.4)]
Rates = dict[str, float]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--turns", type=int, default=7)
    arguments.add_argument("--without-peer", action="store_true")
    given = arguments.parse_args()
    set_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="octavo-speed-") as work:
        models, sizes = make_models(Path(work))
        if given.without_peer:
            turns, bandwidth, about = measure(models, None, given.turns)
        else:
            with peer(Path(work), given.threads) as process:
                turns, bandwidth, about = measure(models, process, given.turns)
    show(f"read bandwidth: {bandwidth / 1e9:.1f} GB/s with {given.threads} threads")
    results, misses = {}, []
    for name, measured in turns.items():
        results[name] = {key: summary([each[key] for each in measured]) for key in ("prefill", "decode")}
        line = "{0} {median:.1f} tokens/s ({least:.1f} … {most:.1f})"
        parts = [line.format(key, **results[name][key]) for key in ("prefill", "decode")]
        if name in sizes:
            fraction = results[name]["decode"]["median"] * sizes[name] / bandwidth
            results[name]["bus_fraction"] = {"median": fraction}
            parts.append(f"{100 * fraction:.0f} % of the bus")
        show(f"{name}: {', '.join(parts)}")
    for ours, theirs, *bars in BARS if not given.without_peer else []:
        for key, bar in zip(("decode", "prefill"), bars, strict=True):
            ratio = results[ours][key]["median"] / results[theirs][key]["median"]
            show(f"{key} of {ours} over {theirs}: {ratio:.2f} (to be {bar} or more)")
            if ratio < bar:
                misses.append(f"{key} of {ours} is {ratio:.2f} × that of {theirs}, not {bar}")
    values = {"threads": given.threads, "bandwidth": bandwidth, "peer": about, "models": results}
    return finish("speed", values, misses)


def make_models(work: Path) -> tuple[dict[str, LlamaModel], dict[str, int]]:
    """Our models, and the bytes that a token reads of each."""
    dense = work / "dense"
    convert_gguf(CACHE / "smollm2.gguf", dense)
    models, sizes = {"dense": octavo.load(dense).network}, {}
    for name, plan in PLANS.items():
        folder = work / name
        # Rounding alone: as fast to run as any solution.
        octavo.quantize(dense, folder, octavo.Recipe(plan, method="rtn", act_order="none", scale_search="none"))
        models[name] = octavo.load(folder).network
        specs = TensorFolder(folder).specs.values()
        tied = plan.lm_head is None
        sizes[name] = sum(spec.bytes for spec in specs if tied or "embed_tokens" not in spec.name)
    return models, sizes


def measure(
    models: dict[str, LlamaModel], process: "subprocess.Popen[str] | None", turns: int
) -> tuple[dict[str, list[Rates]], float, Any]:
    """Rates of all models by turns, the best read bandwidth seen between them, and what the peer says it is."""
    about = None if process is None else answer(process)
    taken: dict[str, list[Rates]] = {}
    bandwidth = 0.0
    for turn in range(turns + 1):
        bandwidth = max(bandwidth, read_bandwidth())
        measured = {name: rates(model) for name, model in models.items()}
        if process is not None:
            for _, theirs, *_ in BARS:
                request = {"model": theirs, "prompt": PROMPT, "new_tokens": NEW_TOKENS}
                measured[theirs] = answer(process, request)
        if turn:  # the first turn warms up
            for name, value in measured.items():
                taken.setdefault(name, []).append(value)
    return taken, bandwidth, about


def rates(model: LlamaModel) -> Rates:
    """Tokens per second of prefill, and of greedy decode after it."""
    prompt = torch.randint(3, 1000, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
    started = time.perf_counter()
    tokens = generate_tokens(model, prompt, octavo.SamplingParams(), NEW_TOKENS + 1, end_ids=())
    next(tokens)
    prefilled = time.perf_counter()
    count = sum(1 for _ in tokens)
    return {"prefill": PROMPT / (prefilled - started), "decode": count / (time.perf_counter() - prefilled)}


@contextmanager
def peer(work: Path, threads: int) -> "Iterator[subprocess.Popen[str]]":
    """llama.cpp, loaded and waiting for its turns."""
    python = CACHE / "llama-cpp" / "bin" / "python"
    if not python.exists():
        raise SystemExit("llama.cpp is not here; run scripts/peers first, or give --without-peer")
    command = [python, ROOT / "benchmarks" / "llama_cpp_peer.py", CACHE / "smollm2.gguf", work, str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()  # type: ignore[union-attr]


def answer(process: "subprocess.Popen[str]", request: dict[str, Any] | None = None) -> Any:
    """The next line that the peer says, after a request if there is one."""
    assert process.stdin is not None and process.stdout is not None
    if request is not None:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
    return json.loads(process.stdout.readline())


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


if __name__ == "__main__":
    sys.exit(main())
