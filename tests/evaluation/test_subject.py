"""Names of what is measured."""

from pathlib import Path

import pytest

from octavo.errors import UsageError
from octavo.evaluation.subject import Subject, parse_subject
from octavo.schemes import QuantScheme


@pytest.mark.parametrize(
    ("text", "method", "rounding", "bits_of_row"),
    [
        ("model", None, None, None),
        ("model@fp32", "fp32", None, 32 * 300),
        ("model@bf16", "bf16", None, 16 * 300),
        ("model@llm.int8", "llm.int8", None, 8 * 300 + 32),
        ("model@rtn-8", "rtn-8", QuantScheme(8, None, False), 8 * 300 + 24),
        ("model@rtn-4-128g", "rtn-4-128g", QuantScheme(4, 128, False), 4 * 300 + 3 * 20),
    ],
)
def test_a_folder_and_how_it_is_run(text, method, rounding, bits_of_row) -> None:
    subject = parse_subject(text)
    assert subject == Subject(Path("model"), method)
    assert str(subject) == text
    assert subject.rounding == rounding
    if bits_of_row is not None:
        assert subject.bits_of_row(300) == bits_of_row


def test_a_folder_with_an_at_in_its_name_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model@fp16"
    assert parse_subject(folder) == Subject(tmp_path / "model", "fp16")
    folder.mkdir()
    assert parse_subject(folder) == Subject(folder)


@pytest.mark.parametrize(
    ("text", "model", "method"),
    [
        ("leaves/small", "leaves/small", None),
        ("leaves/small@main", "leaves/small@main", None),
        ("leaves/small@rtn-8", "leaves/small", "rtn-8"),
        ("leaves/small@v2@llm.int8", "leaves/small@v2", "llm.int8"),
        ("leaves/small@rtn-9", "leaves/small@rtn-9", None),
    ],
)
def test_a_name_on_the_hub_may_have_a_revision(text: str, model: str, method: str | None) -> None:
    assert parse_subject(text) == Subject(Path(model), method)


def test_a_folder_of_two_levels_has_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaves" / "small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="main is no baseline"):
        parse_subject("leaves/small@main")


@pytest.mark.parametrize("method", ["int8", "rtn", "rtn-5", "rtn-4-0g", "rtn-4-128", "fp8", ""])
def test_what_is_no_baseline(method: str) -> None:
    with pytest.raises(UsageError, match=f"^{method} is no baseline; choose fp32, bf16, fp16, llm.int8, rtn-8 or"):
        parse_subject(f"model@{method}")
