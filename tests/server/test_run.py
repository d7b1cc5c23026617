"""`octavo serve` as a process: it comes up, says where, ends on a signal, and refuses what it must."""

import signal
import socket
import subprocess
import sys

import httpx2
import pytest

from octavo.errors import UsageError
from octavo.server.run import _listen, folders_by_name
from octavo.server.settings import ServerSettings, is_loopback
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


@pytest.mark.parametrize(("options", "pages"), [([], 107), (["--kv-bits", "8"], 324)])
def test_the_past_may_be_kept_in_8_bits(tmp_path, options, pages):
    """A million bytes, in pages of 16 positions: 3 layers of keys and values, 2 heads of 12 each."""
    folder = bytewise_model(tmp_path / "bytes")
    command = [*COMMAND, folder, "--port", "0", "--cache", "0.001", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = process.stderr.readline().split()[-1]
        wait_until(lambda: httpx2.get(f"{url}/health").status_code == 200, seconds=60)
        assert f'octavo_pages{{model="bytes"}} {pages}.0' in httpx2.get(f"{url}/metrics").text
        body = {"model": "bytes", "prompt": "ab", "max_tokens": 40, "temperature": 0}
        assert httpx2.post(f"{url}/v1/completions", json=body).json()["usage"]["completion_tokens"] > 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["serve", "MODEL"], "not in 4 bits"),
        (["chat", "MODEL"], "not in 4 bits"),
        (["chat", "http://x"], "runs here"),
    ],
)
def test_other_ways_to_keep_the_past_are_refused(tmp_path, command, words):
    folder = str(bytewise_model(tmp_path / "bytes"))
    given = [folder if part == "MODEL" else part for part in command]
    run = subprocess.run(
        [*COMMAND[:-1], *given, "--kv-bits", "4"], input="", capture_output=True, text=True, check=False
    )
    assert run.returncode == 2 and words in run.stderr and run.stderr.count("\n") == 1


def test_addresses_of_others_without_a_key_are_refused(tmp_path):
    run = subprocess.run([*COMMAND, tmp_path, "--host", "0.0.0.0"], capture_output=True, text=True, check=False)
    assert run.returncode == 2 and "--api-key" in run.stderr and run.stderr.count("\n") == 1


def test_a_port_that_is_taken_is_one_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = subprocess.run([*COMMAND, tmp_path, "--port", port], capture_output=True, text=True, check=False)
    assert run.returncode == 2 and f"port {port} of 127.0.0.1" in run.stderr and run.stderr.count("\n") == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_each_way_to_say_this_machine_is_listened_on(host):
    settings = ServerSettings(host=host, port=0)
    try:
        listener = _listen(settings, 1)
    except UsageError:
        assert host == "::1"  # a machine may be without IPv6
        return
    with listener:
        assert is_loopback(listener.getsockname()[0])


def test_models_have_names(tmp_path):
    one, two = tmp_path / "a" / "model", tmp_path / "b" / "model"
    for folder in (one, two):
        folder.mkdir(parents=True)
    assert folders_by_name([str(one)]) == {"model": one}
    assert folders_by_name([str(one), f"other={two}"]) == {"model": one, "other": two}
    with pytest.raises(UsageError, match="two models would be called 'model'"):
        folders_by_name([str(one), str(two)])
