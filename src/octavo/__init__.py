"""Octavo quantizes LLaMA-family models with GPTQ, proves what that cost, and runs the result.

import octavo
octavo.quantize("SmolLM2-135M", "SmolLM2-135M-8bit")
print(octavo.evaluate("SmolLM2-135M-8bit", reference="SmolLM2-135M").results)
print("".join(octavo.load("SmolLM2-135M-8bit").generate("Once upon a time")))
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from octavo.api import LoadedModel, evaluate, load, quantize
    from octavo.evaluation.spec import EvaluationSpec
    from octavo.model.chat import Message
    from octavo.quantization.pipeline import Destination
    from octavo.quantization.recipe import CalibrationSpec, Recipe
    from octavo.runtime.params import SamplingParams
    from octavo.schemes import QuantScheme, SchemePlan, SchemeRule

# Where each public name lives; it is fetched when it is first asked for, so that importing octavo is instant.
_HOMES = {
    "CalibrationSpec": "octavo.quantization.recipe",
    "Destination": "octavo.quantization.pipeline",
    "EvaluationSpec": "octavo.evaluation.spec",
    "LoadedModel": "octavo.api",
    "Message": "octavo.model.chat",
    "QuantScheme": "octavo.schemes",
    "Recipe": "octavo.quantization.recipe",
    "SamplingParams": "octavo.runtime.params",
    "SchemePlan": "octavo.schemes",
    "SchemeRule": "octavo.schemes",
    "evaluate": "octavo.api",
    "load": "octavo.api",
    "quantize": "octavo.api",
}

__all__ = [
    "CalibrationSpec",
    "Destination",
    "EvaluationSpec",
    "LoadedModel",
    "Message",
    "QuantScheme",
    "Recipe",
    "SamplingParams",
    "SchemePlan",
    "SchemeRule",
    "evaluate",
    "load",
    "quantize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
