"""`octavo serve` as a process: it comes up, says where, ends on a signal, and refuses what it must."""

import signal
import subprocess
import sys

import httpx2
import pytest

from octavo.errors import UsageError
from octavo.server.run import folders_by_name
from serving import bytewise_model, wait_until

COMMAND = [sys.executable, "-c", "from octavo.cli import main; main()", "serve"]


def test_it_serves_until_it_is_told_to_stop(tmp_path):
    folder = bytewise_model(tmp_path / "bytes")
    process = subprocess.Popen([*COMMAND, f"small={folder}", "--port", "0"], stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        assert line.startswith("octavo: listening on http://127.0.0.1:")
        url = line.split()[-1]
        wait_until(lambda: httpx2.get(f"{url}/health").status_code == 200, seconds=60)
        body = {"model": "small", "prompt": "ab", "max_tokens": 3}
        assert httpx2.post(f"{url}/v1/completions", json=body).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) in (0, 130)
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def test_addresses_of_others_without_a_key_are_refused(tmp_path):
    run = subprocess.run([*COMMAND, tmp_path, "--host", "0.0.0.0"], capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "--api-key" in run.stderr and run.stderr.count("\n") == 1


def test_models_have_names(tmp_path):
    one, two = tmp_path / "a" / "model", tmp_path / "b" / "model"
    for folder in (one, two):
        folder.mkdir(parents=True)
    assert folders_by_name([str(one)]) == {"model": one}
    assert folders_by_name([str(one), f"other={two}"]) == {"model": one, "other": two}
    with pytest.raises(UsageError, match="two models would be called 'model'"):
        folders_by_name([str(one), str(two)])
