"""Grammars that a reply must follow: JSON, a JSON schema, a regular expression, by llguidance.

What a client may make the server compute is bounded: the size of what it sends here, and what compiling it and
each step may take by llguidance's own counts. One thing it does not count, and so it must not do: where only one
text can follow, it would tokenize all of that text at every step.
"""

import json
from functools import cached_property
from typing import Any

from octavo.errors import GrammarError
from octavo.model.tokenizer import Tokenizer

MOST_SCHEMA_CHARACTERS = 64 * 1024
MOST_PATTERN_CHARACTERS = 4 * 1024
# llguidance counts in units of its own; at these, compiling takes up to some 50 ms and a step up to some 15 ms.
COMPILING_FUEL = 1_000_000
STEP_FUEL = 200_000
STEP_ITEMS = 50_000
MOST_STATES = 10_000  # up to 2 kB each
MOST_SYMBOLS = 100_000

NO_FORCED_TEXT = '%llguidance {"no_forcing": true}'

ANY_OBJECT = {"type": "object"}


class GrammarCompiler:
    """Grammars over the tokens of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def from_schema(self, schema: dict[str, Any]) -> "TokenGrammar":
        """JSON of a schema; GrammarError where that is wrong, too large, or says what cannot be checked."""
        from llguidance import LLMatcher

        text = json.dumps(schema)
        if len(text) > MOST_SCHEMA_CHARACTERS:
            raise GrammarError(
                f"the JSON schema has {len(text)} characters; {MOST_SCHEMA_CHARACTERS} are the limit"
            )
        # Without a limit on white space a small model may write nothing else.
        options: Any = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,8}"}
        try:
            grammar = json.loads(LLMatcher.grammar_from_json_schema(text, overrides=options))
        except ValueError as error:
            raise GrammarError(f"the JSON schema cannot be used: {error}") from error
        return self._compiled(f"start: %json {json.dumps(grammar['grammars'][0]['json_schema'])}")

    def from_pattern(self, pattern: str) -> "TokenGrammar":
        """Texts that a regular expression, in the syntax of Rust's crate regex, matches as a whole."""
        from llguidance import LLMatcher

        if len(pattern) > MOST_PATTERN_CHARACTERS:
            raise GrammarError(
                f"the regular expression has {len(pattern)} characters; {MOST_PATTERN_CHARACTERS} are the limit"
            )
        grammar = json.loads(LLMatcher.grammar_from_regex(pattern))
        return self._compiled(grammar["grammars"][0]["lark_grammar"])

    def _compiled(self, rules: str) -> "TokenGrammar":
        """A grammar in llguidance's dialect of Lark."""
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            initial_lexer_fuel=COMPILING_FUEL,
            step_lexer_fuel=STEP_FUEL,
            step_max_items=STEP_ITEMS,
            max_lexer_states=MOST_STATES,
            max_grammar_size=MOST_SYMBOLS,
            verbose_errors=False,
        )
        grammar = LLMatcher.grammar_from_lark(f"{NO_FORCED_TEXT}\n{rules}")
        return TokenGrammar(LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits))

    @cached_property
    def _vocabulary(self) -> Any:
        """The tokens as llguidance wants them; control tokens never match a text."""
        from llguidance import LLTokenizer

        ends = [token for token in self._tokenizer.eos_ids if token < self._tokenizer.vocabulary_size]
        if not ends:
            raise GrammarError("this model has no token that ends a reply, so it cannot follow a grammar")
        vocabulary: Any = _Vocabulary(self._tokenizer, ends[0])
        return LLTokenizer(vocabulary, eos_token=ends)


class _Vocabulary:
    """A tokenizer under the names by which llguidance asks for it."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, end: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = end
        self.bos_token_id = tokenizer.bos_id
        self.special_token_ids = sorted(tokenizer.control_ids)
        self.tokens = [self._bytes_of(token) for token in range(tokenizer.vocabulary_size)]

    def _bytes_of(self, token: int) -> bytes:
        """What a token stands for; of one without bytes, a grammar never makes use."""
        if token in self._tokenizer.control_ids:
            return self._tokenizer.spelling(token).encode()
        data = self._tokenizer.bytes_of(token, control_tokens=False)
        return b"" if data.startswith(b"\xff") else data  # no UTF-8, and llguidance's own mark

    def __call__(self, text: str) -> list[int]:
        """Asked for only where a text is forced, which none is."""
        raise GrammarError(f"no text of a grammar is tokenized, but {text[:60]!r} was to be")


class TokenGrammar:
    """One reply on its way through a grammar (a `Grammar` for the engine)."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self._refuse_error()

    def allowed(self) -> bytes:
        bits: bytes = self._matcher.compute_bitmask()
        self._refuse_error()
        if not any(bits):
            raise GrammarError("no token of this model goes on where the grammar stands; change the grammar")
        return bits

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._refuse_error()

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_stopped())

    def copy(self) -> "TokenGrammar":
        """The same place in the same grammar, for another reply."""
        return TokenGrammar(self._matcher.deep_copy())

    def _refuse_error(self) -> None:
        if self._matcher.is_error():
            problem = " ".join(str(self._matcher.get_error()).split())[:300]
            raise GrammarError(f"the grammar is broken or beyond the limits: {problem}")
