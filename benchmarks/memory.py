"""Peak memory of a quantization: a LLaMA-shaped model with 4 GB of dense weights must stay below 2.5 GB.

    .venv/bin/python benchmarks/memory.py

The job runs in a process of its own, sampled twenty times a second: anonymous memory (RssAnon), which counts,
and mapped file pages (RssFile), which the system can take back at any time.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measuring import finish, show

from octavo.checkpoint.tensors import TensorSpec, write_checkpoint
from octavo.model.config import config_from_values
from octavo.model.load import EMBEDDING, FINAL_NORM, HEAD, LINEARS, NORMS, block_prefix, linear_shapes, norm_shapes

LARGEST_ANONYMOUS = 2.5e9  # bytes
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 29,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float16",
}
JOB = """
import sys, torch
from pathlib import Path
from octavo.quantization.blocks import Observer
from octavo.quantization.calibration import Calibration
from octavo.quantization.pipeline import Destination, quantize_folder
from octavo.quantization.recipe import Recipe
tokens = torch.randint(0, 8192, (16, 512), generator=torch.Generator().manual_seed(0))
calibration = Calibration(tokens, "random", "made by the benchmark", "", "")
source, destination = Path(sys.argv[1]), Destination(Path(sys.argv[2]))
quantize_folder(source, destination, Recipe(), calibration, torch.device("cpu"), Observer())
"""


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="octavo-memory-") as folder:
        source, out = Path(folder) / "dense", Path(folder) / "out"
        size = write_synthetic(source)
        show(f"dense weights: {size / 1e9:.2f} GB")
        started = time.perf_counter()
        peaks = peaks_of([sys.executable, "-c", JOB, str(source), str(out)])
        seconds = time.perf_counter() - started
    anonymous, mapped = peaks["RssAnon"] / 1e9, peaks["RssFile"] / 1e9
    show(f"peak RssAnon {anonymous:.3f} GB, peak RssFile {mapped:.3f} GB, {seconds:.0f} s")
    misses = []
    if peaks["RssAnon"] >= LARGEST_ANONYMOUS:
        misses.append(f"peak RssAnon is {anonymous:.3f} GB, above {LARGEST_ANONYMOUS / 1e9} GB")
    return finish("memory", {"dense_bytes": size, "peak_bytes": peaks, "seconds": seconds}, misses)


def write_synthetic(folder: Path) -> int:
    """A random model of the shape above; the bytes of its tensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    config = config_from_values(CONFIG, folder / "config.json")
    shapes: dict[str, tuple[int, ...]] = {
        f"{EMBEDDING}.weight": (config.vocabulary_size, config.hidden_size),
        f"{FINAL_NORM}.weight": (config.hidden_size,),
        f"{HEAD}.weight": (config.vocabulary_size, config.hidden_size),
    }
    for layer in range(config.layers):
        prefix = block_prefix(layer)
        shapes |= {f"{prefix}.{NORMS[field]}.weight": shape for field, shape in norm_shapes(config).items()}
        shapes |= {f"{prefix}.{LINEARS[field]}.weight": shape for field, shape in linear_shapes(config).items()}
    specs = [TensorSpec(name, torch.float16, shape) for name, shape in shapes.items()]
    generator = torch.Generator().manual_seed(0)

    def load(name: str) -> torch.Tensor:
        shape = shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.float16)
        return (torch.randn(shape, generator=generator) * shape[1] ** -0.5).to(torch.float16)

    write_checkpoint(folder, specs, load, max_shard_size=10**9)
    return sum(spec.bytes for spec in specs)


def peaks_of(command: list[str]) -> dict[str, int]:
    """The largest RssAnon and RssFile of a process while it runs, in bytes."""
    peaks = {"RssAnon": 0, "RssFile": 0}
    process = subprocess.Popen(command)
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]) * 1024)
        time.sleep(0.05)
    if process.returncode != 0:
        raise SystemExit(f"the job ended with {process.returncode}")
    return peaks


if __name__ == "__main__":
    sys.exit(main())
