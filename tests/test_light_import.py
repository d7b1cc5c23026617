"""Importing Octavo does no work and loads nothing heavy; proved in fresh processes."""

import os
import subprocess
import sys

import pytest

HEAVY = {"torch", "gguf", "fastapi", "nanobind", "triton", "transformers", "matplotlib"}


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    complaints = [line for line in run.stderr.splitlines() if not line.startswith("import time:")]
    assert run.returncode == 0, complaints
    return run


def loaded_by(*arguments: str) -> set[str]:
    """Full names of the modules that `python ARGUMENTS` imports."""
    report = python("-X", "importtime", *arguments).stderr
    return {line.rpartition("|")[2].strip() for line in report.splitlines() if line.startswith("import time:")}


def test_octavo_loads_no_room_and_nothing_heavy():
    loaded = loaded_by("-c", "import octavo")
    assert not loaded & (HEAVY | {"typer"})
    assert [name for name in loaded if name.startswith("octavo")] == ["octavo"]


def test_octavo_starts_no_thread():
    code = """
import psutil
before = psutil.Process().num_threads()
import octavo
print(psutil.Process().num_threads() - before)
"""
    assert python("-c", code).stdout == "0\n"


def test_the_command_line_loads_nothing_heavy():
    assert not loaded_by("-c", "import octavo.cli") & HEAVY


def test_help_loads_nothing_heavy():
    assert not loaded_by("-c", "from octavo.cli import main; main()", "--help") & HEAVY


def test_what_is_loaded_late_and_deep_is_seen():
    assert {"typer", "json.decoder"} <= loaded_by("-c", "def job():\n    import typer, json\njob()")


@pytest.mark.parametrize(("given", "expected"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_torch_finds_its_threads_told_to_sleep(given, expected):
    """It reads the variable once, when it is loaded."""
    code = """
import contextlib, os, sys
from octavo import cli

class Watch:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ["OMP_WAIT_POLICY"])

sys.meta_path.insert(0, Watch())
sys.argv = ["octavo", "inspect", "nowhere"]
with contextlib.suppress(SystemExit):
    cli.main()
"""
    others = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**others, **given}
    )
    assert run.stdout.split() == [expected]
