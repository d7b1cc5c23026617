"""Which blocks multiply by the weights of common models fastest: the table of one kind of card.

    python benchmarks/gpu_blocks.py [--results FOLDER]

The table is in the format of `kernels.cuda.tuning`; put beside that module, it is used on every card of the kind.
For each weight it prints how much faster its blocks are than those of the rule.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from gpu_synthetic import DEVICE, Storage, random_weight
from measuring import RESULTS, show

from octavo.kernels.cuda import layout, tuning
from octavo.kernels.cuda.driver import architecture, indexed
from octavo.kernels.cuda.product import Blocks, blocks_for, with_kernels
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight

# Width, width of keys and values, width of the MLP.
MODELS = {
    "Llama 7B": (4096, 4096, 11008),
    "Llama 13B": (5120, 5120, 13824),
    "Llama 34B": (8192, 1024, 22016),
    "Llama 70B": (8192, 1024, 28672),
    "Llama 3 8B, Mistral 7B": (4096, 1024, 14336),
    "Qwen2.5 7B": (3584, 512, 18944),
}
ROWS = (1, 8, 16, 32, 64)
Shape = tuple[int, int]


def shapes() -> dict[Shape, str]:
    """Each product of a layer once, (outputs, inputs), and the first model that has it."""
    found: dict[Shape, str] = {}
    for model, (width, kv_width, mlp) in MODELS.items():
        together = ((width + 2 * kv_width, width), (width, width), (2 * mlp, width), (width, mlp))
        for shape in together:
            found.setdefault(shape, model)
    return found


def weights(shape: Shape) -> Iterator[layout.Packed]:
    """In eight and in four bits, symmetric and not; 3- and 2-bit codes are laid out as 4-bit ones."""
    for bits, symmetric in itertools.product((8, 4), (True, False)):
        weight = random_weight(*shape, Storage(QuantScheme(bits, 128, symmetric)))
        assert isinstance(weight, QuantizedWeight)
        if not symmetric:
            zeros = torch.randint(1, 2**bits - 1, weight.zeros.shape, device=DEVICE, dtype=torch.int16)
            weight = replace(weight, zeros=zeros)
        yield layout.pack(weight, indexed(DEVICE))


def gains(packed: layout.Packed, shape: Shape, dtype: torch.dtype, blocks: Blocks) -> str:
    """Microseconds by the rule and by the measured blocks, for each number of rows."""
    processors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    rule = blocks_for(packed.form, dtype, shape[0], processors)
    both = [with_kernels(packed, shape, dtype, each, processors) for each in (rule, blocks)]
    texts = []
    for rows in ROWS:
        before, after = (min(tuning.seconds_of(each, rows) for _ in range(2)) * 1e6 for each in both)
        texts.append(f"{rows} rows {before:.1f} -> {after:.1f} ({before / after - 1:+.0%})")
    return ", ".join(texts)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--results", type=Path, default=RESULTS)
    given = arguments.parse_args()
    table = {}
    for shape, model in shapes().items():
        for packed in weights(shape):
            for dtype in (torch.float16, torch.bfloat16):
                name = tuning.table_entry(packed.form, shape, dtype)
                table[name] = tuning.measured_blocks(packed, shape, dtype, tuning.seconds_of)
                show(f"{model} {name}: {table[name]}: {gains(packed, shape, dtype, table[name])}")
    processors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    given.results.mkdir(parents=True, exist_ok=True)
    tuning.write_table(given.results / f"blocks-sm_{architecture(DEVICE)}-{processors}.json", table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
