"""Peak memory of conversions of 3 GB, whatever the input files: at most the largest output shard and 500 MB.

    .venv/bin/python benchmarks/conversion_memory.py [--data FOLDER]

FOLDER holds `tokenizers/llama-32000`. A delta is added to its base, both as one safetensors file and as one
pickled file; Meta's original weights are joined from two slices. Each job runs in a process of its own, which
starts others for pickles: the anonymous memory (RssAnon) of all is added up. Pages of mapped files are left out,
since the system can take them back at any time.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import CACHE, finish, show

from octavo.checkpoint.tensors import TensorSpec, write_checkpoint
from octavo.conversion.from_original import BLOCK_TENSORS
from octavo.model.config import config_from_values
from octavo.model.load import EMBEDDING, FINAL_NORM, HEAD, LINEARS, NORMS, block_prefix, linear_shapes, norm_shapes

SHARD, MARGIN = 400_000_000, 500_000_000  # bytes
INTERVAL = 0.01  # seconds between two looks at a job
LAYERS, HIDDEN, HEADS = 28, 2048, 32
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": HIDDEN,
    "intermediate_size": 5632,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float16",
}
PARAMS = {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "norm_eps": 1e-5, "vocab_size": -1}
JOB = """
import sys
from pathlib import Path
from octavo.conversion.destination import ConversionOutput
from octavo.conversion.request import ConversionRequest, convert
source, out, size, *base = sys.argv[1:]
convert(
    ConversionRequest(Path(source), ConversionOutput(Path(out), int(size)), Path(base[0]) if base else None),
    lambda *_: None,
)
"""
Shapes = dict[str, tuple[int, ...]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=CACHE.parent.parent / "shared" / "data")
    tokenizer = parser.parse_args().data / "tokenizers" / "llama-32000"
    results, misses = {}, []
    for name, write in {
        "delta, safetensors": write_safetensors,
        "delta, pickled": write_pickle,
        "original, two slices": write_slices,
    }.items():
        with tempfile.TemporaryDirectory(prefix="octavo-conversion-") as work:
            sources = [Path(work) / "source"] + ([Path(work) / "base"] if name.startswith("delta") else [])
            for source in sources:
                shutil.copytree(tokenizer, source)
                write(source)
            words = [str(sources[0]), str(Path(work) / "out"), str(SHARD), *map(str, sources[1:])]
            results[name] = measured(words, Path(work) / "out")
        peak, largest = results[name]["peak_anonymous"], results[name]["largest_shard"]
        show(f"{name}: peak RssAnon {peak / 1e6:.0f} MB, largest shard {largest / 1e6:.0f} MB, {results[name]}")
        if peak > largest + MARGIN:
            misses.append(f"{name} takes {peak / 1e6:.0f} MB, more than {(largest + MARGIN) / 1e6:.0f}")
    return finish("conversion-memory", {"weight_bytes": weight_bytes(), "conversions": results}, misses)


def network_shapes() -> Shapes:
    """The tensors of the model by Hugging Face's name."""
    config = config_from_values(CONFIG, Path("config.json"))
    vocabulary = (config.vocabulary_size, config.hidden_size)
    shapes: Shapes = {f"{EMBEDDING}.weight": vocabulary, f"{HEAD}.weight": vocabulary}
    shapes[f"{FINAL_NORM}.weight"] = (config.hidden_size,)
    for layer in range(config.layers):
        for field, shape in {**linear_shapes(config), **norm_shapes(config)}.items():
            shapes[f"{block_prefix(layer)}.{(LINEARS | NORMS)[field]}.weight"] = shape
    return shapes


def weight_bytes() -> int:
    return sum(TensorSpec(name, torch.float16, shape).bytes for name, shape in network_shapes().items())


def filler() -> Callable[[tuple[int, ...]], torch.Tensor]:
    """What makes tensors of small random numbers; each begins elsewhere in the same ones."""
    numbers = (torch.randn(2**27, generator=torch.Generator().manual_seed(0)) * 0.02).half()
    start = 0

    def fill(shape: tuple[int, ...]) -> torch.Tensor:
        nonlocal start
        size = torch.Size(shape).numel()
        start = (start + 4099) % (len(numbers) - size)
        return numbers[start : start + size].reshape(shape)

    return fill


def write_safetensors(folder: Path) -> None:
    fill, shapes = filler(), network_shapes()
    specs = [TensorSpec(name, torch.float16, shape) for name, shape in shapes.items()]
    write_checkpoint(folder, specs, lambda name: fill(shapes[name]), max_shard_size=2**40)
    (folder / "config.json").write_text(json.dumps(CONFIG))


def write_pickle(folder: Path) -> None:
    fill = filler()
    tensors = {name: fill(shape).clone() for name, shape in network_shapes().items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(CONFIG))


def write_slices(folder: Path) -> None:
    """As Meta released weights for two devices."""
    fill, shapes = filler(), network_shapes()
    whole = {"tok_embeddings": (f"{EMBEDDING}.weight", 1), "output": (f"{HEAD}.weight", 0)}
    names = {f"{name}.weight": (shapes[other], dimension) for name, (other, dimension) in whole.items()}
    names["norm.weight"] = ((HIDDEN,), None)
    for layer in range(LAYERS):
        for field, (name, dimension) in BLOCK_TENSORS.items():
            shape = shapes[f"{block_prefix(layer)}.{(LINEARS | NORMS)[field]}.weight"]
            names[f"layers.{layer}.{name}.weight"] = (shape, dimension)
    for device in range(2):
        slices = {}
        for name, (shape, dimension) in names.items():
            halved = [size // 2 if place == dimension else size for place, size in enumerate(shape)]
            ones = torch.ones(shape, dtype=torch.float16)
            slices[name] = ones if dimension is None else fill(tuple(halved)).clone()
        torch.save(slices, folder / f"consolidated.{device:02d}.pth")
    (folder / "params.json").write_text(json.dumps(PARAMS))


def measured(words: list[str], out: Path) -> dict[str, Any]:
    """Bytes and seconds of a conversion, and of what it wrote."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", JOB, *words])
    peak = 0
    while process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        peak = max(peak, sum(map(anonymous_bytes, [str(process.pid), *children])))
        time.sleep(INTERVAL)
    if process.returncode != 0:
        raise SystemExit(f"the conversion ended with {process.returncode}")
    return {
        "peak_anonymous": peak,
        "largest_shard": max(path.stat().st_size for path in out.glob("*.safetensors")),
        "seconds": time.perf_counter() - started,
    }


def anonymous_bytes(process: str) -> int:
    """RssAnon of a process; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    raise SystemExit(main())
