"""y = x W^T for packed weights: fused kernels for up to some hundred rows, dequantize and multiply beyond.

The weight is the first operand of the tensor cores' product and the inputs the second, so that one row costs a
tile of 8 rows, not of 16. Codes become float by planting them in the mantissa of a power of two and taking it off
again, which is exact, and spares the slow conversion of integers.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from octavo.kernels.triton_gpu.card import Card
from octavo.kernels.triton_gpu.early import starts_early, take_turn
from octavo.kernels.triton_gpu.layout import DENSE_BITS, PackedWeight
from octavo.kernels.triton_gpu.tuning import Tiles, tiles_for

FINISH_OUTPUTS = 256  # of a program that adds up the sums of a few rows
MANY_ROWS, MANY_OUTPUTS = 16, 1024  # of which each program takes more
DEQUANTIZE_OUTPUTS = 32  # of a program that writes values


class Codes(NamedTuple):
    """A packed weight, as kernels take it."""

    codes: Tensor
    scales: Tensor | None
    zeros: Tensor | None


class Ends(NamedTuple):
    """What is added to a product, and where it goes."""

    bias: Tensor | None
    residual: Tensor | None
    results: Tensor


class Sums(NamedTuple):
    """A product x W^T + bias that is yet to be added up, from parts [splits, rows, outputs] of any float dtype."""

    parts: Tensor
    bias: Tensor | None


class EndForm(NamedTuple):
    """What the kernel is compiled for that ends a product; a `gated` one has pairs (gate, up) as outputs."""

    outputs: int
    tile_outputs: int
    tile_rows: int
    splits: int
    gated: bool
    early: bool  # whether it begins before the kernel ahead of it has ended


class Form(NamedTuple):
    """What a product is compiled for; where it ends, it does so by the fields that `EndForm` has, too."""

    bits: int
    block: int
    zero: int
    slots: int
    outputs: int
    padded_outputs: int
    tile_rows: int
    tile_outputs: int
    splits: int
    finish: bool  # whether the kernel ends the product, or leaves sums to be ended
    gated: bool
    compute: Any  # dtype of the products
    assembly: bool  # whether codes are widened by PTX, which the interpreter does not know


@triton.jit
@no_type_check
def multiply(inputs, weight, ends, rows, form: tl.constexpr):
    """One tile of outputs and rows, over one split of the slots.

    `inputs` [rows, slots]; results are sums [splits, rows, outputs] in float32 or, finished, [rows, outputs].
    """
    tile_outputs: tl.constexpr = form.tile_outputs
    tile_rows: tl.constexpr = form.tile_rows
    output = tl.program_id(0) * tile_outputs + tl.arange(0, tile_outputs)
    split = tl.program_id(1)
    row = tl.program_id(2) * tile_rows + tl.arange(0, tile_rows)
    blocks: tl.constexpr = form.slots // form.block
    sums = tl.zeros((tile_outputs, tile_rows), tl.float32)
    for block in tl.range(split * blocks // form.splits, (split + 1) * blocks // form.splits):
        sums = add_block(sums, inputs, weight, (block, output, row, rows), form)
    if form.finish:
        store_finished(sums, ends, (tl.program_id(0), row, rows), form)
    else:
        at = (split * rows + row[None, :]) * form.outputs + output[:, None]
        tl.store(ends.results + at, sums, mask=(row[None, :] < rows) & (output[:, None] < form.outputs))


@triton.jit
@no_type_check
def add_block(sums, inputs, weight, place, form: tl.constexpr):
    """`sums` [outputs, rows] plus the product over one block of slots."""
    block, output, row, rows = place
    stored: tl.constexpr = form.block // 2 if form.bits == 4 else form.block
    slot = tl.arange(0, stored)
    code_at = output[:, None].to(tl.int64) * (form.slots // form.block * stored) + slot[None, :]
    input_at = row[None, :].to(tl.int64) * form.slots + slot[:, None]
    inside = row[None, :] < rows
    codes = tl.load(weight.codes + block * stored + code_at, eviction_policy="evict_first")
    values = tl.load(inputs + block * form.block + input_at, mask=inside, other=0.0).to(form.compute)
    if form.bits == 16:
        sums = tl.dot(codes.to(form.compute), values, sums, input_precision="ieee")
    else:
        scale_at = block * form.padded_outputs + output
        scale = tl.load(weight.scales + scale_at).to(tl.float32)[:, None]
        zero = form.zero if weight.zeros is None else tl.load(weight.zeros + scale_at)[:, None]
        if form.bits == 8:
            product = tl.dot(steps(codes, zero, form), values, input_precision="ieee")
        else:
            high_at = inputs + block * form.block + stored + input_at
            high_values = tl.load(high_at, mask=inside, other=0.0).to(form.compute)
            low, high = steps(codes, zero, form)
            product = tl.dot(low, values, input_precision="ieee")
            product = tl.dot(high, high_values, product, input_precision="ieee")
        sums += product * scale
    return sums


@triton.jit
@no_type_check
def steps(codes, zero, form: tl.constexpr):
    """code - zero, exactly, in the dtype of the products; for 4 bits those of the low and of the high nibbles."""
    if form.bits == 8:
        found = without(planted(codes, form), zero, form)
    else:
        if form.assembly:
            low, high = planted_nibbles(codes)
        else:
            low, high = planted(codes & 15, form), planted(codes >> 4, form)
        found = without(low, zero, form), without(high, zero, form)
    return found


@triton.jit
@no_type_check
def planted(codes, form: tl.constexpr):
    """A power of two plus the code: the code stands in the lowest bits of the mantissa."""
    if form.assembly:
        found = tl.inline_asm_elementwise(
            "prmt.b32 $0, $2, 0x64646464, 0x4140; prmt.b32 $1, $2, 0x64646464, 0x4342;",
            "=r,=r,r",
            [codes],
            dtype=tl.float16,
            is_pure=True,
            pack=4,
        )
    elif form.compute == tl.float16:
        found = (codes.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True)
    elif form.compute == tl.bfloat16 and form.bits == 4:
        found = (codes.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True)
    else:
        found = (codes.to(tl.uint32) | 0x4B000000).to(tl.float32, bitcast=True)
    return found


@triton.jit
@no_type_check
def planted_nibbles(codes):
    """The same for low and high nibbles, four bytes at a time: both halves of a word stay packed."""
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b32 low, high;
            and.b32 low, $4, 0x0F0F0F0F;
            shr.b32 high, $4, 4;
            and.b32 high, high, 0x0F0F0F0F;
            prmt.b32 $0, low, 0x64646464, 0x4140;
            prmt.b32 $1, low, 0x64646464, 0x4342;
            prmt.b32 $2, high, 0x64646464, 0x4140;
            prmt.b32 $3, high, 0x64646464, 0x4342;
        }
        """,
        "=r,=r,=r,=r,r",
        [codes],
        dtype=(tl.float16, tl.float16),
        is_pure=True,
        pack=4,
    )


@triton.jit
@no_type_check
def without(planted_codes, zero, form: tl.constexpr):
    """Take the power of two and the zero off: all three are integers that the dtype holds exactly."""
    if planted_codes.dtype == tl.float16:
        found = planted_codes - (tl.cast(zero, tl.float16) + 1024.0)
    elif planted_codes.dtype == tl.bfloat16:
        found = planted_codes - (tl.cast(zero, tl.bfloat16) + 128.0)
    else:
        found = (planted_codes - (tl.cast(zero, tl.float32) + 8388608.0)).to(form.compute)
    return found


@triton.jit
@no_type_check
def store_finished(sums, ends, place, form: tl.constexpr):
    """Add the bias, gate, add the residual, and store [rows, outputs]; `sums` is [outputs, rows]."""
    tile, row, rows = place
    tile_outputs: tl.constexpr = form.tile_outputs
    tile_rows: tl.constexpr = form.tile_rows
    output = tile * tile_outputs + tl.arange(0, tile_outputs)
    width = form.outputs
    if ends.bias is not None:
        sums += tl.load(ends.bias + output, mask=output < width, other=0.0).to(tl.float32)[:, None]
    if form.gated:
        pairs = tl.permute(tl.reshape(sums, (tile_outputs // 2, 2, tile_rows)), (0, 2, 1))
        gate, up = tl.split(pairs)
        sums = gate * tl.sigmoid(gate) * up
        output = tile * (tile_outputs // 2) + tl.arange(0, tile_outputs // 2)
        width = form.outputs // 2
    inside = (row[None, :] < rows) & (output[:, None] < width)
    at = row[None, :].to(tl.int64) * width + output[:, None]
    if ends.residual is not None:
        sums += tl.load(ends.residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(ends.results + at, sums.to(ends.results.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def finish(sums, ends, rows, form: tl.constexpr):
    """End a product that was left as sums [splits, rows, outputs]: one tile of outputs of one row."""
    take_turn(form.early)
    splits: tl.constexpr = form.splits
    tile_outputs: tl.constexpr = form.tile_outputs
    row = tl.program_id(1) + tl.arange(0, 1)
    output = tl.program_id(0) * tile_outputs + tl.arange(0, tile_outputs)
    total = tl.zeros((tile_outputs, 1), tl.float32)
    for split in tl.static_range(splits):
        at = (split * rows + row[None, :].to(tl.int64)) * form.outputs + output[:, None]
        total += tl.load(sums + at, mask=output[:, None] < form.outputs, other=0.0).to(tl.float32)
    store_finished(total, ends, (tl.program_id(0), row, rows), form)


@triton.jit
@no_type_check
def dequantize(weight, values, form: tl.constexpr):
    """One block of slots of a tile of outputs, as values [outputs, slots]."""
    block = tl.program_id(1)
    output = tl.program_id(0) * form.tile_outputs + tl.arange(0, form.tile_outputs)
    stored: tl.constexpr = form.block // 2 if form.bits == 4 else form.block
    slot = tl.arange(0, stored)
    row_at = output[:, None].to(tl.int64)
    codes = tl.load(weight.codes + row_at * (form.slots // form.block * stored) + block * stored + slot[None, :])
    scale_at = block * form.padded_outputs + output
    scale = tl.load(weight.scales + scale_at).to(tl.float32)[:, None]
    zero = form.zero if weight.zeros is None else tl.load(weight.zeros + scale_at)[:, None]
    at = values + row_at * form.slots + block * form.block + slot[None, :]
    inside = output[:, None] < form.outputs
    if form.bits == 8:
        tl.store(at, (steps(codes, zero, form) * scale).to(values.dtype.element_ty), mask=inside)
    else:
        low, high = steps(codes, zero, form)
        tl.store(at, (low * scale).to(values.dtype.element_ty), mask=inside)
        tl.store(at + stored, (high * scale).to(values.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Product:
    """A packed weight and what ends its product: y = x W^T + bias.

    Outputs of a `gated` product are pairs (gate, up), of which silu(gate) * up comes out.
    """

    weight: PackedWeight
    bias: Float[Tensor, " outputs"] | None
    gated: bool
    card: Card

    @property
    def slots(self) -> int:
        return self.weight.slots

    @property
    def column_of_slot(self) -> Int32[Tensor, " slots"] | None:
        return self.weight.column_of_slot


def summed_later(inputs: Float[Tensor, "rows slots"], product: Product) -> Sums:
    """The product, for a kernel that adds it up as it reads it."""
    tiles = tiles_for(product.card, product.weight, len(inputs), ends=False)
    return Sums(_parts(inputs, product, tiles), product.bias)


def finished(
    inputs: Float[Tensor, "rows slots"],
    product: Product,
    residual: Float[Tensor, "rows results"] | None = None,
) -> Float[Tensor, "rows results"]:
    """residual + x W^T + bias, gated where the product is, in the inputs' dtype."""
    tiles = tiles_for(product.card, product.weight, len(inputs), ends=True)
    width = product.weight.outputs // 2 if product.gated else product.weight.outputs
    results = torch.empty(len(inputs), width, dtype=inputs.dtype, device=inputs.device)
    ends = Ends(product.bias, residual, results)
    if tiles is None or tiles.splits > 1:
        end(_parts(inputs, product, tiles), product.gated, ends, product.card)
    else:
        _multiply(inputs, product, tiles, ends, True)
    return results


def dense_values(weight: PackedWeight, dtype: torch.dtype) -> Float[Tensor, "outputs slots"]:
    """The weight by slot; dequantized, it lies in memory that the next call may reuse."""
    if weight.bits == DENSE_BITS:
        return weight.codes[: weight.outputs]
    values = torch.empty(weight.outputs, weight.slots, dtype=dtype, device=weight.codes.device)
    form = _form(weight, dtype, Tiles(1, DEQUANTIZE_OUTPUTS, 1, 4, 1))
    grid = (triton.cdiv(weight.outputs, DEQUANTIZE_OUTPUTS), weight.slots // weight.block)
    dequantize[grid](Codes(weight.codes, weight.scales, weight.zeros), values, form, num_warps=4)
    return values


def _parts(inputs: Tensor, product: Product, tiles: Tiles | None) -> Float[Tensor, "splits rows outputs"]:
    weight = product.weight
    if tiles is None:
        return torch.mm(inputs, dense_values(weight, inputs.dtype).t())[None]
    shape = (tiles.splits, len(inputs), weight.outputs)
    parts = torch.empty(shape, dtype=torch.float32, device=inputs.device)
    _multiply(inputs, product, tiles, Ends(None, None, parts), False)
    return parts


def _multiply(inputs: Tensor, product: Product, tiles: Tiles, ends: Ends, finish: bool) -> None:
    weight, rows = product.weight, len(inputs)
    assert inputs.is_contiguous(), "kernels read plain memory"
    assert inputs.shape[1] == weight.slots, "inputs stand in slots"
    form = _form(weight, inputs.dtype, tiles)._replace(finish=finish, gated=finish and product.gated)
    grid = (triton.cdiv(weight.outputs, tiles.outputs), tiles.splits, triton.cdiv(rows, tiles.rows))
    codes = Codes(weight.codes, weight.scales, weight.zeros)
    multiply[grid](inputs, codes, ends, rows, form, num_warps=tiles.warps, num_stages=tiles.stages)


def end(parts: Float[Tensor, "splits rows outputs"], gated: bool, ends: Ends, card: Card) -> None:
    """Add up a product that was left as sums, with a bias and a residual, and gate it."""
    splits, rows, outputs = parts.shape
    tile, warps = (FINISH_OUTPUTS, 2) if rows <= MANY_ROWS else (MANY_OUTPUTS, 4)
    form = EndForm(outputs, tile, 1, splits, gated, starts_early(card))
    grid = (triton.cdiv(outputs, tile), rows)
    finish[grid](parts, ends, rows, form, num_warps=warps, launch_pdl=form.early)


def _form(weight: PackedWeight, dtype: torch.dtype, tiles: Tiles) -> Form:
    """The form of a product that is left as sums."""
    compute = compute_type(dtype)
    return Form(
        bits=weight.bits,
        block=weight.block,
        zero=weight.zero,
        slots=weight.slots,
        outputs=weight.outputs,
        padded_outputs=len(weight.codes),
        tile_rows=tiles.rows,
        tile_outputs=tiles.outputs,
        splits=tiles.splits,
        finish=False,
        gated=False,
        compute=compute,
        assembly=compute == tl.float16 and not triton.knobs.runtime.interpret,
    )


def compute_type(dtype: torch.dtype) -> Any:
    """The dtype that kernels multiply in: that of the inputs, but Triton's interpreter gets bfloat16 wrong."""
    if dtype == torch.bfloat16:
        return tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16
    return tl.float16 if dtype == torch.float16 else tl.float32
