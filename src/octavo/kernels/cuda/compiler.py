"""CUDA C++ to machine code by NVRTC, which every CUDA build of torch brings; kept on disk once compiled."""

import ctypes
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from octavo.errors import DeviceError
from octavo.records import sha256_of_value

SOURCES = Path(__file__).parent.parent / "native" / "cuda"
MAJOR_VERSIONS = (13, 12)
SYSTEM_FOLDERS = ("/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64")


@dataclass(frozen=True)
class Unit:
    """One kernel: the source file that holds `octavo_kernel`, and what OCTAVO_SHAPE is in it."""

    source: str
    shape: str

    def options(self, architecture: int) -> tuple[str, ...]:
        """NVRTC's options for an architecture, such as 90."""
        defined = (f"-DOCTAVO_SHAPE={self.shape}",) if self.shape else ()
        return (f"--gpu-architecture=sm_{architecture}", "--std=c++17", *defined)


@dataclass(frozen=True)
class Compiled:
    """Machine code of one architecture, and what the compiler said."""

    cubin: bytes
    log: str


def find_nvrtc() -> Path | None:
    """The NVRTC of torch's wheels, else the system's; None where there is none."""
    names = [f"libnvrtc.so.{major}" for major in MAJOR_VERSIONS]
    wheels = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (wheels.submodule_search_locations or [])] if wheels else []
    folders = [root / part / "lib" for root in roots for part in ("cu13", "cuda_nvrtc")]
    for folder in [*folders, *map(Path, SYSTEM_FOLDERS)]:
        for name in names:
            if (folder / name).exists():
                return folder / name
    return None


def compiled(unit: Unit, architecture: int) -> bytes:
    """The unit's cubin: from the user's cache folder, else compiled now and left there."""
    headers = {path.name: path.read_text() for path in sorted(SOURCES.glob("*.cuh"))}
    source = (SOURCES / unit.source).read_text()
    identity = [source, headers, unit.options(architecture), installed_version()]
    kept = cache_folder() / f"{Path(unit.source).stem}-sm_{architecture}-{sha256_of_value(identity)[:32]}.cubin"
    if kept.exists():
        return kept.read_bytes()
    cubin = compile_unit(unit, architecture).cubin
    keep(kept, cubin)
    return cubin


def compile_unit(unit: Unit, architecture: int, more_options: Sequence[str] = ()) -> Compiled:
    """Compile a unit for an architecture; DeviceError with the compiler's first complaint where it cannot."""
    nvrtc = _load(_found())
    headers = sorted(SOURCES.glob("*.cuh"))
    texts = _strings([path.read_text() for path in headers])
    names = _strings([path.name for path in headers])
    program = ctypes.c_void_p()
    source = (SOURCES / unit.source).read_text().encode()
    _check(
        nvrtc,
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, unit.source.encode(), len(headers), texts, names),
    )
    try:
        options = [*unit.options(architecture), *more_options]
        status = nvrtc.nvrtcCompileProgram(program, len(options), _strings(options))
        log = _bytes_of(nvrtc, "ProgramLog", program).rstrip(b"\0").decode(errors="replace")
        if status:
            nvrtc_version = ".".join(map(str, installed_version()))
            raise DeviceError(
                f"NVRTC {nvrtc_version} cannot compile {unit.source} for sm_{architecture}: {_first_error(log)}; "
                "install another CUDA build of torch"
            )
        return Compiled(_bytes_of(nvrtc, "CUBIN", program), log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def installed_version() -> tuple[int, int]:
    """NVRTC's major and minor version."""
    nvrtc, major, minor = _load(_found()), ctypes.c_int(), ctypes.c_int()
    _check(nvrtc, nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octavo" / "cuda"


def keep(path: Path, content: bytes) -> None:
    """Write a file of the cache whole under its final name; several processes may do so at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(partial).replace(path)
    except OSError as error:
        warnings.warn(
            f"compiled kernels cannot be kept in {path.parent} ({error.strerror}), so each process compiles them "
            "again; set XDG_CACHE_HOME to a folder that can be written",
            stacklevel=2,
        )


def _found() -> Path:
    path = find_nvrtc()
    if path is None:
        raise DeviceError("NVRTC is not installed; install a CUDA build of torch, which brings it")
    return path


@cache
def _load(path: Path) -> ctypes.CDLL:
    for part in path.parent.glob(
        "libnvrtc-builtins.so.*"
    ):  # NVRTC opens it by name and does not look beside itself
        ctypes.CDLL(str(part))
    nvrtc = ctypes.CDLL(str(path))
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    return nvrtc


def _check(nvrtc: ctypes.CDLL, status: int) -> None:
    if status:
        raise DeviceError(f"NVRTC failed: {nvrtc.nvrtcGetErrorString(status).decode()}; reinstall torch")


def _bytes_of(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    """What nvrtcGet… gives of a program."""
    size = ctypes.c_size_t()
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _strings(texts: Sequence[str]) -> "ctypes.Array[ctypes.c_char_p]":
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))


def _first_error(log: str) -> str:
    return next((line for line in log.splitlines() if "error" in line), log.strip() or "it gives no reason")
