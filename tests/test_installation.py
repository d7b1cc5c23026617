"""Installing without a compiler, and what the native library offers to Python."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig

import pytest

from conftest import ROOT

STUB = ROOT / "src" / "octavo" / "kernels" / "_native.pyi"

USE = """
import sys
sys.path[:0] = sys.argv[1:]
import octavo, torch
from octavo.kernels import dispatch
from octavo.weights import QuantizedWeight, sequential_groups
codes, grid = torch.zeros(2, 8, dtype=torch.uint8), torch.ones(2, 1)
scheme = octavo.QuantScheme(8, None, symmetric=True)
weight = QuantizedWeight(codes, grid.half(), grid.short(), sequential_groups(8, None), scheme)
choice = dispatch.choose(weight, torch.device("cpu"))
print(octavo.__file__, choice.name, choice.refusals["native CPU"], sep="\\n")
"""


def test_without_a_compiler_octavo_is_installed_without_its_native_library(tmp_path):
    pytest.importorskip("scikit_build_core")
    source, target = tmp_path / "source", tmp_path / "target"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "octavo", source / "src" / "octavo", ignore=ignored)
    for name in ("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    environment = {**os.environ, "CXX": "/bin/false"}
    subprocess.run([*install, "--target", target, source], check=True, capture_output=True, env=environment)

    # -S: the working copy that tests run on must not come before what was just installed
    packages = sysconfig.get_path("purelib")
    command = [sys.executable, "-S", "-c", USE, target, packages]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines == [
        str(target / "octavo" / "__init__.py"),
        "reference",
        "the native library is absent (No module named 'octavo.kernels._native'); "
        "install Octavo anew where there is a C++17 compiler",
    ]
    assert (target / "octavo" / "py.typed").exists()
    assert not list(target.rglob("*.cpp"))


def test_the_stub_is_what_the_library_offers(tmp_path):
    pytest.importorskip("octavo.kernels._native", reason="Octavo is installed without its native library")
    stubgen = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "octavo.kernels._native"]
    subprocess.run([*stubgen, "-O", tmp_path], check=True)
    generated = (tmp_path / "_native.pyi").read_text(encoding="utf-8")
    same = ast.dump(ast.parse(generated)) == ast.dump(ast.parse(STUB.read_text(encoding="utf-8")))
    assert same, "the library has changed; run scripts/stub"
