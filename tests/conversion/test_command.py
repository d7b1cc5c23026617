"""`octavo convert`, `quantize --format` and `inspect` as their users meet them."""

import json


def test_quantize_inspect_and_convert(run, stories_folder, tmp_path):
    rounding = ("--method", "rtn", "--group-size", 32, "--format", "compressed-tensors")
    code, output, _ = run("quantize", stories_folder, tmp_path / "ct", *rounding)
    assert code == 0
    assert "vLLM, CPU\tno\tmodel.layers.0.self_attn.q_proj has 8 bits, and it takes 4\tvLLM, " in output
    assert "Octavo\tyes\t–\t–" in output

    code, output, errors = run("convert", tmp_path / "ct", tmp_path / "v2", "--to", "gptq_v2")
    assert code == 0 and "Transformers + GPTQModel\tyes" in output
    config = json.loads((tmp_path / "v2" / "config.json").read_text())
    assert config.pop("quantization_config")["checkpoint_format"] == "gptq_v2"
    (tmp_path / "v2" / "config.json").write_text(json.dumps(config))
    (tmp_path / "v2" / "quantize_config.json").unlink()

    code, output, _ = run("inspect", tmp_path / "v2")
    assert code == 0
    assert "inferred\tsymmetric: each zero is the middle of the range, stored as they are, version 2" in output
    assert "vLLM, GPU\tno\tconfig.json has no quantization_config; octavo convert writes one" in output

    code, _, errors = run("convert", tmp_path / "v2", tmp_path / "m.gguf")
    assert code == 0 and "30 linears hold their values exactly" in errors
    code, _, errors = run("convert", tmp_path / "m.gguf", tmp_path / "back", "--to", "gptq")
    assert code == 2 and errors.count("\n") == 1 and "becomes a dense folder" in errors


def test_what_a_format_cannot_hold_is_said_before_the_work(run, stories_folder, tmp_path):
    words = ("quantize", stories_folder, tmp_path / "out", "--method", "rtn", "--format", "compressed-tensors")
    code, _, errors = run(*words, "--bits", 3)
    assert code == 2 and "holds 4 or 8 bits, not 3; choose --format gptq_v2" in errors
