"""How fast Vicuna-13B's shape runs on a GPU: single products, whole decode steps, prefill."""

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from gpu_synthetic import (
    DEVICE,
    VICUNA_13B,
    Storage,
    block_shape,
    random_block,
    random_head,
    random_weight,
    step_bytes,
    weight_bytes,
)
from gpu_timing import Timing, time_graph, timed

from octavo.model.kv_cache import make_cache, one_sequence
from octavo.model.llama import FusedBlock, FusedHead, LlamaModel, hidden_states
from octavo.runtime.capture import capture_for, run_each_time
from octavo.runtime.decoding import Decoder, bucket_for
from octavo.runtime.params import SamplingParams
from octavo.runtime.sampling import drawing_of
from octavo.schemes import QuantScheme
from octavo.weights import DenseWeight, QuantizedWeight

# The products of a layer as they run: q k v together, gate and up together.
SHAPES = {"qkv": (15360, 5120), "output": (5120, 5120), "gate up": (27648, 5120), "down": (5120, 13824)}
ROTATED_BYTES = 400e6  # of weights, several times the L2
PAGE = 256
Row = dict[str, Any]


def sweep(kernels: Sequence[ModuleType], bits: Sequence[int], rows: Sequence[int]) -> Iterator[Row]:
    """Each kernel over each product of a layer, and torch's own products beside them."""
    for name, (outputs, inputs) in SHAPES.items():
        for each in bits:
            storage = Storage(QuantScheme(each, 128, True))
            size = weight_bytes(outputs, inputs, storage)
            weights = [random_weight(outputs, inputs, storage) for _ in range(_copies(size))]
            for kernel in kernels:
                if kernel.why_not(weights[0], DEVICE) is not None:
                    continue
                prepared = [kernel.prepare(weight, DEVICE, torch.float16) for weight in weights]
                for count in rows:
                    timing = _product(kernel.matmul, prepared, count, inputs)
                    yield _row(kernel.NAME, name, f"{each}-bit-128g", count, timing, size)
                del prepared
            for label, product, prepared in _torch_products(each, weights):
                for count in rows:
                    yield _row(label, name, f"{each}-bit", count, _product(product, prepared, count, inputs), size)
            del weights
            torch.cuda.empty_cache()
        size = 2.0 * outputs * inputs
        dense = [random_weight(outputs, inputs, Storage(None)) for _ in range(_copies(size))]
        values = [weight.values for weight in dense if isinstance(weight, DenseWeight)]
        for count in rows:
            timing = _product(lambda x, w: x @ w.t(), values, count, inputs)
            yield _row("torch", name, "fp16", count, timing, size)
        del dense, values
        torch.cuda.empty_cache()


def _torch_products(bits: int, weights: Sequence[Any]) -> Iterator[tuple[str, Callable[..., Any], list[Any]]]:
    """torch's weight-only products: int8 with one scale per output, int4 in groups of 128; both want bf16."""
    first = weights[0]
    assert isinstance(first, QuantizedWeight)
    outputs, inputs = first.shape
    if bits == 8:
        scales = torch.rand(outputs, device=DEVICE, dtype=torch.bfloat16)
        prepared = [(weight.codes.view(torch.int8), scales) for weight in weights]
        yield (
            "torch int8",
            lambda x, p: torch.ops.aten._weight_int8pack_mm(x.bfloat16(), p[0], p[1]),
            prepared,
        )
    if bits == 4:
        grids = torch.rand(inputs // 128, outputs, 2, device=DEVICE, dtype=torch.bfloat16)
        packed = []
        for weight in weights:
            pairs = (weight.codes[:, ::2] << 4) | weight.codes[:, 1::2]
            packed.append((torch.ops.aten._convert_weight_to_int4pack(pairs.contiguous(), 8), grids))
        yield (
            "torch int4",
            lambda x, p: torch.ops.aten._weight_int4pack_mm(x.bfloat16(), p[0], 128, p[1]),
            packed,
        )


def _product(matmul: Callable[..., Any], prepared: Sequence[Any], rows: int, columns: int) -> Timing | str:
    """Seconds of one product, each call with another weight; why it does not run where it does not."""
    inputs = torch.randn(rows, columns, device=DEVICE, dtype=torch.float16)

    def calls() -> None:
        for each in prepared:
            matmul(inputs, each)

    try:
        return time_graph(calls, len(prepared))
    except (RuntimeError, NotImplementedError) as error:
        torch.cuda.synchronize()
        return str(error).splitlines()[0]


def _row(kernel: str, product: str, stored: str, rows: int, timing: Timing | str, size: float) -> Row:
    row: Row = {"kernel": kernel, "product": product, "stored": stored, "rows": rows}
    if isinstance(timing, str):
        return {**row, "refused": timing}
    return {**row, **vars(timing), "bytes_per_second": size / timing.median}


def _copies(size: float) -> int:
    """How many weights of a size take turns, so that none is still in a cache."""
    return max(2, int(ROTATED_BYTES / size) + 1)


def build(kernel: ModuleType, storage: Storage) -> LlamaModel:
    """The whole network, layer by layer, each prepared at once."""
    config, shape, dtype = VICUNA_13B, block_shape(VICUNA_13B), storage.dtype
    blocks = []
    for _ in range(config.layers):
        parts = random_block(config, storage)
        objection = kernel.why_not_block(parts, shape, DEVICE, dtype)
        assert objection is None, objection
        blocks.append(_fused(kernel, kernel.prepare_block(parts, shape, DEVICE, dtype)))
        del parts
    prepared_head = kernel.prepare_head(random_head(config, dtype), DEVICE, dtype)
    head = FusedHead(lambda hidden: kernel.run_head(hidden, prepared_head), kernel.NAME, {})
    embedding = torch.randn(config.vocabulary_size, config.hidden_size, device=DEVICE, dtype=dtype)
    return LlamaModel(config, embedding, tuple(blocks), head, dtype)


def _fused(kernel: ModuleType, prepared: Any) -> FusedBlock:
    return FusedBlock(lambda hidden, rows, cache: kernel.run_block(hidden, rows, cache, prepared), kernel.NAME, {})


def decode(model: LlamaModel, storage: Storage, sequences: int, context: int) -> Row:
    """Tokens per second of a whole decode step in a graph, greedy, each sequence with its own past."""
    pages_each = context // PAGE + 1
    cache = make_cache(model.config, 1 + sequences * pages_each, PAGE, DEVICE, model.dtype)
    for layer in (*cache.keys, *cache.values):
        layer.normal_()
    with torch.inference_mode():
        decoder = Decoder(model, cache, sequences, pages_each, capture_for(DEVICE))
        for number in range(sequences):
            pages = [1 + number * pages_each + page for page in range(pages_each)]
            decoder.admit(5 + number, [7] * context, pages, SamplingParams())
        decoder.step().read()
        decoder.state.running.zero_()  # time the same position again and again
        step = decoder.prepared_step(bucket_for(sequences, sequences), drawing_of([SamplingParams()]))
        timing = timed(step)
    del cache, decoder, step
    torch.cuda.empty_cache()
    return {
        "stored": str(storage),
        "sequences": sequences,
        "context": context,
        **vars(timing),
        "tokens_per_second": sequences / timing.median,
        "bytes_per_second": step_bytes(model.config, storage, sequences, context) / timing.median,
    }


def profile(model: LlamaModel, storage: Storage, sequences: int, context: int) -> Iterator[Row]:
    """Where a decode step's time goes: each kernel's launches and microseconds in one step, longest first."""
    pages_each = context // PAGE + 1
    cache = make_cache(model.config, 1 + sequences * pages_each, PAGE, DEVICE, model.dtype)
    with torch.inference_mode():
        decoder = Decoder(model, cache, sequences, pages_each, run_each_time)
        for number in range(sequences):
            pages = [1 + number * pages_each + page for page in range(pages_each)]
            decoder.admit(5, [7] * context, pages, SamplingParams())
        decoder.step().read()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            decoder.step().read()
    for event in sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)[:12]:
        yield {
            "stored": str(storage),
            "sequences": sequences,
            "launches": event.count,
            "microseconds": event.self_device_time_total,
            "name": event.key,
        }


def prefill(model: LlamaModel, storage: Storage, length: int) -> Row:
    """Seconds of a prompt of `length`, up to the logits of its last token."""
    cache = make_cache(model.config, 1, length, DEVICE, model.dtype)
    tokens = torch.randint(3, 30000, (length,), device=DEVICE)
    batch = one_sequence(tokens, 0, length)

    def work() -> None:
        with torch.inference_mode():
            model.head(hidden_states(model, batch, cache)[-1:])

    for _ in range(2):
        work()
    timing = timed(work, repeats=7)
    return {
        "stored": str(storage),
        "length": length,
        **vars(timing),
        "tokens_per_second": length / timing.median,
    }
