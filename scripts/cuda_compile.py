"""Compiles every CUDA kernel for each architecture, reads the machine code, and compares it with the table kept.

    .venv/bin/python scripts/cuda_compile.py [--write]

It needs no GPU. A kernel may not spill, keep a stack or convert integers one by one, must fit a block's shared
memory and registers, and its loads must be wide. What else the compiler makes of it (registers, instructions) is
kept per version of NVRTC in tests/golden; --write replaces the table after a change that is meant.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from octavo.kernels.cuda import compiler, product, tuning
from octavo.kernels.cuda.compiler import Unit
from octavo.kernels.cuda.layout import Form
from octavo.kernels.cuda.units import (
    COLUMNS,
    COLUMNS_THREADS,
    EXPAND_THREADS,
    GATHER,
    GATHER_THREADS,
    SEARCH,
    SEARCH_THREADS,
    STREAM,
    STREAM_THREADS,
    decode_unit,
    expand_unit,
    wide_unit,
)
from octavo.records import sha256_of_value

ROOT = Path(__file__).parent.parent
PASSED = ROOT / ".cache" / "cuda-compiled"  # what was compiled when there was last nothing to complain of
ARCHITECTURES = (80, 86, 89, 90)
HALVES = (torch.float16, torch.bfloat16)
MOST_SHARED = 48 * 1024  # bytes of a block that asks for nothing special
FEW_CONVERSIONS = 12  # of integers that hold for a whole block; codes would be hundreds
REGISTERS = 64 * 1024  # of a multiprocessor
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", re.MULTILINE)


@dataclass(frozen=True)
class Reading:
    """What a kernel became."""

    registers: int
    shared_bytes: int
    instructions: int
    loads_of_16_bytes: int
    narrower_loads: int
    matrix_products: int


FORMS = tuple(itertools.starmap(Form, itertools.product((8, 4), (False, True), (1, 2, 4))))


def units() -> dict[Unit, int]:
    """What the rule may choose, each with its threads; of groups below 128 those for one to 8 rows of float16."""
    found = {
        GATHER: GATHER_THREADS,
        STREAM: STREAM_THREADS,
        SEARCH: SEARCH_THREADS,
        COLUMNS: COLUMNS_THREADS,
    }
    for form, dtype, outputs in itertools.product(FORMS, HALVES, (1, 1 << 20)):
        blocks = product.blocks_for(form, dtype, outputs, 1)
        for block, gated in itertools.product(blocks.decode, (False, True)):
            if form.scales_per_step == 1 or (block.row_groups == 1 and dtype == torch.float16):
                found[decode_unit(form, dtype, block, gated)] = block.threads
        found[wide_unit(form, dtype, blocks.wide)] = blocks.wide.threads
    for form, dtype in itertools.product((Form(8, False, 1), Form(4, True, 4)), (*HALVES, torch.float32)):
        found[expand_unit(form, dtype)] = EXPAND_THREADS
    return found


def published_units(target: int) -> dict[Unit, int]:
    """What the tables of measured blocks choose on cards of an architecture."""
    found = {}
    for table_file in Path(tuning.__file__).parent.glob(f"blocks-sm_{target}-*.json"):
        table = tuning.read_table(table_file)
        for form, dtype in itertools.product(FORMS, HALVES):
            kind = tuning.table_entry(form, (0, 0), dtype).removeprefix("0x0")
            for blocks in {blocks for name, blocks in table.items() if name.endswith(kind)}:
                for block, gated in itertools.product(blocks.decode, (False, True)):
                    found[decode_unit(form, dtype, block, gated)] = block.threads
                found[wide_unit(form, dtype, blocks.wide)] = blocks.wide.threads
    return found


def read(unit: Unit, threads: int, architecture: int) -> tuple[Reading, list[str]]:
    """What a kernel became, and what is wrong with it."""
    made = compiler.compile_unit(unit, architecture, ["--ptxas-options=-v"])
    said = {
        name: _number(pattern, made.log)
        for name, pattern in {
            "registers": r"Used (\d+) registers",
            "shared": r"(\d+) bytes smem",
            "stack": r"(\d+) bytes stack frame",
            "spilled": r"(\d+) bytes spill stores",
        }.items()
    }
    counts = Counter(INSTRUCTION.findall(_disassembled(made.cubin)))
    loads = {name: count for name, count in counts.items() if name.startswith("LDG")}
    wide = sum(count for name, count in loads.items() if ".128" in name)
    narrow = sum(loads.values()) - wide
    products = sum(count for name, count in counts.items() if name.startswith("HMMA"))
    reading = Reading(said["registers"], said["shared"], counts.total(), wide, narrow, products)
    conversions = sum(count for name, count in counts.items() if name.startswith("I2F"))
    decodes = unit.source in ("decode.cu", "wide.cu")
    wrong = {
        "it spills registers": said["spilled"] > 0,
        "it keeps a stack": said["stack"] > 0,
        "it converts integers one by one": conversions > FEW_CONVERSIONS,
        "a block needs too much shared memory": said["shared"] > MOST_SHARED,
        "a block needs too many registers": said["registers"] * threads > REGISTERS,
        "most of its loads are narrow": decodes and narrow > wide,
        "it does not use the matrix units": decodes and products == 0,
    }
    return reading, [what for what, so in wrong.items() if so]


def _number(pattern: str, log: str) -> int:
    found = re.search(pattern, log)
    return int(found[1]) if found else 0


def _disassembled(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([disassembler(), "-c", file.name], capture_output=True, text=True, check=True).stdout


def disassembler() -> Path:
    """nvdisasm, beside the NVRTC of the wheels."""
    nvrtc = compiler.find_nvrtc()
    assert nvrtc is not None
    return nvrtc.parent.parent / "bin" / "nvdisasm"


def table() -> Path:
    """Readings of this version of NVRTC."""
    version = ".".join(map(str, compiler.installed_version()))
    return ROOT / "tests" / "golden" / f"cuda-nvrtc-{version}.json"


def state() -> str:
    """Hash of all that the outcome depends on."""
    package = Path(compiler.__file__).parent
    files = [Path(__file__), table(), *package.glob("*.py"), *package.glob("*.json"), *compiler.SOURCES.iterdir()]
    return sha256_of_value([path.read_text() for path in sorted(files) if path.exists()])


def complaints_about(found: dict[str, dict[str, int]]) -> list[str]:
    """Where readings differ from the table."""
    kept = json.loads(table().read_text()) if table().exists() else {}
    return [
        f"{name}: {kept.get(name)} became {found.get(name)}; if that is meant, run this with --write"
        for name in sorted(kept.keys() | found.keys())
        if kept.get(name) != found.get(name)
    ]


def main(arguments: list[str]) -> int:
    if compiler.find_nvrtc() is None:
        print("NVRTC is not installed (its wheel is for Linux on x86): no CUDA kernel was compiled")
        return 0
    if PASSED.exists() and PASSED.read_text() == state():
        print("CUDA kernels: unchanged since they last passed")
        return 0
    jobs = [
        (unit, threads, target)
        for target in ARCHITECTURES
        for unit, threads in (units() | published_units(target)).items()
    ]
    with ProcessPoolExecutor() as pool:
        results = list(pool.map(read, *zip(*jobs, strict=True)))
    names = [" ".join(f"{unit.source} {unit.shape} sm_{target}".split()) for unit, _, target in jobs]
    found = {name: asdict(reading) for name, (reading, _) in zip(names, results, strict=True)}
    if "--write" in arguments:
        lines = (f"{json.dumps(name)}: {json.dumps(values)}" for name, values in sorted(found.items()))
        table().write_text("{\n" + ",\n".join(lines) + "\n}\n")
    complaints = [f"{name}: {what}" for name, (_, wrong) in zip(names, results, strict=True) for what in wrong]
    complaints += complaints_about(found)
    for complaint in complaints:
        print(complaint)
    print(f"{len(results)} CUDA kernels compiled, {len(complaints)} complaints")
    if not complaints:
        PASSED.parent.mkdir(exist_ok=True)
        PASSED.write_text(state())
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
