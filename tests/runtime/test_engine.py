"""The engine: a reply is what its request alone would get, whatever else goes on, and nothing is left behind."""

import queue
import threading
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import EngineError, GrammarError, NumericalError, OverloadError, UsageError
from octavo.model.kv_cache import make_cache, one_sequence
from octavo.model.llama import forward
from octavo.model.load import load_model
from octavo.runtime.engine import Engine
from octavo.runtime.generation import generate_tokens
from octavo.runtime.params import SamplingParams
from octavo.runtime.requests import EngineLimits, Failed, Finished, PromptScored, Request, Written
from small_models import write_model

PAGE_BYTES = 2 * 3 * 24 * 8 * 4  # keys and values, layers, width, positions, float32


def limits(rows=4, queue=64, pages=64, chunk=16):
    return EngineLimits(rows, queue, (pages + 1) * PAGE_BYTES, chunk, page_size=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("model") / "dense")
    return load_model(folder, torch.device("cpu"), torch.float32, block_kernels=())


@pytest.fixture
def engine(model):
    engine = Engine(model, limits())
    yield engine
    engine.close()


class Reply:
    """All that is heard of a request."""

    def __init__(self):
        self.events = queue.SimpleQueue()
        self.tokens, self.scores, self.prompt_scores = [], [], None

    def next(self):
        event = self.events.get(timeout=30)
        match event:
            case Written(token, score):
                self.tokens.append(token)
                self.scores.append(score)
            case PromptScored(scores):
                self.prompt_scores = scores
        return event

    def end(self):
        while not isinstance(event := self.next(), Finished | Failed):
            pass
        return event


def submit(engine, *requests):
    replies = [Reply() for _ in requests]
    return replies, engine.submit(requests, [reply.events.put for reply in replies])


def ask(engine, request):
    (reply,), _ = submit(engine, request)
    return reply, reply.end()


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def prompt_of(length, seed=0):
    return tuple(torch.randint(3, 61, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def various(count):
    """Requests of all kinds: short and long, greedy and drawn, with common beginnings."""
    sampling = [
        SamplingParams(),
        SamplingParams(temperature=0.9, seed=4),
        SamplingParams(temperature=1.3, top_k=9, top_p=0.9, seed=5),
        SamplingParams(temperature=0.7, min_p=0.05, repetition_penalty=1.3, seed=6),
    ]
    return [
        Request(
            prompt_of(20 * (number % 2)) + prompt_of(1 + 7 * number % 40, seed=number),
            sampling[number % len(sampling)],
            most_tokens=3 + 5 * number % 30,
            end_ids=frozenset({2, 7}),
            client=str(number % 3),
        )
        for number in range(count)
    ]


def alone(model, request):
    return list(generate_tokens(model, request.prompt, request.sampling, request.most_tokens, request.end_ids))


@pytest.mark.parametrize("given", [limits(), limits(rows=32, chunk=256), limits(rows=6, pages=16, chunk=5)])
def test_a_reply_is_the_same_alone_and_among_others(model, given):
    requests = various(32)
    engine = Engine(model, given)
    replies, _ = submit(engine, *requests)
    for request, reply in zip(requests, replies, strict=True):
        ending = reply.end()
        expected = alone(model, request)
        assert reply.tokens == expected
        assert ending == Finished("length" if len(expected) == request.most_tokens else "stop")
    status = engine.status()
    assert (status.waiting, status.reading, status.writing, status.pages_held) == (0, 0, 0, 0)
    if given.rows == 6:
        assert status.set_back > 0  # the memory was scarce on purpose
    engine.close()


def test_what_was_read_is_not_read_again(model, engine):
    beginning = prompt_of(40)
    first, _ = ask(engine, Request((*beginning, 5, 6), most_tokens=10))
    read = engine.status().tokens_read
    assert read == 41 and engine.status().tokens_reused == 0
    request = Request((*beginning, 5, 6, *first.tokens, 9, 9), most_tokens=10)
    second, _ = ask(engine, request)
    assert second.tokens == alone(model, request)
    # 51 tokens of the first are in the cache, in 6 full pages of 8
    assert engine.status().tokens_reused == 48
    assert engine.status().tokens_read - read == 53 - 48


def test_a_beginning_that_many_ask_for_at_once_is_read_once(model, engine):
    request = Request(prompt_of(60), SamplingParams(temperature=1.0, seed=1), most_tokens=4)
    replies, _ = submit(engine, *[request] * 4)
    for reply in replies:
        reply.end()
        assert reply.tokens == alone(model, request)
    assert engine.status().tokens_read == 59 + 3 * 3 and engine.status().tokens_reused == 3 * 56


def test_a_long_prompt_stalls_nobody(engine):
    (running,), _ = submit(engine, Request(prompt_of(4), most_tokens=100))
    running.next()
    (long,), _ = submit(engine, Request(prompt_of(100, seed=1), most_tokens=1))
    long.end()
    # 99 tokens take 7 chunks of 16, and each is followed by a step of the other
    assert running.events.qsize() >= 5
    running.end()


def test_clients_take_turns(model):
    engine = Engine(model, limits(rows=1))
    order = []
    gate = threading.Event()
    requests = [Request((5,), most_tokens=1, client=client) for client in "aaaabb"]
    listeners = [lambda event, c=r.client: (gate.wait(20), order.append(c)) for r in requests]
    blocked = Reply()
    engine.submit([Request((5,), most_tokens=2)], [lambda event: (gate.wait(20), blocked.events.put(event))])
    engine.submit(requests, listeners)
    gate.set()
    wait_until(lambda: len(order) == 12)
    assert "".join(order[::2]) == "ababaa"
    engine.close()


def test_a_cancelled_request_is_gone_within_a_token(engine):
    replies, numbers = submit(engine, *[Request((5,), most_tokens=120)] * 6)  # two of them wait
    replies[0].next()
    engine.cancel(numbers)
    wait_until(lambda: engine.status().pages_held == 0)
    assert engine.status().tokens_written < 6 * 120 / 2
    written = engine.status().tokens_written
    time.sleep(0.05)
    assert engine.status().tokens_written == written
    engine.cancel(numbers)
    assert engine.status().cancelled == 6
    _, ending = ask(engine, Request((5,), most_tokens=1))
    assert ending == Finished("length")


def test_too_many_are_turned_away_and_all_or_none_come_in(model):
    engine = Engine(model, limits(rows=2, queue=3))
    replies, _ = submit(engine, *[Request((5,), most_tokens=120)] * 4)
    with pytest.raises(OverloadError, match="4 requests"):
        submit(engine, *[Request((5,))] * 2)
    replies += submit(engine, Request((5,), most_tokens=1))[0]
    with pytest.raises(UsageError, match="more than the 5"):
        submit(engine, *[Request((5,))] * 6)
    assert [reply.end() for reply in replies] == [Finished("length")] * 5
    engine.close()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(prompt_of(128)), "maximum context length is 128 tokens, but the prompt has 128"),
        (Request(prompt_of(129), most_tokens=0), "but the prompt has 129"),
        (Request((61,)), "outside 0 … 60"),
        (Request((-1,)), "outside 0 … 60"),
    ],
)
def test_what_cannot_be_answered_is_refused(engine, request_, words):
    with pytest.raises(UsageError, match=words):
        submit(engine, request_)


def test_the_context_may_be_filled_to_the_last_token(model, engine):
    reply, ending = ask(engine, Request(prompt_of(120), most_tokens=50))
    assert (len(reply.tokens), ending) == (8, Finished("length"))
    reply, ending = ask(engine, Request(prompt_of(128), most_tokens=0, top_logprobs=0, scores_prompt=True))
    assert (len(reply.prompt_scores), reply.tokens, ending) == (127, [], Finished("length"))


def test_memory_limits_the_context(model):
    engine = Engine(model, limits(rows=4, pages=3))
    assert engine.context == 24
    with pytest.raises(UsageError, match="context length is 24"):
        submit(engine, Request(prompt_of(24)))
    replies, _ = submit(engine, *[Request(prompt_of(20), most_tokens=50)] * 3)
    assert [(reply.end(), len(reply.tokens)) for reply in replies] == [(Finished("length"), 4)] * 3
    engine.close()
    with pytest.raises(UsageError, match="holds no two pages"):
        Engine(model, limits(pages=0))


def test_a_cache_in_8_bits_holds_three_times_as_much_and_serves_alike(model):
    """Heads of 12: 48 bytes of float32, or 12 codes and a scale."""
    coded = replace(model, coded_cache=True)
    small = Engine(coded, limits(rows=4, pages=2))
    assert small.context == 64  # 8 pages and the idle one, where floats have 2
    small.close()
    crowded, roomy = Engine(coded, limits(rows=3, pages=5, chunk=7)), Engine(coded, limits())
    requests = [replace(request, top_logprobs=0, end_ids=frozenset()) for request in various(8)]
    replies, _ = submit(crowded, *requests)
    for request, reply in zip(requests, replies, strict=True):
        reply.end()
        alone, _ = ask(roomy, request)
        assert reply.tokens == alone.tokens
        found = [score.logprob for score in reply.scores]
        assert found == pytest.approx(logprobs_of_reply(coded, request, reply), abs=5e-4)
        assert found != pytest.approx(logprobs_of_reply(model, request, reply), abs=5e-4)
    crowded.close()
    roomy.close()


def logprobs_of_reply(model, request, reply):
    tokens = [*request.prompt, *reply.tokens]
    logprobs = logprobs_of(model, tokens)
    return [logprobs[place - 1, tokens[place]].item() for place in range(len(request.prompt), len(tokens))]


def logprobs_of(model, tokens):
    cache = make_cache(model.config, 1, len(tokens), model.device, model.dtype, model.coded_cache)
    return forward(model, one_sequence(torch.tensor(tokens), 0, len(tokens)), cache).log_softmax(-1)


@pytest.mark.parametrize("given", [limits(), limits(rows=3, pages=17, chunk=7)])
def test_scores_are_the_models_own(model, given):
    engine = Engine(model, given)
    sampling = SamplingParams(temperature=1.0, top_k=3, repetition_penalty=2.0, seed=3)
    request = Request(prompt_of(50), sampling, 10, top_logprobs=4, scores_prompt=True)
    replies, _ = submit(
        engine, request, *various(6), Request((5,), most_tokens=1, scores_prompt=True, top_logprobs=0)
    )
    reply = replies[0]
    for each in replies:
        each.end()
    tokens = [*request.prompt, *reply.tokens]
    expected = logprobs_of(model, tokens)
    scores = [*reply.prompt_scores, *reply.scores]
    assert len(scores) == 59
    for place, score in enumerate(scores):
        assert score.logprob == pytest.approx(expected[place, tokens[place + 1]].item(), abs=1e-4)
        best = expected[place].topk(4)
        assert [token for token, _ in score.top] == best.indices.tolist()
        assert [value for _, value in score.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert replies[1].scores == [None] * len(replies[1].tokens)
    assert replies[-1].prompt_scores == () and replies[-1].scores[0].top == ()
    engine.close()


class Countdown:
    """A grammar of three tokens, one way to write them."""

    def __init__(self, error_at=None):
        self.left, self.error_at = [11, 12, 13], error_at

    def allowed(self):
        if self.error_at == len(self.left):
            raise GrammarError("the grammar is too costly")
        return (1 << self.left[0]).to_bytes(8, "little")

    def accept(self, token):
        assert token == self.left.pop(0)

    @property
    def finished(self):
        return not self.left


def test_grammars_bind_their_own_reply_only(model, engine):
    free = Request(prompt_of(9), most_tokens=12)
    bound = Request(prompt_of(9), SamplingParams(temperature=2.0), 12, grammar=Countdown())
    broken = Request(prompt_of(9), most_tokens=12, grammar=Countdown(error_at=2))
    replies, _ = submit(engine, free, bound, broken, free)
    endings = [reply.end() for reply in replies]
    assert replies[0].tokens == replies[3].tokens == alone(model, free)
    assert (replies[1].tokens, endings[1]) == ([11, 12, 13], Finished("stop"))
    assert replies[2].tokens == [11] and isinstance(endings[2].error, GrammarError)


def test_a_greedy_reply_alone_follows_its_grammar(engine):
    reply, ending = ask(engine, Request(prompt_of(9), most_tokens=12, grammar=Countdown()))
    assert (reply.tokens, ending) == ([11, 12, 13], Finished("stop"))


def test_broken_logits_end_their_own_reply_only(model, engine):
    broken, whole = Request((5,) * 9, most_tokens=30), Request((6,) * 9, most_tokens=30)
    replies, _ = submit(engine, broken, whole)
    replies[0].next()
    page = engine._scheduler.writing[0].pages[0]
    with torch.inference_mode():
        engine._cache.values[1][page * 8] = float("nan")
    assert isinstance(replies[0].end().error, NumericalError)
    assert replies[1].end() == Finished("length") and replies[1].tokens == alone(model, whole)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_death_of_the_thread_is_told_to_all(model, monkeypatch):
    engine = Engine(model, limits(rows=2))
    replies, _ = submit(engine, *[Request((5,), most_tokens=120)] * 4)
    replies[0].next()

    def broken(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._decoder, "step", broken)
    for reply in replies:
        error = reply.end().error
        assert isinstance(error, EngineError) and "RuntimeError: out of memory" in str(error)
    assert not engine.status().alive
    with pytest.raises(EngineError, match="has stopped"):
        submit(engine, Request((5,)))
    engine.close()


def test_closing_ends_what_is_under_way(model):
    engine = Engine(model, limits())
    replies, _ = submit(engine, *[Request((5,), most_tokens=120)] * 6)
    replies[0].next()
    engine.close()
    assert "shut down" in str(replies[-1].end().error)
    assert not engine.status().alive


@given(moves=st.lists(st.tuples(st.integers(0, 31), st.booleans(), st.floats(0, 0.004)), min_size=1, max_size=12))
@settings(max_examples=15, deadline=None)
def test_whoever_comes_and_goes_nothing_is_left_behind(model, moves):
    requests = various(32)
    engine = Engine(model, limits(rows=3, pages=20, chunk=9))
    kept = []
    for number, leaves, pause in moves:
        (reply,), (ticket,) = submit(engine, requests[number])
        time.sleep(pause)
        if leaves:
            engine.cancel([ticket])
        else:
            kept.append((number, reply))
    for number, reply in kept:
        reply.end()
        assert reply.tokens == alone(model, requests[number])
    wait_until(lambda: engine.status().pages_held == 0)
    assert engine._scheduler.pool.free == engine.status().pages
    engine.close()


def test_a_request_without_a_seed_gets_one_that_lasts(engine):
    """So that a reply that is set back goes on as it would have."""
    replies, _ = submit(engine, *[Request((5,), SamplingParams(temperature=1.0), most_tokens=60)] * 2)
    replies[1].next()
    seeds = {draft.request.sampling.seed for draft in engine._scheduler.writing}
    assert len(seeds) == 2 and None not in seeds
    for reply in replies:
        reply.end()
    assert replies[0].tokens != replies[1].tokens
