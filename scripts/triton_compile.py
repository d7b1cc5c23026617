"""Compiles Triton's kernels for cards that are not there, and holds their machine code against what was reviewed.

    .venv/bin/python scripts/triton_compile.py [--write]

The package launches its kernels as on a card, on tensors without memory; a driver that owns no card takes what it
is asked to load. Each kernel must keep to its gates, and to the table tests/golden/triton-VERSION.json, which
--write makes anew: so a Triton that generates other code is noticed, and so is a change of ours.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from octavo.kernels.attention import SequencePages
from octavo.kernels.blocks import LayerCache, Rows
from octavo.kernels.triton_gpu import block
from octavo.kernels.triton_gpu.attention import Sight
from octavo.kernels.triton_gpu.card import Card
from octavo.kernels.triton_gpu.heads import HeadForm, HeadInputs, settled_queries
from octavo.kernels.triton_gpu.layout import DENSE_BITS, PackedWeight
from octavo.kernels.triton_gpu.product import Product, Sums, dense_values, finished, summed_later
from octavo.kernels.triton_gpu.rows import Norm, gathered

ROOT = Path(__file__).parent.parent
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Compute capability: multiprocessors of a card that has it, and the shared memory that one program may take.
CARDS = {80: (108, 163), 86: (82, 99), 89: (128, 99), 90: (132, 227)}
WIDE_COPIES = 0.9  # of the asynchronous copies, 16 bytes each
Tables = dict[str, dict[str, dict[str, int]]]  # of each architecture, of each kernel: its Code


@dataclass(frozen=True)
class Code:
    """What counts of a kernel's machine code; `shared` is bytes, `stack` bytes of a thread's own memory."""

    registers: int
    stack: int
    shared: int
    instructions: int
    copies: int
    wide_copies: int
    products: int  # by a warp
    group_products: int  # by four warps at once
    conversions: int  # of integers to floats


class AbsentCard(DriverBase):
    """A driver without a card: it keeps what it is told to load, and launches nothing."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.loaded: list[tuple[str, bytes, int]] = []
        self.utils = SimpleNamespace(
            load_binary=self._load, get_device_properties=lambda device: {"max_shared_mem": 2**30}
        )

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError("nothing is launched")

    def get_benchmarker(self):
        raise NotImplementedError("nothing is launched")

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source, metadata):
        return lambda *arguments: None

    def _load(self, name: str, binary: bytes, shared: int, device: int):
        self.loaded.append((name, binary, shared))
        return object(), object(), 0, 0, 1024


@dataclass(frozen=True)
class Layer:
    """The shape of a decoder layer and of one decode step through it."""

    hidden: int = 5120
    mlp: int = 13824
    heads: tuple[int, int, int] = (40, 40, 128)  # query heads, key heads, width
    bits: int = 8
    zeros: bool = False
    dtype: torch.dtype = torch.float16
    rows: int = 1
    page_size: int = 2048
    extras: bool = False  # biases, norms of heads, a window


LAYERS = {
    "Vicuna-13B, 8-bit": Layer(),
    "Vicuna-13B, 4-bit": Layer(bits=4),
    "Vicuna-13B, 8-bit, bfloat16": Layer(dtype=torch.bfloat16),
    "Vicuna-13B, 4-bit, bfloat16": Layer(bits=4, dtype=torch.bfloat16),
    "Vicuna-13B, dense": Layer(bits=DENSE_BITS),
    "8 key heads, asymmetric 4-bit, 16 rows": Layer(
        4096, 14336, (32, 8, 128), 4, True, rows=16, page_size=16, extras=True
    ),
    "heads of 80, asymmetric 8-bit, 32 rows": Layer(2560, 6912, (32, 32, 80), 8, True, rows=32, page_size=16),
    "heads of 256, 8-bit": Layer(3072, 8192, (16, 4, 256), rows=2, page_size=256, extras=True),
}


def empty(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """A tensor without memory."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def product(layer: Layer, card: Card, outputs: int, slots: int) -> Product:
    """A product as it is prepared, act-order included, but for the numbers."""
    dense = layer.bits == DENSE_BITS
    codes = empty(outputs, slots, dtype=layer.dtype)
    scales = None if dense else empty(slots // 128, outputs)
    weight = PackedWeight(
        codes=codes if dense else empty(outputs, slots * layer.bits // 8, dtype=torch.uint8),
        scales=scales,
        zeros=scales if layer.zeros else None,
        zero=0 if layer.zeros else 1 << layer.bits - 1,
        bits=layer.bits,
        block=128,
        columns=slots,
        outputs=outputs,
        column_of_slot=None if dense else empty(slots, dtype=torch.int32),
    )
    return Product(weight, empty(outputs, dtype=layer.dtype) if layer.extras else None, False, card)


def decode_step(layer: Layer, card: Card) -> None:
    """One new row of each sequence through a whole layer."""
    heads, kv_heads, width = layer.heads
    inputs = product(layer, card, (heads + 2 * kv_heads) * width, layer.hidden)
    output = product(layer, card, layer.hidden, heads * width)
    gate_up = replace(product(layer, card, 2 * layer.mlp, layer.hidden), gated=True)
    head_norm = empty(width, dtype=layer.dtype) if layer.extras else None
    norm = Norm(empty(layer.hidden, dtype=layer.dtype), 1e-5, layer.hidden, inputs.weight.column_of_slot, card)
    window = 1024 if layer.extras else None
    prepared = block.PreparedBlock(
        attention_norm=norm,
        mlp_norm=norm,
        query_norm=head_norm,
        key_norm=head_norm,
        epsilon=1e-5,
        queries_keys_values=inputs,
        output=output,
        gate_up=gate_up,
        down=product(layer, card, layer.hidden, layer.mlp),
        heads=head_form(layer),
        sight=Sight(window, heads * width, output.weight.column_of_slot, card),
    )
    rows, cache = rows_and_cache(layer, most_rows=1)
    block.run_block(empty(layer.rows, layer.hidden, dtype=layer.dtype), rows, cache, prepared)


def prompt_parts(layer: Layer, card: Card) -> None:
    """What only prompts need: tiles of many rows, dequantized weights, rotation and gather by themselves."""
    heads, kv_heads, width = layer.heads
    gate_up = replace(product(layer, card, 2 * layer.mlp, layer.hidden), gated=True)
    finished(empty(layer.rows, layer.hidden, dtype=layer.dtype), gate_up)
    summed_later(empty(layer.rows, layer.hidden, dtype=layer.dtype), product(layer, card, 1024, layer.hidden))
    dense_values(gate_up.weight, layer.dtype)
    gathered(empty(layer.rows, layer.hidden, dtype=layer.dtype), gate_up.weight.column_of_slot)
    rows, cache = rows_and_cache(layer, most_rows=layer.rows)
    sums = Sums(empty(1, layer.rows, (heads + 2 * kv_heads) * width, dtype=layer.dtype), None)
    settled_queries(HeadInputs(sums, None, None, 1e-5, rows.angles, 1.0), rows, cache, head_form(layer))


def split_product(layer: Layer, card: Card) -> None:
    """So few outputs that the slots are split, and the parts added up."""
    finished(empty(layer.rows, layer.hidden, dtype=layer.dtype), product(layer, card, 1024, layer.hidden))


def head_form(layer: Layer) -> HeadForm:
    heads, kv_heads, width = layer.heads
    return HeadForm(heads, kv_heads, width, triton.next_power_of_2(width // 2), 1)


def rows_and_cache(layer: Layer, most_rows: int) -> tuple[Rows, LayerCache]:
    """Rows of sequences of 2048 positions."""
    _, kv_heads, width = layer.heads
    pages_each, whole = 2048 // layer.page_size, torch.int64
    pages = SequencePages(
        lengths=empty(layer.rows, dtype=whole),
        row_starts=empty(layer.rows + 1, dtype=whole),
        page_table=empty(layer.rows, pages_each, dtype=whole),
        page_size=layer.page_size,
        most_rows=most_rows,
        longest=2048,
    )
    angles = empty(layer.rows, width // 2, dtype=torch.float32)
    slots = (layer.rows * 2048, kv_heads, width)
    cache = LayerCache(empty(*slots, dtype=layer.dtype), empty(*slots, dtype=layer.dtype))
    return Rows(angles, 1.0, empty(layer.rows, dtype=whole), pages), cache


def compiled_for(architecture: int) -> Iterator[tuple[str, Code]]:
    """Each kernel that the cases launch on a card, once, by the first case that launches it."""
    absent = AbsentCard(architecture)
    driver.set_active(absent)
    card = Card(architecture, CARDS[architecture][0])
    cases = {name: (decode_step, layer) for name, layer in LAYERS.items()}
    cases |= {f"prompt of 64, {bits}-bit": (prompt_parts, Layer(bits=bits, rows=64)) for bits in (8, 4)}
    cases["few outputs"] = (split_product, Layer(extras=True))
    for name, (launch, layer) in cases.items():
        absent.loaded.clear()
        launch(layer, card)
        for number, (kernel, binary, shared) in enumerate(absent.loaded, start=1):
            yield f"{name}: {number} {kernel}", read_code(binary, shared)


def read_code(binary: bytes, shared: int) -> Code:
    """Counts of a kernel's instructions, by NVIDIA's own disassembler, which comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = _output(TOOLS / "cuobjdump", "--dump-resource-usage", file.name)
        listing = _output(TOOLS / "nvdisasm", "-c", file.name)
    names = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", listing, re.MULTILINE)
    families = Counter(name.partition(".")[0] for name in names)
    return Code(
        registers=int(re.search(r"REG:(\d+)", usage)[1]),
        stack=int(re.search(r"STACK:(\d+)", usage)[1]),
        shared=shared,
        instructions=len(names),
        copies=families["LDGSTS"],
        wide_copies=sum(name.startswith("LDGSTS") and ".128" in name for name in names),
        products=families["HMMA"],
        group_products=families["HGMMA"],
        conversions=families["I2F"] + families["I2FP"],
    )


def _output(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def broken_gates(architecture: int, name: str, code: Code) -> Iterator[str]:
    """What a kernel does that it must not, on any card, whatever the table says."""
    kernel, few_rows = name.rpartition(" ")[2], not name.startswith("prompt")
    if code.stack:
        yield f"spills {code.stack} bytes of a thread's registers"
    if code.shared > CARDS[architecture][1] * 1024:
        yield f"takes {code.shared} bytes of shared memory, of {CARDS[architecture][1]} KiB"
    if kernel == "multiply" and few_rows:
        if code.conversions:
            yield f"converts {code.conversions} integers, which is slow"
        if code.group_products or not code.products:
            yield "multiplies other than warp by warp"
    if kernel == "multiply" and not few_rows and architecture == 90 and not code.group_products:
        yield "leaves the products of four warps at once unused"
    if kernel in ("multiply", "attend") and few_rows and code.wide_copies < WIDE_COPIES * code.copies:
        yield f"copies by 16 bytes in {code.wide_copies} of {code.copies} instructions only"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="take what comes out as what is wanted")
    parser.add_argument("--architecture", type=int, choices=CARDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.architecture:
        json.dump({name: asdict(code) for name, code in compiled_for(given.architecture)}, sys.stdout)
        return 0
    found = compiled_for_all()
    complaints = [
        f"sm_{card}, {name}: {complaint}"
        for card, table in found.items()
        for name, code in table.items()
        for complaint in broken_gates(int(card), name, Code(**code))
    ]
    golden = ROOT / "tests" / "golden" / f"triton-{triton.__version__}.json"
    if given.write:
        golden.write_text(json.dumps(found, indent=1) + "\n")
    elif not golden.exists():
        complaints.append(f"{golden} is absent; look at the code and run this with --write")
    else:
        complaints += differences(json.loads(golden.read_text()), found)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    kernels = sum(map(len, found.values()))
    print(f"{kernels} kernels by Triton {triton.__version__}: {len(complaints)} complaints")
    return 1 if complaints else 0


def compiled_for_all() -> Tables:
    """The kernels of each card, in a process of its own, for Triton knows one card at a time."""

    def table_of(architecture: int) -> dict[str, dict[str, int]]:
        return json.loads(_output(sys.executable, __file__, "--architecture", architecture))

    os.environ.setdefault("TRITON_CACHE_DIR", str(ROOT / ".cache" / "triton"))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {str(card): table for card, table in zip(CARDS, pool.map(table_of, CARDS), strict=True)}


def differences(wanted: Tables, found: Tables) -> Iterator[str]:
    """Where the code differs from the table."""
    for card in map(str, CARDS):
        before, now = wanted.get(card, {}), found[card]
        for name in before | now:
            if before.get(name) != now.get(name):
                yield f"sm_{card}, {name}: was {before.get(name)}, is {now.get(name)}; --write takes it, if better"


if __name__ == "__main__":
    sys.exit(main())
