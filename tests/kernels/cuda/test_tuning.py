"""Blocks are measured once per shape of weight, and kept; no card is needed to see that."""

from types import SimpleNamespace

import pytest
import torch

from octavo.errors import DeviceError
from octavo.kernels.cuda import layout, product, tuning
from octavo.kernels.cuda.units import Block
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight, sequential_groups

CPU = torch.device("cpu")


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
def timed(monkeypatch, tmp_path) -> list[Block]:
    """A card on which blocks of two tiles are fastest; what was timed on it."""
    blocks: list[Block] = []

    def seconds(prepared, rows):
        (block,) = prepared.decoders
        blocks.append(block)
        assert rows == (1 if block.row_groups == 1 else 16)
        return 1 / block.tiles + block.warps

    def prepared(packed, shape, dtype, blocks, processors):
        return SimpleNamespace(decoders=blocks.decode)

    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(tuning, "architecture", lambda device: 90)
    monkeypatch.setattr(tuning, "seconds_of", seconds)
    monkeypatch.setattr(tuning, "with_kernels", prepared)
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
    assert found.decode == (Block(1, 2, 4), Block(2, 2, 4))
    assert timed == [*tuning.ONE_ROW, *tuning.SIXTEEN_ROWS]
    monkeypatch.delenv("OCTAVO_TUNE")
    assert tuning.tuned_blocks(packed, (32, 128), torch.float16) == found
    assert tuning.tuned_blocks(packed, (32, 256), torch.float16).decode != found.decode
    assert len(timed) == len(tuning.ONE_ROW) + len(tuning.SIXTEEN_ROWS)


def test_a_damaged_table_is_named(packed, timed, tmp_path):
    file = tmp_path / "octavo" / "cuda" / "blocks-sm_90-132.json"
    file.parent.mkdir(parents=True)
    file.write_text("[1]")
    with pytest.raises(DeviceError, match="is not a table of measured blocks; delete it"):
        tuning.tuned_blocks(packed, (32, 128), torch.float16)
