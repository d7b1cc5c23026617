"""GGUF files: bytes written out by hand, files that the `gguf` package writes, and attacks."""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.checkpoint import gguf as reader
from octavo.checkpoint.gguf import GgufFile, GgufTensor, read_gguf
from octavo.errors import CheckpointError, NumericalError

UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
F32, Q8_0, I32 = 0, 8, 26
ABSURD = 2**60


def text(value: str | bytes) -> bytes:
    encoded = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def field(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, *items: bytes) -> bytes:
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def tensor(name: str, reversed_shape: tuple[int, ...], encoding: int = F32, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(reversed_shape)}Q", len(reversed_shape), *reversed_shape)
    return text(name) + dimensions + struct.pack("<IQ", encoding, offset)


@dataclass(frozen=True)
class Bytes:
    """A GGUF file in the making; every part can be replaced by a wrong one."""

    fields: tuple[bytes, ...] = (field("general.architecture", STRING, text("llama")),)
    tensors: tuple[bytes, ...] = (tensor("w", (3, 2)),)
    data: bytes = struct.pack("<6f", 0, 1, 2, 3, 4, 5)
    start: bytes = b"GGUF\x03\x00\x00\x00"
    tensor_count: int | None = None
    field_count: int | None = None
    alignment: int = 32

    @property
    def header(self) -> bytes:
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        field_count = len(self.fields) if self.field_count is None else self.field_count
        counts = struct.pack("<QQ", tensor_count, field_count)
        return self.start + counts + b"".join(self.fields) + b"".join(self.tensors)

    def write(self, folder: Path) -> Path:
        padding = b"\0" * (-len(self.header) % self.alignment)
        path = folder / "model.gguf"
        path.write_bytes(self.header + padding + self.data)
        return path


def write_with_package(path: Path, tensors: dict[str, tuple[np.ndarray, Encoding]]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, (stored, encoding) in tensors.items():
        writer.add_tensor(name, stored, raw_dtype=encoding)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Reading what is sound


def test_bytes_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(
        b"GGUF"
        b"\x03\x00\x00\x00"  # version 3
        b"\x01\x00\x00\x00\x00\x00\x00\x00"  # one tensor
        b"\x03\x00\x00\x00\x00\x00\x00\x00"  # three metadata fields
        b"\x01\x00\x00\x00\x00\x00\x00\x00a"  # key of one byte
        b"\x08\x00\x00\x00"  # string
        b"\x03\x00\x00\x00\x00\x00\x00\x00\xe2\x96\x81"  # "▁"
        b"\x01\x00\x00\x00\x00\x00\x00\x00b"
        b"\x09\x00\x00\x00"  # array
        b"\x05\x00\x00\x00"  # of int32
        b"\x02\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\xff\xff\xff\xff"
        b"\x01\x00\x00\x00\x00\x00\x00\x00c"
        b"\x07\x00\x00\x00"  # bool
        b"\x01"
        b"\x01\x00\x00\x00\x00\x00\x00\x00w"  # the tensor w
        b"\x02\x00\x00\x00"  # of two dimensions,
        b"\x03\x00\x00\x00\x00\x00\x00\x00"  # rows of 3,
        b"\x02\x00\x00\x00\x00\x00\x00\x00"  # two of them,
        b"\x00\x00\x00\x00"  # float32
        b"\x00\x00\x00\x00\x00\x00\x00\x00"  # at the start of the data
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"  # which begins at byte 160
        b"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
        b"\x00\x00\x00\x00\x00\x00\x80\x3f\x00\x00\x00\x40"
        b"\x00\x00\x40\x40\x00\x00\x80\x40\x00\x00\xa0\xc0"
    )
    file = read_gguf(path)
    assert file == GgufFile(
        path=path,
        metadata={"a": "▁", "b": (7, -1), "c": True},
        tensors={"w": GgufTensor("w", "F32", (2, 3), offset=0, size=24)},
        data_start=160,
    )
    loaded = file.load("w")
    assert loaded.dtype == torch.float32
    assert loaded.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, -5.0]]


@pytest.mark.parametrize(
    ("kind", "stored", "expected"),
    [
        (0, b"\xff", 255),
        (1, b"\xff", -1),
        (2, b"\xff\xff", 65535),
        (3, b"\xff\xff", -1),
        (4, b"\xff\xff\xff\xff", 2**32 - 1),
        (5, b"\xff\xff\xff\xff", -1),
        (6, b"\x00\x00\xc0\x3f", 1.5),
        (7, b"\x00", False),
        (8, b"\x02\x00\x00\x00\x00\x00\x00\x00hi", "hi"),
        (10, b"\xff" * 8, 2**64 - 1),
        (11, b"\xff" * 8, -1),
        (12, b"\x00\x00\x00\x00\x00\x00\xf8\x3f", 1.5),
    ],
)
def test_every_value_type_alone_and_in_an_array(
    tmp_path: Path, kind: int, stored: bytes, expected: object
) -> None:
    fields = (field("one", kind, stored), field("two", ARRAY, array(kind, stored, stored)))
    file = read_gguf(Bytes(fields=fields).write(tmp_path))
    assert file.metadata == {"one": expected, "two": (expected, expected)}
    assert type(file.metadata["one"]) is type(expected)


def test_version_2_has_the_same_layout(tmp_path: Path) -> None:
    assert read_gguf(Bytes(start=b"GGUF\x02\x00\x00\x00").write(tmp_path)).load("w").shape == (2, 3)


def test_alignment_of_the_file(tmp_path: Path) -> None:
    fields = (field("general.alignment", UINT32, struct.pack("<I", 256)),)
    file = read_gguf(Bytes(fields=fields, alignment=256).write(tmp_path))
    assert file.data_start == 256
    assert file.load("w").tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_typed_access(tmp_path: Path) -> None:
    file = read_gguf(Bytes().write(tmp_path))
    assert file.require("general.architecture", str) == "llama"
    assert file.get("general.architecture", str, None) == "llama"
    assert file.get("general.name", str, None) is None
    with pytest.raises(CheckpointError, match=r"lacks the metadata field general\.name"):
        file.require("general.name", str)
    with pytest.raises(CheckpointError, match=r"general\.architecture in .* is of type str, expected int"):
        file.get("general.architecture", int, 0)


def test_a_tensor_of_more_dimensions(tmp_path: Path) -> None:
    file = read_gguf(Bytes(tensors=(tensor("w", (3, 1, 2)),)).write(tmp_path))
    assert file.load("w").tolist() == [[[0.0, 1.0, 2.0]], [[3.0, 4.0, 5.0]]]


# Dequantizing


def test_blocks_of_8_bits_by_the_formula(tmp_path: Path) -> None:
    codes = list(range(-16, 16))
    block = struct.pack("<e32b", 0.5, *codes)
    file = read_gguf(Bytes(tensors=(tensor("w", (32,), Q8_0),), data=block).write(tmp_path))
    assert file.load("w").tolist() == [0.5 * code for code in codes]


def test_blocks_of_4_bits_with_a_minimum_by_the_formula(tmp_path: Path) -> None:
    # The low halves of the bytes are the first 16 codes, the high halves the other 16.
    block = struct.pack("<ee16B", 0.25, -1.0, *(low | (15 - low) << 4 for low in range(16)))
    file = read_gguf(Bytes(tensors=(tensor("w", (32, 1), 3),), data=block).write(tmp_path))
    codes = [*range(16), *reversed(range(16))]
    assert file.load("w").tolist() == [[0.25 * code - 1.0 for code in codes]]


@pytest.mark.parametrize(
    ("encoding", "largest_error"),
    [
        (Encoding.F32, 0.0),
        (Encoding.F16, 0.002),
        (Encoding.BF16, 0.02),
        (Encoding.Q8_0, 0.02),
        (Encoding.Q5_0, 0.2),
        (Encoding.Q5_1, 0.2),
        (Encoding.Q4_0, 0.4),
        (Encoding.Q4_1, 0.4),
        (Encoding.TQ1_0, 4.0),
        (Encoding.TQ2_0, 4.0),
        (Encoding.MXFP4, 1.0),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_type_that_the_package_writes(tmp_path: Path, encoding: Encoding, largest_error: float) -> None:
    values = np.random.default_rng(0).standard_normal((48, 256), np.float32)
    stored = gguf.quantize(values, encoding)
    path = write_with_package(tmp_path / "model.gguf", {"first": (stored[:1], encoding), "w": (stored, encoding)})
    file = read_gguf(path)
    loaded = file.load("w")
    assert file.tensors["w"].encoding == encoding.name
    assert torch.equal(loaded, torch.from_numpy(gguf.dequantize(stored, encoding).copy()))
    assert (loaded - torch.from_numpy(values)).abs().max().item() <= largest_error


@pytest.mark.parametrize(
    "encoding", [Encoding.Q2_K, Encoding.Q4_K, Encoding.Q6_K, Encoding.IQ4_NL], ids=lambda e: e.name
)
def test_types_that_the_package_only_reads(tmp_path: Path, encoding: Encoding) -> None:
    elements, size = gguf.GGML_QUANT_SIZES[encoding]
    # Bytes below 60 keep the two float16 numbers of a block finite.
    stored = np.random.default_rng(0).integers(0, 60, (5, 2 * size), np.uint8)
    file = read_gguf(write_with_package(tmp_path / "model.gguf", {"w": (stored, encoding)}))
    assert file.load("w").shape == (5, 2 * elements)
    assert torch.equal(file.load("w"), torch.from_numpy(gguf.dequantize(stored, encoding).copy()))


def test_slabs_join_without_a_seam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal((37, 64), np.float32)
    stored = gguf.quantize(values, Encoding.Q4_1)
    file = read_gguf(write_with_package(tmp_path / "model.gguf", {"w": (stored, Encoding.Q4_1)}))
    whole = file.load("w")
    monkeypatch.setattr(reader, "SLAB", 64 * 5 + 1)
    assert torch.equal(file.load("w"), whole)


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number(tmp_path: Path, damage: float) -> None:
    block = struct.pack("<e32b", damage, *[0, 1] * 16)
    file = read_gguf(Bytes(tensors=(tensor("w", (32,), Q8_0),), data=block).write(tmp_path))
    with pytest.raises(NumericalError, match=r"tensor w of .* holds NaN or infinity"):
        file.load("w")


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tensor v is missing from .*model\.gguf"):
        read_gguf(Bytes().write(tmp_path)).load("v")


def test_a_file_that_shrank_after_its_header_was_read(tmp_path: Path) -> None:
    path = Bytes().write(tmp_path)
    file = read_gguf(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"tensor w cannot be read from .*model\.gguf"):
        file.load("w")


# Attacks


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (Bytes(start=b"GGML\x03\x00\x00\x00"), "it does not begin with GGUF"),
        (Bytes(start=b"GGUF\x01\x00\x00\x00"), "its version is 1,"),
        (Bytes(start=b"GGUF\x00\x00\x00\x03"), "its version is 50331648, and only little-endian 2 and 3 are read"),
        (Bytes(tensor_count=ABSURD), f"it declares {ABSURD} tensors, where 65536 is the most"),
        (Bytes(field_count=ABSURD), f"it declares {ABSURD} metadata fields, where 65536 is the most"),
        (Bytes(tensor_count=2, data=b"", alignment=1), "it ends inside its header"),
        (Bytes(fields=(struct.pack("<Q", ABSURD),)), f"it declares {ABSURD} bytes of text"),
        (Bytes(fields=(text("k" * 1025),)), "it declares 1025 bytes of text, where 1024 is the most"),
        (Bytes(fields=(field("k", STRING, struct.pack("<Q", ABSURD)),)), f"it declares {ABSURD} bytes of text"),
        (Bytes(fields=(field("k", STRING, struct.pack("<Q", 2**20)),)), "it ends inside its header"),
        (Bytes(fields=(field("k", STRING, text(b"\xff")),)), "is not UTF-8"),
        (Bytes(fields=(field("k", 13, b""),)), "k has the unknown value type 13"),
        (
            Bytes(fields=(field("k", ARRAY, struct.pack("<IQ", UINT32, ABSURD)),)),
            f"it declares {ABSURD} items in k",
        ),
        (
            Bytes(fields=(field("k", ARRAY, struct.pack("<IQ", STRING, ABSURD)),)),
            f"it declares {ABSURD} items in k",
        ),
        (Bytes(fields=(field("k", ARRAY, struct.pack("<IQ", UINT32, 2**22)),)), "it ends inside its header"),
        (Bytes(fields=(field("k", ARRAY, array(ARRAY, array(BOOL, b"\1"))),)), "k is an array of type 9"),
        (Bytes(fields=(field("k", ARRAY, array(13)),)), "k is an array of type 13"),
        (Bytes(fields=(field("k", BOOL, b"\1"),) * 2), "the metadata field k stands in it twice"),
        (Bytes(tensors=(tensor("w", (1,)),) * 2), "the tensor w stands in it twice"),
        (Bytes(tensors=(tensor("w" * 1025, (1,)),)), "it declares 1025 bytes of text"),
        (Bytes(tensors=(tensor("w", ()),)), r"the tensor w has shape \[\], which F32 cannot hold"),
        (Bytes(tensors=(tensor("w", (1,) * 5),)), "it declares 5 dimensions of the tensor w, where 4 is the most"),
        (Bytes(tensors=(tensor("w", (3, 0)),)), r"the tensor w has shape \[0, 3\], which F32 cannot hold"),
        (Bytes(tensors=(tensor("w", (2**63, 2**63)),)), "the tensor w lies outside it"),
        (Bytes(tensors=(tensor("w", (33,), Q8_0),)), r"the tensor w has shape \[33\], which Q8_0 cannot hold"),
        (Bytes(tensors=(tensor("w", (3,), 999),)), "the tensor w has type 999"),
        (Bytes(tensors=(tensor("w", (3,), 4),)), "the tensor w has type 4"),  # Q4_2, which is no more
        (Bytes(tensors=(tensor("w", (3,), I32),)), "the tensor w has type 26"),
        (Bytes(tensors=(tensor("w", (7,)),)), "the tensor w lies outside it"),
        (Bytes(tensors=(tensor("w", (1,), F32, 32),)), "the tensor w lies outside it"),
        (Bytes(tensors=(tensor("w", (1,), F32, 2**64 - 32),)), "the tensor w lies outside it"),
        (
            Bytes(tensors=(tensor("w", (1,), F32, 4),)),
            "the tensor w lies outside it or between two aligned places",
        ),
        (Bytes(fields=(field("general.alignment", UINT32, b"\0" * 4),)), "general.alignment is 0,"),
        (Bytes(fields=(field("general.alignment", UINT32, b"\x18\0\0\0"),)), "general.alignment is 24,"),
        (Bytes(fields=(field("general.alignment", FLOAT32, b"\0\0\0\x42"),)), r"general.alignment is 32\.0,"),
        (Bytes(fields=(field("general.alignment", BOOL, b"\1"),)), "general.alignment is True,"),
        (Bytes(fields=(field("general.alignment", UINT32, b"\0\0\0\x80"),)), "the tensor w lies outside it"),
    ],
)
def test_attacks_end_in_one_sentence(tmp_path: Path, attack: Bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"model.gguf is no sound GGUF file: .*{message}.*; fetch it again$"):
        read_gguf(attack.write(tmp_path))


def rich_file() -> Bytes:
    """One of everything, with the data of its two tensors."""
    fields = (
        field("general.architecture", STRING, text("llama")),
        field("numbers", ARRAY, array(FLOAT32, struct.pack("<f", 1.5), struct.pack("<f", -2.0))),
        field("tokens", ARRAY, array(STRING, text("a"), text("▁b"))),
        field("flag", BOOL, b"\1"),
        field("general.alignment", UINT32, struct.pack("<I", 64)),
    )
    tensors = (tensor("w", (3, 2)), tensor("v", (32, 2), Q8_0, 64))
    values = struct.pack("<6f", *range(6)).ljust(64, b"\0")
    return Bytes(
        fields=fields, tensors=tensors, data=values + struct.pack("<e32b", 1.0, *range(32)) * 2, alignment=64
    )


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    path = rich_file().write(tmp_path)
    whole = path.read_bytes()
    read_gguf(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_gguf(path)


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_never_raise_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    path = rich_file().write(tmp_path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=8))
        content[place : place + len(piece)] = piece
    path.write_bytes(content)
    try:
        file = read_gguf(path)
        for name in file.tensors:
            assert file.load(name).shape == file.tensors[name].shape
    except (CheckpointError, NumericalError):
        pass


def test_items_are_counted_over_all_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MOST_ITEMS", 3)
    numbers = array(UINT32, *[b"\0" * 4] * 2)
    read_gguf(Bytes(fields=(field("a", ARRAY, numbers),)).write(tmp_path))
    with pytest.raises(CheckpointError, match="it declares 2 items in b, where 1 is the most"):
        read_gguf(Bytes(fields=(field("a", ARRAY, numbers), field("b", ARRAY, numbers))).write(tmp_path))


def test_the_header_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Bytes().write(tmp_path)
    monkeypatch.setattr(reader, "LARGEST_HEADER", len(Bytes().header))
    read_gguf(path)
    monkeypatch.setattr(reader, "LARGEST_HEADER", len(Bytes().header) - 1)
    with pytest.raises(CheckpointError, match="its header is longer than"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b""), "is empty; fetch it again"),
    ],
)
def test_no_file_at_all(tmp_path: Path, prepare: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "model.gguf"
    prepare(path)
    with pytest.raises(CheckpointError, match=re.escape(f"{path} {message}")):
        read_gguf(path)


# Writing with the package, reading here

scalars = {
    "add_uint32": st.integers(0, 2**32 - 1),
    "add_int64": st.integers(-(2**63), 2**63 - 1),
    "add_float64": st.floats(allow_nan=False),
    "add_bool": st.booleans(),
    "add_string": st.text(st.characters(codec="utf-8"), min_size=1),
}


@given(
    fields=st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=1),
        st.sampled_from(sorted(scalars)).flatmap(lambda method: st.tuples(st.just(method), scalars[method])),
    ),
    tokens=st.lists(st.text(st.characters(codec="utf-8")), min_size=1),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_metadata_of_the_package_comes_back(
    tmp_path: Path, fields: dict[str, tuple[str, object]], tokens: list[str]
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for key, (method, value) in fields.items():
        getattr(writer, method)(key, value)
    writer.add_array("general.tokens", tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    expected = {key: value for key, (_, value) in fields.items()}
    assert read_gguf(tmp_path / "model.gguf").metadata == {
        "general.architecture": "llama",
        **expected,
        "general.tokens": tuple(tokens),
    }
