"""The nouns: what a scheme may be, which scheme a linear gets, and the equation of a weight."""

import pytest
import torch

from octavo.errors import UsageError
from octavo.schemes import QuantScheme, SchemePlan, SchemeRule
from octavo.weights import QuantizedWeight, dequantize, sequential_groups


@pytest.mark.parametrize(("bits", "group_size"), [(5, 128), (0, 128), (16, 128), (8, 0), (8, -2)])
def test_schemes_outside_the_format_are_refused(bits, group_size):
    with pytest.raises(UsageError, match=r"choose 2, 3, 4 or 8|use 128, 64, 32"):
        QuantScheme(bits, group_size, True)


def test_groups_of_a_row_count_the_ragged_last_one():
    assert QuantScheme(8, 128, True).groups(576) == 5
    assert QuantScheme(8, 128, True).groups(512) == 4
    assert QuantScheme(8, None, True).groups(576) == 1
    assert sequential_groups(5, 2).tolist() == [0, 0, 1, 1, 2]
    assert sequential_groups(3, None).tolist() == [0, 0, 0]


def test_the_first_rule_that_matches_decides():
    four, eight = QuantScheme(4, 128, True), QuantScheme(8, 64, True)
    plan = SchemePlan(four, (SchemeRule("layers.0.*", None), SchemeRule("*.down_proj", eight)))
    assert plan.scheme_for("model.layers.0.mlp.down_proj") is None
    assert plan.scheme_for("model.layers.10.mlp.down_proj") == eight
    assert plan.scheme_for("model.layers.10.mlp.up_proj") == four
    assert plan.scheme_for("lm_head") is None
    assert SchemePlan(four, lm_head=eight).scheme_for("lm_head") == eight


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("down_proj", "model.layers.3.mlp.down_proj", True),
        ("own_proj", "model.layers.3.mlp.down_proj", False),
        ("layers.?.mlp.*", "model.layers.3.mlp.up_proj", True),
        ("layers.?.mlp.*", "model.layers.13.mlp.up_proj", False),
        ("layers.3", "model.layers.3.mlp.up_proj", False),
        ("a+b", "a+b", True),
        ("a+b", "aab", False),
    ],
)
def test_patterns_may_leave_out_leading_parts(pattern, name, matches):
    assert SchemeRule(pattern, None).matches(name) == matches


def test_a_weight_is_scale_times_code_minus_zero():
    weight = QuantizedWeight(
        codes=torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8),
        scales=torch.tensor([[0.5, 2.0]], dtype=torch.float16),
        zeros=torch.tensor([[1, 3]], dtype=torch.int16),
        group_of_column=torch.tensor([0, 1, 0, 1], dtype=torch.int32),
        scheme=QuantScheme(2, 2, False),
    )
    assert dequantize(weight).tolist() == [[-0.5, -4.0, 0.5, 0.0]]
    assert dequantize(weight, torch.float64).dtype == torch.float64
