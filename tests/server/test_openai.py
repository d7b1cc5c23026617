"""The scenarios that clients depend on, driven by OpenAI's own client."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from octavo.evaluation.scoring import score
from octavo.model.chat import VICUNA_SYSTEM
from octavo.server.shapes import finite_logprob
from serving import bytewise_model, running, vicuna_stories

HELLO = [{"role": "user", "content": "Once upon a time"}]
CHAT = {"model": "stories", "messages": HELLO, "max_tokens": 24, "seed": 5, "temperature": 0.9}
TEXT = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def server(stories_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = {"stories": vicuna_stories(stories_folder, folder), "bytes": bytewise_model(folder / "bytes")}
    with running(models) as up:
        yield up


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def streamed_chat(client, **options):
    """The chunks of a chat, and its text by choice."""
    chunks = list(client.chat.completions.create(**{**CHAT, **options}, stream=True))
    texts = {}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return chunks, texts


def test_a_chat_has_the_shape_that_clients_expect(client):
    reply = client.chat.completions.create(**CHAT)
    choice = reply.choices[0]
    assert (reply.object, reply.model, choice.index) == ("chat.completion", "stories", 0)
    assert reply.id.startswith("chatcmpl-") and reply.created > 1.7e9
    assert choice.message.role == "assistant" and len(choice.message.content) > 20
    assert choice.finish_reason == "length" and choice.logprobs is None
    usage = reply.usage
    assert usage.completion_tokens == 24 and usage.total_tokens == usage.prompt_tokens + 24
    assert reply._request_id.startswith("req_")


def test_a_stream_says_what_the_whole_reply_says(client):
    whole = client.chat.completions.create(**CHAT)
    chunks, texts = streamed_chat(client)
    assert texts == {0: whole.choices[0].message.content}
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"] and chunks[-1].choices[0].delta.content is None
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_last_and_only_when_asked_for(client, server):
    chunks, _ = streamed_chat(client, stream_options={"include_usage": True})
    assert chunks[-1].choices == [] and all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage == client.chat.completions.create(**CHAT).usage
    events = server.events("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}})
    assert all("usage" in event for event in events[:-1]) and events[-1] == "[DONE]"
    assert all("usage" not in event for event in server.events("/v1/chat/completions", CHAT)[:-1])
    stopped = {**CHAT, "stop": ["e"], "temperature": 0}
    whole = client.chat.completions.create(**stopped)
    chunks, texts = streamed_chat(client, **stopped, stream_options={"include_usage": True})
    assert chunks[-1].usage == whole.usage and texts[0] == whole.choices[0].message.content


def test_a_seed_repeats_alone_and_in_a_batch(client):
    texts = [client.chat.completions.create(**CHAT).choices[0].message.content for _ in range(2)]
    assert texts[0] == texts[1]
    assert client.chat.completions.create(**{**CHAT, "seed": 6}).choices[0].message.content != texts[0]
    seeds = [5, *range(20, 27), -3]
    with ThreadPoolExecutor(9) as pool:
        bodies = [{**CHAT, "seed": seed} for seed in seeds]
        together = list(pool.map(lambda body: client.chat.completions.create(**body), bodies))
    assert together[0].choices[0].message.content == texts[0]
    assert len({reply.choices[0].message.content for reply in together}) == len(seeds)
    unseeded = {client.chat.completions.create(**{**CHAT, "seed": None}).choices[0].message.content for _ in "abc"}
    assert len(unseeded) == 3


def test_n_replies(client):
    reply = client.chat.completions.create(**CHAT, n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in reply.choices]
    assert len(set(texts)) == 3
    single = client.chat.completions.create(**CHAT)
    assert texts[0] == single.choices[0].message.content
    assert reply.usage.prompt_tokens == single.usage.prompt_tokens and reply.usage.completion_tokens == 72
    chunks, streamed = streamed_chat(client, n=2)
    assert [streamed[0], streamed[1]] == texts[:2]
    ends = [choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert sorted(ends) == [0, 1]
    openings = [chunk.choices[0].index for chunk in chunks if chunk.choices[0].delta.role == "assistant"]
    assert openings == [0, 1]


@pytest.mark.parametrize("stop", [None, ["a"]])
def test_logprobs_of_a_chat(client, stop):
    options = {"logprobs": True, "top_logprobs": 3, "stop": stop}
    reply = client.chat.completions.create(**{**CHAT, "temperature": 0}, **options)
    content = reply.choices[0].logprobs.content
    text = reply.choices[0].message.content
    joined = b"".join(bytes(token.bytes) for token in content)
    assert joined.startswith(text.encode()) and (stop or joined == text.encode())
    assert "".join(token.token for token in content).encode() == joined
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in content)
    for token in content:
        assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob)
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob >= token.top_logprobs[2].logprob
    chunks, texts = streamed_chat(client, temperature=0, **options)
    streamed = [entry for chunk in chunks for c in chunk.choices if c.logprobs for entry in c.logprobs.content]
    assert streamed == content and texts[0] == text
    plain = client.chat.completions.create(**{**CHAT, "temperature": 0, "stop": stop}, logprobs=True)
    assert [token.top_logprobs for token in plain.choices[0].logprobs.content] == [[]] * len(content)


def test_logprobs_of_a_text(client):
    choice = client.completions.create(**TEXT, logprobs=2).choices[0]
    logprobs = choice.logprobs
    assert {len(part) for part in (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs)} == {24}
    assert "".join(logprobs.tokens) == choice.text
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert choice.text[offset:].startswith(token)
    assert all(len(top) == 2 and max(top, key=top.get) == token for token, top in zip(
        logprobs.tokens, logprobs.top_logprobs, strict=True))  # fmt: skip


def test_echo_gives_the_prompt_back_with_its_scores(client, server):
    alone = client.completions.create(**TEXT).choices[0].text
    assert client.completions.create(**TEXT, echo=True).choices[0].text == TEXT["prompt"] + alone
    choice = client.completions.create(**TEXT, echo=True, logprobs=1).choices[0]
    assert choice.text == TEXT["prompt"] + alone
    assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.top_logprobs[0] is None
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
    assert choice.logprobs.tokens[0] == "<s>"
    for token, offset in zip(choice.logprobs.tokens[2:], choice.logprobs.text_offset[2:], strict=True):
        assert choice.text[offset:].startswith(token)
    only = client.completions.create(**{**TEXT, "max_tokens": 0}, echo=True, logprobs=1)
    assert only.choices[0].text == TEXT["prompt"] and only.usage.completion_tokens == 0
    assert only.choices[0].logprobs.token_logprobs == choice.logprobs.token_logprobs[:-24]
    for logprobs in (None, 1):
        events = server.events("/v1/completions", {**TEXT, "echo": True, "logprobs": logprobs})
        assert "".join(event["choices"][0]["text"] for event in events[:-1]) == choice.text
    scores = [e["choices"][0]["logprobs"] for e in events[:-1] if e["choices"][0]["logprobs"]]
    assert [value for each in scores for value in each["token_logprobs"]] == choice.logprobs.token_logprobs
    assert [value for each in scores for value in each["text_offset"]] == choice.logprobs.text_offset


def test_prompts_come_as_text_ids_or_batches(client, server):
    ids = server.post("/tokenize", {"prompt": TEXT["prompt"]}).json()["tokens"]
    alone = client.completions.create(**TEXT).choices[0].text
    for prompt in (ids, [ids], [TEXT["prompt"]]):
        assert client.completions.create(**{**TEXT, "prompt": prompt}).choices[0].text == alone
    reply = client.completions.create(**{**TEXT, "prompt": ["Once", "Lily", TEXT["prompt"]]}, n=2)
    assert [choice.index for choice in reply.choices] == [*range(6)]
    texts = [choice.text for choice in reply.choices]
    assert texts[4] == texts[5] == alone and texts[0] != texts[2]
    separate = [client.completions.create(**{**TEXT, "prompt": text}) for text in ("Once", "Lily", TEXT["prompt"])]
    assert texts[::2] == [each.choices[0].text for each in separate]
    assert reply.usage.prompt_tokens == sum(each.usage.prompt_tokens for each in separate)


def test_stop_strings_are_left_out_and_never_begun(client, server):
    whole = client.completions.create(**{**TEXT, "max_tokens": 60}).choices[0].text
    stop = whole[20:32]  # spread over several tokens
    for stops in (stop, [stop], ["zzz", stop, "qqq", whole[40:44]]):
        choice = client.completions.create(**{**TEXT, "max_tokens": 60}, stop=stops).choices[0]
        assert (choice.text, choice.finish_reason) == (whole[: whole.find(stop)], "stop")
    events = server.events("/v1/completions", {**TEXT, "max_tokens": 60, "stop": stop})
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == whole[: whole.find(stop)]
    earliest = client.completions.create(**{**TEXT, "max_tokens": 60}, stop=[whole[30:33], whole[10:13]])
    assert earliest.choices[0].text == whole[: whole.find(whole[10:13])]


def test_characters_that_are_spread_over_tokens_come_whole(client, server):
    """A grammar makes a model of random bytes write what no single byte is."""
    for pattern in ("(🦉|é|語|x){12}", "naïve 🦉🦉 語"):
        body = {
            "model": "bytes", "messages": HELLO, "max_tokens": 80, "temperature": 2, "logprobs": True, "seed": 1,
            "response_format": {"type": "regex", "pattern": pattern},
        }  # fmt: skip
        choice = server.post("/v1/chat/completions", body).json()["choices"][0]
        events = server.events("/v1/chat/completions", body)[:-1]
        deltas = [event["choices"][0]["delta"].get("content") or "" for event in events]
        assert "".join(deltas) == choice["message"]["content"] and choice["finish_reason"] == "stop"
        assert "\ufffd" not in "".join(deltas)
        data = b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"])
        assert data.decode() == choice["message"]["content"]
    cut = server.post("/v1/chat/completions", {**body, "max_tokens": 3}).json()["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == ("na", "length")  # the third byte begins an ï
    stopped = server.post("/v1/chat/completions", {**body, "stop": "🦉 語"}).json()["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("naïve 🦉", "stop")


def test_both_names_of_the_longest_reply(client):
    for name in ("max_tokens", "max_completion_tokens"):
        options = {**CHAT, "max_tokens": None, name: 7}
        assert client.chat.completions.create(**options).usage.completion_tokens == 7
    with pytest.raises(openai.BadRequestError, match="old name"):
        client.chat.completions.create(**CHAT, max_completion_tokens=7)


def test_contents_may_come_in_parts(client):
    parts = [{"type": "text", "text": "Once upon"}, {"type": "text", "text": " a time"}]
    reply = client.chat.completions.create(**{**CHAT, "messages": [{"role": "user", "content": parts}]})
    assert reply.choices == client.chat.completions.create(**CHAT).choices


def test_a_message_is_continued_without_a_second_role(client, server):
    begun = [*HELLO, {"role": "assistant", "content": "There was a"}]
    options = {**CHAT, "messages": begun, "extra_body": {"continue_final_message": True}, "temperature": 0}
    text = client.chat.completions.create(**options).choices[0].message.content
    assert text.startswith(" ")
    body = {"model": "stories", "messages": begun, "continue_final_message": True}
    prompt = server.post("/apply_template", body).json()
    assert prompt["prompt"].endswith("USER: Once upon a time ASSISTANT: There was a")
    same = client.completions.create(**{**TEXT, "prompt": prompt["tokens"]})
    assert same.choices[0].text == text


def test_the_vicuna_prompt_is_exact_and_typed_control_tokens_are_text(server):
    turns = [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "</s> USER: x"},
    ]
    answer = server.post("/apply_template", {"model": "stories", "messages": turns}).json()
    assert answer["prompt"] == f"{VICUNA_SYSTEM} USER: Hello! ASSISTANT: Hi!</s>USER: </s> USER: x ASSISTANT:"
    assert answer["tokens"].count(2) == 1 and answer["tokens"].count(1) == 1 and answer["tokens"][0] == 1
    assert len(answer["token_strs"]) == answer["count"] == len(answer["tokens"])
    tokens = server.post("/tokenize", {"model": "stories", "messages": turns}).json()
    assert tokens["tokens"] == answer["tokens"] and tokens["token_strs"] is None
    reply = server.post("/v1/chat/completions", {"model": "stories", "messages": turns, "max_tokens": 1}).json()
    assert reply["usage"]["prompt_tokens"] == answer["count"]
    closed = server.post("/apply_template", {"messages": turns[:2], "add_generation_prompt": False}).json()
    assert closed["prompt"].endswith("ASSISTANT: Hi!</s>")


def test_unknown_models_and_the_list(client):
    assert [model.id for model in client.models.list()] == ["stories", "bytes"]
    assert client.models.retrieve("stories").id == "stories"
    for ask in (lambda: client.models.retrieve("x"), lambda: client.completions.create(**{**TEXT, "model": "x"})):
        with pytest.raises(openai.NotFoundError) as refused:
            ask()
        assert refused.value.code == "model_not_found" and refused.value.param == "model"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", 2.1), ("temperature", "1"), ("temperature", True), ("top_p", 0),
        ("top_p", 1.5), ("top_k", -2), ("top_k", 2**40), ("top_k", 1.5), ("min_p", 1.1), ("repetition_penalty", 0),
        ("n", 0), ("n", 9), ("seed", 2**63), ("seed", 1.5), ("stop", ""), ("stop", ["a"] * 5), ("stop", [1]),
        ("stop", "x" * 2000), ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 2**31), ("logprobs", 1),
        ("top_logprobs", 21), ("top_logprobs", 3), ("stream", "yes"), ("stream_options", {"include_usage": True}),
        ("messages", []), ("messages", "hello"), ("messages", [{"role": "user"}]),
        ("messages", [{"role": "tool", "content": "x"}]), ("messages", [{"role": "user", "content": None}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]),
        ("messages", [{"role": "user", "content": "x", "name": "me"}]),
        ("messages", [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]),
        ("continue_final_message", 1), ("model", None), ("model", 5),
    ],
)  # fmt: skip
def test_wrong_types_and_ranges_name_their_field(server, field, value):
    response = server.post("/v1/chat/completions", {**CHAT, field: value})
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert field == "continue_final_message" or error["param"].split(".")[0] == field, error
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"tool_choice": "auto"}, {"audio": {}},
        {"functions": [{}]}, {"logit_bias": {"5": 1}}, {"presence_penalty": 0.5}, {"frequency_penalty": -1},
        {"modalities": ["audio"]}, {"prediction": {}}, {"reasoning_effort": "low"}, {"web_search_options": {}},
        {"service_tier": "flex"}, {"store": True}, {"no_such_field": 1}, {"ignore_eos": True},
    ],
)  # fmt: skip
def test_what_is_not_offered_is_refused_by_name(server, extra):
    response = server.post("/v1/chat/completions", {**CHAT, **extra})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_parameter"
    assert response.json()["error"]["param"].split(".")[0] == next(iter(extra))


def test_what_asks_for_nothing_is_taken(client):
    harmless = {
        "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "none",
        "user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "modalities": ["text"],
        "parallel_tool_calls": False, "response_format": {"type": "text"}, "stop": [], "n": None,
    }  # fmt: skip
    reply = client.chat.completions.create(**CHAT, **harmless)
    assert reply.choices == client.chat.completions.create(**CHAT).choices
    earlier = [*HELLO, reply.choices[0].message.model_dump(), {"role": "user", "content": "And then?"}]
    client.chat.completions.create(**{**CHAT, "messages": earlier})


def test_the_context_is_full_or_overflows(client):
    full = client.completions.create(**{**TEXT, "prompt": [5] * 500, "max_tokens": 100})
    assert full.usage.total_tokens == 512 and full.choices[0].finish_reason == "length"
    with pytest.raises(
        openai.BadRequestError, match=r"context length is 512 tokens, but the prompt has 512"
    ) as refused:
        client.completions.create(**{**TEXT, "prompt": [5] * 512})
    assert refused.value.code == "context_length_exceeded"
    longest = client.completions.create(**{**TEXT, "prompt": [5] * 511})
    assert longest.usage.completion_tokens == 1 and longest.choices[0].finish_reason == "length"


def test_samplers_of_one_batch_do_not_mix(client):
    bodies = [
        {**TEXT, "seed": 3, **options}
        for options in (
            {}, {"temperature": 1.5}, {"temperature": 1.5, "top_p": 0.3}, {"temperature": 0.5},
            {"temperature": 1.5, "extra_body": {"top_k": 3}}, {"temperature": 1.5, "extra_body": {"min_p": 0.3}},
            {"extra_body": {"repetition_penalty": 1.5}}, {"logprobs": 3},
        )
    ]  # fmt: skip
    alone = [client.completions.create(**body).choices for body in bodies]
    assert len({choices[0].text for choices in alone}) >= 5
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda body: client.completions.create(**body).choices, bodies))
    assert [choices[0].text for choices in together] == [choices[0].text for choices in alone]


def test_scores_over_the_api_are_the_evaluators(client, server):
    import torch

    network = server.shelf.served[0].engine.model
    ids = torch.randint(3, 512, (1, 300), generator=torch.Generator().manual_seed(0))
    (loss,) = score(network, ids, lambda *_: None)
    options = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}  # lm-eval's
    choice = client.completions.create(model="stories", prompt=ids[0].tolist(), **options).choices[0]
    mean = -sum(choice.logprobs.token_logprobs[1:300]) / 299
    assert mean == pytest.approx(loss, abs=1e-4)


def test_structured_replies(client, server):
    schema = {
        "type": "object", "required": ["name", "age"], "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99, "minimum": 0}
        },
    }  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    reply = client.chat.completions.create(**{**CHAT, "max_tokens": 200}, n=3, response_format=wanted)
    for choice in reply.choices:
        person = json.loads(choice.message.content)
        assert person.keys() == {"name", "age"} and 0 <= person["age"] < 100 and choice.finish_reason == "stop"
    _, texts = streamed_chat(client, max_tokens=200, n=3, response_format=wanted)
    assert list(texts.values()) == [choice.message.content for choice in reply.choices]
    assert client.chat.completions.create(**CHAT).choices[0].message.content[0] != "{"
    body = {**CHAT, "response_format": {"type": "regex", "pattern": "(yes|no)"}}
    assert server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"] in ("yes", "no")
    for broken in (
        {"type": "regex", "pattern": "("},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}},
    ):
        response = server.post("/v1/chat/completions", {**CHAT, "response_format": broken})
        assert response.status_code == 400 and response.json()["error"]["param"] == "response_format"


def test_tokenize_and_back_in_the_shape_of_vllm(server):
    answer = server.post("/tokenize", {"prompt": "Once 🦉", "model": "stories", "return_token_strs": True}).json()
    assert answer.keys() == {"count", "max_model_len", "tokens", "token_strs"} and answer["max_model_len"] == 512
    assert answer["tokens"][0] == 1 and answer["token_strs"][:2] == ["<s>", "▁Once"]
    plain = server.post("/tokenize", {"prompt": "Once 🦉", "add_special_tokens": False}).json()["tokens"]
    assert plain == answer["tokens"][1:]
    assert server.post("/detokenize", {"tokens": plain}).json() == {"prompt": "Once 🦉"}
    info = server.client.get("/tokenizer_info", params={"model": "bytes"}).json()
    assert info["bos_token"] == "<s>" and info["eos_token"] == "</s>" and "assistant" in info["chat_template"]
    assert server.client.get("/tokenizer_info").json()["chat_template"] is None


def test_what_json_cannot_say_of_a_probability_of_zero():
    assert (finite_logprob(-math.inf), finite_logprob(-1.5)) == (-9999.0, -1.5)
