"""The native CPU library; octavo.kernels.cpu is what Python code calls."""

from collections.abc import Sequence
import enum
from typing import Annotated, overload

import numpy
from numpy.typing import NDArray
import torch

class Isa(enum.Enum):
    """Instruction sets, in rising order of speed."""

    portable = 0

    avx2 = 1

    avx512 = 2

    vnni = 3

    amx_emulated = 4

    amx = 5

def name_of(isa: Isa) -> str: ...
def available_isas() -> list[Isa]:
    """What this machine runs."""

def best_isa() -> Isa: ...

class Pool:
    """Threads that share the work of one call; `threads` counts the caller."""

    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

def default_pool() -> Pool:
    """The pool of the process."""

def set_default_threads(threads: int) -> None:
    """
    Size of the default pool; ValueError below 1, RuntimeError where it runs with another.
    """

def read_bandwidth(bytes: int) -> float:
    """
    Bytes per second of reading so many bytes of memory on the threads of the default pool.
    """

class Storage(enum.Enum):
    codes8 = 0

    codes4 = 1

    codes2 = 2

    float32 = 3

    float16 = 4

    bfloat16 = 5

class Matrix:
    """A weight in the layout of the kernels."""

    @property
    def outputs(self) -> int: ...
    @property
    def storage(self) -> Storage: ...
    @property
    def columns(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    def set_bias(
        self,
        bias: Annotated[
            torch.Tensor, dict(dtype="float32", shape=(None,), order="C", device="cpu", writable=False)
        ],
    ) -> None:
        """Float32, one for each output."""

def prepare_codes(
    codes: Annotated[
        torch.Tensor, dict(dtype="uint8", shape=(None, None), order="C", device="cpu", writable=False)
    ],
    scale_bits: Annotated[
        torch.Tensor, dict(dtype="int16", shape=(None, None), order="C", device="cpu", writable=False)
    ],
    zeros: Annotated[
        torch.Tensor, dict(dtype="int16", shape=(None, None), order="C", device="cpu", writable=False)
    ],
    group_of_column: Annotated[
        torch.Tensor, dict(dtype="int32", shape=(None,), order="C", device="cpu", writable=False)
    ],
    bits: int,
) -> Matrix: ...
def prepare_dense(values: int, storage: Storage, outputs: int, columns: int) -> Matrix:
    """Values at an address, row after row."""

def same_form(one: Matrix, other: Matrix) -> bool:
    """Whether inputs encoded for one matrix serve the other."""

def matmul(
    matrix: Matrix, inputs: int, outputs: int, rows: int, pool: Pool | None = None, isa: Isa | None = None
) -> None:
    """
    outputs = inputs * matrix^T + bias, at addresses of float32 rows that follow each other; by default on the pool of the process, in the best instruction set.
    """

class Step:
    """What the layers of one forward pass share; copied, and checked."""

    def __init__(
        self,
        angles: int,
        write_slots: int,
        lengths: int,
        row_starts: int,
        page_table: int,
        rows: int,
        half_head: int,
        sequences: int,
        pages: int,
        page_size: int,
        temperature: float,
    ) -> None: ...

class Cache:
    """Keys and values of a layer, by their addresses; strides count heads."""

    @overload
    def __init__(self, keys: int, values: int, slots: int, slot_stride: int, head_stride: int) -> None:
        """float32"""

    @overload
    def __init__(
        self,
        keys: int,
        key_scales: int,
        values: int,
        value_scales: int,
        slots: int,
        slot_stride: int,
        head_stride: int,
    ) -> None:
        """int8, with float32 scales of the same strides"""

class Layer:
    """A decoder layer; norms are copied, matrices shared."""

    def __init__(
        self,
        attention_norm: int,
        mlp_norm: int,
        query_norm: int,
        key_norm: int,
        query: Matrix,
        key: Matrix,
        value: Matrix,
        output: Matrix,
        gate: Matrix,
        up: Matrix,
        down: Matrix,
        head_dim: int,
        window: int,
        norm_epsilon: float,
    ) -> None: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    def run(self, step: Step, cache: Cache, hidden: int, outputs: int, pool: Pool | None, isa: Isa) -> None:
        """Addresses of float32 rows in and out, [rows, hidden_size]."""

class Head:
    """The final norm and the projection to logits."""

    def __init__(self, norm: int, norm_epsilon: float, projection: Matrix) -> None: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    def run(self, hidden: int, rows: int, logits: int, pool: Pool | None, isa: Isa) -> None:
        """Addresses of float32 rows that follow each other."""

def exponentials(inputs: int, size: int, outputs: int, isa: Isa) -> None: ...
def cosines_and_sines(angles: int, size: int, cosines: int, sines: int) -> None: ...
def add_gram(
    total: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu")],
    inputs: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    pool: Pool | None = None,
    isa: Isa = ...,
) -> None:
    """Adds inputs^T inputs to `total`, on and above the diagonal at least."""

class GridRule:
    """How a weight's groups are formed, and their grids found."""

    def __init__(
        self,
        group_size: int,
        static_groups: bool,
        symmetric: bool,
        bits: int,
        smallest_zero: int,
        shrinks: Sequence[float],
    ) -> None: ...

class Hessian:
    """What a weight is solved with."""

    def __init__(
        self,
        factor: Annotated[
            NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)
        ],
        importance: Annotated[
            NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)
        ],
        order: Annotated[NDArray[numpy.int64], dict(shape=(None,), order="C", device="cpu", writable=False)],
    ) -> None: ...

def solve_columns(
    weight: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    hessian: Hessian,
    rule: GridRule,
    codes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order="C", device="cpu")],
    scales: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu")],
    zeros: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu")],
    pool: Pool | None = None,
    isa: Isa = ...,
) -> None: ...
def normalize(
    inputs: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    weight: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)],
    epsilon: float,
    outputs: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu")],
    pool: Pool | None = None,
    isa: Isa = ...,
) -> None: ...
def gate(
    inputs: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    outputs: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu")],
    pool: Pool | None = None,
    isa: Isa = ...,
) -> None:
    """silu(gates) * ups, side by side in each row."""

class HeadRule:
    """How a layer attends."""

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window: int,
        query_norm: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)]
        | None,
        key_norm: Annotated[NDArray[numpy.float32], dict(shape=(None,), order="C", device="cpu", writable=False)]
        | None,
        epsilon: float,
    ) -> None: ...

def attend(
    inputs: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu", writable=False)],
    step: Step,
    rule: HeadRule,
    outputs: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order="C", device="cpu")],
    pool: Pool | None = None,
    isa: Isa = ...,
) -> None:
    """
    Attention of whole sequences; each row of inputs is [queries, keys, values].
    """
