"""One process of a crew: quantizes the model of the test, as `torchrun` starts it."""

import sys
from pathlib import Path

import torch

from octavo.quantization.blocks import Observer
from octavo.quantization.pipeline import Destination, quantize_folder
from octavo.quantization.recipe import Recipe
from octavo.schemes import QuantScheme, SchemePlan
from small_models import small_calibration

source, target = map(Path, sys.argv[1:])
recipe = Recipe(SchemePlan(QuantScheme(8, 16, symmetric=True)), act_order="group")
record = quantize_folder(
    source, Destination(target), recipe, small_calibration(samples=5), torch.device("cpu"), Observer()
)
assert len(record.linears) == 21
