"""The reference card's three tables for SmolLM2-135M: dense, LLM.int8(), rounding to 8 bits, GPTQ in 8 and 4 bits.

    .venv/bin/python benchmarks/three_tables.py [--windows 16] [--tokens 512] [--work FOLDER]

Texts are those of the tests (tests/three_texts.py): wikitext2's test set is the published one, what stands in for
the others is named as a stand-in. The record of the comparison goes to benchmarks/results. With --work, the models
are kept in FOLDER, the 8-bit one with its card, and a run that was killed finds there what it had.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import CACHE, ROOT, finish, show
from rich.console import Console

import octavo
from octavo import api
from octavo.conversion.from_gguf import convert_gguf
from octavo.evaluation.spec import BENCHMARK, ComparisonSpec
from octavo.model.load import open_folder
from octavo.records import as_json, write_json
from octavo.report.card import CardSpec, write_card
from octavo.report.comparison import print_comparison
from octavo.report.preflight import preflight_folder, preflight_values
from octavo.report.progress import EvaluationProgress

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--work", type=Path)
    given = parser.parse_args()
    sys.path.append(str(ROOT / "tests"))
    from three_texts import write_data_folder

    with tempfile.TemporaryDirectory(prefix="octavo-tables-") as name:
        work = given.work or Path(name)
        data = write_data_folder(Path(name) / "data")
        models = make_models(work)
        spec = ComparisonSpec(windows=given.windows, tokens=given.tokens, data_dir=data)
        with EvaluationProgress(Console(stderr=True)) as progress:
            record = as_json(api.compare(models, spec, "cpu", progress))
        print_comparison(Console(width=160), record)
        if given.work is not None:
            write_json(work / "comparison.json", record)
            show_card(Path(models[3]), work / "comparison.json")
        # Where files lay on this machine is nobody's concern.
        recorded = json.dumps(record).replace(f"{work}/", "").replace(f"{name}/", "")
    return finish("three-tables", {"comparison": json.loads(recorded)}, missed(record))


def make_models(work: Path) -> list[str | Path]:
    """The dense model and four that are compared with it; what is calibrated on is not scored."""
    dense = work / "SmolLM2-135M-Instruct"
    if not (dense / "config.json").exists():
        convert_gguf(CACHE / "smollm2.gguf", dense)
    calibration = octavo.CalibrationSpec(str(CACHE / "wiki.utf8"), samples=32, sequence_length=1024)
    for bits in (8, 4):
        recipe = octavo.Recipe(octavo.SchemePlan(octavo.QuantScheme(bits, 128, symmetric=True)))
        octavo.quantize(dense, work / f"GPTQ-{bits}-128g", recipe, calibration)
    return [dense, f"{dense}@llm.int8", f"{dense}@rtn-8", work / "GPTQ-8-128g", work / "GPTQ-4-128g"]


def missed(record: dict[str, Any]) -> list[str]:
    """Columns that are absent, and texts on which 8 bits of GPTQ are not the closest to the dense model."""
    misses = []
    for cell in record["cells"]:
        where = f"{cell['asked']} by {cell['table']}"
        if cell["absent"] is not None:
            misses.append(f"{where}: {cell['absent']}")
        elif cell["table"] != BENCHMARK:
            int8, rounded, eight, four = (values["kl_mean"] for values in cell["values"][1:])
            if not eight < min(int8, rounded) < four:
                misses.append(
                    f"{where}: KL {int8:.6f}, {rounded:.6f}, {eight:.6f}, {four:.6f} are in another order"
                )
    return misses


def show_card(folder: Path, record: Path) -> None:
    """Write the card of a model."""
    loads = preflight_values(preflight_folder(open_folder(folder)))
    show(f"wrote {write_card(CardSpec(folder, BASE_MODEL, (record,)), loads)}")


if __name__ == "__main__":
    raise SystemExit(main())
