"""Two processes that calibrate together, against one that does it alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from octavo.errors import UsageError
from octavo.quantization.crew import Crew, joined
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


def test_two_processes_give_what_one_gives(tmp_path):
    source = write_model(tmp_path / "model")
    alone = quantized_by(1, source, tmp_path / "alone")
    together = quantized_by(2, source, tmp_path / "together")
    assert alone.keys() == together.keys()
    for suffix, bytes_of in {".qweight": torch.uint8, ".scales": torch.int16}.items():
        names = [name for name in alone if name.endswith(suffix)]
        one, other = (
            torch.cat([side[name].view(bytes_of).flatten() for name in names]) for side in (alone, together)
        )
        assert (one != other).float().mean() <= 5e-3, suffix
    for name in alone:
        if not name.endswith((".qweight", ".scales")):
            assert torch.equal(alone[name], together[name]), name
    records = [read_json(tmp_path / folder / "octavo.json") for folder in ("alone", "together")]
    assert records[1]["inputs"].pop("processes") == 2
    assert records[0]["inputs"] == records[1]["inputs"]
    for one, other in zip(*(record["linears"] for record in records), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-2)


def test_windows_are_dealt_in_order(monkeypatch):
    crew = Crew(1, (3, 2, 2), CPU)
    assert (crew.mine, crew.leads) == (slice(3, 5), False)
    with joined(CPU, 4) as alone:
        assert (alone.windows, alone.leads, list(alone.others)) == ((4,), True, [])
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(UsageError, match="3 processes cannot share 2 calibration windows; start fewer"),
        joined(CPU, 2),
    ):
        pass
