"""A text read piece by piece is the text read at once; candidates are what the sampler draws from."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ContextLengthError
from octavo.model.kv_cache import make_cache, one_sequence
from octavo.model.llama import forward
from octavo.model.load import load_model
from octavo.runtime import reading
from octavo.runtime.params import SamplingParams
from octavo.runtime.reading import Reader, candidates
from octavo.runtime.sampling import drawing_of, empty_state, next_tokens
from small_models import write_model

CPU = torch.device("cpu")
TEXT = torch.randint(0, 61, (50,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(write_model(tmp_path_factory.mktemp("reading") / "dense"), CPU, torch.float32)


def at_once(model, tokens):
    """The definition: one pass over all of it."""
    cache = make_cache(model.config, 1, len(tokens), CPU, torch.float32)
    with torch.inference_mode():
        return forward(model, one_sequence(torch.tensor(tokens), 0, len(tokens)), cache)[-1:]


@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(1, 49), max_size=4, unique=True).map(sorted))
def test_pieces_give_what_the_whole_gives(model, cuts):
    reader = Reader(model, len(TEXT))
    for start, end in zip([0, *cuts], [*cuts, len(TEXT)], strict=True):
        logits = reader.read(TEXT[start:end])
        assert torch.allclose(logits, at_once(model, TEXT[:end]), atol=1e-4)
    assert reader.read_so_far == len(TEXT) and reader.seconds > 0


def test_a_long_text_is_read_in_steps_that_take_turns(model, monkeypatch):
    taken = []

    class Turn:
        def __init__(self):
            self.lock = threading.Lock()

        def __enter__(self):
            taken.append(self.lock.acquire(blocking=False))

        def __exit__(self, *_):
            self.lock.release()

    monkeypatch.setattr(reading, "CHUNK", 16)
    logits = Reader(model, len(TEXT), Turn()).read(TEXT)
    assert taken == [True] * 4 and torch.allclose(logits, at_once(model, TEXT), atol=1e-4)


def test_what_has_no_room_is_refused(model):
    with pytest.raises(ContextLengthError, match="128 tokens, but 129"):
        Reader(model, 129)
    reader = Reader(model, 3)
    reader.read([1, 2])
    with pytest.raises(ContextLengthError, match="room for 3"):
        reader.read([3, 4])


LOGITS = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()


@pytest.mark.parametrize(
    ("sampling", "drawn"),
    [
        (SamplingParams(temperature=1.0), [0.5, 0.25, 0.125, 0.125]),
        (SamplingParams(temperature=0.0), [1, 0, 0, 0]),
        (SamplingParams(temperature=0.5), [16 / 22, 4 / 22, 1 / 22, 1 / 22]),
        (SamplingParams(temperature=1.0, top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (SamplingParams(temperature=1.0, top_p=0.6), [2 / 3, 1 / 3, 0, 0]),
        (SamplingParams(temperature=1.0, min_p=0.5), [2 / 3, 1 / 3, 0, 0]),
        # of the seen token 0, the logit -0.693 is doubled: half a probability becomes a quarter
        (SamplingParams(temperature=1.0, repetition_penalty=2.0), [1 / 3, 1 / 3, 1 / 6, 1 / 6]),
    ],
)
def test_before_and_after_the_samplers(sampling, drawn):
    found = candidates(LOGITS, [0], sampling, most=4)
    assert [each.token for each in found] == [0, 1, 2, 3]
    assert [each.given for each in found] == pytest.approx([0.5, 0.25, 0.125, 0.125])
    assert [each.drawn for each in found] == pytest.approx(drawn)


def test_what_the_samplers_prefer_is_told_even_if_the_model_does_not():
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    sampling = SamplingParams(temperature=0.0, repetition_penalty=10.0)
    first, second = candidates(logits, [0, 1], sampling, most=1)
    assert (first.token, first.given, first.drawn) == (0, pytest.approx(0.6), 0.0)
    assert (second.token, second.given, second.drawn) == (2, pytest.approx(0.1), 1.0)


def test_what_is_unlikely_and_never_drawn_is_no_candidate():
    logits = torch.arange(8.0)[None]
    found = candidates(logits, [], SamplingParams(temperature=0.0), most=2)
    assert [(each.token, each.drawn) for each in found] == [(7, 1.0), (6, 0.0)]


def test_nothing_is_drawn_that_is_no_candidate():
    sampling = SamplingParams(temperature=1.3, top_k=20, top_p=0.8, repetition_penalty=1.2)
    logits, history = torch.randn(1, 200, generator=torch.Generator().manual_seed(0)), [3, 5, 7]
    may = {each.token for each in candidates(logits, history, sampling, most=200) if each.drawn > 0}
    state = empty_state(1, 200, CPU)
    state.assign(0, sampling, history)
    drawn = {int(next_tokens(logits, state, torch.tensor([at]), drawing_of([sampling]))) for at in range(300)}
    assert drawn <= may and 1 < len(drawn) <= len(may) <= 20
