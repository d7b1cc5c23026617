"""Blocks are measured once per shape of weight, and kept; no card is needed to see that."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from octavo.errors import DeviceError
from octavo.kernels.cuda import layout, product, tuning
from octavo.kernels.cuda.product import Blocks
from octavo.kernels.cuda.units import Block, WideBlock
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight, sequential_groups

CPU = torch.device("cpu")
PUBLISHED = tuning.read_table(Path(tuning.__file__).parent / "blocks-sm_90-132.json")
AnyBlock = Block | WideBlock


@pytest.fixture
def packed() -> layout.Packed:
    weight = QuantizedWeight(
        codes=torch.zeros(32, 128, dtype=torch.uint8),
        scales=torch.ones(32, 1).half(),
        zeros=torch.full((32, 1), 8, dtype=torch.int16),
        group_of_column=sequential_groups(128, 128),
        scheme=QuantScheme(4, 128, True),
    )
    return layout.pack(weight, CPU)


@pytest.fixture
def timed(monkeypatch, tmp_path) -> list[tuple[AnyBlock, int]]:
    """A card on which blocks of two tiles are fastest; what was timed on it, with how many rows."""
    blocks: list[tuple[AnyBlock, int]] = []

    def seconds(prepared, rows):
        block = next(iter(prepared.decode), prepared.wide) if rows <= 16 else prepared.wide
        blocks.append((block, rows))
        return 1 / block.tiles + block.warps

    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(tuning, "architecture", lambda device: 90)
    monkeypatch.setattr(tuning, "seconds_of", seconds)
    monkeypatch.setattr(tuning, "with_kernels", lambda packed, shape, dtype, blocks, processors: blocks)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("OCTAVO_TUNE", raising=False)
    return blocks


def test_the_rule_holds_where_nothing_was_measured(packed, timed):
    expected = product.blocks_for(packed.form, torch.float16, 32, 132)
    assert tuning.tuned_blocks(packed, (32, 128), torch.float16) == expected
    assert timed == []


def test_what_was_measured_is_kept_and_used_unasked(packed, timed, monkeypatch):
    monkeypatch.setenv("OCTAVO_TUNE", "1")
    found = tuning.tuned_blocks(packed, (32, 128), torch.float16)
    assert found == Blocks((Block(1, 2, 4), Block(2, 2, 4)), WideBlock(4, 2, 4))
    assert timed == [
        *((block, rows) for block in tuning.DOZENS_OF_ROWS for rows in (32, 64)),
        *((block, 1) for block in tuning.ONE_ROW),
        *((block, 16) for block in tuning.SIXTEEN_ROWS),
    ]
    timed.clear()
    monkeypatch.delenv("OCTAVO_TUNE")
    assert tuning.tuned_blocks(packed, (32, 128), torch.float16) == found
    assert tuning.tuned_blocks(packed, (32, 256), torch.float16) != found
    assert timed == []


def test_the_rule_is_left_for_what_is_clearly_faster_only(packed, timed, monkeypatch):
    rule = product.blocks_for(packed.form, torch.float16, 32, 132)

    def faster(gain):
        def seconds(blocks, rows):
            block = blocks.decode[0] if blocks.decode else blocks.wide
            ordinary = block in (*rule.decode, rule.wide)
            return 1.0 if ordinary else 1 / gain if block.tiles == 2 and block.warps == 4 else 2.0

        return tuning.measured_blocks(packed, (32, 128), torch.float16, seconds)

    assert faster(1.01) == rule
    assert faster(1.03) == Blocks((Block(1, 2, 4), Block(2, 2, 4)), WideBlock(4, 2, 4))


def test_common_shapes_on_a_card_of_a_measured_kind_need_no_measurement(packed, timed, monkeypatch):
    """One that another table than the rule's answers: 4-bit bfloats, where the rule is furthest off."""
    found = tuning.tuned_blocks(packed, (4096, 4096), torch.bfloat16)
    assert found == PUBLISHED[tuning.table_entry(packed.form, (4096, 4096), torch.bfloat16)]
    assert found != product.blocks_for(packed.form, torch.bfloat16, 4096, 132)
    assert timed == []
    monkeypatch.setattr(tuning, "architecture", lambda device: 80)
    assert tuning.tuned_blocks(packed, (4096, 4096), torch.bfloat16) == product.blocks_for(
        packed.form, torch.bfloat16, 4096, 132
    )


def test_no_block_is_tried_that_spills():
    def tried(bits: int, dtype: torch.dtype) -> tuple[Block, ...]:
        return tuning.one_row_blocks(layout.Form(bits, False, 1), dtype)

    assert Block(1, 2, 4) not in tried(8, torch.bfloat16)
    assert set(tuning.ONE_ROW) - set(tried(8, torch.bfloat16)) == {Block(1, 2, 4)}
    assert tried(8, torch.float16) == tried(4, torch.bfloat16) == tuning.ONE_ROW


def test_published_blocks_are_among_those_that_are_measured():
    assert len(PUBLISHED) >= 8 * 14  # eight forms of the products of four models, of which two share two
    for name, blocks in PUBLISHED.items():
        few, more = blocks.decode
        assert few in tuning.ONE_ROW, name
        assert more in tuning.SIXTEEN_ROWS, name
        assert blocks.wide in tuning.DOZENS_OF_ROWS, name


@pytest.mark.parametrize("text", ["[1]", '{"32x128": {"decode": [[1, 1, 4]]}}', '{"32x128": [[1, 1, 4]]}'])
def test_a_damaged_table_is_named(packed, timed, tmp_path, text):
    file = tmp_path / "octavo" / "cuda" / "blocks-sm_90-132.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(DeviceError, match="is not a table of measured blocks; delete it"):
        tuning.tuned_blocks(packed, (32, 128), torch.float16)
