"""Generation: where it ends, what it needs, and text that is settled before it is shown."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import UsageError
from octavo.model.load import load_model
from octavo.runtime import generation
from octavo.runtime.generation import generate_tokens, until_stop
from octavo.runtime.params import SamplingParams
from small_models import write_model

GREEDY = SamplingParams()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("model") / "dense")
    return load_model(folder, torch.device("cpu"), torch.float32)


def written(model, prompt, params=GREEDY, max_new_tokens=10, end_ids=()):
    return list(generate_tokens(model, prompt, params, max_new_tokens, end_ids))


def test_it_ends_at_the_limit_at_an_end_token_and_at_the_context(model):
    tokens = written(model, [5, 6, 7])
    assert len(tokens) == 10
    assert written(model, [5, 6, 7], end_ids=[tokens[4]]) == tokens[: tokens.index(tokens[4])]
    assert len(written(model, [5] * 120, max_new_tokens=100)) == model.config.context - 120


def test_a_prompt_in_chunks_gives_the_same_tokens(model, monkeypatch):
    prompt = torch.randint(0, 61, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    whole = written(model, prompt)
    monkeypatch.setattr(generation, "PREFILL_CHUNK", 7)
    assert written(model, prompt) == whole


def test_a_seed_repeats_a_reply(model):
    params = SamplingParams(temperature=2.0, seed=3)
    assert written(model, [1, 2], params) == written(model, [1, 2], params)
    others = {tuple(written(model, [1, 2], SamplingParams(temperature=2.0, seed=seed))) for seed in range(5)}
    assert len(others) > 1


@pytest.mark.parametrize(("prompt", "sentence"), [([], "prompt is empty"), ([1] * 128, "context is 128")])
def test_prompts_without_room_are_refused(model, prompt, sentence):
    with pytest.raises(UsageError, match=sentence):
        written(model, prompt)


def streamed(text, stop, width=2):
    pieces = [text[start : start + width] for start in range(0, len(text), width)]
    return list(until_stop(pieces, stop))


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("hello", (), "hello"),
        ("hello USER: you", ("USER:",), "hello "),
        ("USER:", ("USER:",), ""),
        ("hello USE", ("USER:",), "hello USE"),
        ("aab", ("ab",), "a"),
        ("one two three", ("three", "two"), "one "),
    ],
)
def test_stop_strings_written_out(text, stop, expected):
    assert "".join(streamed(text, stop)) == expected


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UsageError, match="empty stop string"):
        streamed("a", ("",))


@given(
    text=st.text("abc", max_size=30),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    width=st.integers(1, 5),
)
def test_text_up_to_the_stop_that_is_complete_first(text, stop, width):
    expected = text
    for end in range(len(text) + 1):
        found = [text[:end].find(string) for string in stop if string in text[:end]]
        if found:
            expected = text[: min(found)]
            break
    pieces = streamed(text, stop, width)
    assert "".join(pieces) == expected
    assert all(pieces), "an empty piece is no news"
