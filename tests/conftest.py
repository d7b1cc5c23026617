"""Where real inputs lie, where tests that need one which is absent skip; and the command line as a call."""

import os
import sys
from pathlib import Path

import pytest

from octavo import cli

ROOT = Path(__file__).parent.parent
SHARED_DATA = Path(os.environ.get("OCTAVO_TEST_DATA", ROOT.parent / "shared" / "data"))


def shared(path: str) -> Path:
    """A file or folder of the test data; skips the test where it is absent."""
    found = SHARED_DATA / path
    if not found.exists():
        pytest.skip(f"test data {path} is not in {SHARED_DATA}; set OCTAVO_TEST_DATA")
    return found


@pytest.fixture(scope="session")
def stories_folder() -> Path:
    """stories260K: a real LLaMA of 260 thousand parameters."""
    return shared("models/stories260K")


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file; skips the test where scripts/fetch has not brought it."""
    found = Path(os.environ.get("OCTAVO_TEST_SMOLLM2", ROOT / ".cache" / "smollm2.gguf"))
    if not found.exists():
        pytest.skip(f"{found} is absent; scripts/fetch brings it")
    return found


@pytest.fixture
def run(monkeypatch, capsys):
    """Call `octavo` with some words; its exit code, output and errors."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["octavo", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return call
