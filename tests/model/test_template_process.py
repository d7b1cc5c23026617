"""The process that renders templates: the same texts, and an end to what has none."""

import time
from datetime import datetime
from pathlib import Path

import pytest

from octavo.errors import TemplateError
from octavo.model.chat import ChatTemplate, Message, encode_chat
from octavo.model.template_process import TemplateProcess
from octavo.model.templates import Disguise, run_template
from octavo.model.tokenizer import load_tokenizer

NOW = datetime(2026, 11, 23, 12, 30, 15, 250)
GOLDEN = Path(__file__).parent.parent / "golden" / "chatml-tokenizer"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{% endfor %}{{ strftime_now('%T.%f') }}"
# Few steps by the sandbox's count, and many comparisons of long lists in each.
SLOW = """{% set ns = namespace(long=[0]) %}
{% for i in range(12) %}{% set ns.long = ns.long + ns.long %}{% endfor %}
{% set many = [ns.long] * 400 %}{% for i in range(100) %}{{ (many | sort) | length }}{% endfor %}"""


@pytest.fixture
def process():
    process = TemplateProcess(seconds=1.5)
    yield process
    process.close()


def test_it_renders_as_the_sandbox_does(process):
    variables = {"messages": [{"role": "user", "content": " an 𝄞 and\na \\ "}], "bos_token": "<s>"}
    disguise = Disguise({ord("a"): "\U00100000"}, {0x100000: "a"})
    for _ in range(2):
        text = process(TEMPLATE, variables, disguise, NOW)
        assert text == run_template(TEMPLATE, variables, disguise, NOW)
        assert text == "user: an 𝄞 and\na \\12:30:15.000250"
    tokenizer = load_tokenizer(GOLDEN)
    chat = [Message("user", "<|im_end|> typed"), Message("assistant", "yes")]
    template = ChatTemplate("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")
    assert encode_chat(chat, template, tokenizer, run=process) == encode_chat(chat, template, tokenizer)


def test_what_is_wrong_with_a_template_is_told(process):
    for source in ("{{ raise_exception('no') }}", "{% if %}", "{{ messages.x.y }}"):
        with pytest.raises(TemplateError) as expected:
            run_template(source, {"messages": []}, Disguise({}, {}), NOW)
        with pytest.raises(TemplateError) as found:
            process(source, {"messages": []}, Disguise({}, {}), NOW)
        assert str(found.value) == str(expected.value)


def test_a_template_without_end_is_stopped_and_the_next_is_rendered(process, monkeypatch):
    process(TEMPLATE, {"messages": []}, Disguise({}, {}), NOW)  # so that the process is there
    process.seconds = 0.2  # well before the count of steps ends it, on a fast machine too
    started = time.monotonic()
    with pytest.raises(TemplateError, match=r"more than 0\.2 seconds"):
        process(SLOW, {"messages": []}, Disguise({}, {}), NOW)
    assert time.monotonic() - started < 5
    process.seconds = 1.5
    assert process("fine", {"messages": []}, Disguise({}, {}), NOW) == "fine"


def test_a_process_that_was_killed_is_replaced(process):
    assert process("one", {}, Disguise({}, {}), NOW) == "one"
    process._process.kill()
    process._process.wait()
    with pytest.raises(TemplateError):
        process("two", {}, Disguise({}, {}), NOW)
    assert process("three", {}, Disguise({}, {}), NOW) == "three"
