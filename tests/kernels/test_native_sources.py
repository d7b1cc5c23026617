"""The native library's own tests are C++ and run under sanitizers in `make proof`; here they are compiled."""

import shutil
import subprocess

import pytest

from conftest import ROOT

SOURCES = sorted((ROOT / "tests" / "kernels" / "native").glob("*.cpp"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_library_s_own_tests_compile(source):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    headers = ROOT / "src" / "octavo" / "kernels" / "native" / "cpu"
    options = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-I", str(headers)]
    done = subprocess.run([compiler, *options, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
