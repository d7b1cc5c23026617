"""GGUF files, written tensor by tensor under a temporary name, after the format's specification.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; version 3, little-endian.
"""

import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from octavo.checkpoint.gguf import ARRAY, DEFAULT_ALIGNMENT, MAGIC, STRING, Value
from octavo.checkpoint.tensors import PARTIAL, Progress
from octavo.errors import OutputError
from octavo.records import settle

VERSION = 3
BOOL, UINT32, INT32, FLOAT32 = 7, 4, 5, 6


@dataclass(frozen=True)
class GgufSpec:
    """A tensor to be written. `shape` is in torch's order; `encoding` as ggml names it: F16, Q8_0, …"""

    name: str
    encoding: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.encoding]]
        return math.prod(self.shape) // elements * size

    @property
    def padded_bytes(self) -> int:
        return -(-self.bytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def write_gguf(
    path: Path,
    metadata: Mapping[str, Value],
    specs: Sequence[GgufSpec],
    load: Callable[[str], np.ndarray],
    progress: Progress,
) -> None:
    """Write a file whole or not at all; `load` gives the bytes of each tensor, one at a time.

    Whole numbers are written as uint32 alone and as int32 in arrays. OutputError where the file cannot be written.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            file.write(_header(metadata, specs))
            for number, spec in enumerate(specs, start=1):
                data = load(spec.name).tobytes()
                assert len(data) == spec.bytes, "a tensor has the bytes that its spec foresees"
                file.write(data)
                file.write(bytes(spec.padded_bytes - spec.bytes))
                progress(spec.name, number, len(specs))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        settle(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}; free space or choose another place"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _header(metadata: Mapping[str, Value], specs: Sequence[GgufSpec]) -> bytes:
    from gguf import GGMLQuantizationType

    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(specs), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _value(value)]
    offset = 0
    for spec in specs:
        encoding = GGMLQuantizationType[spec.encoding].value
        dimensions = struct.pack(f"<I{len(spec.shape)}Q", len(spec.shape), *reversed(spec.shape))
        parts += [_text(spec.name), dimensions, struct.pack("<IQ", encoding, offset)]
        offset += spec.padded_bytes
    header = b"".join(parts)
    return header + bytes(-len(header) % DEFAULT_ALIGNMENT)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    return struct.pack("<I", ARRAY) + _array(value)


def _array(items: Sequence[object]) -> bytes:
    if all(type(item) is str for item in items):
        return struct.pack("<IQ", STRING, len(items)) + b"".join(_text(str(item)) for item in items)
    kind, letter = (INT32, "i") if all(type(item) is int for item in items) else (FLOAT32, "f")
    return struct.pack(f"<IQ{len(items)}{letter}", kind, len(items), *items)
