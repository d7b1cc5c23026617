"""GGUF, the single-file format of llama.cpp: names, metadata and dense tensors, nothing more.

The header is walked here, after the format's specification
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), and each count, length and offset is held against the
file before it is believed. The `gguf` package only knows the sizes of the quantized blocks and dequantizes them.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from octavo.errors import CheckpointError, NumericalError

Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]
Kind = TypeVar("Kind")
Default = TypeVar("Default")

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 had 32-bit lengths and lived for weeks
DEFAULT_ALIGNMENT = 32  # bytes
MOST_DIMENSIONS = 4

# Far above any published model, whose largest vocabularies make 20 MB and two million items; more is damage.
LARGEST_HEADER = 128 * 1024 * 1024  # bytes
LONGEST_TEXT = 16 * 1024 * 1024  # bytes
LONGEST_NAME = 1024  # bytes
MOST_ENTRIES = 2**16  # tensors, and metadata fields
MOST_ITEMS = 2**22  # in all arrays of the metadata together

# Value types by their number in the file, with the letter that `struct` gives to scalars.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING = 8
ARRAY = 9

SLAB = 2**22  # elements that are dequantized at once, so that temporaries stay small beside the tensor


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies. `shape` is in torch's order, which is the reverse of the file's."""

    name: str
    encoding: str  # as ggml names it: F32, Q4_1, …
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the tensor data
    size: int  # bytes


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file whose header has been read; arrays of the metadata are tuples."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]
    data_start: int  # bytes from the start of the file

    def require(self, key: str, kind: type[Kind]) -> Kind:
        """A metadata field; CheckpointError where it is absent or of another type."""
        if key not in self.metadata:
            raise CheckpointError(f"{self.path} lacks the metadata field {key}; fetch the file again")
        value = self.metadata[key]
        if type(value) is not kind:
            raise CheckpointError(
                f"{key} in {self.path} is of type {type(value).__name__}, expected {kind.__name__}; "
                "fetch the file again"
            )
        return value

    def get(self, key: str, kind: type[Kind], default: Default) -> Kind | Default:
        """A metadata field, `default` where it is absent; CheckpointError where it is of another type."""
        return self.require(key, kind) if key in self.metadata else default

    def tensor(self, name: str) -> GgufTensor:
        """Where a tensor lies; CheckpointError where it is absent."""
        if name not in self.tensors:
            raise CheckpointError(f"tensor {name} is missing from {self.path}; fetch the file again")
        return self.tensors[name]

    def load(self, name: str) -> Float32[Tensor, "..."]:
        """A tensor, dequantized to float32; of the file, only its own bytes are read.

        Raises CheckpointError where it is absent or unreadable, NumericalError where it holds NaN or infinity.
        """
        from gguf import GGMLQuantizationType, dequantize

        tensor = self.tensor(name)
        columns = tensor.shape[-1]
        rows = math.prod(tensor.shape[:-1])
        try:
            start = self.data_start + tensor.offset
            stored = np.memmap(self.path, np.uint8, "r", start, (rows, tensor.size // rows))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"tensor {name} cannot be read from {self.path}: {error}") from error
        values = np.empty((rows, columns), np.float32)
        step = max(1, SLAB // columns)
        for first in range(0, rows, step):
            slab = slice(first, first + step)
            # A damaged scale may overflow here; the check below says so in words.
            with np.errstate(invalid="ignore", over="ignore"):
                values[slab] = dequantize(stored[slab], GGMLQuantizationType[tensor.encoding])
            if not np.isfinite(values[slab]).all():
                raise NumericalError(f"tensor {name} of {self.path} holds NaN or infinity; fetch the file again")
        return torch.from_numpy(values).reshape(tensor.shape)


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file (version 2 or 3, little-endian); CheckpointError where it is not sound."""
    try:
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path} is empty; fetch it again")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Header(path, data))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


class _Header:
    """A position in the header that only moves forward, and never out of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.position = 0
        self.items = 0

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is no sound GGUF file: {problem}; fetch it again")

    def take(self, length: int) -> bytes:
        start, self.position = self.position, self.position + length
        if self.position > len(self.data):
            raise self.error("it ends inside its header")
        if self.position > LARGEST_HEADER:
            raise self.error(f"its header is longer than {LARGEST_HEADER} bytes")
        return self.data[start : self.position]

    def numbers(self, letter: str, count: int) -> tuple[Any, ...]:
        layout = f"<{count}{letter}"
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def number(self, letter: str) -> Any:
        return self.numbers(letter, 1)[0]

    def count(self, letter: str, most: int, what: str) -> int:
        value: int = self.number(letter)
        if value > most:
            raise self.error(f"it declares {value} {what}, where {most} is the most that is plausible")
        return value

    def text(self, longest: int = LONGEST_TEXT) -> str:
        encoded = self.take(self.count("Q", longest, "bytes of text"))
        try:
            return encoded.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"the text that ends at byte {self.position} is not UTF-8") from error

    def value(self, key: str) -> Value:
        kind = self.number("I")
        if kind == ARRAY:
            return self.array(key)
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            scalar: Scalar = self.number(SCALARS[kind])
            return scalar
        raise self.error(f"{key} has the unknown value type {kind}")

    def array(self, key: str) -> tuple[Scalar, ...]:
        kind = self.number("I")
        length = self.count("Q", MOST_ITEMS - self.items, f"items in {key}")
        self.items += length
        if kind == STRING:
            return tuple(self.text() for _ in range(length))
        if kind in SCALARS:
            return self.numbers(SCALARS[kind], length)
        raise self.error(f"{key} is an array of type {kind}, where text or numbers belong")


def _read(header: _Header) -> GgufFile:
    if header.take(len(MAGIC)) != MAGIC:
        raise header.error("it does not begin with GGUF")
    version = header.number("I")
    if version not in VERSIONS:
        raise header.error(f"its version is {version}, and only little-endian 2 and 3 are read")
    tensor_count = header.count("Q", MOST_ENTRIES, "tensors")
    field_count = header.count("Q", MOST_ENTRIES, "metadata fields")
    metadata: dict[str, Value] = {}
    for _ in range(field_count):
        key = header.text(LONGEST_NAME)
        if key in metadata:
            raise header.error(f"the metadata field {key} stands in it twice")
        metadata[key] = header.value(key)
    tensors: dict[str, GgufTensor] = {}
    for _ in range(tensor_count):
        tensor = _tensor(header)
        if tensor.name in tensors:
            raise header.error(f"the tensor {tensor.name} stands in it twice")
        tensors[tensor.name] = tensor
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise header.error(f"general.alignment is {alignment!r}, where a power of two belongs")
    data_start = -(-header.position // alignment) * alignment
    for tensor in tensors.values():
        if tensor.offset % alignment or data_start + tensor.offset + tensor.size > len(header.data):
            raise header.error(f"the tensor {tensor.name} lies outside it or between two aligned places")
    return GgufFile(header.path, metadata, tensors, data_start)


def _tensor(header: _Header) -> GgufTensor:
    name = header.text(LONGEST_NAME)
    dimensions = header.count("I", MOST_DIMENSIONS, f"dimensions of the tensor {name}")
    shape: tuple[int, ...] = header.numbers("Q", dimensions)[::-1]
    encoding, offset = header.number("I"), header.number("Q")
    block = _block(encoding)
    if block is None:
        raise header.error(f"the tensor {name} has type {encoding}, which the gguf package does not dequantize")
    if not shape or min(shape) < 1 or shape[-1] % block.elements:
        raise header.error(f"the tensor {name} has shape {list(shape)}, which {block.encoding} cannot hold")
    return GgufTensor(name, block.encoding, shape, offset, math.prod(shape) // block.elements * block.bytes)


class _Block(NamedTuple):
    """What a ggml type stores at once."""

    encoding: str
    elements: int
    bytes: int


@cache
def _block(encoding: int) -> _Block | None:
    """The block of the ggml type with this number; None where the `gguf` package cannot dequantize it."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    known = {member.value: member for member in GGMLQuantizationType}.get(encoding)
    if known is None:
        return None
    elements, size = GGML_QUANT_SIZES[known]
    try:
        dequantize(np.zeros((1, size), np.uint8), known)
    except NotImplementedError:
        return None
    return _Block(known.name, elements, size)
