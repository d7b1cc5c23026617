"""Benchmarks and scripts are run by hand, months apart; here they are imported: what they use is to be there."""

import importlib.util
import sys

import pytest

from conftest import ROOT

# They run in environments that hold a peer.
ELSEWHERE = {"gptqmodel_peer", "llama_cpp_peer", "interop_gptqmodel", "interop_llama_cpp"}
PROGRAMS = sorted(path for folder in ("benchmarks", "scripts") for path in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize(
    "program",
    [path for path in PROGRAMS if path.stem not in ELSEWHERE],
    ids=lambda path: f"{path.parent.name}.{path.stem}",
)
def test_what_a_program_uses_is_there(program, monkeypatch):
    monkeypatch.syspath_prepend(program.parent)
    spec = importlib.util.spec_from_file_location(f"program_{program.stem}", program)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their types
    spec.loader.exec_module(module)
