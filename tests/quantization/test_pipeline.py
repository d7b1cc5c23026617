"""The job as a whole: against a slow twin, killed and continued, and with inputs that it must refuse."""

import json
import random
import shutil
import signal

import pytest
import torch

from killing import run_in_process
from octavo.checkpoint.tensors import TensorFolder
from octavo.errors import (
    CheckpointError,
    NumericalError,
    OutputError,
    ResumeError,
    UnsupportedModelError,
    UsageError,
)
from octavo.kernels import dispatch, reference, solver
from octavo.model.kv_cache import make_cache, one_sequence
from octavo.model.llama import forward
from octavo.model.load import load_model, open_folder
from octavo.quantization.blocks import Observer
from octavo.quantization.gptq import factor_hessian, solve
from octavo.quantization.pipeline import Destination, quantize_folder
from octavo.quantization.recipe import Recipe
from octavo.schemes import QuantScheme, SchemePlan, SchemeRule
from octavo.weights import QuantizedWeight, dequantize
from small_models import small_calibration, small_tensors, write_family_model, write_model

CPU = torch.device("cpu")
RECORDS_THAT_DIFFER = {"octavo-run.json"}


def run(source, out, recipe=Recipe(), calibration=None, observer=None, **destination):
    if calibration is None and recipe.method == "gptq":
        calibration = small_calibration()
    return quantize_folder(
        source, Destination(out, **destination), recipe, calibration, CPU, observer or Observer()
    )


def logits_of(folder, tokens):
    model = load_model(folder, CPU, torch.float32)
    cache = make_cache(model.config, 1, len(tokens), CPU, torch.float32)
    return forward(model, one_sequence(tokens, 0, len(tokens)), cache, torch.arange(len(tokens)))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in RECORDS_THAT_DIFFER}


@pytest.fixture
def source(tmp_path):
    return write_model(tmp_path / "dense")


def twin(source, recipe, calibration):
    """Quantize a transformers model in place: each Hessian from hooks, over the partly quantized network."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    scheme = recipe.plan.default
    solved = {}
    stages = (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    )
    for layer in range(len(model.model.layers)):
        for stage in stages:
            modules = {
                f"model.layers.{layer}.{name}": model.get_submodule(f"model.layers.{layer}.{name}")
                for name in stage
            }
            seen = []
            hook = next(iter(modules.values())).register_forward_hook(
                lambda _module, inputs, _output, seen=seen: seen.append(inputs[0][0])
            )
            with torch.inference_mode():
                for window in calibration.tokens:
                    model(window[None])
            hook.remove()
            inputs = torch.cat(seen)
            factored = factor_hessian(inputs.t() @ inputs / len(inputs), recipe.damping, recipe.act_order)
            for name, module in modules.items():
                solved[name] = solve(module.weight.detach(), factored, scheme, recipe, smallest_zero=1)
                module.weight.data = dequantize(solved[name])
    return solved


@pytest.mark.parametrize("act_order", ["none", "group", "static"])
def test_the_job_is_its_slow_twin(tmp_path, source, act_order, monkeypatch):
    # The twin is all floats; native products and Gram matrices round their inputs, which decides some codes.
    monkeypatch.setattr(dispatch, "KERNELS", (reference,))
    monkeypatch.setattr(solver, "why_not", lambda device, dtype: "the definitions are meant")
    recipe = Recipe(SchemePlan(QuantScheme(4, 32, False)), act_order=act_order)
    expected = twin(source, recipe, small_calibration())
    run(source, tmp_path / "out", recipe)
    folder = open_folder(tmp_path / "out")
    differing, total = 0, 0
    for name, weight in expected.items():
        got = folder.weight(name, weight.shape)
        assert isinstance(got, QuantizedWeight)
        assert torch.equal(got.group_of_column, weight.group_of_column)
        differing += int((got.codes != weight.codes).sum())
        total += got.codes.numel()
    # the two networks round differently in the last bit, which now and then decides a code
    assert differing <= 0.002 * total


def test_what_is_written_runs_as_it_was_solved(tmp_path, source):
    """A sound file: 8 bits change the logits a little, and reading it back gives those very codes."""
    run(source, tmp_path / "out")
    tokens = small_calibration().tokens[0]
    logits = [logits_of(folder, tokens) for folder in (source, tmp_path / "out")]
    assert 0 < (logits[0] - logits[1]).norm() / logits[0].norm() < 0.03


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_the_whole_family_is_quantized(tmp_path, family):
    """Biases, norms of queries and keys, and windows come along."""
    values = {"attention_bias": True} if family in ("Llama", "Qwen3") else {}
    write_family_model(tmp_path / "dense", family, values)
    calibration = small_calibration()
    run(tmp_path / "dense", tmp_path / "out", Recipe(SchemePlan(QuantScheme(8, 16, True))), calibration)
    dense, quantized = (open_folder(tmp_path / name).tensors.specs for name in ("dense", "out"))
    assert {name for name in dense if "bias" in name} == {name for name in quantized if "bias" in name}
    logits = [logits_of(tmp_path / name, calibration.tokens[0]) for name in ("dense", "out")]
    assert 0 < (logits[0] - logits[1]).norm() / logits[0].norm() < 0.03


def test_the_same_command_twice_gives_the_same_bytes(tmp_path, source):
    run(source, tmp_path / "one")
    run(source, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    names = set(contents(tmp_path / "one"))
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "octavo.json",
        "quantize_config.json",
    }


def test_killed_at_any_moment_it_continues_to_the_same_bytes(tmp_path, source):
    count_file = tmp_path / "count"
    assert run_in_process(source, tmp_path / "whole", None, count_file) == 0
    moments = int(count_file.read_text())
    expected = contents(tmp_path / "whole")
    assert sum(name.endswith(".safetensors") for name in expected) >= 3
    chosen = random.Random(0).sample(range(moments), 12)
    for moment in sorted(chosen):
        out = tmp_path / f"killed-{moment}"
        assert run_in_process(source, out, moment, count_file) == -signal.SIGKILL
        assert not (out / "octavo.json").exists() or moment >= moments - 3
        assert run_in_process(source, out, None, count_file) == 0
        assert contents(out) == expected, f"killed at moment {moment} of {moments}"
        shutil.rmtree(out)


def test_killed_again_and_again(tmp_path, source):
    count_file = tmp_path / "count"
    assert run_in_process(source, tmp_path / "whole", None, count_file) == 0
    step = int(count_file.read_text()) // 3
    out = tmp_path / "killed"
    deaths = 0
    while run_in_process(source, out, step, count_file) != 0:
        deaths += 1
        assert deaths < 10, "no progress between kills"
    assert deaths >= 2
    assert contents(out) == contents(tmp_path / "whole")
    assert json.loads((out / "octavo-run.json").read_text())["resumed"] >= 2


class Spy(Observer):
    def __init__(self):
        self.done_already, self.solved = False, []

    def already_done(self):
        self.done_already = True

    def linear_solved(self, linear, seconds):
        self.solved.append(linear.name)


def test_a_finished_job_is_recognized(tmp_path, source):
    run(source, tmp_path / "out")
    before, spy = contents(tmp_path / "out"), Spy()
    run(source, tmp_path / "out", observer=spy)
    assert spy.done_already and not spy.solved
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recipe": Recipe(damping=0.02)}, "recipe.damping = 0.01, now it is 0.02"),
        ({"recipe": Recipe(SchemePlan(QuantScheme(4, 128, True)))}, "recipe.plan.default.bits = 8, now it is 4"),
        ({"calibration": small_calibration(seed=1)}, "calibration.tokens_sha256"),
        ({"layout": "gptq_v2"}, "layout = gptq, now it is gptq_v2"),
        ({"max_shard_size": 1000}, "max_shard_size"),
    ],
)
def test_changed_inputs_are_refused_by_name(tmp_path, source, changes, named):
    run(source, tmp_path / "out")
    with pytest.raises(ResumeError, match=named):
        run(source, tmp_path / "out", **changes)
    run(source, tmp_path / "out", restart=True, **changes)


def test_a_changed_model_and_thread_count_are_refused(tmp_path, source):
    run(source, tmp_path / "out")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.raises(ResumeError, match=f"machine.threads = {threads}, now it is {threads + 1}"):
            run(source, tmp_path / "out")
    finally:
        torch.set_num_threads(threads)
    tensors = small_tensors()
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    write_model(source, tensors)
    with pytest.raises(ResumeError, match=r"source.model.safetensors"):
        run(source, tmp_path / "out")


def test_a_damaged_result_is_not_called_done(tmp_path, source):
    run(source, tmp_path / "out")
    shard = tmp_path / "out" / "model.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing or not what"):
        run(source, tmp_path / "out")


def test_two_jobs_do_not_write_one_folder(tmp_path, source):
    from octavo.quantization.journal import alone_in

    (tmp_path / "out").mkdir()
    with alone_in(tmp_path / "out"), pytest.raises(OutputError, match="another process is writing"):
        run(source, tmp_path / "out")
    run(source, tmp_path / "out")


def test_foreign_folders_are_left_alone(tmp_path, source):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    for restart in (False, True):
        with pytest.raises(OutputError, match="did not write"):
            run(source, out, restart=restart)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_restart_removes_only_what_we_wrote(tmp_path, source):
    out = tmp_path / "out"
    run(source, out, max_shard_size=30_000)
    (out / "notes.txt").write_text("mine")
    run(source, out, restart=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]


def test_rounding_to_nearest_needs_no_calibration(tmp_path, source):
    recipe = Recipe(SchemePlan(QuantScheme(8, 128, True)), "rtn", "none", scale_search="none")
    record = run(source, tmp_path / "out", recipe)
    assert all(linear.loss is None for linear in record.linears)
    assert record.inputs["calibration"] is None
    load_model(tmp_path / "out", CPU, torch.float32)


def test_plans_are_followed_written_and_read(tmp_path, source):
    plan = SchemePlan(
        QuantScheme(4, 32, True),
        (SchemeRule("layers.0.*", None), SchemeRule("down_proj", QuantScheme(8, None, True))),
        lm_head=QuantScheme(8, 32, True),
    )
    run(source, tmp_path / "out", Recipe(plan))
    folder = open_folder(tmp_path / "out")
    assert "model.layers.0.mlp.up_proj.weight" in folder.tensors
    for name, shape, scheme in (
        ("model.layers.1.mlp.up_proj", (70, 48), plan.default),
        ("model.layers.2.mlp.down_proj", (48, 70), QuantScheme(8, None, True)),
    ):
        weight = folder.weight(name, shape)
        assert isinstance(weight, QuantizedWeight) and weight.scheme == scheme
    head = folder.head_weight()
    assert isinstance(head, QuantizedWeight) and head.scheme.bits == 8
    load_model(tmp_path / "out", CPU, torch.float32)


def test_a_tied_head_can_be_quantized(tmp_path):
    tensors = small_tensors()
    del tensors["lm_head.weight"]
    source = write_model(tmp_path / "dense", tensors, tie_word_embeddings=True)
    run(source, tmp_path / "tied")
    assert "lm_head.weight" not in TensorFolder(tmp_path / "tied")
    run(source, tmp_path / "out", Recipe(SchemePlan(QuantScheme(8, 32, True), lm_head=QuantScheme(8, 32, True))))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert isinstance(open_folder(tmp_path / "out").head_weight(), QuantizedWeight)
    load_model(tmp_path / "out", CPU, torch.float32)


@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", [2, 3])
def test_asymmetric_zeros_suit_the_layout(tmp_path, source, bits, layout):
    run(source, tmp_path / "out", Recipe(SchemePlan(QuantScheme(bits, 16, False))), layout=layout)
    zeros = open_folder(tmp_path / "out").weight("model.layers.0.mlp.up_proj", (70, 48)).zeros
    assert zeros.min() >= (1 if layout == "gptq" else 0)
    assert zeros.max() <= 2**bits - 1


def test_fused_siblings_must_agree(tmp_path, source):
    plan = SchemePlan(QuantScheme(8, 128, True), (SchemeRule("q_proj", None),))
    with pytest.raises(UsageError, match="fused by engines and must share a scheme"):
        run(source, tmp_path / "out", Recipe(plan))
    assert not (tmp_path / "out").exists()


def test_a_quantized_model_is_not_quantized_again(tmp_path, source):
    run(source, tmp_path / "out")
    with pytest.raises(UnsupportedModelError, match=r"is quantized already \(8-bit-128g symmetric\)"):
        run(tmp_path / "out", tmp_path / "again")


def damaged(source, name, value):
    tensors = small_tensors()
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    write_model(source, tensors)


def test_nan_in_a_weight_is_named(tmp_path, source):
    weight = small_tensors()["model.layers.1.mlp.up_proj.weight"]
    weight[3, 4] = float("nan")
    damaged(source, "model.layers.1.mlp.up_proj.weight", weight)
    with pytest.raises(NumericalError, match=r"model.layers.1.mlp.up_proj.weight holds NaN or Inf"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_overflowing_activations_are_named(tmp_path):
    tensors = small_tensors(torch.float32)
    for name in ("gate_proj", "up_proj"):
        tensors[f"model.layers.1.mlp.{name}.weight"] *= 1e30
    source = write_model(tmp_path / "dense", tensors)
    with pytest.raises(NumericalError, match=r"model.layers.1.mlp.(gate|up|down)_proj|too large for the fp16"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("model.layers.2.mlp.up_proj.weight", None, r"model.layers.2.mlp.up_proj.weight is missing"),
        ("model.layers.9.mlp.up_proj.weight", torch.zeros(2), "holds the tensor model.layers.9"),
        ("model.norm.weight", torch.zeros(7), r"model.norm.weight in .* has shape \[7\].* calls for \[48\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, source, name, value, sentence):
    damaged(source, name, value)
    with pytest.raises(CheckpointError, match=sentence):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_full_disk_is_seen_before_the_first_block(tmp_path, source, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(OutputError, match=r"needs 0.00 GB but its disk has 0.00 GB free"):
        run(source, tmp_path / "out")
