"""A model folder written anew: in another layout, or dequantized, with a configuration that says what it holds."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo import __version__
from octavo.checkpoint.configuration import quantization_config
from octavo.checkpoint.formats import EVERY_SUFFIX, dense_half, encode_linear, linear_specs, why_not_stored
from octavo.checkpoint.tensors import Progress, TensorSpec, write_units
from octavo.conversion.destination import ConversionOutput, carry_files, claim
from octavo.errors import CheckpointError, UsageError
from octavo.model.load import HEAD, IGNORED_SUFFIX, ModelFolder, every_linear
from octavo.records import read_json, write_json
from octavo.schemes import ConversionTarget, QuantScheme, SchemePlan, SchemeRule
from octavo.weights import QuantizedWeight


@dataclass(frozen=True)
class _Rewriting:
    """A job: what is read, the scheme of each of its quantized linears, and what they are to become."""

    source: ModelFolder
    schemes: dict[str, QuantScheme]
    target: ConversionTarget

    def units(self) -> dict[str, list[TensorSpec]]:
        """The tensors that each linear, or each other tensor, will give."""
        shapes = every_linear(self.source.config)
        units = {}
        for spec in self.source.tensors.specs.values():
            name, _, suffix = spec.name.rpartition(".")
            if name in self.schemes and suffix in EVERY_SUFFIX:
                units[name] = self._linear(name, shapes[name])
            elif not spec.name.endswith(IGNORED_SUFFIX) and not self._bias_of_zeros(spec, name, suffix):
                units[spec.name] = [spec]
        return units

    def _linear(self, name: str, shape: tuple[int, int]) -> list[TensorSpec]:
        if self.target == "dense":
            return [TensorSpec(f"{name}.weight", torch.float16, shape)]
        return linear_specs(name, shape, self.schemes[name], self.target)

    def _bias_of_zeros(self, spec: TensorSpec, name: str, suffix: str) -> bool:
        """Whether a tensor is one of the biases that only checkpoints of March 2023 hold."""
        return suffix == "bias" and name in self.schemes and not self.source.tensors.load(spec.name).any()

    def load(self, unit: str) -> dict[str, Tensor]:
        """The tensors of a unit; CheckpointError where a linear is not of the scheme of those like it."""
        if unit not in self.schemes:
            return {unit: self.source.tensors.load(unit)}
        weight = self.source.weight(unit, every_linear(self.source.config)[unit])
        assert isinstance(weight, QuantizedWeight), "a linear that has a scheme is quantized"
        if self.target == "dense":
            return {f"{unit}.weight": dense_half(unit, weight)}
        if weight.scheme != self.schemes[unit]:
            raise CheckpointError(
                f"{unit} is {weight.scheme}, unlike the other linears of its shape, {self.schemes[unit]}; "
                "convert with --to dense and quantize again"
            )
        return encode_linear(unit, weight, self.target)


def rewrite_folder(
    source: ModelFolder, output: ConversionOutput, target: ConversionTarget, progress: Progress
) -> None:
    """Write the model of `source` into a new or empty folder, its quantized linears as `target`.

    Codes, scales and zeros stay what they are; `dense` dequantizes to float16. What is dense stays as it is. One
    linear is in memory at a time. config.json is written last: a folder without it is no model.

    Raises UsageError where the layout cannot hold the schemes, CheckpointError where it cannot hold a zero, or the
    source is damaged, OutputError where the folder is not empty or cannot be written.
    """
    schemes = source.schemes()
    quantization = source.quantization
    ordered = quantization is not None and quantization.ordered
    if target != "dense":
        if not schemes:
            raise UsageError(
                f"{source.path} is dense, so it has no layout to change; quantize it, or use --to dense"
            )
        for scheme in set(schemes.values()):
            objection = why_not_stored(scheme, target, ordered)
            if objection is not None:
                raise UsageError(objection)
    job = _Rewriting(source, schemes, target)
    claim(output.folder)
    write_units(output.folder, job.units(), job.load, output.max_shard_size, progress)
    carry_files(source.path, output.folder)
    config = read_json(source.path / "config.json")
    config.pop("quantization_config", None)
    if target != "dense":
        meta = {"quantizer": [f"octavo:{__version__}"]}
        block = quantization_config(_plan(source, schemes), target, ordered, meta)
        if target != "compressed-tensors":
            write_json(output.folder / "quantize_config.json", block)
        config["quantization_config"] = block
    write_json(output.folder / "config.json", config)


def _plan(source: ModelFolder, schemes: dict[str, QuantScheme]) -> SchemePlan:
    """The plan that gives each linear the scheme it has: the default, and a rule for each that differs."""
    assert source.quantization is not None, "a folder with schemes is quantized"
    default = source.quantization.default
    if default not in schemes.values():
        default = next(iter(schemes.values()))
    rules = [
        SchemeRule(name, schemes.get(name))
        for name in every_linear(source.config)
        if name != HEAD and schemes.get(name) != default
    ]
    return SchemePlan(default, tuple(rules), schemes.get(HEAD))
