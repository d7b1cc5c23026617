"""The command line's answers to the mistakes of newcomers: one sentence, before any work is done."""

import pytest

from octavo import QuantScheme, Recipe, SchemePlan, quantize


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("evaluate", "FOLDER", "--dataset", ","), "--dataset names no text"),
        (("evaluate", "FOLDER", "--json", "/absent/record.json"), "is no place for a file"),
        (("benchmark", "FOLDER", "--dataset", ""), "--dataset names no text"),
        (("benchmark", "FOLDER", "--json", "FOLDER"), "is no place for a file"),
        (("compare", "FOLDER", "--json", "/absent/record.json"), "is no place for a file"),
        (("inspect", "FOLDER", "--json", "/absent/record.json"), "is no place for a file"),
        (("inspect", "FOLDER", "--group-size", "64"), "add --bits"),
        (("inspect", "FOLDER", "--context", "8", "--bits", "4", "--group-size", "0"), "group size 0"),
        (("quantize", "FOLDER", "out", "--override", "x=²"), "is not PATTERN=BITS"),
        (("quantize", "FOLDER", "out", "--override", "x=--4"), "is not PATTERN=BITS"),
        (("quantize", "FOLDER", "out", "--max-shard-size", "²GB"), "is no size"),
        (("serve", "FOLDER", "--cache", "nan"), "--cache nan"),
        (("serve", "FOLDER", "--cache", "-1"), "--cache -1"),
        (("chat", "FOLDER", "--name", "other"), "--name chooses among the models of a server"),
    ],
)
def test_what_was_meant_otherwise_is_said_before_any_work(run, stories_folder, words, sentence):
    code, output, errors = run(*(stories_folder if word == "FOLDER" else word for word in words))
    assert (code, output) == (2, "") and sentence in errors and errors.count("\n") == 1


@pytest.mark.parametrize("words", [("generate", "--prompt", "x"), ("inspect",), ("quantize", "out")])
def test_a_gguf_file_where_a_folder_is_due(run, tmp_path, words):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    code, _, errors = run(words[0], file, *words[1:])
    assert code == 1 and "octavo convert makes" in errors and errors.count("\n") == 1


def test_a_quantized_source_is_refused_before_a_text_is_fetched(run, stories_folder, tmp_path):
    quantized, plan = tmp_path / "quantized", SchemePlan(QuantScheme(8, 64, symmetric=True))
    quantize(stories_folder, quantized, Recipe(plan, method="rtn", act_order="none", scale_search="none"))
    code, _, errors = run("quantize", quantized, tmp_path / "out", "--calibration", tmp_path / "absent")
    assert code == 1 and "is quantized already" in errors and errors.count("\n") == 1
