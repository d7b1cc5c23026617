"""The network against transformers, the cache against no cache, and a batch against each sequence alone."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from octavo.kernels.attention import SequencePages, cached_attention
from octavo.model.kv_cache import make_batch, make_cache, one_sequence
from octavo.model.llama import forward
from octavo.model.load import load_model
from small_models import write_family_model

CPU, FLOAT = torch.device("cpu"), torch.float32
GOLDEN = Path(__file__).parent.parent / "golden" / "stories260K.json"


def logits_of(model, tokens):
    cache = make_cache(model.config, 1, len(tokens), CPU, FLOAT)
    return forward(model, one_sequence(tokens, 0, len(tokens)), cache, torch.arange(len(tokens)))


def transformers_logits(folder, tokens):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=FLOAT).eval()
    with torch.inference_mode():
        return model(tokens[None]).logits[0]


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
FAMILY = {
    "llama": ("Llama", {}),
    "untied head, own head size": ("Llama", {"tie_word_embeddings": False, "head_dim": 16}),
    "attention bias": ("Llama", {"attention_bias": True}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    "dynamic, longer": (
        "Llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 1e4},
            "max_position_embeddings": 24,
        },
    ),
    "llama3": ("Llama", {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}),
    "yarn": ("Llama", {"rope_parameters": {**YARN, "rope_theta": 1e4}}),
    "yarn with factors": (
        "Llama",
        {
            "rope_parameters": {
                **YARN,
                "rope_theta": 1e6,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
                "truncate": False,
            }
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "mistral without window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2 with window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
}


@pytest.mark.parametrize("variant", FAMILY)
def test_the_family_equals_transformers(tmp_path, variant):
    write_family_model(tmp_path, *FAMILY[variant])
    tokens = torch.randint(1, 96, (40,), generator=torch.Generator().manual_seed(1))
    expected = transformers_logits(tmp_path, tokens)
    assert expected.std() > 0.5
    assert (logits_of(load_model(tmp_path, CPU, FLOAT), tokens) - expected).abs().max() <= 1e-3


def test_the_older_spelling_of_rope_scaling(tmp_path):
    write_family_model(tmp_path, "Llama", {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}})
    tokens = torch.arange(1, 40)
    expected = logits_of(load_model(tmp_path, CPU, FLOAT), tokens)
    values = json.loads((tmp_path / "config.json").read_text())
    parameters = values.pop("rope_parameters")
    values["rope_theta"] = parameters.pop("rope_theta")
    values["rope_scaling"] = parameters
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert torch.equal(logits_of(load_model(tmp_path, CPU, FLOAT), tokens), expected)


def test_stories_equals_transformers(stories_folder):
    tokens = torch.randint(3, 512, (512,), generator=torch.Generator().manual_seed(0))
    ours = logits_of(load_model(stories_folder, CPU, FLOAT), tokens)
    assert (ours - transformers_logits(stories_folder, tokens)).abs().max() <= 1e-3


def test_stories_goes_on_as_transformers_does(stories_folder):
    """The golden file holds what transformers' greedy generation gave; see scripts/golden.py."""
    from octavo.runtime.generation import generate_tokens
    from octavo.runtime.params import SamplingParams

    golden = json.loads(GOLDEN.read_text())
    model = load_model(stories_folder, CPU, FLOAT)
    assert len(golden["continuation"]) == 200
    written = generate_tokens(model, golden["prompt"], SamplingParams(), max_new_tokens=200, end_ids=())
    assert list(written) == golden["continuation"]


@pytest.mark.parametrize("chunks", [[50], [1] * 50, [20, 30], [1, 48, 1], [7] * 7 + [1]])
def test_chunks_and_steps_equal_the_whole(stories_folder, chunks):
    model = load_model(stories_folder, CPU, FLOAT)
    tokens = torch.randint(3, 512, (50,), generator=torch.Generator().manual_seed(2))
    cache = make_cache(model.config, 1, 64, CPU, FLOAT)
    parts, done = [], 0
    for count in chunks:
        batch = one_sequence(tokens[done : done + count], done, 64)
        parts.append(forward(model, batch, cache, torch.arange(count)))
        done += count
    assert (torch.cat(parts) - logits_of(model, tokens)).abs().max() <= 1e-4


@pytest.mark.parametrize("variant", ["llama", "mistral", "dynamic, longer", "qwen3"])
def test_three_sequences_in_one_batch_equal_each_alone(tmp_path, variant):
    """Prefill in two uneven steps over scattered pages, then single tokens."""
    write_family_model(tmp_path, *FAMILY[variant])
    model = load_model(tmp_path, CPU, FLOAT)
    generator = torch.Generator().manual_seed(3)
    sequences = [torch.randint(1, 96, (length,), generator=generator) for length in (30, 5, 17)]
    page_size, pages_each = 4, 8
    page_table = torch.randperm(3 * pages_each, generator=generator).view(3, pages_each)
    cache = make_cache(model.config, 3 * pages_each, page_size, CPU, FLOAT)
    got, cached = [[], [], []], [0, 0, 0]
    for steps in ((13, 2, 17), (16, 2, 0), (1, 1, 0)):
        new = [tokens[past : past + count] for tokens, past, count in zip(sequences, cached, steps, strict=True)]
        batch = make_batch(new, cached, page_table, page_size)
        logits = forward(model, batch, cache, torch.arange(sum(steps)))
        for number, part in enumerate(logits.split(steps)):
            got[number].append(part)
            cached[number] += steps[number]
    assert cached == [30, 5, 17]
    for parts, tokens in zip(got, sequences, strict=True):
        expected = logits_of(model, tokens)
        if variant == "dynamic, longer" and len(tokens) > 24:
            # Dynamic scaling turns keys by the length at which they were written, so chunks differ by nature;
            # transformers does the same.
            continue
        assert (torch.cat(parts) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("rows", [1, 4, 11])
def test_attention_is_its_definition(window, rows):
    generator = torch.Generator().manual_seed(rows)
    length, heads, kv_heads, width = 11, 6, 2, 4
    queries = torch.randn(rows, heads, width, generator=generator)
    keys = torch.randn(16, kv_heads, width, generator=generator)
    values = torch.randn(16, kv_heads, width, generator=generator)
    table = torch.tensor([[3, 0, 2]])
    pages = SequencePages(
        torch.tensor([length]), torch.tensor([0, rows]), table, 4, most_rows=rows, longest=length
    )
    got = cached_attention(queries, keys, values, pages, window)
    for row in range(rows):
        position = length - rows + row
        for head in range(heads):
            seen = [
                int(table[0, past // 4]) * 4 + past % 4
                for past in range(position + 1)
                if window is None or position - past < window
            ]
            scores = keys[seen, head // 3] @ queries[row, head] / width**0.5
            expected = F.softmax(scores, 0) @ values[seen, head // 3]
            assert torch.allclose(got[row, head], expected, atol=1e-5)
