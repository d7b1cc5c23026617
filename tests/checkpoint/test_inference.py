"""Folders without a configuration: what their tensors say, and what they leave open."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from octavo.checkpoint.configuration import FileQuantization
from octavo.checkpoint.formats import encode_linear
from octavo.checkpoint.inference import infer_quantization
from octavo.checkpoint.tensors import TensorFolder
from octavo.errors import CheckpointError
from octavo.model.kv_cache import make_cache, one_sequence
from octavo.model.llama import forward
from octavo.model.load import load_model, open_folder
from octavo.schemes import QuantScheme
from octavo.weights import QuantizedWeight, sequential_groups
from stored_linears import in_random_order, quantized

SHAPES = {"wide": (64, 160), "narrow": (32, 64)}


def around_nothing(rows, columns, scheme, seed=0):
    """Weights that average to nothing, as those of networks do: codes lie around their zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = quantized(rows, columns, scheme, seed)
    steps = torch.randn(rows, columns, generator=generator) * max(scheme.largest_code / 32, 0.5)
    zeros = weight.zeros.clamp(scheme.largest_code // 4 + 1, 3 * scheme.largest_code // 4)
    if scheme.symmetric:
        zeros = weight.zeros
    codes = (steps.round() + zeros[:, weight.group_of_column.long()]).clamp(0, scheme.largest_code)
    return QuantizedWeight(codes.to(torch.uint8), weight.scales, zeros, weight.group_of_column, scheme)


def folder_of(path, weights, layout="gptq", without=()):
    tensors = {}
    for name, weight in weights.items():
        tensors |= encode_linear(name, weight, layout)
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(tuple(without))}
    save_file(kept, path / "model.safetensors")
    return TensorFolder(path)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [None, 32, 50])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
def test_bits_groups_symmetry_and_version(tmp_path, bits, group_size, symmetric, layout):
    scheme = QuantScheme(bits, group_size, symmetric)
    weights = {name: around_nothing(*shape, scheme) for name, shape in SHAPES.items()}
    found = infer_quantization(folder_of(tmp_path, weights, layout), SHAPES)
    assert (found.dialect, found.default, found.mixed, found.ordered) == (layout, scheme, False, False)


def test_evidence_in_words(tmp_path):
    scheme = QuantScheme(8, 32, False)
    weights = {name: in_random_order(around_nothing(*shape, scheme)) for name, shape in SHAPES.items()}
    found = infer_quantization(folder_of(tmp_path, weights), SHAPES)
    assert found.ordered
    bits, groups, order, zeros = found.evidence
    assert bits == "8 bits: wide has 40 words for 160 columns"
    assert groups == "groups of 32: that many columns share an entry of g_idx"
    assert order == "act-order: wide.g_idx does not ascend"
    mean = r"asymmetric: zeros vary; codes of wide lie (0.9\d|1.0\d) ± 0.08 steps above the stored ones"
    assert re.fullmatch(f"{mean}, so they are stored minus one, version 1", zeros)


def test_symmetric_evidence(tmp_path):
    weights = {name: around_nothing(*shape, QuantScheme(4, None, True)) for name, shape in SHAPES.items()}
    found = infer_quantization(folder_of(tmp_path, weights, "gptq_v2"), SHAPES)
    assert found.evidence == (
        "4 bits: wide has 20 words for 160 columns",
        "one group per output: no linear has more than one row of scales",
        "symmetric: each zero is the middle of the range, stored as they are, version 2",
    )


def test_one_linear_of_another_kind_makes_a_mixed_folder(tmp_path):
    weights = {
        "wide": around_nothing(64, 160, QuantScheme(4, 32, True)),
        "narrow": around_nothing(32, 64, QuantScheme(8, 32, True)),
        "other": around_nothing(32, 64, QuantScheme(4, 32, True)),
    }
    found = infer_quantization(folder_of(tmp_path, weights), {**SHAPES, "other": (32, 64), "dense": (2, 2)})
    assert (found.default, found.mixed) == (QuantScheme(4, 32, True), True)


def test_a_dense_folder_is_not_quantized(tmp_path):
    save_file({"wide.weight": torch.zeros(64, 160)}, tmp_path / "model.safetensors")
    assert infer_quantization(TensorFolder(tmp_path), SHAPES) is None


def group_size_without_index(path, group_size, widths):
    scheme = QuantScheme(8, group_size, True)
    shapes = {f"layer{number}": (8, width) for number, width in enumerate(widths)}
    weights = {name: quantized(*shape, scheme) for name, shape in shapes.items()}
    return infer_quantization(folder_of(path, weights, without=("g_idx",)), shapes).default.group_size


@pytest.mark.parametrize(
    ("group_size", "widths"),
    [
        (128, (576, 1536)),  # SmolLM2: 5 groups of 576 columns, which rounding up would call 116
        (128, (576,)),
        (64, (576, 1536)),
        (32, (48, 70)),
        (96, (576, 1536)),  # no power of two fits, but these widths divide
    ],
)
def test_group_size_without_an_index(tmp_path, group_size, widths):
    assert group_size_without_index(tmp_path, group_size, widths) == group_size


def test_a_group_size_that_cannot_be_told_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"groups of 70 … 104 columns all fit"):
        # two groups of 105 … 139 columns: 64 is too small, 128 too large for the narrower
        group_size_without_index(tmp_path, 75, (139, 105))


def test_shapes_that_no_bits_explain_are_refused(tmp_path):
    save_file({"wide.qweight": torch.zeros(7, 64, dtype=torch.int32)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"wide.qweight of shape \[7, 64\] .* in no number of bits"):
        infer_quantization(TensorFolder(tmp_path), SHAPES)


def test_the_layout_of_march_2023_is_told_by_its_names(tmp_path):
    save_file(
        {
            "narrow.qweight": torch.zeros(8, 32, dtype=torch.int32),
            "narrow.zeros": torch.zeros(32, 1),
            "narrow.scales": torch.ones(32, 1),
        },
        tmp_path / "model.safetensors",
    )
    found = infer_quantization(TensorFolder(tmp_path), SHAPES)
    assert (found.dialect, found.default) == ("gptq", QuantScheme(4, None, False))
    assert found.evidence[-1] == "the layout of March 2023: narrow.zeros hold scale times zero"


# A folder in the shape of Thireus/Vicuna13B-v1.1-8bit-128g, packed here byte by byte.

HIDDEN, INNER, HEADS, LAYERS, VOCABULARY = 256, 320, 4, 2, 40
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def bytes_to_words(table):
    """Rows of bytes, four to a word, the first in the lowest byte."""
    rows = [
        [sum(row[at + place] << 8 * place for place in range(4)) for at in range(0, len(row), 4)] for row in table
    ]
    return torch.tensor([[word - 2**32 if word >= 2**31 else word for word in row] for row in rows]).int()


def card_linear(rows, columns, generator):
    """A linear as GPTQ-for-LLaMa's act-order leaves it, asymmetric in groups of 128; tensors and values."""
    order = torch.randperm(columns, generator=generator)
    groups = torch.empty(columns, dtype=torch.int32)
    groups[order] = (torch.arange(columns) // 128).int()
    zeros = torch.randint(90, 160, (-(-columns // 128), rows), generator=generator)
    scales = (torch.rand(zeros.shape, generator=generator) * 1e-3 + 1e-3).half()
    steps = (torch.randn(columns, rows, generator=generator) * 25).round().long()
    codes = (steps + zeros[groups.long()]).clamp(0, 255)
    values = scales.float()[groups.long()] * (codes - zeros[groups.long()])
    tensors = {
        "qweight": bytes_to_words(codes.t().tolist()).t().contiguous(),
        "qzeros": bytes_to_words((zeros - 1).tolist()),
        "scales": scales,
        "g_idx": groups,
    }
    return tensors, values.t().contiguous()


@pytest.fixture(scope="module")
def card_folder(tmp_path_factory):
    """The folder as it was published, and its dense twin."""
    folder, dense_folder = tmp_path_factory.mktemp("vicuna"), tmp_path_factory.mktemp("dense")
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return (torch.randn(*shape, generator=generator) * 0.3).half()

    tensors = {
        "model.embed_tokens.weight": random(VOCABULARY, HIDDEN),
        "model.norm.weight": random(HIDDEN),
        "lm_head.weight": random(VOCABULARY, HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.input_layernorm.weight"] = random(HIDDEN)
        tensors[f"{prefix}.post_attention_layernorm.weight"] = random(HIDDEN)
        tensors[f"{prefix}.self_attn.rotary_emb.inv_freq"] = 10000.0 ** -(torch.arange(0, 64, 2) / 64)
    dense = dict(tensors)
    for layer in range(LAYERS):
        for name, shape in LINEARS.items():
            parts, values = card_linear(*shape, generator)
            dense[f"model.layers.{layer}.{name}.weight"] = values
            tensors |= {f"model.layers.{layer}.{name}.{suffix}": part for suffix, part in parts.items()}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float16",
        "transformers_version": "4.28.1",
        "use_cache": True,
    }
    stale = {"weight_map": {"model.norm.weight": "pytorch_model-00003-of-00003.bin"}}
    for path in (folder, dense_folder):
        (path / "config.json").write_text(json.dumps(config))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(stale))
    save_file(tensors, folder / "Vicuna13B-v1.1-8bit-128g.safetensors")
    save_file(dense, dense_folder / "model.safetensors")
    return folder, dense_folder


def test_the_card_s_folder_is_understood(card_folder):
    quantization = open_folder(card_folder[0]).quantization
    assert quantization == FileQuantization("gptq", QuantScheme(8, 128, False), False, True, quantization.evidence)
    assert quantization.evidence[1:3] == (
        "groups of 128: that many columns share an entry of g_idx",
        "act-order: model.layers.0.self_attn.q_proj.g_idx does not ascend",
    )
    assert quantization.evidence[3].endswith("version 1")


def test_the_card_s_folder_gives_the_logits_of_its_weights(card_folder):
    import transformers

    tokens = torch.randint(0, VOCABULARY, (20,), generator=torch.Generator().manual_seed(2))
    model = load_model(card_folder[0], torch.device("cpu"), torch.float32)
    cache = make_cache(model.config, 1, len(tokens), torch.device("cpu"), torch.float32)
    ours = forward(model, one_sequence(tokens, 0, len(tokens)), cache, torch.arange(len(tokens)))
    twin = transformers.AutoModelForCausalLM.from_pretrained(card_folder[1], dtype=torch.float32).eval()
    with torch.inference_mode():
        theirs = twin(tokens[None]).logits[0]
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_biases_of_zero_are_passed_over_and_others_refused(card_folder, tmp_path):
    from safetensors.torch import load_file

    tensors = load_file(card_folder[0] / "Vicuna13B-v1.1-8bit-128g.safetensors")
    (tmp_path / "config.json").write_text((card_folder[0] / "config.json").read_text())
    bias = torch.zeros(HIDDEN)
    save_file(tensors | {"model.layers.1.mlp.down_proj.bias": bias}, tmp_path / "model.safetensors")
    assert open_folder(tmp_path).linear_parts(1, "down").bias is None
    bias[3] = 1e-4
    save_file(tensors | {"model.layers.1.mlp.down_proj.bias": bias}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.layers.1.mlp.down_proj.bias, for which .* no place"):
        open_folder(tmp_path).linear_parts(1, "down")


def test_the_index_of_columns_is_checked_before_it_is_used(tmp_path):
    scheme = QuantScheme(8, 32, False)
    weights = {"narrow": around_nothing(32, 64, scheme)}
    weights["narrow"].group_of_column[5] = 9
    with pytest.raises(CheckpointError, match=r"narrow\.g_idx points outside its 2 groups"):
        infer_quantization(folder_of(tmp_path, weights), {"narrow": (32, 64)})


def test_groups_of_neighbours_are_those_of_the_inferred_size():
    assert sequential_groups(576, 128).bincount().tolist() == [128, 128, 128, 128, 64]
