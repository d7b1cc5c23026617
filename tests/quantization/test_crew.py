"""Several processes that calibrate together, against one that does it alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from octavo.errors import UsageError
from octavo.quantization.crew import Crew, dealt, joined
from octavo.quantization.hessian import Run
from octavo.records import read_json
from small_models import write_model

CPU = torch.device("cpu")
HERE = Path(__file__).parent


def quantized_by(processes: int, source: Path, target: Path) -> dict[str, torch.Tensor]:
    """The tensors that so many processes make of a model."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, str(HERE / "crew_process.py"), str(source), str(target)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=600, capture_output=True)
    return load_file(target / "model.safetensors")


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_give_what_one_gives(tmp_path, processes):
    """Byte for byte: with five windows, runs of both lie on either side of a pair that the leader joins."""
    source = write_model(tmp_path / "model")
    alone = quantized_by(1, source, tmp_path / "alone")
    together = quantized_by(processes, source, tmp_path / "together")
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        assert torch.equal(tensor.view(torch.uint8), together[name].view(torch.uint8)), name
    records = [read_json(tmp_path / folder / "octavo.json") for folder in ("alone", "together")]
    assert records[0] == records[1]
    runs = [read_json(tmp_path / folder / "octavo-run.json") for folder in ("alone", "together")]
    assert [run["processes"] for run in runs] == [1, processes]


def test_windows_are_dealt_in_order(monkeypatch):
    assert dealt(7, 3) == (
        (Run(0, 1), Run(1, 1), Run(2, 1)),
        (Run(3, 1), Run(4, 1)),
        (Run(5, 1), Run(6, 1)),
    )
    assert dealt(20, 2) == (
        (Run(0, 3), Run(1, 3), Run(2, 3), Run(3, 3)),
        (Run(4, 2), Run(5, 2), Run(6, 2), Run(7, 2)),
    )
    assert dealt(0, 1) == ((Run(0, 0),),)
    crew = Crew(1, dealt(7, 3), CPU)
    assert (crew.windows, crew.mine, crew.leads, list(crew.others)) == ((3, 2, 2), slice(3, 5), False, [1, 2])
    with joined(CPU, 4) as alone:
        assert (alone.windows, alone.leads, list(alone.others)) == ((4,), True, [])
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(UsageError, match=r"3 processes cannot share 2 calibration windows.*; start fewer"),
        joined(CPU, 2),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "9")
    with pytest.raises(UsageError, match=r"9 processes cannot share 128 .* at most 8 can"), joined(CPU, 128):
        pass
