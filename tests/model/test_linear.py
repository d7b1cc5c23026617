"""LLM.int8() against its definition over lists of numbers."""

import numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.model.linear import make_int8_linear
from octavo.weights import DenseWeight

CPU = torch.device("cpu")
numbers = st.floats(-5, 5, width=16)


def int8_row(row: list[float]) -> tuple[list[int], float]:
    """Quotients rounded to float32 first, half to even, as the tensors are."""
    scale = numpy.float32(max(map(abs, row)) or 1.0) / numpy.float32(127)
    return [int(numpy.rint(numpy.float32(value) / scale)) for value in row], float(scale)


def llm_int8(inputs: list[list[float]], weight: list[list[float]]) -> list[list[float]]:
    """Outlier columns in full, the others as products of whole numbers."""
    columns = range(len(weight[0]))
    outliers = {column for column in columns if any(abs(row[column]) >= 6.0 for row in inputs)}
    result = []
    for row in inputs:
        codes, scale = int8_row([0.0 if column in outliers else row[column] for column in columns])
        outputs = []
        for weights in weight:
            weight_codes, weight_scale = int8_row(weights)
            whole = sum(code * other for code, other in zip(codes, weight_codes, strict=True))
            high = sum(row[column] * weight_codes[column] * weight_scale for column in outliers)
            outputs.append(whole * scale * weight_scale + high)
        result.append(outputs)
    return result


@given(st.data())
def test_llm_int8_is_its_definition(data: st.DataObject) -> None:
    rows, columns, outputs = (data.draw(st.integers(1, 5)) for _ in range(3))
    value = st.one_of(numbers, st.sampled_from([0.0, 5.996, 6.0, -6.0, 60.0]))
    inputs = data.draw(st.lists(st.lists(value, min_size=columns, max_size=columns), min_size=rows, max_size=rows))
    weight = data.draw(
        st.lists(st.lists(numbers, min_size=columns, max_size=columns), min_size=outputs, max_size=outputs)
    )
    linear = make_int8_linear(DenseWeight(torch.tensor(weight)), None, CPU, torch.float32)
    got = linear(torch.tensor(inputs))
    assert torch.allclose(got, torch.tensor(llm_int8(inputs, weight)), rtol=1e-5, atol=1e-4)


def test_llm_int8_by_hand() -> None:
    weight = DenseWeight(torch.tensor([[1.27, -0.6, 0.01], [0.0, 0.0, 0.0]]))
    bias = torch.tensor([0.5, -0.5])
    linear = make_int8_linear(weight, bias, CPU, torch.float32)
    assert linear.kernel == "LLM.int8()" and linear.refusals == {}
    # Scales: 0.01 of the weight's row, 1 / 127 of the inputs' (8 is an outlier): 127·127 − 64·60, and 8 · 0.01.
    got = linear(torch.tensor([[1.0, 0.5, 8.0]]))
    assert torch.allclose(got, torch.tensor([[(127 * 127 - 64 * 60) * 0.01 / 127 + 0.08 + 0.5, -0.5]]))


def test_an_outlier_of_one_row_is_one_for_all() -> None:
    """As in bitsandbytes: the columns are those of the whole call."""
    weight = DenseWeight(torch.eye(2))
    linear = make_int8_linear(weight, None, CPU, torch.float32)
    alone = linear(torch.tensor([[1.0, 0.004]]))
    assert alone.tolist() == [[1.0, torch.tensor(1 / 127).item()]]
    beside = linear(torch.tensor([[1.0, 0.004], [7.0, 0.0]]))
    assert torch.allclose(beside[0], torch.tensor([1.0, 0.004]), atol=1e-6)


def test_shapes_and_dtypes_stay() -> None:
    weight = DenseWeight(torch.randn(3, 4))
    linear = make_int8_linear(weight, None, CPU, torch.float16)
    got = linear(torch.zeros(2, 5, 4, dtype=torch.float16))
    assert got.shape == (2, 5, 3) and got.dtype == torch.float16 and got.eq(0).all()
