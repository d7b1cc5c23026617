"""Layers and heads run whole by the native library: against `model.llama`, and against themselves, bit for bit."""

import math
from copy import copy
from dataclasses import dataclass, replace
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.errors import UsageError
from octavo.kernels import cpu, cpu_blocks
from octavo.kernels.attention import CodedHeads, encode_heads
from octavo.kernels.blocks import (
    BlockParts,
    BlockShape,
    CodedLayerCache,
    HeadParts,
    LayerCache,
    LinearParts,
    Rows,
)
from octavo.model.config import LlamaConfig, RopeScaling
from octavo.model.kv_cache import Batch, KVCache, make_batch, make_cache
from octavo.model.linear import Linear
from octavo.model.llama import Block, forward, make_step, run_block
from octavo.model.load import load_model
from octavo.quantization.gptq import round_to_nearest
from octavo.schemes import QuantScheme
from octavo.weights import DenseWeight, QuantizedWeight, dequantize
from small_models import write_family_model

pytest.importorskip("octavo.kernels._native", reason="Octavo is installed without its native library")
from octavo.kernels import _native

CPU = torch.device("cpu")
POOLS = {threads: _native.Pool(threads) for threads in (1, 2, 3)}
EVERY_WAY = [(isa, POOLS[2]) for isa in _native.available_isas()]
EVERY_WAY += [(_native.best_isa(), pool) for pool in POOLS.values()]


@dataclass(frozen=True)
class Case:
    """A random layer, sequences with a past in a cache of shuffled pages, and new rows of theirs."""

    config: LlamaConfig
    parts: BlockParts
    cache: LayerCache | CodedLayerCache
    page_table: Tensor
    page_size: int
    cached: list[int]
    counts: list[int]
    hidden: Tensor

    @property
    def shape(self) -> BlockShape:
        return BlockShape(self.config.head_dim, self.config.norm_epsilon, self.config.windows[0])

    def rows(self, config: LlamaConfig | None = None) -> Rows:
        return rows_of(config or self.config, batch_of(self.counts, self.cached, self.page_table, self.page_size))


def batch_of(counts, cached, page_table, page_size) -> Batch:
    return make_batch([torch.zeros(n, dtype=torch.int64) for n in counts], cached, page_table, page_size)


def rows_of(config: LlamaConfig, batch: Batch) -> Rows:
    return make_step(config, batch, KVCache((), (), batch.pages.page_size)).rows


def config_of(heads, kv_heads, head_dim, hidden, mlp, window) -> LlamaConfig:
    return LlamaConfig(
        architecture="LlamaForCausalLM",
        vocabulary_size=11,
        hidden_size=hidden,
        intermediate_size=mlp,
        layers=1,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=4096,
        norm_epsilon=1e-5,
        rope_theta=10000.0,
        rope_scaling=RopeScaling(attention_factor=1.25),
        tied_embeddings=False,
        attention_bias=False,
        output_bias=False,
        query_key_norm=False,
        windows=(window,),
    )


def random_parts(generator, config: LlamaConfig, extras: bool, weight) -> BlockParts:
    """`extras`: the biases of Qwen2 and the norms of Qwen3; `weight` makes a weight of its values."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def linear(outputs, inputs, bias=False):
        return LinearParts(weight(normal(outputs, inputs) * inputs**-0.5), normal(outputs) if bias else None)

    hidden, mlp = config.hidden_size, config.intermediate_size
    return BlockParts(
        attention_norm=1 + 0.1 * normal(hidden),
        query=linear(config.query_width, hidden, extras),
        key=linear(config.kv_width, hidden, extras),
        value=linear(config.kv_width, hidden, extras),
        output=linear(hidden, config.query_width),
        query_norm=1 + 0.1 * normal(config.head_dim) if extras else None,
        key_norm=1 + 0.1 * normal(config.head_dim) if extras else None,
        mlp_norm=1 + 0.1 * normal(hidden),
        gate=linear(mlp, hidden),
        up=linear(mlp, hidden),
        down=linear(hidden, mlp),
    )


def random_case(
    seed, head_dim=12, kv_heads=2, shared_by=2, window=None, page_size=7, sequences=((5, 3),), extras=False,
    weight=DenseWeight, by_head=False,
) -> Case:  # fmt: skip
    """`sequences` are (positions in the cache, new rows) of each; `by_head`: the cache as a CPU's is laid out."""
    generator = torch.Generator().manual_seed(seed)
    config = config_of(kv_heads * shared_by, kv_heads, head_dim, 40, 52, window)
    cached, counts = [past for past, _ in sequences], [new for _, new in sequences]
    pages = max(-(-(past + new) // page_size) for past, new in sequences)
    page_table = torch.randperm(len(sequences) * pages, generator=generator).view(-1, pages)
    slots = (page_table.numel() * page_size, kv_heads, head_dim)
    sides = [torch.randn(slots, generator=generator) for _ in ("keys", "values")]
    if by_head:
        sides = [head_by_head(side) for side in sides]
    return Case(
        config=config,
        parts=random_parts(generator, config, extras, weight),
        cache=LayerCache(*sides),
        page_table=page_table,
        page_size=page_size,
        cached=cached,
        counts=counts,
        hidden=torch.randn(sum(counts), config.hidden_size, generator=generator),
    )


def head_by_head(side: Tensor) -> Tensor:
    return side.transpose(0, 1).contiguous().transpose(0, 1)


def copy_of(cache):
    if isinstance(cache, LayerCache):
        return LayerCache(cache.keys.clone(), cache.values.clone())
    return CodedLayerCache(*(CodedHeads(each.codes.clone(), each.scales.clone()) for each in vars(cache).values()))


def in_codes(case: Case) -> Case:
    """The case with a cache in 8 bits, laid out as it was."""
    layout = Tensor.contiguous if case.cache.keys.is_contiguous() else head_by_head
    coded = [encode_heads(side) for side in (case.cache.keys, case.cache.values)]
    return replace(
        case, cache=CodedLayerCache(*(CodedHeads(layout(each.codes), layout(each.scales)) for each in coded))
    )


def tensors_of(cache) -> list[Tensor]:
    if isinstance(cache, LayerCache):
        return [cache.keys, cache.values]
    return [cache.keys.codes, cache.keys.scales, cache.values.codes, cache.values.scales]


def run(case: Case, isa=None, pool=None) -> tuple[Tensor, LayerCache]:
    """The layer's output, and the cache afterwards."""
    prepared = cpu_blocks.prepare_block(case.parts, case.shape, CPU, torch.float32)
    prepared = replace(prepared, isa=isa or prepared.isa, pool=pool)
    cache = copy_of(case.cache)
    return cpu_blocks.run_block(case.hidden, case.rows(), cache, prepared), cache


def run_one_by_one(case: Case) -> tuple[Tensor, LayerCache]:
    """Each sequence by itself, row after row."""
    prepared = cpu_blocks.prepare_block(case.parts, case.shape, CPU, torch.float32)
    cache, outputs, row = copy_of(case.cache), [], 0
    for sequence, (past, new) in enumerate(zip(case.cached, case.counts, strict=True)):
        for position in range(past, past + new):
            batch = batch_of([1], [position], case.page_table[[sequence]], case.page_size)
            hidden = case.hidden[row : row + 1]
            outputs.append(cpu_blocks.run_block(hidden, rows_of(case.config, batch), cache, prepared))
            row += 1
    return torch.cat(outputs), cache


def twin(case: Case) -> tuple[Tensor, LayerCache]:
    """`model.llama` part by part, in float64."""

    def linear(parts: LinearParts) -> Linear:
        weight = parts.weight
        values = weight.values if isinstance(weight, DenseWeight) else dequantize(weight)
        bias = None if parts.bias is None else parts.bias.double()
        return Linear(lambda inputs: inputs @ values.double().t(), bias, "twin", {})

    def placed(part):
        return linear(part) if isinstance(part, LinearParts) else None if part is None else part.double()

    block = Block(**{name: placed(part) for name, part in vars(case.parts).items()})
    cache = copy_of(case.cache)
    if isinstance(cache, LayerCache):
        cache = LayerCache(cache.keys.double(), cache.values.double())
    batch = batch_of(case.counts, case.cached, case.page_table, case.page_size)
    step = make_step(case.config, batch, KVCache((cache.keys,), (cache.values,), case.page_size))
    return run_block(block, 0, case.hidden.double(), step), cache


def assert_near(found: Tensor, expected: Tensor, bound: float) -> None:
    assert (found - expected).norm() <= bound * expected.norm()


def bytes_of(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def same(found: tuple[Tensor, LayerCache], expected: tuple[Tensor, LayerCache]) -> bool:
    """Bit for bit; these numbers hold no NaN."""
    tensors = zip((found[0], *tensors_of(found[1])), (expected[0], *tensors_of(expected[1])), strict=True)
    return all(torch.equal(bytes_of(one), bytes_of(other)) for one, other in tensors)


choices = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "head_dim": st.sampled_from([2, 6, 12, 16, 34, 64]),
        "kv_heads": st.integers(1, 3),
        "shared_by": st.integers(1, 5),
        "window": st.none() | st.integers(1, 300),
        "page_size": st.integers(1, 40) | st.just(1024),
        "sequences": st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), min_size=1, max_size=4),
        "extras": st.booleans(),
        "by_head": st.booleans(),
    }
)


@settings(deadline=None, max_examples=60)
@given(choices)
def test_a_layer_is_that_of_the_twin(choice):
    case = random_case(**choice)
    (found, cache), (expected, twin_cache) = run(case), twin(case)
    assert_near(found, expected, 1e-5)
    assert_near(cache.keys, twin_cache.keys, 1e-6)
    assert_near(cache.values, twin_cache.values, 1e-6)


@settings(deadline=None, max_examples=25)
@given(choices)
def test_a_row_has_the_same_bits_in_every_company_and_on_every_processor(choice):
    case = random_case(**choice)
    expected = run(case)
    assert same(run_one_by_one(case), expected)
    for isa, pool in EVERY_WAY:
        assert same(run(case, isa, pool), expected), isa


@settings(deadline=None, max_examples=40)
@given(choices)
def test_a_cache_in_8_bits_holds_the_codes_of_what_is_written_to_it(choice):
    """The floats that a layer writes to a cache of floats, as the definition encodes them."""
    case = random_case(**choice)
    _, floats = run(case)
    coded = in_codes(case)
    _, cache = run(coded)
    written = case.rows().write_slots
    others = torch.ones(len(floats.keys), dtype=torch.bool)
    others[written] = False
    for found, before, after in zip(
        vars(cache).values(), vars(coded.cache).values(), vars(floats).values(), strict=True
    ):
        expected = encode_heads(after)
        assert torch.equal(found.codes[written], expected.codes[written])
        assert torch.equal(found.scales[written], expected.scales[written])
        assert torch.equal(found.codes[others], before.codes[others])
        assert torch.equal(found.scales[others], before.scales[others])


@settings(deadline=None, max_examples=40)
@given(choices)
def test_over_a_cache_in_8_bits_a_layer_is_that_of_the_twin(choice):
    case = in_codes(random_case(**choice))
    # The twin's keys are of float64, so that one in many thousands falls to the next code.
    assert_near(run(case)[0], twin(case)[0], 3e-4)


@settings(deadline=None, max_examples=20)
@given(choices)
def test_over_a_cache_in_8_bits_too_a_row_has_the_same_bits_everywhere(choice):
    case = in_codes(random_case(**choice))
    expected = run(case)
    assert same(run_one_by_one(case), expected)
    for isa, pool in EVERY_WAY:
        assert same(run(case, isa, pool), expected), isa


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("isa", _native.available_isas())
def test_what_is_no_number_is_none_in_8_bits_either(isa, bad):
    case = in_codes(random_case(5, head_dim=34, sequences=[(3, 4), (9, 2)]))
    expected, _ = run(case)
    case.hidden[1] = bad
    found, cache = run(case, isa)
    assert not cache.keys.scales[case.rows().write_slots[1]].isfinite().any()
    assert found[1:4].isnan().all()
    assert torch.equal(found[[0, 4, 5]], expected[[0, 4, 5]])


@pytest.mark.parametrize("window", [None, 150])
def test_a_long_prompt_goes_through_in_chunks_without_a_trace(window):
    case = random_case(3, window=window, sequences=[(140, 300), (0, 9)])
    expected = run(case)
    assert_near(expected[0], twin(case)[0], 1e-5)
    assert same(run_one_by_one(case), expected)


def grouped_out_of_order(values: Tensor, bits: int) -> QuantizedWeight:
    """As act-order leaves it: the columns of a group lie anywhere."""
    order = torch.randperm(values.shape[1], generator=torch.Generator().manual_seed(values.shape[1]))
    weight = round_to_nearest(values[:, order], QuantScheme(bits, 16, symmetric=False), 0)
    back = order.argsort()
    return replace(weight, codes=weight.codes[:, back], group_of_column=weight.group_of_column[back])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "row", "act-order", "mixed"])
def test_quantized_layers_differ_by_the_rounding_of_inputs_alone(kind, bits):
    shapes = []

    def weight(values: Tensor) -> DenseWeight | QuantizedWeight:
        shapes.append(values.shape)
        if kind == "act-order":
            return grouped_out_of_order(values, bits)
        if kind == "mixed" and len(shapes) % 2:  # query and value want other inputs than key
            return DenseWeight(values.to(torch.bfloat16 if bits < 4 else torch.float16))
        group = None if kind == "row" else 16
        return round_to_nearest(values, QuantScheme(bits, group, kind == "symmetric"), 0)

    case = random_case(1, sequences=[(150, 1), (30, 20), (0, 3)], extras=True, weight=weight)
    expected = run(case)
    assert_near(expected[0], twin(case)[0], 3e-4)
    assert same(run_one_by_one(case), expected)
    for isa, pool in EVERY_WAY:
        assert same(run(case, isa, pool), expected), isa


def kernel(isa=None, pool=None) -> ModuleType:
    """The kernel of layers, as it would be on another machine."""
    made = ModuleType("kernel")
    vars(made).update(vars(cpu_blocks))

    def elsewhere(prepare):
        def prepare_there(*arguments):
            prepared = prepare(*arguments)
            return replace(prepared, isa=isa or prepared.isa, pool=pool)

        return prepare_there

    made.prepare_block = elsewhere(cpu_blocks.prepare_block)
    made.prepare_head = elsewhere(cpu_blocks.prepare_head)
    return made


def logits(folder, kernels, tokens, chunks) -> Tensor:
    """Of all `tokens`, a sequence that comes in chunks."""
    model = load_model(folder, CPU, torch.float32, kernels)
    cache = make_cache(model.config, 1, len(tokens), CPU, torch.float32)
    found, past = [], 0
    with torch.inference_mode():
        for chunk in tokens.split(chunks):
            batch = make_batch([chunk], [past], torch.zeros(1, 1, dtype=torch.int64), len(tokens))
            found.append(forward(model, batch, cache))
            past += len(chunk)
    return torch.cat(found)


def some_tokens(count, seed=0) -> Tensor:
    return torch.randint(3, 90, (count,), generator=torch.Generator().manual_seed(seed))


def test_a_whole_model_gives_the_same_bits_in_every_way(stories_folder):
    tokens = some_tokens(200)
    expected = logits(stories_folder, [kernel()], tokens, [200])
    assert_near(expected, logits(stories_folder, (), tokens, [200]), 1e-5)
    for chunks in ([1] * 200, [8] * 25, [9, 150, 41]):
        assert torch.equal(logits(stories_folder, [kernel()], tokens, chunks), expected)
    for isa, pool in EVERY_WAY:
        assert torch.equal(logits(stories_folder, [kernel(isa, pool)], tokens, [100, 100]), expected)


def test_a_sequence_alone_has_the_bits_it_has_among_eight(stories_folder):
    model = load_model(stories_folder, CPU, torch.float32, [cpu_blocks])
    prompts = [some_tokens(5 + 9 * number, number) for number in range(8)]
    page_table = torch.randperm(8 * 5, generator=torch.Generator().manual_seed(0)).view(8, 5)
    cache = make_cache(model.config, 40, 16, CPU, torch.float32)
    with torch.inference_mode():
        together = forward(model, make_batch(prompts, [0] * 8, page_table, 16), cache)
        newest = [torch.tensor([number + 3]) for number in range(8)]
        stepped = forward(model, make_batch(newest, list(map(len, prompts)), page_table, 16), cache)
    for number, prompt in enumerate(prompts):
        alone = logits(stories_folder, [cpu_blocks], torch.cat((prompt, newest[number])), [len(prompt), 1])
        first = sum(map(len, prompts[:number]))
        assert torch.equal(together[first : first + len(prompt)], alone[:-1])
        assert torch.equal(stepped[number], alone[-1])


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("Llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
        ("Mistral", {"sliding_window": 6}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 20}),
    ],
)
def test_the_whole_family_runs(tmp_path, family, values):
    write_family_model(tmp_path, family, values)
    tokens = some_tokens(40)
    expected = logits(tmp_path, [cpu_blocks], tokens, [40])
    assert_near(expected, logits(tmp_path, (), tokens, [40]), 1e-5)
    if "rope_scaling" not in values:  # where angles depend on the length, chunks are another computation
        assert torch.equal(logits(tmp_path, [cpu_blocks], tokens, [1] * 40), expected)


@pytest.mark.parametrize("rows", [0, 1, 8, 9, 130])
@pytest.mark.parametrize("bits", [4, None])
def test_a_head_is_norm_and_projection(rows, bits):
    generator = torch.Generator().manual_seed(rows)
    values = torch.randn(70, 40, generator=generator)
    weight = DenseWeight(values) if bits is None else round_to_nearest(values, QuantScheme(bits, 16, True), 0)
    norm = torch.randn(40, generator=generator)
    prepared = cpu_blocks.prepare_head(HeadParts(norm, 1e-5, LinearParts(weight)), CPU, torch.float32)
    hidden = torch.randn(rows, 40, generator=generator)
    found = cpu_blocks.run_head(hidden, prepared)
    wide = hidden.double()
    normalized = norm * wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt()
    dense = values if bits is None else dequantize(weight)
    assert_near(found, normalized @ dense.double().t(), 1e-6 if bits is None else 3e-4)
    for isa, pool in EVERY_WAY:
        assert torch.equal(cpu_blocks.run_head(hidden, replace(prepared, isa=isa, pool=pool)), found)
    for row in range(rows):
        assert torch.equal(cpu_blocks.run_head(hidden[row : row + 1], prepared)[0], found[row])


@pytest.mark.parametrize("sequences", [[(3, 4), (130, 2)], [(3, 20), (130, 11)]])
def test_a_row_that_is_no_number_spoils_its_successors_alone(sequences):
    case = random_case(5, sequences=sequences)
    expected, _ = run(case)
    case.hidden[2] = math.nan
    found, _ = run(case)
    rows = sequences[0][1]
    assert torch.equal(found[:2], expected[:2])
    assert found[2:rows].isnan().all()
    assert torch.equal(found[rows:], expected[rows:])


def exponentials(inputs: Tensor, isa) -> Tensor:
    outputs = torch.empty_like(inputs)
    _native.exponentials(inputs.data_ptr(), len(inputs), outputs.data_ptr(), isa)
    return outputs


def units_off(found: Tensor, exact: Tensor) -> float:
    """The largest error in units of the last place of the nearest floats."""
    nearest = exact.float().abs()
    unit = torch.nextafter(nearest, torch.tensor(math.inf)).double() - nearest.double()
    return float(((found.double() - exact).abs() / unit).max())


@pytest.mark.parametrize("isa", _native.available_isas())
def test_exponentials_are_right_to_the_last_place(isa):
    tiny = -torch.logspace(-40, 1, 9999)
    inputs = torch.cat((torch.linspace(-87.3365, 0, 1_000_003), torch.linspace(0, 88, 10_001), tiny))
    found = exponentials(inputs, isa)
    assert units_off(found, inputs.double().exp()) <= 1.01
    assert torch.equal(found, exponentials(inputs, _native.Isa.portable))
    special = torch.tensor([-87.34, -104.0, -1e30, -math.inf, math.nan, 0.0, -0.0])
    assert exponentials(special, isa).tolist()[:4] == [0, 0, 0, 0]
    assert exponentials(special, isa)[4].isnan()
    assert exponentials(special, isa).tolist()[5:] == [1, 1]


@pytest.mark.skipif(_native.Isa.amx in _native.available_isas(), reason="this machine runs every instruction set")
def test_an_instruction_set_that_is_not_here_is_refused():
    with pytest.raises(ValueError, match="this machine does not run AMX"):
        exponentials(torch.zeros(1), _native.Isa.amx)


def cosines_and_sines(angles: Tensor) -> tuple[Tensor, Tensor]:
    cosines, sines = torch.empty_like(angles), torch.empty_like(angles)
    _native.cosines_and_sines(angles.data_ptr(), len(angles), cosines.data_ptr(), sines.data_ptr())
    return cosines, sines


def test_cosines_and_sines_are_right_to_the_last_place():
    multiples = (torch.arange(660_000) * (math.pi / 2)).float()  # where one of them all but vanishes
    small, all_of_them = torch.logspace(-40, 20, 99_999, base=2), torch.linspace(-(2**20), 2**20, 1_000_003)
    angles = torch.cat((all_of_them, small, multiples))
    cosines, sines = cosines_and_sines(angles)
    assert units_off(cosines, angles.double().cos()) <= 0.501
    assert units_off(sines, angles.double().sin()) <= 0.501
    cosines, sines = cosines_and_sines(torch.tensor([0.0, math.nan, math.inf]))
    assert (cosines[0], sines[0]) == (1, 0)
    assert cosines[1:].isnan().all() and sines[1:].isnan().all()


def changed_rows(case: Case, **changes) -> Rows:
    rows = case.rows()
    of_pages = {name: value for name, value in changes.items() if name in vars(rows.pages)}
    of_rows = {name: value for name, value in changes.items() if name in vars(rows)}
    return replace(rows, pages=replace(rows.pages, **of_pages), **of_rows)


def run_rows(case: Case, rows: Rows) -> Tensor:
    prepared = cpu_blocks.prepare_block(case.parts, case.shape, CPU, torch.float32)
    return cpu_blocks.run_block(case.hidden, rows, case.cache, prepared)


SMALL_CASE = {"head_dim": 4, "page_size": 2, "sequences": [(2, 2)]}  # its rows go to slots 2 and 3 of 12
REACHING_OUT = {
    "the cache has 12 slots, but the page table names slot 19": {
        "page_table": torch.tensor([[0, 9]]),
        "write_slots": torch.tensor([18, 19]),
    },
    "a page that cannot be": {"page_table": torch.tensor([[0, -1]])},
    "names a page that cannot be": {"page_table": torch.tensor([[0, 2**62]])},
    "longer than its pages": {"lengths": torch.tensor([5])},
    "shorter than its new rows": {"lengths": torch.tensor([1])},
    "written where the page table": {"write_slots": torch.tensor([2, 2**61])},
    "own all rows": {"row_starts": torch.tensor([0, 1])},
    "at least one slot": {"page_size": 0},
    "another size": {"angles": torch.zeros(2, 3)},
}


@pytest.mark.parametrize("complaint", REACHING_OUT)
def test_rows_that_would_reach_outside_the_cache_are_refused(complaint):
    case = random_case(0, **SMALL_CASE)
    cache = LayerCache(torch.zeros(12, 2, 4), torch.zeros(12, 2, 4))
    case = replace(case, page_table=torch.tensor([[0, 1]]), cache=cache)
    with pytest.raises(ValueError, match=complaint):
        run_rows(case, changed_rows(case, **REACHING_OUT[complaint]))


@pytest.mark.parametrize("starts", [[0, 3, 2], [0, -1, 2], [1, 1, 2], [0, 2**62, 2], [0, -(2**63), 2]])
def test_row_starts_that_do_not_rise_are_refused(starts):
    case = random_case(0, sequences=[(2, 1), (3, 1)])
    with pytest.raises(ValueError, match=r"rise|own all rows|shorter"):
        run_rows(case, changed_rows(case, row_starts=torch.tensor(starts)))


def test_tables_that_disagree_are_refused():
    case = random_case(0, sequences=[(2, 1), (3, 1)])
    for changes in ({"row_starts": torch.tensor([0, 2])}, {"page_table": torch.zeros(1, 2, dtype=torch.int64)}):
        with pytest.raises(UsageError, match="disagree about its rows or its sequences"):
            run_rows(case, rows_that_disagree(case, **changes))


def rows_that_disagree(case: Case, **changes) -> Rows:
    """Pages that no noun of ours would be made of where its annotations are checked, as they are here."""
    rows = case.rows()
    pages = copy(rows.pages)
    for name, value in changes.items():
        object.__setattr__(pages, name, value)
    return replace(rows, pages=pages)


def of_another_kind(case: Case, part: str) -> list[Case]:
    """The case with a part that memory could not be read as."""
    if part == "hidden states":
        hidden = case.hidden
        wrong = [hidden.double(), hidden[:, :-1].contiguous(), hidden[:-1], hidden.t().contiguous().t()]
        return [replace(case, hidden=each) for each in wrong]
    keys, values = case.cache.keys, case.cache.values
    if part == "cached keys":
        caches = [LayerCache(keys.half(), values), LayerCache(keys[..., :-2].contiguous(), values[..., :-2])]
    else:
        caches = [LayerCache(keys, values.half()), LayerCache(keys, values.mT.contiguous().mT)]
    return [replace(case, cache=each) for each in caches]


@pytest.mark.parametrize("coded", [False, True])
def test_bits_do_not_depend_on_how_a_cache_is_laid_out(coded):
    cases = [
        random_case(1, kv_heads=3, sequences=((150, 2), (9, 1)), by_head=by_head) for by_head in (False, True)
    ]
    plain, by_head = [in_codes(case) if coded else case for case in cases]
    assert tensors_of(plain.cache)[0].stride() != tensors_of(by_head.cache)[0].stride()
    assert same(run(plain), run(by_head))


def test_keys_and_values_are_laid_out_alike():
    plain, by_head = (random_case(1, by_head=by_head).cache for by_head in (False, True))
    for cache in (LayerCache(plain.keys, by_head.values), LayerCache(by_head.keys, plain.values)):
        case = replace(random_case(1), cache=cache)
        with pytest.raises(UsageError, match="the cached values are"):
            run_rows(case, case.rows())


@pytest.mark.parametrize("part", ["cached keys", "cached values", "scales of the cached keys"])
def test_codes_of_another_kind_are_refused(part):
    case = in_codes(random_case(0))
    keys, values = case.cache.keys, case.cache.values
    fewer = CodedHeads(keys.codes[:-1], keys.scales[:-1])
    wrong = {
        "cached keys": [CodedLayerCache(CodedHeads(keys.codes[..., :-2].contiguous(), keys.scales), values)],
        "cached values": [CodedLayerCache(keys, fewer), CodedLayerCache(fewer, values)],
        "scales of the cached keys": [
            CodedLayerCache(CodedHeads(keys.codes, keys.scales.t().contiguous().t()), values)
        ],
    }
    for cache in wrong[part]:
        with pytest.raises(UsageError, match=f"the {part} are"):
            run_rows(replace(case, cache=cache), case.rows())


@pytest.mark.parametrize("part", ["hidden states", "cached keys", "cached values"])
def test_tensors_of_another_kind_are_refused(part):
    case = random_case(0)
    for wrong in of_another_kind(case, part):
        with pytest.raises(UsageError, match=f"the {part} are"):
            run_rows(wrong, case.rows())


@pytest.mark.parametrize(
    ("complaint", "field", "rows", "columns"),
    [
        ("whole heads", "query", 47, 40),
        ("same number of heads", "key", 36, 40),
        ("as many columns", "key", 24, 39),
        ("as many values", "value", 12, 40),
        ("back to the hidden size", "output", 40, 36),
        ("to one width", "up", 50, 40),
        ("down must lead", "down", 40, 50),
    ],
)
def test_parts_that_do_not_fit_are_refused(complaint, field, rows, columns):
    case = random_case(0)
    parts = replace(case.parts, **{field: LinearParts(DenseWeight(torch.zeros(rows, columns)))})
    with pytest.raises(ValueError, match=complaint):
        cpu_blocks.prepare_block(parts, case.shape, CPU, torch.float32)


def test_who_may_run_here(monkeypatch):
    case = random_case(0)
    head = HeadParts(torch.ones(40), 1e-5, LinearParts(DenseWeight(torch.zeros(11, 40))))

    def objections(device="cpu", dtype=torch.float32):
        return (
            cpu_blocks.why_not_block(case.parts, case.shape, torch.device(device), dtype),
            cpu_blocks.why_not_head(head, torch.device(device), dtype),
        )

    assert objections() == (None, None)
    assert set(objections("cuda")) == {"it runs on CPUs only"}
    assert set(objections(dtype=torch.bfloat16)) == {"it computes in float32, not bfloat16"}
    odd = replace(case.shape, head_dim=5)
    assert "do not fall into pairs" in cpu_blocks.why_not_block(case.parts, odd, CPU, torch.float32)
    monkeypatch.setattr(cpu, "missing_library", lambda: "the native library is absent")
    assert set(objections()) == {"the native library is absent"}
