"""A quantized linear on an NVIDIA GPU, by kernels in CUDA C++: the verbs of `dispatch`.

Up to 32 rows go through native/cuda/decode.cuh, which reads the codes once and nothing else of size. More rows
are torch's, with the weight expanded for the call.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor

from octavo.kernels.cuda import layout
from octavo.kernels.cuda.compiler import find_nvrtc
from octavo.kernels.cuda.driver import Function, architecture, indexed, load
from octavo.kernels.cuda.units import (
    EXPAND_STEPS,
    EXPAND_THREADS,
    GATHER,
    GATHER_THREADS,
    Block,
    DecodeArguments,
    ExpandArguments,
    GatherArguments,
    Rows,
    decode_unit,
    expand_unit,
    offsets_of,
)
from octavo.weights import QuantizedWeight

NAME = "CUDA"
AMPERE = 80
COLUMNS_PER_LOAD = 8
BYTES_PER_LOAD = 16


@dataclass(frozen=True)
class Decoder:
    """A kernel for few rows, and what a block of it computes."""

    block: Block
    function: Function


@dataclass(frozen=True)
class Prepared:
    """A weight in the kernels' layout, and its kernels.

    `decoders` are for more and more rows; there are none for float32. `order` is the column of each slot, -1 for
    none, where decoders need their activations gathered.
    """

    packed: layout.Packed
    shape: tuple[int, int]
    dtype: torch.dtype
    decoders: tuple[Decoder, ...]
    expand: Function
    gather: Function
    order: Int32[Tensor, " slots"] | None


def why_not(weight: QuantizedWeight, device: torch.device) -> str | None:
    """None, or why these kernels cannot run a weight on a device."""
    if device.type != "cuda":
        return f"it runs on NVIDIA GPUs, not on {device.type}"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "torch is built without CUDA, or finds no NVIDIA GPU"
    if architecture(device) < AMPERE:
        return f"{torch.cuda.get_device_name(device)} is older than Ampere (compute capability 8.0)"
    if find_nvrtc() is None:
        return "NVRTC, the compiler that CUDA builds of torch bring, is not installed"
    if weight.scales.dtype != torch.float16:
        return f"its scales are {weight.scales.dtype}, not float16"
    return None


def prepare(weight: QuantizedWeight, device: torch.device, dtype: torch.dtype) -> Prepared:
    """Lay the weight out on the device and make the kernels for inputs of `dtype` ready."""
    device = indexed(device)
    packed = layout.pack(weight, device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return with_kernels(packed, weight.shape, dtype, blocks_for(packed.form, dtype, weight.shape[0], processors))


def blocks_for(form: layout.Form, dtype: torch.dtype, outputs: int, processors: int) -> tuple[Block, ...]:
    """Blocks for 8, 16 and 32 rows; two tiles share activations where blocks stay many and registers suffice."""
    many = outputs >= 2 * layout.BLOCK_ROWS * processors
    lean = form.bits == 4 or (form == layout.Form(8, False, 1) and dtype == torch.float16)
    return (Block(1, 2 if many and lean else 1, 8), Block(2, 1, 8), Block(4, 1, 8))


def with_kernels(
    packed: layout.Packed, shape: tuple[int, int], dtype: torch.dtype, blocks: Sequence[Block]
) -> Prepared:
    """A weight of (outputs, inputs) that is laid out, with kernels whose blocks are as given."""
    device, order = packed.codes.device, packed.column_of_slot
    if order is None and shape[1] % COLUMNS_PER_LOAD:
        order = torch.arange(packed.slots, dtype=torch.int32, device=device)
        order[shape[1] :] = -1
    units = [] if dtype == torch.float32 else [(block, decode_unit(packed.form, dtype, block)) for block in blocks]
    return Prepared(
        packed=packed,
        shape=shape,
        dtype=dtype,
        decoders=tuple(Decoder(block, load(unit, block.threads, device)) for block, unit in units),
        expand=load(expand_unit(packed.form, dtype), EXPAND_THREADS, device),
        gather=load(GATHER, GATHER_THREADS, device),
        order=order,
    )


def matmul(inputs: Float[Tensor, "*rows in_features"], prepared: Prepared) -> Float[Tensor, "*rows out_features"]:
    """inputs @ W^T, in the inputs' dtype, which is the one of `prepare`."""
    assert inputs.dtype == prepared.dtype, f"prepared for {prepared.dtype}, given {inputs.dtype}"
    rows = inputs.reshape(-1, prepared.shape[1])
    return _product(rows, prepared).view(*inputs.shape[:-1], prepared.shape[0])


def _product(rows: Float[Tensor, "rows in_features"], prepared: Prepared) -> Float[Tensor, "rows out_features"]:
    if len(rows) == 0:
        return rows.new_empty(0, prepared.shape[0])
    for decoder in prepared.decoders:
        if len(rows) <= decoder.block.rows:
            return _decode(rows, prepared, decoder)
    order = prepared.packed.column_of_slot
    if order is None:
        return rows @ expanded(prepared, prepared.shape[1]).t()
    # An empty slot, -1, picks the zero behind the last column.
    return F.pad(rows, (0, 1))[:, order] @ expanded(prepared, prepared.packed.slots).t()


def _decode(
    rows: Float[Tensor, "rows in_features"], prepared: Prepared, decoder: Decoder
) -> Float[Tensor, "rows out_features"]:
    """One to 32 rows."""
    packed = prepared.packed
    if prepared.order is not None:
        rows = _gathered(rows.contiguous(), prepared.order, prepared.gather)
    elif not rows.is_contiguous() or rows.data_ptr() % BYTES_PER_LOAD:
        rows = rows.clone(memory_format=torch.contiguous_format)
    outputs = rows.new_empty(len(rows), prepared.shape[0])
    count, columns = rows.shape
    arguments = DecodeArguments(
        packed.codes.data_ptr(),
        packed.scales.data_ptr(),
        Rows(rows.data_ptr(), count, columns, columns),
        outputs.data_ptr(),
        prepared.shape[0],
        packed.steps,
        offsets_of(packed),
    )
    decoder.function.launch((-(-prepared.shape[0] // decoder.block.outputs), 1), arguments)
    return outputs


def _gathered(
    rows: Float[Tensor, "rows in_features"], order: Int32[Tensor, " slots"], gather: Function
) -> Float[Tensor, "rows slots"]:
    """The columns of 16-bit rows in the order of slots; zero in empty ones."""
    outputs = rows.new_empty(len(rows), len(order))
    arguments = GatherArguments(rows.data_ptr(), order.data_ptr(), outputs.data_ptr(), rows.shape[1], len(order))
    gather.launch((-(-len(order) // GATHER_THREADS), len(rows)), arguments)
    return outputs


def expanded(prepared: Prepared, width: int) -> Float[Tensor, "out_features width"]:
    """The first `width` slots of the weight as numbers of the prepared dtype."""
    packed, outputs = prepared.packed, prepared.shape[0]
    weights = torch.empty(outputs, width, dtype=prepared.dtype, device=packed.codes.device)
    arguments = ExpandArguments(
        packed.codes.data_ptr(),
        packed.scales.data_ptr(),
        weights.data_ptr(),
        outputs,
        width,
        packed.steps,
        offsets_of(packed),
    )
    grid = (-(-packed.steps // EXPAND_STEPS), -(-outputs // layout.TILE_ROWS))
    prepared.expand.launch(grid, arguments)
    return weights
