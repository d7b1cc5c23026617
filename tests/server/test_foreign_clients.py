"""Programs of others against the server: a fuzzer, LangChain, llm, lm-eval. scripts/clients installs them."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from conftest import ROOT, shared
from octavo.evaluation.scoring import score
from serving import bytewise_model, load_on_cpu, running, vicuna_stories

pytestmark = pytest.mark.proof


def client(name):
    """A program of the clients' environment; skips the test where it is absent."""
    program = Path(os.environ.get("OCTAVO_TEST_CLIENTS", ROOT / ".cache" / "clients")) / "bin" / name
    if not program.exists():
        pytest.skip(f"{program} is absent; scripts/clients installs it")
    return str(program)


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def stories(stories_folder, tmp_path):
    with running({"stories": vicuna_stories(stories_folder, tmp_path)}) as up:
        yield up


# A body that is too large is refused before anyone looks for what else is wrong with it.
REFUSALS = """
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "413"]
"""


def test_schemathesis_finds_nothing(tmp_path):
    """All its checks but one: which combinations of fields make sense, a schema cannot say."""
    program = client("schemathesis")
    (tmp_path / "schemathesis.toml").write_text(REFUSALS)
    folder = bytewise_model(tmp_path / "bytes")
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 64}))
    with running({"bytes": folder}) as up:
        report = run(
            program, "run", f"{up.url}/openapi.json", "--phases", "fuzzing", "--max-examples", 250, "--seed", 1,
            "--exclude-path-regex", "/models/(un)?load", "--exclude-checks", "positive_data_acceptance",
            "--continue-on-failure", "--no-color", cwd=tmp_path,
        )  # fmt: skip
        cases = int(report.split("Test cases:")[1].split()[0])
        assert cases >= 1500, report[-3000:]
        assert up.post("/v1/completions", {"model": "bytes", "prompt": "a"}).status_code == 200


LANGCHAIN = """
import sys
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
class Person(BaseModel):
    name: str
    age: int
def model(most):
    return ChatOpenAI(base_url=sys.argv[1], api_key="none", model="stories", max_tokens=most, temperature=0)
reply = model(20).invoke("Once")
assert reply.usage_metadata["output_tokens"] == 20 and reply.response_metadata["finish_reason"] == "length"
assert "".join(chunk.content for chunk in model(20).stream("Once")) == reply.content != ""
assert len(model(5).batch(["a", "b", "c"])) == 3
assert isinstance(model(300).with_structured_output(Person, method="json_schema").invoke("Tell"), Person)
"""


def test_langchain(stories):
    run(client("python"), "-c", LANGCHAIN, f"{stories.url}/v1")


def test_llm(stories, tmp_path):
    program = client("llm")
    models = f"- model_id: stories\n  model_name: stories\n  api_base: {stories.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
    options = ("-m", "stories", "-o", "max_tokens", 20, "-o", "temperature", 0, "Once")
    streamed = run(program, *options, env=environment)
    assert streamed == run(program, "--no-stream", *options, env=environment) and len(streamed) > 20


TASK = """
task: story
dataset_path: json
dataset_kwargs: {data_files: STORIES}
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""


def test_lm_evaluation_harness_measures_what_we_measure(stories, stories_folder, tmp_path):
    program = client("lm_eval")
    text = shared("corpora/calibration/tinystories.txt").read_text()[:3000]
    texts = [text[start : start + 600] for start in range(0, 3000, 600)]
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    (tmp_path / "story.yaml").write_text(TASK.replace("STORIES", str(tmp_path / "stories.jsonl")))
    arguments = f"model=stories,base_url={stories.url}/v1/completions,tokenizer_backend=remote,max_length=512"
    run(
        program, "run", "--model", "local-completions", "--model_args", arguments, "--tasks", "story",
        "--include_path", tmp_path, "--output_path", tmp_path / "out", "--log_samples",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}, cwd=tmp_path,
    )  # fmt: skip
    (samples,) = (tmp_path / "out").rglob("samples*.jsonl")
    measured = {sample["target"]: sample for sample in map(json.loads, samples.read_text().splitlines())}
    network, tokenizer = load_on_cpu(stories_folder)
    assert measured.keys() == set(texts)
    for each in texts:
        tokens = tokenizer.encode(each, control_tokens=False, beginning=True)
        (loss,) = score(network, torch.tensor([tokens]), lambda *_: None)
        loglikelihood = float(measured[each]["filtered_resps"][0])
        assert loglikelihood / (len(tokens) - 1) == pytest.approx(-loss, abs=1e-4)
