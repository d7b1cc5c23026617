"""Tasks of lm-evaluation-harness: likelihoods as transformers has them, scores counted by hand, and refusals."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance

import octavo
from octavo import api
from octavo.errors import CorpusError, UsageError
from octavo.evaluation.harness import HarnessModel, likelihood
from octavo.evaluation.spec import ComparisonSpec
from octavo.evaluation.tasks import require_harness, task_of
from octavo.records import as_json
from octavo.report.comparison import task_difference_rows, task_measures

DOCUMENTS = [
    ("Once upon a time, there was a little girl named", ["Lily", "stone"], 0),
    ("The sun is", ["lower", "bright"], 1),
    ("Tom went to the", ["park", "asked"], 0),
    ("She was very", ["happy", "tree"], 1),  # the answer is wrong on purpose
]
CHOICE = {
    "task": "stories",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 7},
}
PERPLEXITY = {
    "task": "sentences",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [
        {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    ],
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Two tasks over documents of this machine, as YAML files by name."""
    import datasets
    import yaml

    folder = tmp_path_factory.mktemp("tasks")
    texts = folder / "documents.jsonl"
    keys = ("question", "choices", "answer")
    texts.write_text("".join(json.dumps(dict(zip(keys, each, strict=True))) + "\n" for each in DOCUMENTS))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": str(texts)}, "test_split": "train"}
    paths = {}
    for values in (CHOICE, PERPLEXITY):
        path = folder / f"{values['task']}.yaml"
        path.write_text(yaml.safe_dump({**source, **values}))
        paths[str(values["task"])] = str(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield paths


@pytest.fixture(scope="module")
def stories(stories_folder: Path) -> HarnessModel:
    loaded = octavo.load(stories_folder, device="cpu")
    return HarnessModel(loaded.network, loaded.tokenizer, lambda *_: None)


def request(kind: str, *arguments: object) -> Instance:
    return Instance(kind, {}, arguments, 0)


@pytest.fixture(scope="module")
def oracle(stories_folder: Path) -> torch.nn.Module:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(stories_folder, dtype=torch.float32)


def slow_likelihood(network: torch.nn.Module, tokens: list[int], scored: int) -> float:
    """log p of the last tokens, each by itself."""
    with torch.inference_mode():
        probabilities = network(torch.tensor([tokens])).logits[0].double().log_softmax(1)
    places = range(len(tokens) - scored, len(tokens))
    return sum(float(probabilities[place - 1, tokens[place]]) for place in places)


def test_a_likelihood_is_that_of_the_definition(stories: HarnessModel, oracle: torch.nn.Module) -> None:
    context, continuation = "Once upon a time, there", " was a little girl"
    ids = stories.tok_encode(context + continuation)
    scored = len(ids) - len(stories.tok_encode(context))
    ((found, greedy),) = stories.loglikelihood([request("loglikelihood", context, continuation)])
    assert ids[0] == 1 and scored > 3  # the tokenizer puts <s> first
    assert found == pytest.approx(slow_likelihood(oracle, ids, scored), abs=1e-4)
    assert greedy
    ((worse, greedy),) = stories.loglikelihood([request("loglikelihood", context, " was a little stone")])
    assert worse < found - 1 and not greedy


def test_without_a_context_a_text_begins_with_the_start_token(
    stories: HarnessModel, oracle: torch.nn.Module
) -> None:
    ids = stories.tok_encode("Once upon a time")
    assert ids == [1, *stories.tok_encode("Once upon a time", add_special_tokens=False)]
    ((found, _),) = stories.loglikelihood([request("loglikelihood", "", "Once upon a time")])
    assert found == pytest.approx(slow_likelihood(oracle, ids, len(ids) - 1), abs=1e-4)


def test_a_context_too_long_is_cut_from_the_left(stories: HarnessModel, oracle: torch.nn.Module) -> None:
    """stories260K sees 512 tokens; of 600 before the 3 that are scored, the last 510 are seen."""
    tokens = torch.randint(3, 512, (603,), generator=torch.Generator().manual_seed(0)).tolist()
    found, _ = likelihood(stories._network, tokens[:600], tokens[600:])
    assert found == pytest.approx(slow_likelihood(oracle, tokens[-513:], 3), abs=1e-3)
    with pytest.raises(UsageError, match="a task scores 513 tokens at once, and the model's context is 512"):
        likelihood(stories._network, tokens[:5], tokens[5:518])


def test_a_long_text_is_scored_token_by_token_once(stories: HarnessModel, oracle: torch.nn.Module) -> None:
    """<s> and 699 tokens in windows of 512: the second predicts what is left, with a full context."""
    text = "Once upon a time, there was a little girl. " * 60
    ids = stories.tok_encode(text)
    assert 512 < len(ids) < 1024
    first = slow_likelihood(oracle, [1, *ids[:512]], 512)
    rest = slow_likelihood(oracle, ids[-513:], len(ids) - 512)
    (found,) = stories.loglikelihood_rolling([request("loglikelihood_rolling", text)])
    assert found == pytest.approx(first + rest, rel=1e-5)


def test_continuations_end_where_a_task_says(stories: HarnessModel) -> None:
    context = "Once upon a time"
    wanted = [{"until": ["named"]}, {"until": "named", "max_gen_toks": 4, "do_sample": False}]
    found = stories.generate_until([request("generate_until", context, each) for each in wanted])
    assert found == [", there was a little girl ", ", there was a"]
    drawn = [request("generate_until", context, {"until": [], "max_gen_toks": 9, "temperature": 1.0})] * 2
    first, second = stories.generate_until(drawn)
    assert first == second
    for options, sentence in (
        ({"until": [], "num_beams": 4}, "asks for num_beams of generation"),
        ({"until": [], "max_gen_toks": 512}, "asks for 512 new tokens, and the model's context is 512"),
    ):
        with pytest.raises(UsageError, match=sentence):
            stories.generate_until([request("generate_until", context, options)])


@pytest.fixture(scope="module")
def record(asked: dict[str, str], stories_folder: Path) -> dict:
    models = [stories_folder, f"{stories_folder}@rtn-2-64g"]
    return as_json(api.compare(models, ComparisonSpec((), tasks=tuple(asked.values())), device="cpu"))


def test_several_models_side_by_side(record: dict, stories: HarnessModel) -> None:
    """Of 4 answers 3 are as the dense model has them; rounding to 2 bits loses the second and third."""
    accuracy, perplexity = record["tasks"]
    expected = []
    for question, choices, answer in DOCUMENTS:
        asked = [request("loglikelihood", question, f" {choice}") for choice in choices]
        likelihoods = [value for value, _ in stories.loglikelihood(asked)]
        expected.append(float(likelihoods.index(max(likelihoods)) == answer))
    assert expected == [1.0, 1.0, 1.0, 0.0]
    dense, rounded = accuracy["values"]
    assert (dense["value"], dense["standard_error"]) == (0.75, 0.25)
    assert (dense["difference"], dense["difference_standard_error"]) == (0.0, 0.0)
    assert (rounded["value"], rounded["difference"]) == (0.25, -0.5)
    assert rounded["difference_standard_error"] == pytest.approx((1 / 3) ** 0.5 / 2)  # of 0, -1, -1, 0
    described = {key: accuracy[key] for key in ("task", "metric", "version", "shots", "documents")}
    assert described == {"task": "stories", "metric": "acc", "version": 7, "shots": 0, "documents": 4}
    assert perplexity["metric"] == "word_perplexity" and not perplexity["higher_is_better"]
    dense, rounded = perplexity["values"]
    assert 1 < dense["value"] < rounded["value"] and "difference" not in dense


def test_the_best_of_a_metric_is_marked_and_differences_have_error_bars(record: dict) -> None:
    accuracy, perplexity = task_measures(record)
    assert (accuracy.title, perplexity.title) == ("stories acc", "sentences word_perplexity")
    assert accuracy.cells("**{}**")[0] == "**0.7500**"
    assert perplexity.cells("**{}**")[0].startswith("**")
    assert not perplexity.cells("**{}**")[1].startswith("**")
    ((model, task, documents, difference),) = task_difference_rows(record)
    assert (task, documents) == ("stories acc, 0 shots", "4") and "±" in difference
    assert model.endswith("@rtn-2-64g")
    assert task_measures({"models": record["models"]}) == []


def test_only_the_first_documents(asked: dict[str, str], stories_folder: Path) -> None:
    spec = ComparisonSpec((), tasks=(asked["stories"],), documents=2)
    (entry,) = as_json(api.compare([stories_folder, f"{stories_folder}@fp32"], spec, device="cpu"))["tasks"]
    assert entry["documents"] == 2 and [each["value"] for each in entry["values"]] == [1.0, 1.0]


def test_what_is_refused(asked: dict[str, str], stories_folder: Path, tmp_path: Path) -> None:
    models = [stories_folder, f"{stories_folder}@fp32"]
    with pytest.raises(UsageError, match="lm-evaluation-harness has no task no_such_task"):
        api.compare(models, ComparisonSpec((), tasks=("no_such_task",)), device="cpu")
    moved = tmp_path / "moved.yaml"
    moved.write_text(Path(asked["stories"]).read_text().replace("documents.jsonl", "absent.jsonl"))
    with pytest.raises(CorpusError, match="the texts of the tasks cannot be read"):
        api.compare(models, ComparisonSpec((), tasks=(str(moved),)), device="cpu")
    code = tmp_path / "code.yaml"
    code.write_text("task: x\nprocess_docs: !function evil.run\n")
    with pytest.raises(UsageError, match=r"code\.yaml is no task that can be read without running code of it"):
        task_of(str(code))
    code.write_text("- 1\n")
    with pytest.raises(UsageError, match=r"code\.yaml has no field `task`"):
        task_of(str(code))
    for spec in ({"tables": ()}, {"documents": 0, "tasks": ("a",)}, {"documents": 3}):
        with pytest.raises(UsageError):
            ComparisonSpec(**spec)


def test_without_the_harness_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r"pip install octavo\[tasks\]"):
        require_harness()
