"""Time and memory of quantizing on the CPU, beside GPTQModel on the same windows of tokens.

    .venv/bin/python benchmarks/quantization.py MODEL --text FILE [--peer PYTHON] [--samples 16] [--rounds 1]

MODEL is a dense model folder, FILE the text to calibrate on, PYTHON the interpreter of an environment with
GPTQModel.
Each job runs in a process of its own, Octavo and its peer in turn; the seconds count from the opened model to the
written result, the memory is the largest resident set of the process. A figure that misses its bar ends the run
with exit code 1; results go to benchmarks/results.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from measuring import finish, show
from safetensors.torch import save_file

import octavo
from octavo.model.tokenizer import load_tokenizer
from octavo.quantization.calibration import calibration_tokens

LEAST_SPEEDUP = 8.0
LARGEST_RESIDENT = 900e6  # bytes, for SmolLM2-135M on 16 windows of 2048 tokens
BITS, GROUP_SIZE, WINDOW = 8, 64, 2048
PEER = Path(__file__).with_name("gptqmodel_peer.py")
# GPTQModel 7.7.0 starts with one worker on two cores and then asks it for two.
PEER_ENVIRONMENT = {"GPTQMODEL_CPU_WORKERS": "2"}
# As the command does before torch is there.
JOB = """
import os
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import json, sys, time, torch
from pathlib import Path
from safetensors.torch import load_file
from octavo.quantization.blocks import Observer
from octavo.quantization.calibration import Calibration
from octavo.quantization.pipeline import Destination, quantize_folder
from octavo.quantization.recipe import Recipe
from octavo.schemes import QuantScheme, SchemePlan
model, tokens, bits, group_size, out = sys.argv[1:]
calibration = Calibration(load_file(tokens)["tokens"], "benchmark", "a file", "", "")
recipe = Recipe(SchemePlan(QuantScheme(int(bits), int(group_size), True)))
started = time.perf_counter()
quantize_folder(Path(model), Destination(Path(out)), recipe, calibration, torch.device("cpu"), Observer())
print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
"""


@dataclass(frozen=True)
class Cost:
    """What one job took: `resident` is the largest resident set, in bytes."""

    seconds: float
    resident: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    commands = {"octavo": [sys.executable, "-c", JOB]}
    if arguments.peer is not None:
        commands["gptqmodel"] = [str(arguments.peer.absolute()), str(PEER)]
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory(prefix="octavo-quantization-") as folder:
        work = Path(folder)
        spec = octavo.CalibrationSpec(str(arguments.text), arguments.samples, WINDOW)
        calibration = calibration_tokens(spec, load_tokenizer(arguments.model))
        save_file({"tokens": calibration.tokens}, work / "tokens.safetensors")
        for number in range(arguments.rounds):
            for name, command in commands.items():
                values = [
                    arguments.model,
                    work / "tokens.safetensors",
                    BITS,
                    GROUP_SIZE,
                    work / f"{name}-{number}",
                ]
                cost = cost_of([*command, *map(str, values)], work)
                costs[name].append(cost)
                show(f"{name}: {cost.seconds:.1f} s, {cost.resident / 1e6:.0f} MB")
    results = {name: [asdict(cost) for cost in found] for name, found in costs.items()}
    return finish("quantization", {"samples": arguments.samples, **results}, misses_of(costs))


def misses_of(costs: dict[str, list[Cost]]) -> list[str]:
    """What missed its bar; the fastest run of each counts for time."""
    misses = []
    resident = max(cost.resident for cost in costs["octavo"])
    if resident > LARGEST_RESIDENT:
        misses.append(f"the largest resident set is {resident / 1e6:.0f} MB, above {LARGEST_RESIDENT / 1e6:.0f}")
    if "gptqmodel" in costs:
        ours, peers = (min(cost.seconds for cost in costs[name]) for name in ("octavo", "gptqmodel"))
        show(f"Octavo is {peers / ours:.2f} times as fast as GPTQModel")
        if peers / ours < LEAST_SPEEDUP:
            misses.append(f"Octavo is {peers / ours:.2f} times as fast as GPTQModel, below {LEAST_SPEEDUP}")
    return misses


def cost_of(command: list[str], work: Path) -> Cost:
    """Run a job; its last line of output tells its seconds."""
    log = work / "log"
    with log.open("w") as output:
        environment = {**os.environ, **PEER_ENVIRONMENT}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=work, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    text = log.read_text(errors="replace")
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"a job ended with {process.returncode}:\n{text[-2000:]}")
    seconds = json.loads(text.strip().splitlines()[-1])["seconds"]
    return Cost(float(seconds), usage.ru_maxrss * 1024)


if __name__ == "__main__":
    sys.exit(main())
