"""The GPU path on a card: right first, then how fast beside what the card allows.

    python benchmarks/gpu.py [--budget SECONDS] [--model FOLDER] [--results FOLDER] [--sections NAME,…]

Each section runs in a process of its own, so that one that fails does not take the others with it; they come in
order of importance until the budget is spent, and what was left out is said. The tables come last.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpu_correctness
import gpu_cuda
import gpu_quantization
import gpu_serving
import gpu_speed
import torch
from gpu_synthetic import Storage
from gpu_timing import ceilings
from measuring import RESULTS, show

from octavo.kernels import dispatch
from octavo.records import describe_machine, write_json
from octavo.schemes import QuantScheme

EIGHT, FOUR = QuantScheme(8, 128, True), QuantScheme(4, 128, True)
LEAST_SECONDS = 20  # a section is not begun with less
SHORT = [(1, 512)]
FULL = [(1, 512), (1, 0), (1, 2048), (32, 64), (32, 512), (4, 512), (16, 512), (64, 512)]
Results = dict[str, Any]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--budget", type=float, default=540)
    arguments.add_argument("--model", type=Path, help="a small model folder, to compare its text with the CPU's")
    arguments.add_argument("--results", type=Path, default=RESULTS)
    arguments.add_argument("--sections", help="only these, by name")
    arguments.add_argument("--section", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    sections = {
        "correctness": lambda: correctness(given.model),
        "ceilings": ceilings,
        "8-bit": lambda: list(decode(Storage(EIGHT), FULL)),
        "4-bit": lambda: list(decode(Storage(FOUR), FULL)),
        "quantization": lambda: quantization(given.model),
        "products": lambda: list(gpu_speed.sweep(_gpu_kernels(dispatch.KERNELS), (8, 4), (1, 4, 16, 32, 64))),
        "serving": lambda: serving(given.model),
        "act-order": lambda: list(decode(Storage(EIGHT, act_order=True), SHORT)),
        "profile": lambda: list(profile()),
        "dense": lambda: list(decode(Storage(None), FULL)),
    }
    if given.section:
        values = sections[given.section]()
        write_json(given.results / f"{given.section}.json", {"values": values})
        return 0
    ends = time.monotonic() + given.budget
    given.results.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in given.sections.split(",") if given.sections else sections:
        results[name] = run_section(name, given, ends)
    print_tables(results)
    label = "-".join(torch.cuda.get_device_name().lower().split())
    about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": describe_machine("cuda:0")}
    write_json(given.results / f"gpu-{label}.json", {**about, "torch": torch.__version__, **results})
    return 0 if all(section["status"] == "done" for section in results.values()) else 1


def run_section(name: str, given: argparse.Namespace, ends: float) -> Results:
    """A section's values and seconds, from a process of its own."""
    left = ends - time.monotonic()
    if left < LEAST_SECONDS:
        show(f"{name}: left out, the budget is spent")
        return {"status": "left out"}
    command = [sys.executable, __file__, "--section", name, "--results", str(given.results)]
    if given.model:
        command += ["--model", str(given.model)]
    started = time.monotonic()
    try:
        code = subprocess.run(command, timeout=left, check=False).returncode
    except subprocess.TimeoutExpired:
        return {"status": "ran out of time"}
    seconds = time.monotonic() - started
    show(f"{name}: {seconds:.0f} s, exit code {code}")
    if code:
        return {"status": "failed"}
    part = given.results / f"{name}.json"
    values = json.loads(part.read_text())["values"]
    part.unlink()
    return {"status": "done", "seconds": seconds, "values": values}


def decode(storage: Storage, cases: list[tuple[int, int]]) -> Iterator[Results]:
    """Whole decode steps, then prompts, of one synthetic network."""
    (kernel,) = _gpu_kernels(dispatch.BLOCK_KERNELS)
    model = gpu_speed.build(kernel, storage)
    yield {"stored": str(storage), "memory_bytes": torch.cuda.memory_allocated()}
    for sequences, context in cases:
        yield gpu_speed.decode(model, storage, sequences, context)
    for length in (512, 2048):
        yield gpu_speed.prefill(model, storage, length)
    yield {"stored": str(storage), "peak_memory_bytes": torch.cuda.max_memory_allocated()}


def profile() -> Iterator[Results]:
    """Where the time of a decode step goes, kernel by kernel."""
    (kernel,) = _gpu_kernels(dispatch.BLOCK_KERNELS)
    for storage in (Storage(EIGHT), Storage(FOUR)):
        model = gpu_speed.build(kernel, storage)
        for sequences in (1, 32):
            yield from gpu_speed.profile(model, storage, sequences, 512)
        del model


def correctness(model: Path | None) -> list[Results]:
    """Every kernel; only what missed its bound is listed, after the count."""
    checks = [*gpu_correctness.linears(_gpu_kernels(dispatch.KERNELS))]
    for kernel in _gpu_kernels(dispatch.BLOCK_KERNELS):
        checks += [*gpu_correctness.blocks(kernel), *gpu_correctness.heads(kernel)]
    checks += gpu_cuda.checks()
    missed = [check for check in checks if not check["error"] <= check["bound"] or not check.get("repeats", True)]
    worst = max(checks, key=lambda check: check["error"] / check["bound"])
    summary: list[Results] = [{"checks": len(checks), "missed": len(missed), "worst": worst}, *missed]
    return [*summary, gpu_correctness.same_text(model)] if model else summary


def quantization(model: Path | None) -> list[Results]:
    """A block of 13B, its precision, and a small model on the GPU beside the same on the CPU."""
    found = [*gpu_quantization.one_block(), *gpu_quantization.precision()]
    return [*found, gpu_quantization.same_codes(model)] if model else found


def serving(model: Path | None) -> list[Results]:
    """The engine with 13B's shape at 8 bits, and with a small model whose replies are compared."""
    (kernel,) = _gpu_kernels(dispatch.BLOCK_KERNELS)
    found = [*gpu_serving.throughput(gpu_speed.build(kernel, Storage(EIGHT)))]
    return [*found, gpu_serving.company(model)] if model else found


def _gpu_kernels(kernels: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(kernel for kernel in kernels if kernel.NAME in ("Triton", "CUDA"))


def print_tables(results: Results) -> None:
    """One line per figure, the ceilings beside them."""
    found = results.get("ceilings", {}).get("values", {})
    ceiling = found.get("read_bytes_per_second", float("nan"))
    for name, value in found.items():
        show(f"{name}: {value:.4g}")
    for name, section in results.items():
        show(f"== {name}: {section['status']}")
        values = section.get("values", [])
        for row in values if isinstance(values, list) else []:
            show("  " + _line(row, ceiling))


def _line(row: Results, ceiling: float) -> str:
    if "median" not in row:
        return ", ".join(f"{key} {value}" for key, value in row.items())
    labels = ("kernel", "product", "stored", "rows", "sequences", "context", "length")
    label = " ".join(
        f"{key} {row[key]}" if isinstance(row[key], int) else row[key] for key in labels if key in row
    )
    parts = [label, f"{row['median'] * 1e6:.1f} µs ({row['least'] * 1e6:.1f} … {row['most'] * 1e6:.1f})"]
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:.1f} tokens/s")
    if "bytes_per_second" in row:
        rate = row["bytes_per_second"]
        parts.append(f"{rate / 1e9:.0f} GB/s, {rate / ceiling:.1%} of the read ceiling")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
