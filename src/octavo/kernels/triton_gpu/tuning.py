"""Which tiles a product runs with: measured ones where there are any for the card and the shape, else a rule."""

from dataclasses import dataclass

from octavo.kernels.triton_gpu.card import Card
from octavo.kernels.triton_gpu.layout import DENSE_BITS, PackedWeight


@dataclass(frozen=True)
class Tiles:
    """How a product is cut into programs: each makes `rows` x `outputs` over one of `splits` of the slots."""

    rows: int
    outputs: int
    splits: int
    warps: int
    stages: int


ROW_TILES = (8, 16, 32, 64)
DECODE_ROWS = 32  # up to here the product waits for memory
MOST_SPLITS = 8
FEWEST_BLOCKS = 8  # of a split: below, starting a program costs more than the split gains
WARPS_PER_PROCESSOR = 8  # enough bytes in flight to fill the memory bus
DEEP_STAGES = 8  # where few programs must keep as many bytes in flight
FUSED_ROWS = (
    512  # beyond, the weight is dequantized once and multiplied by cuBLAS, which is faster at its own game
)


def tiles_for(card: Card, weight: PackedWeight, rows: int, ends: bool) -> Tiles | None:
    """Tiles for so many rows; None where a dense product serves better.

    A product that `ends`, whose sums nobody else adds up, is not split where one wave of programs fills the card.
    """
    most = DECODE_ROWS if weight.bits == DENSE_BITS else FUSED_ROWS
    if rows > most:
        return None
    row_tile = next((tile for tile in ROW_TILES if tile >= rows), ROW_TILES[-1])
    outputs, warps, stages = (32, 2, 4) if row_tile <= DECODE_ROWS else (128, 8, 3)
    programs = -(-weight.outputs // outputs) * -(-rows // row_tile)
    if ends and programs >= card.processors:
        return Tiles(row_tile, outputs, 1, warps, DEEP_STAGES if row_tile == ROW_TILES[0] else stages)
    wanted = round(WARPS_PER_PROCESSOR * card.processors / warps / programs)
    splits = max(1, min(wanted, MOST_SPLITS, weight.slots // weight.block // FEWEST_BLOCKS))
    return Tiles(row_tile, outputs, splits, warps, stages)
