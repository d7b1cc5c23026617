"""Where a checkpoint loads: each rule of the table is broken once, and nothing else stands in the way."""

from dataclasses import replace

import pytest

from octavo.checkpoint.preflight import ENGINES, CheckpointFacts, FusedLinears, preflight
from octavo.schemes import QuantScheme

HIDDEN, INNER, KV = 4096, 11008, 1024
DEFAULT = QuantScheme(8, 128, True)


def linears(scheme, hidden=HIDDEN, inner=INNER, down=None):
    return (
        FusedLinears(("q", "k", "v"), ((hidden, hidden), (KV, hidden), (KV, hidden)), (scheme,) * 3, "outputs"),
        FusedLinears(("o",), ((hidden, hidden),), (scheme,), "inputs"),
        FusedLinears(("gate", "up"), ((inner, hidden), (inner, hidden)), (scheme,) * 2, "outputs"),
        FusedLinears(("down",), ((hidden, inner),), (down or scheme,), "inputs"),
    )


FACTS = CheckpointFacts(
    dialect="gptq",
    declared=True,
    outdated=None,
    ordered=False,
    standard_names=True,
    heads=32,
    linears=linears(DEFAULT),
)


def verdicts(**changes):
    return {verdict.engine: verdict for verdict in preflight(replace(FACTS, **changes))}


def loading(**changes):
    """Engines that load the checkpoint, each with the degrees at which it does."""
    return {engine: verdict.degrees for engine, verdict in verdicts(**changes).items() if verdict.degrees}


GPTQMODEL = "Transformers + GPTQModel"


def test_the_default_of_octavo_loads_in_the_engines_of_today():
    # 11008 = 86 x 128, so down_proj divides among two devices and no more
    everywhere = {"vLLM, GPU": (1, 2), "SGLang": (1, 2), GPTQMODEL: (1,), "Octavo": (1,)}
    assert loading() == everywhere
    assert loading(ordered=True) == everywhere
    assert loading(linears=linears(DEFAULT, inner=14336))["vLLM, GPU"] == (1, 2, 4, 8)


def test_four_bits_load_in_more_of_them():
    assert loading(linears=linears(QuantScheme(4, 128, True))) == {
        "vLLM, GPU": (1, 2),
        "vLLM, CPU": (1, 2),
        "SGLang": (1, 2),
        GPTQMODEL: (1,),
        "ExLlamaV2": (1,),
        "Octavo": (1,),
    }


def test_the_card_s_own_form_loads_in_few():
    card = verdicts(linears=linears(QuantScheme(8, 128, False)), ordered=True)
    assert [name for name, verdict in card.items() if verdict.degrees] == [GPTQMODEL, "Octavo"]
    assert card["vLLM, GPU"].objection == "q is asymmetric, and it takes symmetric weights only"
    assert card["vLLM, GPU"].source == "vLLM, auto_gptq.py: TYPE_MAP"
    assert card["ExLlamaV2"].objection == "q has 8 bits, and it takes 4"


@pytest.mark.parametrize(
    ("engine", "changes", "objection"),
    [
        ("vLLM, GPU", {"declared": False}, "no quantization_config"),
        (GPTQMODEL, {"declared": False}, "no quantization_config"),
        ("vLLM, GPU", {"outdated": "q has no g_idx"}, "q has no g_idx; octavo convert"),
        (GPTQMODEL, {"standard_names": False}, "not in model.safetensors"),
        ("vLLM, GPU", {"linears": linears(QuantScheme(3, 128, True))}, "q has 3 bits, and it takes 4 or 8"),
        ("vLLM, CPU", {}, "q has 8 bits, and it takes 4"),
        ("SGLang", {"linears": linears(QuantScheme(4, 16, True))}, "groups of 16, and it takes -1, 32, 64, 128"),
        (GPTQMODEL, {"linears": linears(QuantScheme(4, 48, True))}, "groups of 48"),
        (
            "vLLM, GPU",
            {"linears": linears(DEFAULT, hidden=576)},
            "576 columns of q and k and v / 1 are no multiple",
        ),
        ("vLLM, GPU", {"linears": linears(DEFAULT, hidden=2304)}, "the 2304 columns of o / 4 are no multiple"),
        ("vLLM, GPU", {"heads": 9}, "9 attention heads do not divide by 2"),
        ("vLLM, GPU", {"dialect": "compressed-tensors", "ordered": True}, "deprecated"),
        ("ExLlamaV2", {"dialect": "gptq_v2"}, "it reads gptq, not gptq_v2"),
        ("llama.cpp", {}, "octavo convert MODEL FILE.gguf"),
    ],
)
def test_each_rule_says_what_stands_against_a_checkpoint(engine, changes, objection):
    assert objection in verdicts(**changes)[engine].objection


def test_rows_of_fused_linears_count_together():
    fused = FusedLinears(("gate", "up"), ((96, 128), (96, 128)), (DEFAULT,) * 2, "outputs")
    verdict = verdicts(linears=(fused,))["vLLM, GPU"]
    assert verdict.degrees == (1,)
    assert verdict.objection == "the 192 rows of gate and up / 2 are no multiple of 64"


def test_fused_linears_must_agree():
    fused = FusedLinears(("gate", "up"), ((INNER, HIDDEN),) * 2, (DEFAULT, QuantScheme(4, 128, True)), "outputs")
    assert verdicts(linears=(fused,))["vLLM, GPU"].objection == "gate and up are fused, and their schemes differ"


def test_groups_may_not_straddle_devices():
    down = FusedLinears(("down",), ((4096, 128 * 9),), (QuantScheme(8, 128, True),), "inputs")
    assert verdicts(linears=(down,))["vLLM, GPU"].objection == (
        "the 1152 columns of down / 2 are no multiple of 128"
    )
    odd = FusedLinears(("down",), ((4096, 96),), (QuantScheme(4, 64, True),), "inputs")
    assert verdicts(linears=(odd,))["vLLM, CPU"].objection == "96 columns of down are no whole groups of 64"


def test_a_dense_model_loads_in_all_but_llama_cpp():
    dense = tuple(replace(fused, schemes=(None,) * len(fused.names)) for fused in FACTS.linears)
    assert list(loading(dialect=None, declared=False, linears=dense)) == [
        "vLLM, GPU",
        "vLLM, CPU",
        "SGLang",
        GPTQMODEL,
        "ExLlamaV2",
        "Octavo",
    ]


def test_every_rule_has_a_source():
    assert all(rule.source for engine in ENGINES for rule in engine.rules)
