"""Networks of Vicuna-13B's shape with random weights, made on the GPU: as fast to run as the real one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.blocks import BlockParts, BlockShape, HeadParts, LinearParts
from octavo.model.config import LlamaConfig, RopeScaling
from octavo.schemes import QuantScheme
from octavo.weights import DenseWeight, QuantizedWeight, Weight, sequential_groups

DEVICE = torch.device("cuda")
EPSILON = 1e-6

VICUNA_13B = LlamaConfig(
    architecture="LlamaForCausalLM",
    vocabulary_size=32000,
    hidden_size=5120,
    intermediate_size=13824,
    layers=40,
    heads=40,
    kv_heads=40,
    head_dim=128,
    context=4096,
    norm_epsilon=EPSILON,
    rope_theta=10000.0,
    rope_scaling=RopeScaling(),
    tied_embeddings=False,
    attention_bias=False,
    output_bias=False,
    query_key_norm=False,
    windows=(None,) * 40,
)


@dataclass(frozen=True)
class Storage:
    """How the linears of a synthetic network are stored; `scheme` None is dense."""

    scheme: QuantScheme | None
    act_order: bool = False
    dtype: torch.dtype = torch.float16

    def __str__(self) -> str:
        order = " act-order" if self.act_order else ""
        return "dense" if self.scheme is None else f"{self.scheme}{order}"


def random_weight(rows: int, columns: int, storage: Storage, order: Tensor | None = None) -> Weight:
    """A weight whose products keep the size of their inputs; `order` are its columns in groups' order."""
    scheme = storage.scheme
    if scheme is None:
        values = torch.randn(rows, columns, device=DEVICE, dtype=storage.dtype)
        return DenseWeight(values.mul_(columns**-0.5))
    groups = scheme.groups(columns)
    codes = torch.randint(0, scheme.largest_code + 1, (rows, columns), dtype=torch.uint8, device=DEVICE)
    spread = columns**-0.5 / (0.29 * scheme.largest_code)
    scales = ((0.5 + torch.rand(rows, groups, device=DEVICE)) * spread).half()
    zeros = torch.full((rows, groups), scheme.middle, dtype=torch.int16, device=DEVICE)
    if not scheme.symmetric:
        zeros += torch.randint(-1, 2, zeros.shape, dtype=torch.int16, device=DEVICE)
    group_of_column = sequential_groups(columns, scheme.group_size).to(DEVICE)
    if order is not None:
        group_of_column = group_of_column[order]
    return QuantizedWeight(codes, scales, zeros, group_of_column, scheme)


def random_block(config: LlamaConfig, storage: Storage) -> BlockParts:
    """A decoder layer; linears with one input have one order of columns, as they share a Hessian."""

    def norm(width: int) -> Tensor:
        return 1 + 0.1 * torch.randn(width, device=DEVICE, dtype=storage.dtype)

    def order(columns: int) -> Tensor | None:
        return torch.randperm(columns, device=DEVICE) if storage.act_order else None

    def linear(rows: int, columns: int, columns_order: Tensor | None) -> LinearParts:
        return LinearParts(random_weight(rows, columns, storage, columns_order))

    hidden, mlp = config.hidden_size, config.intermediate_size
    attention_order, mlp_order = order(hidden), order(hidden)
    return BlockParts(
        attention_norm=norm(hidden),
        query=linear(config.query_width, hidden, attention_order),
        key=linear(config.kv_width, hidden, attention_order),
        value=linear(config.kv_width, hidden, attention_order),
        output=linear(hidden, config.query_width, order(config.query_width)),
        query_norm=None,
        key_norm=None,
        mlp_norm=norm(hidden),
        gate=linear(mlp, hidden, mlp_order),
        up=linear(mlp, hidden, mlp_order),
        down=linear(hidden, mlp, order(mlp)),
    )


def block_shape(config: LlamaConfig) -> BlockShape:
    return BlockShape(config.head_dim, config.norm_epsilon, None)


def random_head(config: LlamaConfig, dtype: torch.dtype) -> HeadParts:
    """The final norm and a dense projection."""
    norm = torch.ones(config.hidden_size, device=DEVICE, dtype=dtype)
    projection = random_weight(config.vocabulary_size, config.hidden_size, Storage(None, dtype=dtype))
    return HeadParts(norm, config.norm_epsilon, LinearParts(projection))


def weight_bytes(rows: int, columns: int, storage: Storage) -> float:
    """Bytes that a product must read of a weight: codes, fp16 scales, and zeros where they differ."""
    if storage.scheme is None:
        return 2.0 * rows * columns
    scheme = storage.scheme
    per_group = 2.0 if scheme.symmetric else 3.0
    return rows * (columns * scheme.bits / 8 + per_group * scheme.groups(columns))


def step_bytes(config: LlamaConfig, storage: Storage, sequences: int, context: int) -> float:
    """Bytes that one decode step must read: weights and head once, and each sequence's keys and values."""
    hidden, mlp, query, kv = config.hidden_size, config.intermediate_size, config.query_width, config.kv_width
    shapes = [(query, hidden), (kv, hidden), (kv, hidden), (hidden, query), (mlp, hidden), (mlp, hidden)]
    layer = sum(weight_bytes(rows, columns, storage) for rows, columns in [*shapes, (hidden, mlp)])
    head = 2.0 * config.vocabulary_size * hidden
    past = 2 * 2.0 * config.kv_width * config.layers * context * sequences
    return config.layers * layer + head + past
