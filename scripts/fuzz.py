"""`scripts/fuzz`: what strangers may put into a model folder is read or refused, whatever it is.

Sound files are damaged by Hypothesis (bytes, lengths, JSON values of other types) and given to the readers of
safetensors and GGUF headers, of config.json and of the index. Each must return, or raise one of our own exceptions
with a message of one line, in bounded processor time; the memory of the process is limited. What breaks that is
shrunk and printed, and the exit code is 1.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from octavo.checkpoint.configuration import read_quantization
from octavo.checkpoint.gguf import read_gguf
from octavo.checkpoint.gguf_writer import GgufSpec, write_gguf
from octavo.checkpoint.tensors import INDEX_FILE, TensorFolder, TensorSpec, tensor_files, write_checkpoint
from octavo.errors import OctavoError
from octavo.model.config import read_config

MOST_SECONDS = 5.0  # of processor time for one input; the readers take milliseconds
MEMORY_BESIDE = 2 * 2**30  # bytes of address space that the readers may ask for in all
EXAMPLES = 300  # of each target in a round

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "sliding_window": 64,
    "use_sliding_window": True,
    "layer_types": ["full_attention"] * 3,
    "tie_word_embeddings": False,
    "quantization_config": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 16,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "dynamic": {"-:.*down_proj": {}, "+:.*up_proj": {"bits": 8}},
    },
}
METADATA = {"general.architecture": "llama", "llama.block_count": 1, "tokenizer.ggml.tokens": ("<s>", "a", "b")}
ARCHITECTURES = ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"]

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12)
values = st.recursive(
    scalars | st.sampled_from(["gptq", "awq", "compressed-tensors", "pack-quantized", *ARCHITECTURES]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
# Places are parts of the length, so that they stay what they are while an example shrinks.
places = st.floats(0, 1, exclude_max=True)
numbers = st.sampled_from([0, 1, 255, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**64 - 1]) | st.integers(0, 2**64 - 1)


@dataclass(frozen=True)
class Target:
    """A file of a folder, what may stand in it, and who reads it."""

    name: str
    contents: SearchStrategy[bytes]
    read: Callable[[Path], object]


def main(seconds: float) -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with tempfile.TemporaryDirectory(prefix="octavo-fuzz-") as name:
        folder = Path(name)
        every = targets(folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BESIDE, hard))
        started, rounds = time.monotonic(), 0
        while time.monotonic() < started + seconds:
            for target in every:
                run(target, folder, rounds)
            rounds += 1
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    print(f"{rounds} rounds of {EXAMPLES} inputs to each of {len(every)} readers: all were read or refused")
    return 0


def run(target: Target, folder: Path, number: int) -> None:
    """Give a target some hundred inputs, others in each round."""

    @seed(number)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(content=target.contents)
    def read_or_refuse(content: bytes) -> None:
        place = Path(tempfile.mkdtemp(dir=folder))
        (place / target.name).write_bytes(content)
        began = time.process_time()
        try:
            target.read(place)
        except OctavoError as refused:
            assert "\n" not in str(refused), f"the refusal of {target.name} has more than one line: {refused}"
        taken = time.process_time() - began
        assert taken < MOST_SECONDS, f"{target.name} took {taken:.1f} seconds"
        (place / target.name).unlink()
        place.rmdir()

    read_or_refuse()


def targets(folder: Path) -> list[Target]:
    """The readers, with what they are given."""
    gguf = sound_gguf(folder / "sound.gguf")
    return [
        Target("model.safetensors", damaged(sound_safetensors(folder / "safetensors")), TensorFolder),
        Target("model.safetensors", safetensors_headers(), TensorFolder),
        Target("model.gguf", damaged(gguf), lambda place: read_gguf(place / "model.gguf")),
        Target("config.json", changed(CONFIG), read_config),
        Target("config.json", changed(CONFIG), read_quantization),
        Target("config.json", damaged(json.dumps(CONFIG).encode()), read_config),
        Target(INDEX_FILE, changed({"metadata": {}, "weight_map": {"a": "b", "c": "../d"}}), tensor_files),
    ]


def sound_safetensors(folder: Path) -> bytes:
    folder.mkdir()
    specs = [TensorSpec(f"tensor{number}", torch.float16, (4, 5)) for number in range(3)]
    write_checkpoint(folder, specs, lambda _: torch.zeros(4, 5, dtype=torch.float16), 10**6)
    return (folder / "model.safetensors").read_bytes()


def sound_gguf(path: Path) -> bytes:
    specs = [GgufSpec("token_embd.weight", "Q8_0", (3, 32)), GgufSpec("output_norm.weight", "F32", (32,))]
    sizes = {spec.name: spec.bytes for spec in specs}
    write_gguf(path, METADATA, specs, lambda name: numpy.zeros(sizes[name], numpy.uint8), lambda *_: None)
    return path.read_bytes()


@st.composite
def damaged(draw: Any, sound: bytes) -> bytes:
    """A sound file with a few bytes overwritten, inserted or gone."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        place = int(draw(places) * len(data))
        match draw(st.sampled_from(["byte", "number", "insert", "remove", "end"])):
            case "byte":
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "number":
                data[place : place + 8] = draw(numbers).to_bytes(8, "little")
            case "insert":
                data[place:place] = draw(st.binary(max_size=16))
            case "remove":
                del data[place : place + draw(st.integers(1, 32))]
            case "end":
                del data[place:]
    return bytes(data)


@st.composite
def changed(draw: Any, sound: dict[str, Any]) -> bytes:
    """A JSON object with other values at some of its keys, or of those within; or another value altogether."""
    if draw(st.integers(0, 20)) == 0:
        return json.dumps(draw(values)).encode()
    object_ = json.loads(json.dumps(sound))
    for _ in range(draw(st.integers(1, 5))):
        inner = object_
        nested = [value for value in object_.values() if isinstance(value, dict) and value]
        if nested and draw(st.booleans()):
            inner = draw(st.sampled_from(nested))
        if inner:
            inner[draw(st.sampled_from(sorted(inner)))] = draw(values)
    return json.dumps(object_).encode()


@st.composite
def safetensors_headers(draw: Any) -> bytes:
    """Headers that say anything of a few tensors, before a few bytes of data."""
    entries = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F16", "F32", "I32", "BF16", "F8_E4M3", "x"]) | values,
            "shape": st.lists(numbers, max_size=4) | values,
            "data_offsets": st.lists(numbers, min_size=2, max_size=2) | values,
        }
    )
    header = json.dumps(draw(st.dictionaries(st.text(max_size=6), entries | values, max_size=4))).encode()
    return draw(st.just(len(header)) | numbers).to_bytes(8, "little") + header + draw(st.binary(max_size=64))


if __name__ == "__main__":
    raise SystemExit(main(float(sys.argv[1])))
