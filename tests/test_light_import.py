"""Importing Octavo does no work and loads nothing heavy; proved in fresh processes."""

import subprocess
import sys

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
