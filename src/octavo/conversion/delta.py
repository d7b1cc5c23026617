"""A delta and the base it belongs to, added: how Vicuna was published. target = base + delta, in float16.

Source: FastChat, `apply_delta.py`. The tokenizer is the delta's, whose special tokens are right since version 1.1.
"""

from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from octavo.checkpoint.formats import TensorSource
from octavo.checkpoint.tensors import Progress, TensorFolder, TensorSpec, write_checkpoint
from octavo.conversion.destination import ConversionOutput, carry_files, claim
from octavo.conversion.pickles import pickled_folder, pickled_paths
from octavo.errors import CheckpointError, NumericalError
from octavo.model.config import read_config
from octavo.model.load import EMBEDDING, IGNORED_SUFFIX
from octavo.model.tokenizer import load_tokenizer
from octavo.records import read_json, write_json

TARGET = torch.float16  # FastChat adds and saves in float16
SLAB = 2**22  # elements
# Version 0 of Vicuna added a token to LLaMA's 32000.
LLAMA_VOCABULARY = 32000


def apply_delta(base: Path, delta: Path, output: ConversionOutput, progress: Progress) -> None:
    """Write base + delta into a new or empty folder, one tensor in memory at a time.

    Raises CheckpointError where the two have not the same tensors or vocabularies, NumericalError where a sum
    overflows float16, OutputError where the folder is not empty or cannot be written.
    """
    for folder in (base, delta):
        read_config(folder)
    tokenizer = load_tokenizer(delta)
    with ExitStack() as stack:
        sources = [open_tensors(folder, stack) for folder in (base, delta)]
        specs = [TensorSpec(name, TARGET, shape) for name, shape in _shapes(base, delta, sources).items()]

        def load(name: str) -> Tensor:
            # One after the other: at no time are there three tensors. What is mapped is not ours to write to.
            total = sources[0].load(name).to(TARGET, copy=True)
            total += sources[1].load(name).to(TARGET)
            # Piece by piece, for the check makes copies.
            if not all(piece.isfinite().all() for piece in total.flatten().split(SLAB)):
                raise NumericalError(f"tensor {name} of {base} plus that of {delta} is no finite float16")
            return total

        claim(output.folder)
        write_checkpoint(output.folder, specs, load, output.max_shard_size, progress)
    carry_files(delta, output.folder)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": min(tokenizer.eos_ids)}
    config = {**read_json(delta / "config.json"), **ids, "torch_dtype": "float16"}
    write_json(output.folder / "generation_config.json", ids)
    write_json(output.folder / "config.json", config)


def open_tensors(folder: Path, stack: ExitStack) -> TensorSource:
    """The tensors of a folder: those of its safetensors files where it has any, else of its pickled ones."""
    if any(folder.glob("*.safetensors")) or not pickled_paths(folder):
        return TensorFolder(folder)
    return stack.enter_context(pickled_folder(folder))


def _shapes(base: Path, delta: Path, sources: list[TensorSource]) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors by name, the same in both."""
    first, second = (
        {name: spec.shape for name, spec in source.specs.items() if not name.endswith(IGNORED_SUFFIX)}
        for source in sources
    )
    rows = [shapes.get(f"{EMBEDDING}.weight", (0,))[0] for shapes in (first, second)]
    if rows[0] != rows[1]:
        hint = "; a delta of Vicuna version 0 has one more, use version 1.1" if rows[0] == LLAMA_VOCABULARY else ""
        raise CheckpointError(f"{base} has a vocabulary of {rows[0]} and {delta} one of {rows[1]}{hint}")
    strange = sorted(first.keys() ^ second.keys())
    if strange:
        raise CheckpointError(f"tensor {strange[0]} is in only one of {base} and {delta}; they are no pair")
    for name, shape in first.items():
        if second[name] != shape:
            raise CheckpointError(
                f"tensor {name} has shape {list(shape)} in {base} and {list(second[name])} in {delta}; "
                "they are no pair"
            )
    return first
