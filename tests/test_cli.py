"""The command line as its users meet it: output, exit codes, and one sentence where something is wrong."""

import json
import os
import signal
import subprocess
import sys

import pytest

from conftest import shared
from octavo.kernels import cpu
from small_models import write_model


@pytest.fixture(scope="module")
def text():
    return shared("corpora/calibration/tinystories.txt")


@pytest.fixture(scope="module")
def quantized(stories_folder, text, tmp_path_factory):
    """stories260K in 8 bits."""
    from octavo import CalibrationSpec, quantize

    out = tmp_path_factory.mktemp("stories") / "8bit"
    quantize(stories_folder, out, calibration=CalibrationSpec(str(text), samples=4, sequence_length=128))
    return out


def test_quantize_evaluate_and_inspect(run, stories_folder, text, tmp_path):
    out = tmp_path / "out"
    words = ("quantize", stories_folder, out, "--bits", 8, "--group-size", 64, "--calibration", text)
    words += ("--samples", 4, "--sequence-length", 128)
    code, _, errors = run(*words)
    assert code == 0
    assert len([line for line in errors.splitlines() if "loss" in line and "damping" in line]) == 35
    code, _, errors = run(*words)
    assert (code, errors) == (0, f"{out} is already done; nothing to do.\n")
    code, _, errors = run(*words, "--damping", 0.05)
    assert code == 1 and "recipe.damping = 0.01, now it is 0.05" in errors and errors.count("\n") == 1

    record = tmp_path / "record.json"
    words = ("evaluate", out, "--reference", stories_folder, "--dataset", text, "--length", 512)
    code, output, errors = run(*words, "--windows", 4, "--json", record)
    assert code == 0
    header, row = (line.split("\t") for line in output.splitlines()[:2])
    result = json.loads(record.read_text())["results"][0]
    assert dict(zip(header, row, strict=True))["text"] == result["text"] == "tinystories.txt"
    assert result["windows"] == 4 and result["length"] == 512
    assert 0 < result["kl_mean"] < 0.01 and result["top1_agreement"] > 0.95
    assert result["perplexity"] == pytest.approx(result["reference"]["perplexity"], rel=0.01)

    code, output, _ = run("inspect", out)
    assert code == 0
    assert "scheme\t8-bit-64g symmetric" in output
    kernel = "native CPU" if cpu.missing_library() is None else "reference"
    refusals = "CUDA: it runs on NVIDIA GPUs, not on cpu; Triton: it runs on NVIDIA GPUs, not on cpu"
    assert f"35\t8-bit-64g symmetric\t{kernel}\t{refusals}" in output
    assert "model.safetensors\twhole" in output


def test_generate_continues_and_stops(run, stories_folder):
    words = ("generate", stories_folder, "--prompt", "Once upon a time", "--max-new-tokens", 22)
    code, output, _ = run(*words)
    assert (code, output) == (0, ", there was a little girl named Lily. She loved to play outside in\n")
    code, output, _ = run(*words, "--stop", "named")
    assert (code, output) == (0, ", there was a little girl \n")
    drawn = [run(*words, "--temperature", 1.0, "--seed", 7) for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_a_damaged_file_is_found(run, quantized, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(quantized, broken)
    shard = broken / "model.safetensors"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 255
    shard.write_bytes(data)
    code, output, errors = run("inspect", broken)
    assert code == 1 and "model.safetensors\tchanged" in output
    assert "model.safetensors is changed: it is not what octavo.json says" in errors
    code, _, errors = run("evaluate", broken, "--dataset", shared("corpora/calibration/tinystories.txt"))
    assert code == 1 and "model.safetensors is changed: it is not what octavo.json says" in errors


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("quantize", "MODEL", "OUT", "--bits", 5), 2, "5 bits cannot be stored; choose 2, 3, 4 or 8"),
        (("quantize", "MODEL", "OUT", "--group-size", 0), 2, "group size 0 is not a positive number"),
        (("quantize", "MODEL", "OUT", "--damping", 2), 2, "damping 2.0 is outside"),
        (("quantize", "MODEL", "OUT", "--override", "down"), 2, "is not PATTERN=BITS"),
        (("quantize", "MODEL", "OUT", "--max-shard-size", "5"), 2, "is no size; write it like 5GB"),
        (("quantize", "MODEL", "OUT", "--method", "rtn", "--act-order", "group"), 2, "sees no activations"),
        (("quantize", "MODEL", "OUT", "--device", "abacus"), 2, "abacus is no device"),
        (("quantize", "MODEL", "OUT", "--calibration", "absent.txt"), 1, "absent.txt"),
        (("quantize", "ABSENT", "OUT"), 1, "ABSENT is no folder|ABSENT holds no"),
        (("evaluate", "MODEL", "--protocol", "mine"), 2, "mine"),
        (("evaluate", "MODEL", "--protocol", "gptq@x"), 2, "gptq@x has no length behind its @"),
        (("evaluate", "MODEL", "--protocol", "gptq@2048"), 2, "does not fit the model's context of 512"),
        (("evaluate", "MODEL@rtn-9"), 2, "rtn-9 is no baseline; choose fp32"),
        (("benchmark", "MODEL", "--tokens", 1), 2, "a benchmark of 1 tokens predicts nothing"),
        (("compare", "MODEL"), 2, "a comparison takes two models or more, each given once"),
        (("compare", "MODEL", "OUT", "--protocol", "benchmark,mine"), 2, "mine is no protocol"),
        (("card", "MODEL", "--base-model", "a/b", "--record", "absent.json"), 1, r"has no octavo\.json"),
        (("inspect", "MODEL", "--memory", "24GB"), 2, "add --context 2048"),
        (("inspect", "MODEL", "--context", 9, "--bits", 5), 2, "5 bits cannot be stored"),
        (("evaluate", "MODEL", "--windows", 0), 2, "0 windows give no perplexity"),
        (("evaluate", "MODEL", "--length", 1), 2, "predicts nothing"),
        (("generate", "MODEL", "--prompt", "a", "--top-p", 3), 2, "top-p 3.0 is outside"),
        (("generate", "MODEL", "--prompt", "a", "--system", "b"), 2, "--system belongs to --chat"),
        (("generate", "MODEL", "--prompt", "a", "--chat"), 1, "no chat template"),
        (("generate", "MODEL"), 2, "--prompt"),
        (("inspect", "ABSENT"), 1, "ABSENT"),
        (("sing",), 2, "sing"),
    ],
)
def test_what_is_refused_and_how(run, stories_folder, tmp_path, words, code, sentence):
    import re

    places = {"MODEL": stories_folder, "OUT": tmp_path / "out"}
    got, output, errors = run(*(places.get(word, word) for word in words))
    assert got == code
    assert re.search(sentence, errors), errors
    assert output == "" and not (tmp_path / "out").exists()


def test_a_tokenizer_that_is_missing_is_named(run, tmp_path):
    folder = write_model(tmp_path / "dense")
    code, _, errors = run("generate", folder, "--prompt", "a")
    assert code == 1 and "tokenizer" in errors and errors.count("\n") == 1


def test_a_text_shorter_than_a_window_is_refused(run, stories_folder, tmp_path):
    (tmp_path / "short.txt").write_text("Once upon a time.")
    code, _, errors = run("evaluate", stories_folder, "--dataset", tmp_path / "short.txt", "--length", 512)
    assert code == 1 and "short.txt has" in errors and errors.splitlines()[-1].startswith("octavo: ")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_interrupted_it_says_how_to_continue(stories_folder, text, tmp_path):
    # A shell has what it starts in the background ignore the signal, tests and all that they start included.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", heeding + "from octavo.cli import main; main()", "quantize", stories_folder]
    command += [tmp_path / "out", "--calibration", text, "--samples", "1024", "--sequence-length", "512"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "layers.0" in line:
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "run the same command to continue" in rest and "Traceback" not in rest
    assert (tmp_path / "out" / ".octavo" / "journal.json").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(run, stories_folder, text, tmp_path):
    (tmp_path / "file").write_text("in the way")
    words = ("--calibration", text, "--samples", 1, "--sequence-length", 16)
    code, _, errors = run("quantize", stories_folder, tmp_path / "file" / "out", *words)
    assert code == 1 and errors.splitlines()[-1] == f"octavo: {tmp_path / 'file' / 'out'}: Not a directory"


def test_a_reader_who_leaves_is_no_accident(stories_folder):
    command = f"{sys.executable} -c 'from octavo.cli import main; main()' inspect {stories_folder} | :"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert ended.stderr == ""


def test_version(run):
    from octavo import __version__

    assert run("--version") == (0, f"{__version__}\n", "")


def test_help_names_every_verb(run):
    code, output, _ = run("--help")
    assert code == 0
    for verb in (
        "quantize",
        "evaluate",
        "benchmark",
        "compare",
        "card",
        "judge",
        "generate",
        "inspect",
        "convert",
        "push",
    ):
        assert verb in output
    code, output, _ = run("quantize", "--help")
    assert code == 0 and "--act-order" in output and "goes on" in output
