"""NVRTC by ctypes, and what is kept of its work; skipped where NVRTC is not installed."""

import pytest

from octavo.errors import DeviceError
from octavo.kernels.cuda import compiler
from octavo.kernels.cuda.compiler import Unit
from octavo.kernels.cuda.units import GATHER

needs_nvrtc = pytest.mark.skipif(compiler.find_nvrtc() is None, reason="NVRTC is not installed")
HOPPER = 90


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "octavo" / "cuda"


@needs_nvrtc
def test_what_was_compiled_once_is_read_the_next_time(cache, monkeypatch):
    first = compiler.compiled(GATHER, HOPPER)
    assert first.startswith(b"\x7fELF")
    (kept,) = cache.iterdir()
    assert kept.name.startswith("gather-sm_90-")
    monkeypatch.setattr(compiler, "compile_unit", lambda *_: pytest.fail("compiled again"))
    assert compiler.compiled(GATHER, HOPPER) == first


@needs_nvrtc
def test_another_architecture_source_or_shape_is_compiled_anew(cache, tmp_path, monkeypatch):
    compiler.compiled(GATHER, HOPPER)
    compiler.compiled(GATHER, 80)
    compiler.compiled(Unit("gather.cu", "1"), HOPPER)
    sources = tmp_path / "sources"
    sources.mkdir()
    for path in compiler.SOURCES.iterdir():
        (sources / path.name).write_text(path.read_text())
    (sources / "gather.cuh").write_text((sources / "gather.cuh").read_text() + "\n")
    monkeypatch.setattr(compiler, "SOURCES", sources)
    compiler.compiled(GATHER, HOPPER)
    assert len(list(cache.iterdir())) == 4


@needs_nvrtc
def test_a_folder_that_cannot_be_written_costs_a_warning_only(cache):
    cache.parent.mkdir()
    cache.write_text("a file in the folder's place")
    with pytest.warns(UserWarning, match="set XDG_CACHE_HOME to a folder that can be written"):
        assert compiler.compiled(GATHER, HOPPER).startswith(b"\x7fELF")


@needs_nvrtc
def test_source_that_does_not_compile_is_reported_with_its_first_error():
    with pytest.raises(
        DeviceError, match=r"cannot compile decode.cu for sm_90: decode.cu.*error.*; install another"
    ):
        compiler.compile_unit(Unit("decode.cu", "7"), HOPPER)


def test_without_nvrtc_the_way_out_is_named(monkeypatch, cache):
    monkeypatch.setattr(compiler, "find_nvrtc", lambda: None)
    with pytest.raises(DeviceError, match="NVRTC is not installed; install a CUDA build of torch"):
        compiler.compiled(GATHER, HOPPER)
