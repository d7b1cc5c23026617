"""Streams under strain: clients that leave, wait, crowd or dawdle, and an engine that fails."""

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from octavo.runtime.requests import EngineLimits
from octavo.server import generation
from octavo.server import shelf as shelves
from octavo.server.settings import CallLimits
from serving import bytewise_model, events_of, load_on_cpu, running, wait_until

LONG = {"model": "bytes", "prompt": "ab", "max_tokens": 400, "temperature": 1, "seed": 3}
CHAT = {"model": "bytes", "messages": [{"role": "user", "content": "hello"}], "seed": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bytewise_model(tmp_path_factory.mktemp("models") / "bytes")


@pytest.fixture
def server(folder):
    with running({"bytes": folder}, limits=EngineLimits(2, 8, 32 * 2**20, 64, 16)) as up:
        yield up


def slowed(up, seconds):
    """Each token takes so long from now on."""
    step = up.engine._decoder.step

    def slow(**options):
        time.sleep(seconds)
        return step(**options)

    up.engine._decoder.step = slow


def idle(up):
    status = up.engine.status()
    return (status.waiting, status.reading, status.writing, status.pages_held) == (0, 0, 0, 0)


def raw_request(up, body, path="/v1/completions"):
    """A connection on which a request was sent."""
    data = json.dumps(body).encode()
    host, port = up.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    connection.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_reply(server, stream):
    slowed(server, 0.01)
    connection = raw_request(server, {**LONG, "stream": stream})
    if stream:
        connection.recv(100)
    wait_until(lambda: server.engine.status().writing == 1)
    connection.close()
    wait_until(lambda: idle(server), seconds=2)
    assert server.engine.status().tokens_written < 200
    assert server.engine.status().cancelled == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/page/write", {"model": "bytes", "prompt": "ab", "max_tokens": 400}),
        ("/v1/completions", {**LONG, "stream": True}),
        ("/v1/completions", LONG),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 400, "stream": True}),
    ],
)
def test_a_client_that_left_before_the_answer_began_stops_its_reply(server, monkeypatch, path, body):
    slowed(server, 0.01)
    gone, tokenizer = threading.Event(), type(server.shelf.served[0].tokenizer)

    def late(function):
        def waited(*arguments, **options):
            gone.wait(20)
            return function(*arguments, **options)

        return waited

    monkeypatch.setattr(tokenizer, "encode", late(tokenizer.encode))
    monkeypatch.setattr(generation, "encode_conversation", late(generation.encode_conversation))
    connection = raw_request(server, body, path)
    time.sleep(0.1)
    connection.close()
    time.sleep(0.1)  # the server hears of it while the prompt is still being made
    gone.set()
    wait_until(lambda: server.engine.status().cancelled == 1)
    wait_until(lambda: idle(server))
    assert server.engine.status().tokens_written < 200


def test_a_client_that_leaves_while_it_waits_is_forgotten(server):
    slowed(server, 0.01)
    running_ones = [raw_request(server, {**LONG, "stream": True}) for _ in range(2)]
    wait_until(lambda: server.engine.status().writing == 2)
    waiting = raw_request(server, {**LONG, "stream": True})
    wait_until(lambda: server.engine.status().waiting == 1)
    waiting.close()
    wait_until(lambda: server.engine.status().waiting == 0, seconds=2)
    assert server.engine.status().writing == 2
    for connection in running_ones:
        connection.close()
    wait_until(lambda: idle(server))


def test_a_full_queue_turns_away_with_429_and_recovers(server):
    slowed(server, 0.004)
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: server.post("/v1/completions", {**LONG, "max_tokens": 100}), range(24)))
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(200), statuses.count(429)) == (10, 14)
    refused = answers[statuses.index(429)]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert (
        refused.json()["error"]["type"] == "rate_limit_error" and refused.json()["error"]["code"] == "queue_full"
    )
    assert server.post("/v1/completions", {**LONG, "max_tokens": 1}).status_code == 200
    too_many = {**LONG, "prompt": ["a", "b"], "n": 6}
    assert server.post("/v1/completions", too_many).status_code == 400


def test_32_at_once_get_what_each_gets_alone(folder):
    def body(number):
        text = "Tell me. " * (number % 4) + f"question {number}"
        bound = {"temperature": 0} if number % 3 == 0 else {"temperature": 1.2, "top_p": 0.9, "seed": number}
        return {**CHAT, "messages": [{"role": "user", "content": text}], "max_tokens": 5 + number, **bound}

    def streamed(up, number):
        events = up.events("/v1/chat/completions", body(number))
        assert events[-1] == "[DONE]"
        return "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])

    def whole(up, number):
        answer = up.post("/v1/chat/completions", body(number))
        return answer.json()["choices"][0]["message"]["content"]

    with running({"bytes": folder}, limits=EngineLimits(32, 64, 4 * 2**20, 64, 16)) as up:
        alone = [whole(up, number) for number in range(32)]
        with ThreadPoolExecutor(32) as pool:
            assert list(pool.map(lambda number: whole(up, number), range(32))) == alone
            assert list(pool.map(lambda number: streamed(up, number), range(32))) == alone
        assert idle(up)


def test_a_reader_that_stops_does_not_stop_others(folder):
    with running({"bytes": folder}, limits=EngineLimits(4, 8)) as up:
        stuck = raw_request(up, {**LONG, "stream": True, "logprobs": 20, "n": 2})
        for _ in range(3):
            assert up.post("/v1/completions", {**LONG, "max_tokens": 50}).status_code == 200
        wait_until(lambda: idle(up))
        stuck.close()


def test_silence_is_filled_with_comments(folder):
    with running({"bytes": folder}, call_limits=CallLimits(ping_seconds=0.05)) as up:
        slowed(up, 0.3)
        response = up.post("/v1/completions", {**LONG, "max_tokens": 2, "stream": True})
        assert response.text.count(": ping\n\n") >= 5
        assert events_of(response.text)[-1] == "[DONE]"


def test_a_reply_that_takes_too_long_ends_with_an_error(folder):
    with running({"bytes": folder}, call_limits=CallLimits(reply_seconds=0.3)) as up:
        slowed(up, 0.02)
        response = up.post("/v1/completions", LONG)
        assert (response.status_code, response.json()["error"]["code"]) == (504, "time_limit")
        assert response.headers["x-should-retry"] == "false"
        events = up.events("/v1/completions", LONG)
        assert len(events) > 2 and events[-1]["error"]["code"] == "time_limit"
        wait_until(lambda: idle(up), seconds=2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_engine_dies_streams_end_with_an_error_and_it_is_restarted(server, monkeypatch):
    monkeypatch.setattr(shelves, "RETRY_SECONDS", 1.0)
    slowed(server, 0.005)
    expected = server.post("/v1/completions", {**LONG, "max_tokens": 3}).json()["choices"]
    with ThreadPoolExecutor(6) as pool:
        streams = [pool.submit(server.events, "/v1/completions", LONG) for _ in range(4)]
        whole = [pool.submit(server.post, "/v1/completions", LONG) for _ in range(2)]
        wait_until(lambda: server.engine.status().writing == 2 and server.engine.status().waiting == 4)

        def dead(**options):
            raise SystemExit("killed by the test")

        server.engine._decoder.step = dead
        for stream in streams:
            assert stream.result(timeout=10)[-1]["error"]["code"] == "engine_stopped"
        for answer in whole:
            response = answer.result(timeout=10)
            assert response.status_code == 503 and response.headers["retry-after"] == "2"
    wait_until(lambda: server.client.get("/health").status_code == 503, seconds=5)
    assert server.post("/v1/completions", LONG).status_code == 503
    wait_until(lambda: server.client.get("/health").status_code == 200, seconds=10)
    assert server.post("/v1/completions", {**LONG, "max_tokens": 3}).json()["choices"] == expected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_dies_again_and_again_is_given_up(server, monkeypatch):
    monkeypatch.setattr(shelves, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(shelves, "WATCH_SECONDS", 0.02)

    def dead(**options):
        raise RuntimeError("killed by the test")

    def ask():
        with contextlib.suppress(AttributeError):
            server.engine._decoder.step = dead
        server.post("/v1/completions", {**LONG, "max_tokens": 3})
        return server.shelf.gave_up.is_set()

    wait_until(ask)
    answer = server.client.get("/health")
    assert (answer.status_code, answer.json()["models"]) == (503, {"bytes": "failed"})
    refused = server.post("/v1/completions", LONG)
    assert refused.status_code == 503 and "again and again" in refused.json()["error"]["message"]


def test_health_while_a_model_is_loaded_and_unloaded(folder):
    gate = threading.Event()

    def slow_load(path, progress):
        gate.wait(20)
        return load_on_cpu(path, progress)

    with running({"bytes": folder}, load=slow_load, wait=False) as up:
        health = up.client.get("/health")
        assert (health.status_code, health.json()["models"]) == (503, {"bytes": "loading"})
        refused = up.post("/v1/completions", LONG)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "model_loading"
        assert refused.headers["retry-after"] == "2"
        gate.set()
        wait_until(lambda: up.client.get("/health").status_code == 200)
        slowed(up, 0.01)
        with ThreadPoolExecutor(1) as pool:
            stream = pool.submit(up.events, "/v1/completions", LONG)
            wait_until(lambda: up.engine.status().writing == 1)
            assert up.post("/models/unload", {"model": "bytes"}).status_code == 200
            assert stream.result(timeout=10)[-1]["error"]["code"] == "engine_stopped"
        assert up.client.get("/health").status_code == 200
        assert up.client.get("/v1/models").json()["data"][0]["state"] == "unloaded"
        assert up.post("/models/load", {"model": "bytes"}).json()["state"] == "ready"


def test_a_model_that_cannot_be_loaded_is_named(folder, tmp_path):
    with running({"bytes": folder, "absent": tmp_path / "absent"}, wait=False) as up:
        wait_until(lambda: up.shelf.states() == {"bytes": "ready", "absent": "failed"})
        assert up.client.get("/health").status_code == 503
        assert up.post("/v1/completions", {**LONG, "max_tokens": 1}).status_code == 200
        refused = up.post("/v1/completions", {**LONG, "model": "absent"})
        assert refused.status_code == 503 and "cannot be loaded" in refused.json()["error"]["message"]
        assert refused.headers["x-should-retry"] == "false"


def test_a_mistake_while_loading_is_no_loading_for_ever(folder, caplog):
    def broken(path, progress):
        raise RuntimeError("no memory")

    with running({"bytes": folder}, load=broken, wait=False) as up:
        wait_until(lambda: up.shelf.states() == {"bytes": "failed"})
        refused = up.post("/v1/completions", LONG)
        assert refused.json()["error"]["message"] == "the model 'bytes' cannot be loaded: no memory"
    assert caplog.records[0].exc_info[0] is RuntimeError  # a mistake is logged with where it was made


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_was_unloaded_while_it_restarted_is_not_kept(server, monkeypatch):
    made, go_on, engine = [], threading.Event(), shelves.Engine

    def slow_engine(*arguments):
        made.append(None)
        go_on.wait(20)
        made.append(engine(*arguments))
        return made[-1]

    def dead(**options):
        raise SystemExit("killed by the test")

    monkeypatch.setattr(shelves, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(shelves, "Engine", slow_engine)
    server.engine._decoder.step = dead
    server.post("/v1/completions", {**LONG, "max_tokens": 3})
    wait_until(lambda: made)
    assert server.post("/models/unload", {"model": "bytes"}).status_code == 200
    go_on.set()
    wait_until(lambda: len(made) == 2 and not made[1].status().alive)
    assert server.shelf.served == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_cannot_start_again_is_tried_until_it_is_given_up(server, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no memory")

    def dead(**options):
        raise SystemExit("killed by the test")

    monkeypatch.setattr(shelves, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(shelves, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(shelves, "Engine", broken)
    server.engine._decoder.step = dead
    server.post("/v1/completions", {**LONG, "max_tokens": 3})
    wait_until(server.shelf.gave_up.is_set)


def test_models_beside_each_other(folder, stories_folder):
    with running({"bytes": folder, "stories": stories_folder}) as up:
        bodies = [{**LONG, "model": name, "max_tokens": 40} for name in ("bytes", "stories")] * 4
        alone = [up.post("/v1/completions", body).json()["choices"] for body in bodies]
        assert alone[0] == alone[2] != alone[1]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda body: up.post("/v1/completions", body).json()["choices"], bodies))
        assert together == alone
        refused = up.post("/v1/chat/completions", {**CHAT, "model": "stories"})
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "chat_template_error"


def test_metrics_count_what_happened(server):
    server.post("/v1/completions", {**LONG, "max_tokens": 5})
    server.client.get("/nope")
    page = server.client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = dict(line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#"))
    assert lines['octavo_tokens_written_total{model="bytes"}'] == "5.0"
    assert lines['octavo_usage_tokens_total{kind="prompt",model="bytes"}'] == "3.0"
    assert lines['octavo_http_responses_total{status="404"}'] == "1.0"
    assert lines['octavo_time_to_first_token_seconds_count{model="bytes"}'] == "1.0"
    assert lines['octavo_time_between_tokens_seconds_count{model="bytes"}'] == "4.0"
    assert float(lines['octavo_time_between_tokens_seconds_sum{model="bytes"}']) > 0
    assert lines['octavo_pages_held{model="bytes"}'] == "0.0"


def test_no_prompt_is_logged_and_no_name_is_looked_up(folder, monkeypatch, capfd):
    looked_up, reached = [], []
    look_up, connect = socket.getaddrinfo, socket.socket.connect
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: looked_up.append(host) or look_up(host, *a, **k)
    )
    monkeypatch.setattr(socket.socket, "connect", lambda self, to: reached.append(to) or connect(self, to))
    with running({"bytes": folder}) as up:
        up.post("/v1/completions", {**LONG, "prompt": "a secret", "max_tokens": 3})
        up.post(
            "/v1/chat/completions",
            {**CHAT, "messages": [{"role": "user", "content": "a secret"}], "max_tokens": 0},
        )
        up.post(
            "/v1/chat/completions",
            {**CHAT, "messages": [{"role": "user", "content": "a secret"}], "max_tokens": 3},
        )
        up.events("/v1/completions", {**LONG, "prompt": "a secret", "max_tokens": 3})
    assert set(looked_up) <= {"127.0.0.1", "localhost", None}
    assert reached and all(to[0] in ("127.0.0.1", "::1") for to in reached if isinstance(to, tuple))
    assert "secret" not in "".join(capfd.readouterr())


def test_many_streams_one_after_the_other_leave_nothing(server):
    import psutil

    process = psutil.Process()
    body = {**LONG, "max_tokens": 2}
    for _ in range(50):
        server.events("/v1/completions", body)
    files, memory = process.num_fds(), process.memory_info().rss
    for _ in range(150):
        server.events("/v1/completions", body)
    assert process.num_fds() <= files + 2
    assert process.memory_info().rss < memory * 1.05
    assert idle(server)
