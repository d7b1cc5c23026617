"""The memory of keys and values is what it is said to be."""

import pytest
import torch

from octavo.kernels.blocks import CodedLayerCache, LayerCache
from octavo.model.config import read_config
from octavo.model.kv_cache import make_cache, slot_bytes
from small_models import write_model


@pytest.mark.parametrize(
    ("dtype", "coded", "expected", "kind"),
    [
        (torch.float32, False, 2 * 3 * 2 * 12 * 4, LayerCache),
        (torch.float16, False, 2 * 3 * 2 * 12 * 2, LayerCache),
        (torch.float32, True, 2 * 3 * 2 * (12 + 4), CodedLayerCache),
        (torch.float16, True, 2 * 3 * 2 * (12 + 4), CodedLayerCache),
    ],
)
def test_bytes_of_a_position(tmp_path, dtype, coded, expected, kind):
    """3 layers, 2 heads of 12."""
    config = read_config(write_model(tmp_path))
    assert slot_bytes(config, dtype, coded) == expected
    cache = make_cache(config, 5, 7, torch.device("cpu"), dtype, coded)
    sides = [side for layer in range(3) for side in vars(cache.layer(layer)).values()]
    tensors = [tensor for side in sides for tensor in (vars(side).values() if coded else [side])]
    assert sum(tensor.nbytes for tensor in tensors) == 35 * expected
    assert {(len(tensor), tensor.stride(1)) for tensor in tensors} <= {(35, 35 * 12), (35, 35)}, "head by head"
    assert type(cache.layer(0)) is kind and len(cache.keys) == 3
