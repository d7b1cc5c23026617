"""Who is let in: host, origin, key and size, on every path there is."""

import json
import socket
import time
from http.client import HTTPResponse

import pytest
from fastapi.routing import APIRoute

from octavo.errors import UsageError
from octavo.server.gate import ADMIN_PATHS, OPEN_FOLDER, OPEN_PATHS
from octavo.server.settings import CallLimits, ServerSettings
from serving import bytewise_model, running

TEXT = {"model": "bytes", "prompt": "ab", "max_tokens": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bytewise_model(tmp_path_factory.mktemp("models") / "bytes")


@pytest.fixture(scope="module")
def open_server(folder):
    limits = CallLimits(body_bytes=100_000, body_seconds=0.7)
    with running({"bytes": folder}, call_limits=limits, host_names=("LLM.example",)) as up:
        yield up


@pytest.fixture(scope="module")
def locked_server(folder):
    with running({"bytes": folder}, api_keys=("one", "two"), admin_keys=("root",)) as up:
        yield up


def refusal(response):
    """The code of an error, whose shape is checked."""
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert all(isinstance(error[name], str) for name in ("message", "type", "code"))
    assert response.headers["x-request-id"].startswith("req_")
    return response.status_code, error["code"]


def every_route(up):
    """Method and path of each route; Gate → counting → FastAPI."""
    app = up.server.config.app.app.__closure__[0].cell_contents
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    assert len(routes) > 10
    return [(next(iter(route.methods)), route.path) for route in routes] + [("GET", "/openapi.json")]


def test_every_path_but_the_open_ones_needs_a_key(locked_server):
    paths = [*every_route(locked_server), ("GET", "/"), ("GET", "/nope"), ("GET", "//v1/models")]
    paths += [("GET", "/V1/models"), ("GET", "/v1/models/"), ("GET", "/health/"), ("GET", "/health/../v1/models")]
    paths += [("GET", "/..%2fhealth"), ("OPTIONS", "/v1/models"), ("HEAD", "/v1/models")]
    for method, path in paths:
        headers = {"authorization": ""}
        response = locked_server.client.request(method, path, headers=headers)
        if path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            assert response.status_code in (200, 404)
        else:
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            assert method == "HEAD" or refusal(response) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer one", 200), ("bearer two", 200), ("BEARER root", 200), ("Bearer  one", 200),
        ("Bearer three", 401), ("Bearer", 401), ("one", 401), ("Basic one", 401), ("Bearer one two", 401),
        ("Bearer On\u00e9", 401), ("", 401),
    ],
)  # fmt: skip
def test_keys(locked_server, header, status):
    headers = {"authorization": header.encode("latin-1")}
    assert locked_server.client.get("/v1/models", headers=headers).status_code == status


def test_only_admin_keys_load_and_unload(locked_server):
    for path in ADMIN_PATHS:
        response = locked_server.post(path, {"model": "bytes"}, headers={"authorization": "Bearer one"})
        assert refusal(response) == (403, "admin_key_needed")
    admin = {"authorization": "Bearer root"}
    assert locked_server.post("/models/unload", {"model": "bytes"}, headers=admin).json()["state"] == "unloaded"
    assert refusal(locked_server.post("/v1/completions", TEXT)) == (404, "model_not_loaded")
    assert locked_server.client.get("/health").status_code == 200
    assert locked_server.post("/models/load", {"model": "bytes"}, headers=admin).json()["state"] == "ready"
    assert locked_server.post("/v1/completions", TEXT).status_code == 200
    assert refusal(locked_server.post("/models/load", {"model": "/etc"}, headers=admin)) == (
        404,
        "model_not_found",
    )


def test_a_server_without_keys_takes_any(open_server):
    headers = {"authorization": "Bearer DUMMY_KEY"}
    assert open_server.client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200), ("localhost:{port}", 200), ("LOCALHOST", 200), ("[::1]:{port}", 200),
        ("llm.example", 200), ("192.168.1.5:8080", 200), ("evil.example", 421), ("evil.example:{port}", 421),
        ("127.0.0.1.evil.example", 421), ("localhost.evil.example", 421), ("", 421),
        ("localhost@evil.example", 421),
    ],
)  # fmt: skip
def test_hosts(open_server, host, status):
    port = open_server.url.rpartition(":")[2]
    response = open_server.client.get("/v1/models", headers={"host": host.format(port=port)})
    assert response.status_code == status
    assert status == 200 or refusal(response) == (421, "unknown_host")


@pytest.mark.parametrize(
    ("origin", "status"),
    [("{url}", 200), ("http://evil.example", 403), ("null", 403), ("http://127.0.0.1", 403), ("{url}.evil", 403)],
)
def test_origins(open_server, origin, status):
    headers = {"origin": origin.format(url=open_server.url)}
    response = open_server.client.get("/v1/models", headers=headers)
    assert response.status_code == status
    assert not any(name.startswith("access-control") for name in response.headers)


BODIES = {
    b"": 400, b"[": 400, b"null": 400, b'"x"': 400, b"5": 400, b"[1]": 400, b"{}": 400, b"\xff\xfe{}": 400,
    b"[" * 50_000: 400, b'{"a":' * 20_000: 400, b'{"model":NaN}': 400, b'{"model": Infinity}': 400,
    b'{"model":"bytes","prompt":"\\ud800"}': 400, b'{"model":"bytes","prompt":"a","temperature":1e999}': 400,
    b'{"model":"bytes","prompt":"a","max_tokens":1' + b"0" * 5000 + b"}": 400, b"x" * 100_001: 413,
    b'{"model":"bytes","prompt":[1,2,999999]}': 400, b'{"model":"bytes","prompt":[]}': 400,
    b'{"model":"bytes","prompt":[[]]}': 400, b'{"model":"bytes","prompt":["a",1]}': 400,
    json.dumps({"model": "bytes", "prompt": [[5]] * 65}).encode(): 400,
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body[:24].decode("latin-1"))
def test_bodies_that_are_no_request(open_server, body):
    headers = {"content-type": "application/json"}
    response = open_server.client.post("/v1/completions", content=body, headers=headers)
    assert refusal(response)[0] == BODIES[body]


def test_other_content_types_unknown_paths_and_wrong_methods(open_server):
    client = open_server.client
    assert refusal(client.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"}))[0] == 400
    assert refusal(client.post("/v1/completions", data={"model": "bytes", "prompt": "a"}))[0] == 400
    assert refusal(client.get("/nope")) == (404, "unknown_path")
    assert refusal(client.get("/docs")) == (404, "unknown_path")
    response = client.delete("/v1/completions")
    assert refusal(response) == (405, "method_not_allowed") and response.headers["allow"] == "POST"
    assert refusal(client.post("/v1/embeddings")) == (501, "not_offered")
    assert refusal(client.get("/v1/models/..%2f..%2fetc%2fpasswd"))[0] == 404


def raw(up):
    host, port = up.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def answer_on(connection):
    """Status and code of an error, which may arrive in several packets."""
    answer = HTTPResponse(connection)
    answer.begin()
    return answer.status, json.load(answer)["error"]["code"]


def test_a_body_that_never_ends_is_cut_off_and_holds_nobody_up(open_server):
    with raw(open_server) as slow, raw(open_server) as large, raw(open_server) as silent:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        slow.sendall(head + b"content-length: 50\r\n\r\n{")
        silent.sendall(b"GET /v1/mod")
        started = time.monotonic()
        for _ in range(5):
            assert open_server.post("/v1/completions", TEXT).status_code == 200
        assert answer_on(slow) == (408, "slow_body")
        assert 0.5 < time.monotonic() - started < 5
        large.sendall(head + b"transfer-encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (50_000, b" " * 50_000)
        for _ in range(3):  # none of them too large by itself
            large.sendall(chunk)
            time.sleep(0.1)
        assert answer_on(large) == (413, "body_too_large")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_other_addresses_than_loopback_need_a_key(host):
    with pytest.raises(UsageError, match="--api-key"):
        ServerSettings(host)
    assert ServerSettings(host, api_keys=("key",)).host == host


def test_loopback_and_ports_and_keys():
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert ServerSettings(host).host == host
    for wrong in ({"port": 70000}, {"port": -1}, {"api_keys": ("",)}, {"api_keys": ("a\nb",)}):
        with pytest.raises(UsageError):
            ServerSettings(**wrong)
