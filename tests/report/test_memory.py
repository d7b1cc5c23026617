"""Memory from a config.json alone, and whether it fits."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from octavo.errors import UsageError
from octavo.evaluation.memory import predict
from octavo.model.config import read_config
from octavo.report.memory import memory_values, print_memory
from octavo.schemes import QuantScheme, SchemePlan
from small_models import CONFIG

EIGHT = QuantScheme(8, 16, True)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def test_the_parts_add_up_to_what_is_predicted(config: Path) -> None:
    values = memory_values(config, 100, EIGHT, None)
    footprint = predict(read_config(config.parent), SchemePlan(EIGHT), 100)
    assert values["parts"] == footprint.parts and values["total"] == footprint.total
    assert values["scheme"] == "8-bit-16g symmetric"
    assert memory_values(config.parent, 100, EIGHT, None) == values
    assert memory_values(config, 100, None, None)["scheme"] == "dense"


def test_what_the_folder_declares_is_taken(config: Path) -> None:
    declared = {"quant_method": "gptq", "bits": 4, "group_size": 16, "sym": True, "checkpoint_format": "gptq"}
    config.write_text(json.dumps({**CONFIG, "quantization_config": declared}))
    assert memory_values(config, 100, None, None)["scheme"] == "4-bit-16g symmetric"
    with pytest.raises(UsageError, match=r"is quantized already .4-bit-16g symmetric.; leave out --bits"):
        memory_values(config, 100, EIGHT, None)


@pytest.mark.parametrize("context", [1, 40, 127])
def test_the_largest_context_is_the_last_that_fits(config: Path, context: int) -> None:
    plan, model = SchemePlan(EIGHT), read_config(config.parent)
    available = predict(model, plan, context).total
    values = memory_values(config, 128, EIGHT, available)
    assert values["largest_context"] == context
    assert predict(model, plan, context + 1).total > available
    assert memory_values(config, 128, EIGHT, 10**9)["largest_context"] == 128


@pytest.mark.parametrize(
    ("available", "sentence"),
    [
        (2**30, "It fits: 0.2 MiB of 1,024.0; the longest context that fits is 128 tokens."),
        (170_000, "It does not fit: 0.2 MiB of 0.2; a context of "),
        (1000, "It does not fit: 0.2 MiB of 0.0, and no shorter context would."),
    ],
)
def test_the_verdict_is_one_sentence(config: Path, available: int, sentence: str) -> None:
    file = io.StringIO()
    print_memory(Console(file=file), memory_values(config, 128, EIGHT, available))
    *table, last = file.getvalue().splitlines()
    assert last.startswith(sentence), last
    assert table[0] == "part\tMiB" and table[-1].startswith("as tables of 2023 count\t")


def test_a_context_beyond_the_model_s_is_refused(config: Path) -> None:
    for context in (0, 129):
        with pytest.raises(UsageError, match=f"{context} tokens lie outside the model's context of 128"):
            memory_values(config, context, None, None)
