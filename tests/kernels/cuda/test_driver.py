"""The CUDA driver by ctypes, as far as it goes without a GPU."""

import ctypes
from types import SimpleNamespace

import pytest
import torch

from octavo.errors import DeviceError
from octavo.kernels.cuda import driver
from octavo.kernels.cuda.units import StreamArguments


def test_structures_are_laid_out_as_in_cuda_h():
    assert ctypes.sizeof(driver._Attribute) == 72
    assert driver._Attribute.value.offset == 8
    assert ctypes.sizeof(driver._Configuration) == 56
    assert driver._Configuration.stream.offset == 32
    assert driver._Configuration.attributes.offset == 40
    assert driver._Configuration.attribute_count.offset == 48


class Driver(ctypes.CDLL):
    """A driver that notes what it is asked, and answers `status` to a launch."""

    def __init__(self, status: int) -> None:
        super().__init__(None)
        self.status, self.launched, self.used = status, None, None

    def cuCtxGetCurrent(self, current) -> int:  # noqa: N802
        current._obj.value = self.used
        return 0

    def cuCtxSetCurrent(self, context) -> int:  # noqa: N802
        self.used = context.value
        return 0

    def cuLaunchKernelEx(self, configuration, handle, parameters, extra) -> int:  # noqa: N802
        self.launched = configuration._obj, handle.value, parameters[0]
        return self.status

    def cuGetErrorString(self, status, reason) -> int:  # noqa: N802
        reason._obj.value = b"no kernel image is available"
        return 0


@pytest.fixture
def function(monkeypatch):
    """A kernel of 256 threads whose driver answers as told, on stream 77."""

    def make(status: int, early_start: bool) -> tuple[driver.Function, Driver]:
        fake = Driver(status)
        monkeypatch.setattr(driver, "_driver", lambda: fake)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
        handle, context = ctypes.c_void_p(5), ctypes.c_void_p(9)
        return driver.Function("it", handle, context, torch.device("cuda:0"), 256, early_start), fake

    return make


@pytest.mark.parametrize("early_start", [False, True])
def test_a_launch_names_grid_block_stream_and_arguments(function, early_start):
    kernel, fake = function(0, early_start)
    arguments = StreamArguments(1, 2, 3)
    kernel.launch((7, 3), arguments)
    configuration, handle, parameter = fake.launched
    assert (handle, parameter, fake.used) == (5, ctypes.addressof(arguments), 9)
    assert (list(configuration.grid), list(configuration.block)) == ([7, 3, 1], [256, 1, 1])
    assert (configuration.stream, configuration.shared_bytes) == (77, 0)
    assert configuration.attribute_count == early_start
    if early_start:
        attribute = configuration.attributes[0]
        assert (attribute.id, attribute.value) == (6, 1)  # programmatic stream serialization, allowed


def test_a_refusal_of_the_driver_is_one_sentence(function):
    kernel, _ = function(209, False)
    with pytest.raises(
        DeviceError, match=r"cannot start it on cuda:0: no kernel image is available \(error 209\); "
    ):
        kernel.launch((1, 1), StreamArguments(1, 2, 3))
