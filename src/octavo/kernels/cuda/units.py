"""The kernels that there are: which source, compiled for which shape, and the arguments that each one takes."""

import ctypes
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.cuda import layout
from octavo.kernels.cuda.compiler import Unit

WARP = 32
GATHER_THREADS = EXPAND_THREADS = 256
EXPAND_STEPS = EXPAND_THREADS // WARP
STREAM_THREADS = 512
SEARCH_ROWS = 8  # of a block, a warp each
SEARCH_THREADS = WARP * SEARCH_ROWS
COLUMNS_THREADS = 64  # a row each
MOST_COLUMNS = 128  # that are solved in one launch
NUMBERS = {torch.float16: "half", torch.bfloat16: "bfloat", torch.float32: "single"}


@dataclass(frozen=True)
class Block:
    """What a block of threads decodes: groups of 8 rows, tiles of 16 outputs; its warps share out the columns."""

    row_groups: int
    tiles: int
    warps: int

    @property
    def rows(self) -> int:
        return 8 * self.row_groups

    @property
    def outputs(self) -> int:
        return layout.TILE_ROWS * self.tiles

    @property
    def threads(self) -> int:
        return WARP * self.warps


@dataclass(frozen=True)
class WideBlock:
    """What a block of threads makes of some dozens of rows: groups of 8, and tiles of outputs for each warp."""

    row_groups: int
    tiles: int
    warps: int

    @property
    def rows(self) -> int:
        return 8 * self.row_groups

    @property
    def outputs(self) -> int:
        return layout.TILE_ROWS * self.tiles * self.warps

    @property
    def threads(self) -> int:
        return WARP * self.warps


class Offsets(ctypes.Structure):
    """Of native/cuda/codes.cuh."""

    _fields_ = [("upper", ctypes.c_uint), ("lower", ctypes.c_uint)]


WEIGHT = [("codes", ctypes.c_void_p), ("scales", ctypes.c_void_p)]  # with which arguments begin that have one


class Rows(ctypes.Structure):
    """Of native/cuda/activations.cuh."""

    _fields_ = [
        ("values", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("columns", ctypes.c_int),
        ("stride", ctypes.c_int),
    ]


class DecodeArguments(ctypes.Structure):
    """Of native/cuda/decode.cuh."""

    _fields_ = [
        *WEIGHT,
        ("rows", Rows),
        ("residual", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p),
        ("width", ctypes.c_int),
        ("steps", ctypes.c_int),
        ("offsets", Offsets),
    ]


class WideArguments(ctypes.Structure):
    """Of native/cuda/wide.cuh."""

    _fields_ = [
        *WEIGHT,
        ("rows", Rows),
        ("sums", ctypes.c_void_p),
        ("width", ctypes.c_int),
        ("steps", ctypes.c_int),
        ("tiles", ctypes.c_int),
        ("row_blocks", ctypes.c_int),
        ("offsets", Offsets),
    ]


class ExpandArguments(ctypes.Structure):
    """Of native/cuda/expand.cuh."""

    _fields_ = [
        *WEIGHT,
        ("weights", ctypes.c_void_p),
        ("outputs", ctypes.c_int),
        ("width", ctypes.c_int),
        ("steps", ctypes.c_int),
        ("offsets", Offsets),
    ]


class GatherArguments(ctypes.Structure):
    """Of native/cuda/gather.cuh."""

    _fields_ = [
        ("inputs", ctypes.c_void_p),
        ("column_of_slot", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p),
        ("columns", ctypes.c_int),
        ("slots", ctypes.c_int),
    ]


class SearchArguments(ctypes.Structure):
    """Of native/cuda/search.cuh."""

    _fields_ = [
        ("values", ctypes.c_void_p),
        ("row_stride", ctypes.c_longlong),
        ("column_stride", ctypes.c_longlong),
        ("importance", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("shrinks", ctypes.c_void_p),
        ("shrink_count", ctypes.c_int),
        ("rows", ctypes.c_int),
        ("columns", ctypes.c_int),
        ("group_size", ctypes.c_int),
        ("largest_code", ctypes.c_int),
        ("smallest_zero", ctypes.c_int),
        ("middle", ctypes.c_int),
    ]


class ColumnsArguments(ctypes.Structure):
    """Of native/cuda/columns.cuh."""

    _fields_ = [
        ("remaining", ctypes.c_void_p),
        ("factor", ctypes.c_void_p),
        ("groups", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("errors", ctypes.c_void_p),
        ("rows", ctypes.c_int),
        ("columns", ctypes.c_int),
        ("first", ctypes.c_int),
        ("count", ctypes.c_int),
        ("largest_code", ctypes.c_int),
    ]


class StreamArguments(ctypes.Structure):
    """Of native/cuda/stream.cu."""

    _fields_ = [("values", ctypes.c_void_p), ("never", ctypes.c_void_p), ("count", ctypes.c_longlong)]


GATHER = Unit("gather.cu", "")
STREAM = Unit("stream.cu", "")
SEARCH = Unit("search.cu", "")
COLUMNS = Unit("columns.cu", "")


def decode_unit(form: layout.Form, dtype: torch.dtype, block: Block, gated: bool = False) -> Unit:
    """The kernel for few rows of float16 or bfloat16; outputs of a `gated` one are pairs (gate, up)."""
    kind = f"{_word(dtype == torch.bfloat16)}, {_word(gated)}"
    return Unit("decode.cu", f"{_words(form)}, {kind}, {block.row_groups}, {block.tiles}, {block.warps}")


def wide_unit(form: layout.Form, dtype: torch.dtype, block: WideBlock) -> Unit:
    """The kernel for some dozens of rows of float16 or bfloat16."""
    bfloats = _word(dtype == torch.bfloat16)
    return Unit("wide.cu", f"{_words(form)}, {bfloats}, {block.row_groups}, {block.tiles}, {block.warps}")


def expand_unit(form: layout.Form, dtype: torch.dtype) -> Unit:
    """The kernel that makes a weight of plain numbers."""
    return Unit("expand.cu", f"{_words(form)}, Number::{NUMBERS[dtype]}")


def offsets_of(packed: layout.Packed) -> Offsets:
    """The zero of all groups as the kernels take it; unused where groups differ."""
    upper, lower = layout.offsets(packed.zero, packed.form.bits)
    return Offsets(_pair(upper), _pair(lower))


def rows_of(rows: Tensor) -> Rows:
    """Rows in plain memory as the kernels take them."""
    return Rows(rows.data_ptr(), *rows.shape, rows.shape[1])


def _words(form: layout.Form) -> str:
    return f"{form.bits}, {_word(form.zeros_differ)}, {form.scales_per_step}"


def _word(condition: bool) -> str:
    return "true" if condition else "false"


def _pair(value: float) -> int:
    """Twice the same half in one word."""
    return int.from_bytes(struct.pack("<2e", value, value), "little")
