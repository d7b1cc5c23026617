"""Decoding in steps that are recorded once, as on a GPU, gives the tokens of the plain loop."""

import pytest
import torch

from octavo.errors import NumericalError
from octavo.kernels import attention
from octavo.model.kv_cache import make_batch, make_cache
from octavo.model.llama import forward, hidden_states
from octavo.model.load import load_model
from octavo.runtime.capture import run_each_time
from octavo.runtime.decoding import Decoder, bucket_for
from octavo.runtime.params import SamplingParams
from octavo.runtime.sampling import drawing_of, empty_state, next_tokens
from recorded_steps import record
from small_models import write_family_model, write_model

PAGE, PAGES_EACH, IDLE = 8, 5, 0
PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=0.9, seed=4),
    SamplingParams(temperature=1.2, top_k=7, top_p=0.9, seed=5),
    SamplingParams(repetition_penalty=1.5),
    SamplingParams(temperature=0.7, min_p=0.1, repetition_penalty=1.1, seed=6),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("model") / "dense")
    return load_model(folder, torch.device("cpu"), torch.float32, block_kernels=())


@pytest.fixture
def no_reading(monkeypatch):
    """As on a GPU, where reading a length would stall the device."""
    monkeypatch.setattr(attention, "_host_may_read", lambda tensor: False)


def prompts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 61, (length,), generator=generator).tolist() for length in (1, 9, 4, 17, 8)]


def plain_tokens(model, prompt, params, count):
    """The loop without a decoder: everything once more for each token, no cache kept."""
    history = list(prompt)
    state = empty_state(1, model.config.vocabulary_size, model.device)
    for _ in range(count):
        state.assign(0, params, history)
        cache = make_cache(model.config, 1, len(history), model.device, model.dtype)
        batch = make_batch([torch.tensor(history)], [0], torch.zeros(1, 1, dtype=torch.int64), len(history))
        logits = forward(model, batch, cache)[-1:]
        history.append(int(next_tokens(logits, state, torch.tensor([len(history)]), drawing_of([params]))[0]))
    return history[len(prompt) :]


def admitted(model, cache, decoder, number, prompt, params):
    """A sequence with pages of its own, all but its last token in the cache."""
    pages = [1 + number * PAGES_EACH + page for page in range(PAGES_EACH)]
    if len(prompt) > 1:
        batch = make_batch([torch.tensor(prompt[:-1])], [0], torch.tensor([pages]), PAGE)
        hidden_states(model, batch, cache)
    return decoder.admit(prompt[-1], prompt[:-1], pages, params)


@pytest.mark.parametrize("capture", [record, run_each_time])
def test_sequences_that_come_and_go_get_the_tokens_of_the_plain_loop(model, no_reading, capture):
    expected = [plain_tokens(model, prompt, params, 12) for prompt, params in zip(prompts(), PARAMS, strict=True)]
    lasting = [12, 3, 7, 12, 5]  # how many tokens each is asked for
    cache = make_cache(model.config, 1 + 5 * PAGES_EACH, PAGE, model.device, model.dtype)
    written = {number: [] for number in range(5)}
    with torch.inference_mode():
        decoder = Decoder(model, cache, rows=6, pages=PAGES_EACH, capture=capture, idle_page=IDLE)
        sequences = []  # the sequence in each row
        for step in range(30):
            if step % 2 == 0 and step // 2 < 5:  # one more comes every second step
                number = step // 2
                row = admitted(model, cache, decoder, number, prompts()[number], PARAMS[number])
                assert row == len(sequences)
                sequences.append(number)
            if not sequences:
                break
            for number, token in zip(sequences, decoder.step().read(), strict=True):
                written[number].append(token)
            for row in reversed(range(len(sequences))):
                if len(written[sequences[row]]) == lasting[sequences[row]]:
                    decoder.release(row)
                    sequences[row] = sequences[-1]
                    sequences.pop()
    for number, tokens in written.items():
        assert tokens == expected[number][: lasting[number]]


@pytest.mark.parametrize(
    "family", [{"sliding_window": 6}, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}]
)
def test_windows_and_dynamic_rotary_are_recorded_too(tmp_path, no_reading, family):
    kind = "Mistral" if "sliding_window" in family else "Llama"
    write_family_model(tmp_path, kind, family)
    model = load_model(tmp_path, torch.device("cpu"), torch.float32, block_kernels=())
    prompt = torch.randint(3, 90, (11,), generator=torch.Generator().manual_seed(1)).tolist()
    tokens = {}
    for capture in (record, run_each_time):
        cache = make_cache(model.config, 1 + PAGES_EACH, PAGE, model.device, model.dtype)
        with torch.inference_mode():
            decoder = Decoder(model, cache, rows=1, pages=PAGES_EACH, capture=capture, idle_page=IDLE)
            admitted(model, cache, decoder, 0, prompt, SamplingParams())
            tokens[capture] = [decoder.step().read()[0] for _ in range(20)]
    assert tokens[record] == tokens[run_each_time] == plain_tokens(model, prompt, SamplingParams(), 20)


def test_each_bucket_is_captured_once(model):
    captured = []

    def counting(step):
        captured.append(step)
        return step

    cache = make_cache(model.config, 1 + 5 * PAGES_EACH, PAGE, model.device, model.dtype)
    with torch.inference_mode():
        decoder = Decoder(model, cache, rows=6, pages=PAGES_EACH, capture=counting, idle_page=IDLE)
        for number in range(5):
            admitted(model, cache, decoder, number, prompts()[number], SamplingParams())
            decoder.step()
            decoder.step()
    assert len(captured) == 4  # 1, 2, 4 (for 3 and 4 rows) and 6, the most, for 5


@pytest.mark.parametrize(
    ("rows", "most", "bucket"), [(1, 8, 1), (2, 8, 2), (3, 8, 4), (5, 8, 8), (5, 6, 6), (8, 8, 8)]
)
def test_buckets_are_powers_of_two_up_to_the_most(rows, most, bucket):
    assert bucket_for(rows, most) == bucket


def test_broken_logits_are_not_sampled(model):
    cache = make_cache(model.config, 2, PAGE, model.device, model.dtype)
    with torch.inference_mode():
        decoder = Decoder(model, cache, rows=1, pages=1, capture=run_each_time, idle_page=IDLE)
        decoder.admit(5, [], [1], SamplingParams())
        decoder.step().read()
        cache.values[1][PAGE].fill_(float("nan"))
        with pytest.raises(NumericalError, match="NaN or Inf"):
            decoder.step().read()
