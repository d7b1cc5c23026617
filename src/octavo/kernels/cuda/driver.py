"""The CUDA driver by ctypes: machine code becomes a function, and a function runs on torch's current stream."""

import ctypes
from dataclasses import dataclass
from functools import cache

import torch

from octavo.errors import DeviceError
from octavo.kernels.cuda.compiler import Unit, compiled, find_nvrtc

AMPERE, HOPPER = 80, 90
PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_…, in cuda.h


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute; of its value, a union of 64 bytes, the first number is what we set."""

    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_int * 15)]


class _Configuration(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", ctypes.c_uint),
    ]


# A kernel may begin before the one ahead of it has ended; it waits by itself where it needs to (Hopper and later).
_EARLY_START = _Attribute(PROGRAMMATIC_STREAM_SERIALIZATION, 0, 1)


@dataclass(frozen=True)
class Function:
    """A kernel on one device; `threads` per block."""

    name: str
    handle: ctypes.c_void_p
    context: ctypes.c_void_p
    device: torch.device
    threads: int
    early_start: bool

    def launch(self, grid: tuple[int, int], arguments: ctypes.Structure) -> None:
        """Run on the current stream of the device; `arguments` is the kernel's one parameter, copied."""
        driver = _driver()
        _use(driver, self.context)
        configuration = _Configuration(
            (*grid, 1),
            (self.threads, 1, 1),
            0,
            torch.cuda.current_stream(self.device).cuda_stream,
            ctypes.pointer(_EARLY_START) if self.early_start else None,
            int(self.early_start),
        )
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        status = driver.cuLaunchKernelEx(ctypes.byref(configuration), self.handle, parameters, None)
        _check(driver, status, f"start {self.name} on {self.device}")


def why_not_card(device: torch.device) -> str | None:
    """None, or why no kernel in CUDA C++ runs on a device."""
    if device.type != "cuda":
        return f"it runs on NVIDIA GPUs, not on {device.type}"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "torch is built without CUDA, or finds no NVIDIA GPU"
    if architecture(device) < AMPERE:
        return f"{torch.cuda.get_device_name(device)} is older than Ampere (compute capability 8.0)"
    if find_nvrtc() is None:
        return "NVRTC, the compiler that CUDA builds of torch bring, is not installed"
    return None


def architecture(device: torch.device) -> int:
    """Compute capability as one number: 90 for 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def indexed(device: torch.device) -> torch.device:
    """`cuda` as the device that it means now."""
    return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())


@cache
def load(unit: Unit, threads: int, device: torch.device) -> Function:
    """The unit's kernel on a device, compiled where no process did so before; once per process."""
    driver = _driver()
    context = _primary_context(device)
    _use(driver, context)
    target = architecture(device)
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    status = driver.cuModuleLoadData(ctypes.byref(module), compiled(unit, target))
    _check(driver, status, f"load {unit.source} for sm_{target}")
    _check(
        driver,
        driver.cuModuleGetFunction(ctypes.byref(function), module, b"octavo_kernel"),
        f"find {unit.source}'s kernel",
    )
    return Function(unit.source, function, context, device, threads, early_start=target >= HOPPER)


@cache
def _driver() -> ctypes.CDLL:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DeviceError(
            f"the NVIDIA driver cannot be opened ({error}); install it, or use --device cpu"
        ) from error
    _check(driver, driver.cuInit(0), "start")
    return driver


@cache
def _primary_context(device: torch.device) -> ctypes.c_void_p:
    """The context that torch works in; never given back, as torch does not either."""
    driver, context = _driver(), ctypes.c_void_p()
    status = driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), ctypes.c_int(device.index))
    _check(driver, status, f"open {device}")
    return context


def _use(driver: ctypes.CDLL, context: ctypes.c_void_p) -> None:
    """Have the context current in this thread; torch's own calls leave it so, except in a fresh thread."""
    current = ctypes.c_void_p()
    _check(driver, driver.cuCtxGetCurrent(ctypes.byref(current)), "tell its context")
    if current.value != context.value:
        _check(driver, driver.cuCtxSetCurrent(context), "change its context")


def _check(driver: ctypes.CDLL, status: int, task: str) -> None:
    """DeviceError where the driver refuses a task."""
    if status:
        reason = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(reason))
        words = (reason.value or b"unknown error").decode()
        raise DeviceError(
            f"the NVIDIA driver cannot {task}: {words} (error {status}); "
            "if it is older than torch's CUDA, update it, else start again"
        )
