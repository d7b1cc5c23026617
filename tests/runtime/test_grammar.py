"""Grammars: what may come is what the grammar lets come, and what they may cost is bounded."""

import json
import random
import re
import time

import pytest

from byte_tokenizer import write_byte_tokenizer
from conftest import shared
from octavo.errors import GrammarError
from octavo.model.tokenizer import load_tokenizer
from octavo.runtime.grammar import ANY_OBJECT, GrammarCompiler

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory):
    return load_tokenizer(write_byte_tokenizer(tmp_path_factory.mktemp("bytes")))


@pytest.fixture(scope="module")
def compiler(bytewise):
    return GrammarCompiler(bytewise)


def allowed(grammar):
    return [token for token in range(259) if int.from_bytes(grammar.allowed(), "little") >> token & 1]


def drawn(tokenizer, grammar, seed, most=400):
    """A text that is written at random within a grammar; None where it grows too long."""
    choose = random.Random(seed)
    tokens = []
    while not grammar.finished and len(tokens) < most:
        token = choose.choice(allowed(grammar))
        if token in tokenizer.eos_ids:
            return tokenizer.decode(tokens)
        grammar.accept(token)
        tokens.append(token)
    return tokenizer.decode(tokens) if grammar.finished else None


def test_what_may_come_is_written_out(compiler):
    grammar = compiler.from_pattern("ab?c")
    assert allowed(grammar) == [3 + ord("a")]
    grammar.accept(3 + ord("a"))
    assert allowed(grammar) == [3 + ord("b"), 3 + ord("c")]
    other = grammar.copy()
    grammar.accept(3 + ord("c"))
    assert grammar.finished and not other.finished
    other.accept(3 + ord("b"))
    assert allowed(other) == [3 + ord("c")]
    optional = compiler.from_pattern("a*")
    assert allowed(optional) == [2, 3 + ord("a")]  # </s>, or one more


@pytest.mark.parametrize("pattern", [r"[0-9]{3}-[a-f]+", r"(yes|no|perhaps)\\.", "é🦉?x{2,4}"])
def test_texts_match_the_regular_expression(bytewise, compiler, pattern):
    for seed in range(20):
        text = drawn(bytewise, compiler.from_pattern(pattern), seed)
        assert text is None or re.fullmatch(pattern, text)


def test_texts_are_json_of_the_schema(bytewise, compiler):
    found = [drawn(bytewise, compiler.from_schema(PERSON), seed) for seed in range(30)]
    people = [json.loads(text) for text in found if text is not None]
    assert len(people) > 10
    for person in people:
        assert person.keys() == {"name", "age"} and len(person["name"]) <= 5 and person["age"] >= 0
    found = [drawn(bytewise, compiler.from_schema(ANY_OBJECT), seed) for seed in range(30)]
    assert all(isinstance(json.loads(text), dict) for text in found if text is not None)


def test_a_sentencepiece_vocabulary_follows_too():
    tokenizer = load_tokenizer(shared("tokenizers/llama-32000"))
    grammar = GrammarCompiler(tokenizer).from_pattern(" (Hello|there) world")
    bits = int.from_bytes(grammar.allowed(), "little")
    hello = tokenizer.id_of("▁Hello")
    assert bits >> hello & 1 and not bits >> tokenizer.id_of("▁world") & 1 and not bits >> 2 & 1
    grammar.accept(hello)
    grammar.accept(tokenizer.id_of("▁world"))
    assert grammar.finished


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"type": "object", "properties": 5},
        {"$ref": "http://example.com/schema.json"},
        {"type": "string", "pattern": "(a"},
        {"unevaluatedProperties": False, "contains": {"type": "string"}, "type": "array"},
    ],
)
def test_schemas_that_are_wrong_or_say_what_is_not_checked_are_refused(compiler, schema):
    with pytest.raises(GrammarError):
        compiler.from_schema(schema)


ATTACKS = [
    "(" * 2000 + ")" * 2000,
    "a{1,100000}",
    "(a{1,1000}){1,1000}",
    "((((((a{1,60}){1,60}){1,60}){1,60}){1,60}){1,60})",
    "(a|b|ab)*c{5000}",
    "(.*.*.*.*.*.*.*.*.*.*a){20}",
    "[a-z]{0,500}[^a]*" * 100,
    "(?=a)b",
    r"(a)\\1",
    "x" * 5000,
    "(a",
]


@pytest.mark.parametrize("pattern", ATTACKS)
def test_costly_patterns_are_refused_or_cheap(compiler, pattern):
    # Time of the processor, so that a busy machine does not count against the bounds.
    started = time.process_time()
    try:
        grammar = compiler.from_pattern(pattern)
        for _ in range(20):
            started = time.process_time()
            grammar.accept(allowed(grammar)[-1])
            if grammar.finished:
                break
    except GrammarError as error:
        assert len(str(error)) < 500
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    "source", ["c{5000}", "(a|b|ab)*c{5000}", {"const": "c" * 5000}], ids=["one", "branches", "schema"]
)
def test_a_text_that_is_forced_costs_no_more_than_one_that_is_free(source):
    """Over 32,000 tokens; 60 steps take some 10 ms of the processor, and 2 s where what is forced is tokenized."""
    tokenizer = load_tokenizer(shared("tokenizers/llama-32000"))
    compiler = GrammarCompiler(tokenizer)
    grammar = compiler.from_pattern(source) if isinstance(source, str) else compiler.from_schema(source)
    letter = tokenizer.id_of("c")
    if not isinstance(source, str):
        grammar.accept(tokenizer.id_of('"'))
    grammar.accept(letter)
    started = time.process_time()
    for _ in range(60):
        bits = int.from_bytes(grammar.allowed(), "little")
        assert bits >> letter & 1 and bits >> tokenizer.id_of("cc") & 1
        grammar.accept(letter)
    assert time.process_time() - started < 0.4


def deep(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        deep(400),
        {"anyOf": [deep(3)] * 800},
        {"type": "array", "minItems": 100_000, "items": {"type": "integer"}},
        {"type": "string", "minLength": 1_000_000},
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "object", "properties": {f"key{n}": {"type": "string"} for n in range(1000)}},
        {"enum": ["x" * 70_000]},
    ],
    ids=["deep", "wide", "items", "length", "self", "circle", "properties", "long"],
)
def test_costly_schemas_are_refused_or_cheap(compiler, schema):
    started = time.monotonic()
    try:
        allowed(compiler.from_schema(schema))
    except GrammarError as error:
        assert len(str(error)) < 500
    assert time.monotonic() - started < 30  # unbounded, it takes minutes
