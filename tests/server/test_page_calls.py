"""The page's own calls over HTTP: what they answer, refuse and bound."""

import threading

import pytest

from octavo.errors import EngineError
from octavo.runtime.reading import Reader
from octavo.server import page_writing
from octavo.server.errors import ApiError
from serving import bytewise_model, events_of, running, vicuna_stories, wait_until

STORY = "Once upon a time"


@pytest.fixture(scope="module")
def server(stories_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = {"stories": vicuna_stories(stories_folder, folder), "bytes": bytewise_model(folder / "bytes")}
    with running(models, admin_keys=("root",)) as up:
        yield up


def refusal(response):
    return response.status_code, response.json()["error"]["code"]


def test_a_text_goes_on_from_its_ids(server):
    body = {"model": "stories", "prompt": STORY, "max_tokens": 6, "temperature": 0, "likeliest": 3}
    first, *pieces, last, done = events_of(server.post("/page/write", body).text)
    tokens = [token for piece in pieces for token in piece["tokens"]]
    assert done == "[DONE]" and last["usage"]["prompt_tokens"] == first["prompt_tokens"]
    assert last["finish_reason"] == "length" and last["usage"]["completion_tokens"] == len(tokens) == 6
    assert all(token["likeliest"][0][0] == token["id"] and len(token["likeliest"]) == 3 for token in tokens)
    begun = [token["id"] for token in tokens[:3]]
    again = events_of(server.post("/page/write", {**body, "tokens": begun, "max_tokens": 3}).text)
    rest = [token["id"] for event in again[1:-2] for token in event["tokens"]]
    assert rest == [token["id"] for token in tokens[3:]]
    assert again[0]["prompt_tokens"] == first["prompt_tokens"] + 3


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/page/write", {"prompt": "a", "max_tokens": 0}, "invalid_value"),
        ("/page/write", {"prompt": "a", "max_tokens": 1, "likeliest": 21}, "invalid_value"),
        ("/page/write", {"prompt": "a", "max_tokens": 1, "tokens": [10**6]}, "invalid_value"),
        ("/page/write", {"prompt": "a", "max_tokens": 1, "n": 2}, "unsupported_parameter"),
        ("/page/write", {"prompt": "a " * 600, "max_tokens": 1}, "context_length_exceeded"),
        ("/page/next_tokens", {"prompt": "a " * 600}, "context_length_exceeded"),
        ("/page/next_tokens", {"prompt": "a" * 9000}, "context_length_exceeded"),
        ("/page/compare", {"second": "stories", "prompt": "a", "max_tokens": 1025}, "invalid_value"),
        ("/page/compare", {"second": "stories", "prompt": [10**6], "max_tokens": 1}, "invalid_value"),
        ("/page/compare", {"second": "stories", "prompt": "a", "max_tokens": 512}, "context_length_exceeded"),
        ("/page/compare", {"second": "bytes", "prompt": "a", "max_tokens": 1}, "invalid_value"),
        ("/page/markdown", {"texts": ["a"] * 65}, "invalid_value"),
    ],
)
def test_what_is_out_of_bounds_is_refused(server, path, body, code):
    model = {} if path == "/page/markdown" else {"model": "stories"}
    status, found = refusal(server.post(path, {**model, **body}))
    assert (status, found) == (400, code)


def test_unknown_names_are_refused(server):
    assert refusal(server.client.get("/page/quantization/none")) == (404, "model_not_found")
    body = {"model": "stories", "second": "none", "prompt": "a", "max_tokens": 1}
    assert refusal(server.post("/page/compare", body)) == (404, "model_not_found")
    assert refusal(server.client.post("/page/character", content=b"nothing")) == (400, "invalid_value")


def test_only_so_many_texts_are_read_at_a_time(server, monkeypatch):
    free, read = threading.Event(), Reader.read

    def held(reader, tokens):
        free.wait(20)
        return read(reader, tokens)

    monkeypatch.setattr(Reader, "read", held)
    body, statuses = {"model": "stories", "prompt": STORY}, []
    threads = [
        threading.Thread(target=lambda: statuses.append(server.post("/page/next_tokens", body).status_code))
        for _ in range(page_writing.MOST_READERS + 2)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(statuses) == 2)
    free.set()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * page_writing.MOST_READERS + [429] * 2
    assert server.post("/page/next_tokens", body).status_code == 200


def test_a_comparison_that_breaks_says_so_and_gives_its_place_back(server, monkeypatch):
    read = Reader.read

    def broken(reader, tokens):
        if len(tokens) == 1:
            raise EngineError("it broke")
        return read(reader, tokens)

    monkeypatch.setattr(Reader, "read", broken)
    body = {"model": "stories", "second": "stories", "prompt": STORY, "max_tokens": 5}
    for _ in range(page_writing.MOST_READERS + 1):
        text = server.post("/page/compare", body).text
        assert "it broke" in text and "[DONE]" not in text


def test_comparisons_wait_for_a_place_before_they_take_memory(server, monkeypatch):
    """All that come at once: those without a place are turned away with 429, and make no cache."""
    free, begun, made = threading.Event(), [], []
    make, read = Reader.__init__, Reader.read

    def counted(reader, *arguments):
        made.append(reader)
        make(reader, *arguments)

    def held(reader, tokens):
        begun.append(reader)
        free.wait(60)
        return read(reader, tokens)

    monkeypatch.setattr(Reader, "__init__", counted)
    monkeypatch.setattr(Reader, "read", held)
    body = {"model": "stories", "second": "stories", "prompt": STORY, "max_tokens": 2}
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.post("/page/compare", body)))
        for _ in range(page_writing.MOST_READERS)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(begun) == page_writing.MOST_READERS)
    assert refusal(server.post("/page/compare", body)) == (429, "queue_full")
    free.set()
    for thread in threads:
        thread.join()
    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers)
    assert len(made) == 2 * page_writing.MOST_READERS


def test_a_comparison_that_lost_its_place_ends_with_the_reason(server, monkeypatch):
    monkeypatch.setattr(page_writing.Workbench, "refuse_if_full", lambda bench: None)
    monkeypatch.setattr(page_writing, "LONGEST_TEXT", 4096)

    def full(bench):
        raise ApiError(429, "all taken", "queue_full")

    monkeypatch.setattr(page_writing.Workbench, "seat", full)
    body = {"model": "stories", "second": "stories", "prompt": STORY, "max_tokens": 2}
    (event,) = events_of(server.post("/page/compare", body).text)
    assert event["error"]["code"] == "queue_full"


def test_models_are_described(server):
    answer = server.client.get("/page/models").json()
    stories, random = answer["models"]
    assert (stories["name"], stories["state"], stories["context"]) == ("stories", "ready", 512)
    assert (stories["template"], random["template"]) == ("Vicuna v1.1", "its own")
    # 5 layers, 4 heads of 8 numbers for keys and as many for values, 4 bytes each
    assert stories["cache"]["bytes_per_token"] == 2 * 5 * 32 * 4
    assert stories["bytes"] == 1044992 and answer["memory"]["resident"] > 10**7
    server.post("/models/unload", {"model": "bytes"})
    assert server.client.get("/page/models").json()["models"][1]["cache"] is None
    server.post("/models/load", {"model": "bytes"})


def test_loading_tells_how_far_it_is(stories_folder):
    from serving import load_on_cpu

    go_on, heard = threading.Event(), []

    def slow(folder, progress):
        def counted(ready, layers):
            progress(ready, layers)
            if ready == 2:
                go_on.wait(20)

        return load_on_cpu(folder, counted)

    with running({"stories": stories_folder}, load=slow, wait=False) as up:

        def shown():
            heard.append(up.client.get("/page/models").json()["models"][0]["layers_ready"])
            return heard[-1]

        wait_until(lambda: shown() == [2, 5])
        go_on.set()
        wait_until(lambda: shown() is None)
