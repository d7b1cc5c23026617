"""The kernels' sources built for the CPU, where a machine of fibers stands in for the GPU."""

import ctypes
import mmap
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from octavo.kernels.cuda.compiler import SOURCES, Unit

EMULATION = Path(__file__).parent / "emulation"
ALIGNMENT = 16  # of what the kernels load at once
POISON = 0xFD  # a NaN in every float format, and as an index far off
FORBIDDEN = 0  # PROT_NONE of mprotect


class Kernels:
    """Units compiled by g++ in a folder; `launch` runs one of them."""

    def __init__(self, units: Sequence[Unit], folder: Path) -> None:
        if shutil.which("g++") is None:
            pytest.skip("g++ is not installed")
        self.numbers = {unit: number for number, unit in enumerate(units)}
        for path in [
            *SOURCES.iterdir(),
            *EMULATION.iterdir(),
        ]:  # the emulation's hardware.cuh takes the other's place
            shutil.copy(path, folder)
        headers = "".join(f'#include "{path.name}"\n' for path in sorted(SOURCES.glob("*.cuh")))
        (folder / "kernels.cpp").write_text(headers + "".join(_entry(*item) for item in self.numbers.items()))
        command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas", "kernels.cpp"]
        subprocess.run([*command, "-o", "kernels.so"], cwd=folder, check=True)
        self.library = ctypes.CDLL(str(folder / "kernels.so"))

    def launch(self, unit: Unit, grid: tuple[int, int], threads: int, arguments: ctypes.Structure) -> None:
        """Run a unit's kernel, as `driver.Function.launch` does on a GPU."""
        run = getattr(self.library, f"launch_{self.numbers[unit]}")
        run(*grid, threads, ctypes.byref(arguments))


def _entry(unit: Unit, number: int) -> str:
    """C++ that includes a unit under a name of its own, and a function to start it by."""
    return f"""
namespace unit_{number} {{
#define OCTAVO_SHAPE {unit.shape}
#define octavo_kernel kernel_{number}
#include "{unit.source}"
#undef octavo_kernel
#undef OCTAVO_SHAPE
}}
extern "C" void launch_{number}(int wide, int high, int threads, const void *arguments) {{
    machine::launch(unit_{number}::kernel_{number}, wide, high, threads, arguments);
}}
"""


class Guarded:
    """A tensor in memory of its own, poison at first; more poison lies before it, and behind it what faults."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        size = -(-torch.empty(shape, dtype=dtype, device="meta").nbytes // ALIGNMENT) * ALIGNMENT
        self.front = -size % mmap.PAGESIZE + mmap.PAGESIZE
        memory = mmap.mmap(-1, self.front + size + mmap.PAGESIZE)
        self.bytes = torch.frombuffer(memory, dtype=torch.uint8)[: self.front + size]
        self.bytes.fill_(POISON)
        behind = ctypes.c_void_p(self.bytes.data_ptr() + self.front + size)
        assert ctypes.CDLL(None).mprotect(behind, mmap.PAGESIZE, FORBIDDEN) == 0
        count = torch.empty(shape, dtype=dtype, device="meta").numel()
        self.tensor = self.bytes[self.front :].view(dtype)[:count].view(*shape)

    @classmethod
    def of(cls, values: Tensor) -> "Guarded":
        """A copy of a tensor."""
        guarded = cls(values.shape, values.dtype)
        guarded.tensor.copy_(values)
        return guarded

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()

    def check(self) -> None:
        """AssertionError where something was written in front of the tensor."""
        assert bool((self.bytes[: self.front] == POISON).all())
