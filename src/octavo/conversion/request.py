"""What is asked of a conversion, and which one answers: the kind of the source decides."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from octavo.checkpoint.tensors import Progress
from octavo.conversion.delta import apply_delta, open_tensors
from octavo.conversion.destination import ConversionOutput
from octavo.conversion.from_gguf import convert_gguf
from octavo.conversion.from_original import PARAMS, convert_original
from octavo.conversion.rewritten import rewrite_folder
from octavo.conversion.to_gguf import export_gguf
from octavo.errors import UsageError
from octavo.model.load import place_tensors
from octavo.schemes import ConversionTarget

GGUF = ".gguf"


@dataclass(frozen=True)
class ConversionRequest:
    """`base` is the model that a delta belongs to, `target` what quantized linears are to become."""

    source: Path
    output: ConversionOutput
    base: Path | None = None
    target: ConversionTarget | None = None


def convert(request: ConversionRequest, progress: Progress) -> list[str]:
    """Convert; what its user ought to know of the result, in sentences.

    A `.gguf` file, a folder with params.json, and a delta become dense folders. Any other folder is written anew:
    as `target`, by default GPTQ's version 1 for a quantized one; or into a `.gguf` file where the output is named
    so.
    """
    source, output = request.source, request.output
    if not source.exists():
        raise UsageError(f"{source} does not exist; give a model folder or a .gguf file")
    from_elsewhere = source.suffix == GGUF or (source / PARAMS).exists() or request.base is not None
    if from_elsewhere and request.target not in (None, "dense"):
        raise UsageError(f"{source} becomes a dense folder; convert it without --to, then quantize that")
    if request.base is not None:
        apply_delta(request.base, source, output, progress)
        return []
    if source.suffix == GGUF:
        convert_gguf(source, output.folder, max_shard_size=output.max_shard_size, progress=progress)
        return []
    if (source / PARAMS).exists():
        convert_original(source, output, progress)
        return []
    with ExitStack() as stack:
        folder = place_tensors(source, open_tensors(source, stack))
        quantized = folder.quantization is not None
        notes = (
            [] if folder.quantization is None else [f"inferred: {line}" for line in folder.quantization.evidence]
        )
        if output.folder.suffix == GGUF:
            if request.target is not None:
                raise UsageError("--to names a layout of a folder; a .gguf file has one of its own")
            return notes + export_gguf(folder, output.folder, progress)
        rewrite_folder(folder, output, request.target or ("gptq" if quantized else "dense"), progress)
        return notes
