"""A whole decoder layer, or the head, as one call of the native CPU library.

The results of a row do not depend on the rows beside it, on the threads or on the processor, to the last bit: a
prompt gives the same states whether it comes at once, in pieces or token by token.
"""

import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from octavo.errors import UsageError
from octavo.kernels import cpu
from octavo.kernels.blocks import (
    BlockParts,
    BlockShape,
    CodedLayerCache,
    HeadParts,
    LayerCache,
    LinearParts,
    Rows,
)
from octavo.weights import DenseWeight

if TYPE_CHECKING:
    from octavo.kernels._native import Cache, Head, Isa, Layer, Matrix, Pool, Step

NAME = cpu.NAME


@dataclass(frozen=True)
class PreparedBlock:
    """A decoder layer in the library's layout, and what runs it; `pool` None is the pool of the process."""

    layer: "Layer"
    pool: "Pool | None"
    isa: "Isa"


@dataclass(frozen=True)
class PreparedHead:
    """The final norm and the projection to logits, likewise."""

    head: "Head"
    pool: "Pool | None"
    isa: "Isa"


def why_not_block(parts: BlockParts, shape: BlockShape, device: torch.device, dtype: torch.dtype) -> str | None:
    """None, or what keeps a layer from running here."""
    if shape.head_dim % 2:
        return f"its heads have {shape.head_dim} dimensions, which do not fall into pairs"
    return _why_not(device, dtype)


def why_not_head(parts: HeadParts, device: torch.device, dtype: torch.dtype) -> str | None:
    """None, or what keeps the head from running here."""
    return _why_not(device, dtype)


def _why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return "it runs on CPUs only"
    if dtype != torch.float32:
        return f"it computes in float32, not {str(dtype).removeprefix('torch.')}"
    return cpu.missing_library()


def prepare_block(parts: BlockParts, shape: BlockShape, device: torch.device, dtype: torch.dtype) -> PreparedBlock:
    """The layer in the library's layout; dense weights stay in their dtype."""
    from octavo.kernels import _native

    norms = [
        None if norm is None else norm.float().contiguous()
        for norm in (parts.attention_norm, parts.mlp_norm, parts.query_norm, parts.key_norm)
    ]
    addresses = [0 if norm is None else norm.data_ptr() for norm in norms]
    layer = _native.Layer(
        attention_norm=addresses[0],
        mlp_norm=addresses[1],
        query_norm=addresses[2],
        key_norm=addresses[3],
        query=_matrix(parts.query),
        key=_matrix(parts.key),
        value=_matrix(parts.value),
        output=_matrix(parts.output),
        gate=_matrix(parts.gate),
        up=_matrix(parts.up),
        down=_matrix(parts.down),
        head_dim=shape.head_dim,
        window=shape.window or 0,
        norm_epsilon=shape.norm_epsilon,
    )
    return PreparedBlock(layer, None, _native.best_isa())


def prepare_head(parts: HeadParts, device: torch.device, dtype: torch.dtype) -> PreparedHead:
    """The head in the library's layout; a dense projection stays in its dtype."""
    from octavo.kernels import _native

    norm = parts.norm.float().contiguous()
    head = _native.Head(norm.data_ptr(), parts.norm_epsilon, _matrix(parts.projection))
    return PreparedHead(head, None, _native.best_isa())


def run_block(
    hidden: Float[Tensor, "rows hidden_size"],
    rows: Rows,
    cache: LayerCache | CodedLayerCache,
    prepared: PreparedBlock,
) -> Float[Tensor, "rows hidden_size"]:
    """The layer's output; keys and values of the rows are in the cache afterwards.

    UsageError for tensors of another shape or dtype, ValueError for slots outside the cache.
    """
    layer = prepared.layer
    _check(hidden, (len(rows.write_slots), layer.hidden_size), "hidden states")
    outputs = torch.empty_like(hidden)
    layer.run(
        step_of(rows),
        _cache(cache, layer),
        hidden.data_ptr(),
        outputs.data_ptr(),
        prepared.pool,
        prepared.isa,
    )
    return outputs


def _cache(cache: LayerCache | CodedLayerCache, layer: "Layer") -> "Cache":
    """Where the library finds the keys and values of a layer."""
    from octavo.kernels import _native

    keys = cache.keys if isinstance(cache, LayerCache) else cache.keys.codes
    slots, by_head = len(keys), _by_head(keys)
    shape, strides = (slots, layer.kv_heads, layer.head_dim), (1, slots) if by_head else (layer.kv_heads, 1)
    if isinstance(cache, LayerCache):
        for name, heads in (("cached keys", cache.keys), ("cached values", cache.values)):
            _check(heads, shape, name, by_head=by_head)
        return _native.Cache(cache.keys.data_ptr(), cache.values.data_ptr(), slots, *strides)
    for name, coded in (("cached keys", cache.keys), ("cached values", cache.values)):
        _check(coded.codes, shape, name, torch.int8, by_head)
        _check(coded.scales, shape[:2], f"scales of the {name}", by_head=by_head)
    return _native.Cache(
        cache.keys.codes.data_ptr(),
        cache.keys.scales.data_ptr(),
        cache.values.codes.data_ptr(),
        cache.values.scales.data_ptr(),
        slots,
        *strides,
    )


def _by_head(heads: Tensor) -> bool:
    """Whether the heads of neighbouring slots lie side by side, not those of one slot."""
    return heads.ndim > 1 and heads.transpose(0, 1).is_contiguous()


def run_head(
    hidden: Float[Tensor, "rows hidden_size"], prepared: PreparedHead
) -> Float[Tensor, "rows vocabulary"]:
    """Logits; UsageError for hidden states of another shape or dtype."""
    head = prepared.head
    _check(hidden, (hidden.shape[0], head.hidden_size), "hidden states")
    logits = torch.empty(hidden.shape[0], head.outputs)
    head.run(hidden.data_ptr(), hidden.shape[0], logits.data_ptr(), prepared.pool, prepared.isa)
    return logits


def _check(
    tensor: Tensor,
    shape: tuple[int, ...],
    name: str,
    dtype: torch.dtype = torch.float32,
    by_head: bool = False,
) -> None:
    """The library reads memory by address: what lies there must be what it takes it for."""
    plain = _by_head(tensor) if by_head else tensor.is_contiguous()
    fits = tensor.shape == shape and tensor.dtype == dtype and plain
    if not (fits and tensor.device.type == "cpu"):
        raise UsageError(
            f"the {name} are {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; the {NAME} kernel takes "
            f"contiguous {str(dtype).removeprefix('torch.')} {tuple(shape)} on the CPU"
        )


def _matrix(linear: LinearParts) -> "Matrix":
    from octavo.kernels import _native

    weight = linear.weight
    if isinstance(weight, DenseWeight):
        storage = {
            torch.float32: _native.Storage.float32,
            torch.float16: _native.Storage.float16,
            torch.bfloat16: _native.Storage.bfloat16,
        }
        values = weight.values.contiguous()
        matrix = _native.prepare_dense(values.data_ptr(), storage[values.dtype], *weight.shape)
    else:
        matrix = cpu.prepare(weight, torch.device("cpu"), torch.float32).matrix
    if linear.bias is not None:
        matrix.set_bias(linear.bias.float().contiguous())
    return matrix


@dataclass
class _Latest(threading.local):
    """The rows that a thread ran last, and their step: all layers of a pass are given the same object."""

    rows: "weakref.ref[Rows] | None" = None
    step: "Step | None" = None


_latest = _Latest()


def step_of(rows: Rows) -> "Step":
    """The rows as the library has them; ValueError where they contradict themselves."""
    if _latest.step is None or _latest.rows is None or _latest.rows() is not rows:
        _latest.step = _make_step(rows)
        _latest.rows = weakref.ref(rows)
    return _latest.step


def _make_step(rows: Rows) -> "Step":
    from octavo.kernels import _native

    pages = rows.pages
    angles = rows.angles.float().contiguous()
    integers = (rows.write_slots, pages.lengths, pages.row_starts, pages.page_table)
    write_slots, lengths, row_starts, page_table = (tensor.long().contiguous() for tensor in integers)
    sequences = len(lengths)
    if len(angles) != len(write_slots) or len(row_starts) != sequences + 1 or len(page_table) != sequences:
        raise UsageError("a batch's tensors disagree about its rows or its sequences; make it with make_batch")
    return _native.Step(
        angles.data_ptr(),
        write_slots.data_ptr(),
        lengths.data_ptr(),
        row_starts.data_ptr(),
        page_table.data_ptr(),
        rows=angles.shape[0],
        half_head=angles.shape[1],
        sequences=sequences,
        pages=page_table.shape[1],
        page_size=pages.page_size,
        temperature=rows.temperature,
    )
