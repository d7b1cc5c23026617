"""`make interop`: other programs read what Octavo writes, and compute the same.

SmolLM2-135M is quantized to 8 and 4 bits, symmetric, in groups of 64. For each, on one text of 256 tokens:

- GPTQModel loads the folder on a CPU; the weights that it dequantizes are ours, rounded to float16, and its logits
  are no further from ours than twice those of the dequantized model in plain float16 are;
- transformers parses the configuration;
- `gguf` reads the exported GGUF file, whose tensors are our weights to the bit;
- llama.cpp, where scripts/peers has installed it, computes the same from it as far as its 8-bit activations allow.

A miss ends the run with exit code 1. docs/interop.md has the figures of the last one.
"""

import json
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import octavo
from octavo.conversion.destination import ConversionOutput
from octavo.conversion.from_gguf import convert_gguf
from octavo.conversion.request import ConversionRequest, convert
from octavo.evaluation.metrics import kl_divergence, softmax, top1_agreement
from octavo.model.kv_cache import make_cache, one_sequence
from octavo.model.llama import hidden_states
from octavo.model.load import every_linear, open_folder
from octavo.weights import dequantize

SCRIPTS = Path(__file__).parent
CACHE = SCRIPTS.parent / ".cache"
GPTQMODEL, LLAMA_CPP = CACHE / "gptqmodel" / "bin" / "python", CACHE / "llama-cpp" / "bin" / "python"
TOKENS, GROUP_SIZE, CALIBRATION_SAMPLES = 256, 64, 16
LARGEST_KL_OF_LLAMA_CPP = 0.005  # nats; its activations have 8 bits
# Tensors whose rows llama.cpp keeps in order.
GGUF_NAMES = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


@dataclass(frozen=True)
class Work:
    """Where a run puts what it makes, and the text that it compares on."""

    folder: Path
    tokens: Tensor


def main() -> int:
    misses: list[str] = []
    with tempfile.TemporaryDirectory(prefix="octavo-interop-") as name:
        folder = Path(name)
        convert_gguf(CACHE / "smollm2.gguf", folder / "dense")
        tokenizer = octavo.load(folder / "dense", device="cpu").tokenizer
        text = (CACHE / "wiki.utf8").read_text()
        tokens = torch.tensor(tokenizer.encode(text[-8 * TOKENS :], control_tokens=False)[:TOKENS])
        save_file({"tokens": tokens}, folder / "tokens.safetensors")
        (folder / "tokens.json").write_text(json.dumps(tokens.tolist()))
        work = Work(folder, tokens)
        for bits in (8, 4):
            misses += examine(work, bits)
    for miss in misses:
        show(f"MISSED: {miss}")
    return 1 if misses else 0


def examine(work: Work, bits: int) -> list[str]:
    """All comparisons of one scheme; what missed its bar."""
    name = f"{bits}-bit-{GROUP_SIZE}g"
    folder = work.folder / name
    scheme = octavo.QuantScheme(bits, GROUP_SIZE, symmetric=True)
    calibration = octavo.CalibrationSpec(str(CACHE / "wiki.utf8"), CALIBRATION_SAMPLES, 512)
    octavo.quantize(work.folder / "dense", folder, octavo.Recipe(octavo.SchemePlan(scheme)), calibration)
    ours = logits_of(folder, work.tokens)
    misses = [
        *examine_gptqmodel(work, folder, ours),
        *examine_config(folder, scheme),
        *examine_gguf(work, folder, ours),
    ]
    return [f"{name}: {miss}" for miss in misses]


def logits_of(folder: Path, tokens: Tensor) -> Tensor:
    """Ours, in float32."""
    model = octavo.load(folder, device="cpu").network
    cache = make_cache(model.config, 1, len(tokens), model.device, model.dtype)
    with torch.inference_mode():
        return model.head(hidden_states(model, one_sequence(tokens, 0, cache.page_size), cache))


def examine_gptqmodel(work: Work, folder: Path, ours: Tensor) -> list[str]:
    """GPTQModel's weights and logits against ours; the bar is what float16 alone does to the logits."""
    out = work.folder / "gptqmodel.safetensors"
    said = answer_of(GPTQMODEL, "interop_gptqmodel.py", folder, work.folder / "tokens.safetensors", out)
    theirs = load_file(out)
    opened, shapes = open_folder(folder), every_linear(open_folder(folder).config)
    misses = []
    for name in sorted(theirs.keys() - {"logits"}):
        expected = dequantize(opened.weight(name, shapes[name])).half()
        if not torch.equal(theirs[name], expected):
            misses.append(f"GPTQModel dequantizes {name} to other numbers")
    distance, half = divergence(ours, theirs["logits"]), divergence(ours, half_logits(work, folder))
    show(f"{folder.name}: GPTQModel {said}: {distance}; the dequantized model in float16 by transformers: {half}")
    if distance["rms"] > 2 * half["rms"]:
        misses.append(f"GPTQModel's logits are {distance['rms']:.4f} away, those of float16 {half['rms']:.4f}")
    return misses


def half_logits(work: Work, folder: Path) -> Tensor:
    """Of the dequantized model, run in float16 by transformers."""
    from transformers import AutoModelForCausalLM

    dense = work.folder / f"{folder.name}-dense"
    convert(ConversionRequest(folder, ConversionOutput(dense), target="dense"), lambda *_: None)
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float16)
    with torch.inference_mode():
        return model(work.tokens[None]).logits[0].float()


def examine_config(folder: Path, scheme: octavo.QuantScheme) -> list[str]:
    """The configuration as transformers understands it."""
    from transformers import AutoConfig
    from transformers.utils.quantization_config import GPTQConfig

    parsed = GPTQConfig.from_dict(dict(AutoConfig.from_pretrained(folder).quantization_config))
    found = (parsed.bits, parsed.group_size, parsed.sym, parsed.desc_act)
    show(f"{folder.name}: transformers {version('transformers')} reads {found}")
    return [] if found == (scheme.bits, GROUP_SIZE, True, False) else [f"transformers reads {found}"]


def examine_gguf(work: Work, folder: Path, ours: Tensor) -> list[str]:
    """The exported file, as the gguf package reads it and as llama.cpp runs it."""
    import gguf

    path = work.folder / f"{folder.name}.gguf"
    convert(ConversionRequest(folder, ConversionOutput(path)), lambda *_: None)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    opened, shapes = open_folder(folder), every_linear(open_folder(folder).config)
    misses, types = [], set()
    for layer in range(opened.config.layers):
        for theirs, part in GGUF_NAMES.items():
            stored, name = tensors[f"blk.{layer}.{theirs}.weight"], f"model.layers.{layer}.{part}"
            types.add(stored.tensor_type.name)
            values = gguf.dequantize(stored.data, stored.tensor_type)
            if not numpy.array_equal(values, dequantize(opened.weight(name, shapes[name])).numpy()):
                misses.append(f"{stored.name} of the GGUF file is not {name}")
    show(f"{folder.name}: gguf {version('gguf')} reads {len(tensors)} tensors, the MLPs' as {', '.join(types)}")
    if not LLAMA_CPP.exists():
        show("llama.cpp is not here; scripts/peers installs it")
        return misses
    out = work.folder / "logits.f32"
    said = answer_of(LLAMA_CPP, "interop_llama_cpp.py", path, work.folder / "tokens.json", out)
    distance = divergence(ours, torch.from_numpy(numpy.fromfile(out, "<f4")).view(ours.shape))
    show(f"{folder.name}: llama.cpp {said}: {distance}")
    if distance["KL"] > LARGEST_KL_OF_LLAMA_CPP:
        misses.append(f"llama.cpp's predictions are {distance['KL']:.5f} nats away")
    return misses


def answer_of(python: Path, script: str, *arguments: Path) -> Any:
    """What a script says that runs in an environment of its own: its last line, JSON."""
    words = [str(python), str(SCRIPTS / script), *map(str, arguments)]
    ended = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def divergence(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """How far logits are from ours: root mean square and largest difference, mean KL in nats, top-1 agreement."""
    first, second = softmax(ours), softmax(theirs)
    return {
        "rms": float((ours - theirs).square().mean().sqrt()),
        "largest": float((ours - theirs).abs().max()),
        "KL": float(kl_divergence(first, second).mean()),
        "top-1": float(top1_agreement(first, second).double().mean()),
    }


def show(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
