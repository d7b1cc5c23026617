"""Chat templates are strangers' programs, in Jinja: here they run in a sandbox that counts what they spend.

Contents of messages go in disguise, so that control tokens which people typed can be told from the template's own.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from types import CodeType
from typing import Any, cast

from octavo.errors import TemplateError

# Characters of a template (those of models have at most some twenty thousand), and of any text that it makes.
LARGEST_TEMPLATE = 128 * 1024
LARGEST_TEXT = 8 * 1024 * 1024
# What a rendering may take, some seconds at most: a step is a node of the template, each time that a loop or macro
# comes to it, a value made, or 16 characters or 4 items read. Sorting lists of long lists takes longer than it
# counts, so whoever renders templates of strangers should limit the time as well.
MOST_STEPS = 5_000_000

# Left out of Jinja: what pads, repeats or formats, for a few characters of template could ask it for any amount of
# text, and what takes more time than its input is long.
GROWING_METHODS = {"center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill"}
GROWING_FILTERS = {"batch", "center", "format", "indent", "pprint", "round", "slice", "striptags", "sum", "urlize"}


@dataclass(frozen=True)
class Disguise:
    """Characters of control tokens, each exchanged for one that occurs nowhere in the inputs; and back.

    A template may slice, trim, split, join and measure disguised text as if it were not.
    """

    hidden: Mapping[int, str]
    shown: Mapping[int, str]

    def hide(self, text: str) -> str:
        return text.translate(self.hidden)

    def show(self, text: str) -> str:
        return text.translate(self.shown)


def make_disguise(alphabet: set[str], texts: Iterable[str]) -> Disguise:
    """A disguise of private-use characters. White space stays, so that it can be trimmed."""
    used = set().union(*texts)
    free = (chr(code) for code in range(0x100000, 0x10FFFE) if chr(code) not in used)
    letters = sorted(character for character in alphabet if not character.isspace())
    pairs = dict(zip(letters, free, strict=False))
    if len(pairs) < len(letters):
        raise TemplateError("the messages hold so many private-use characters that none is left; remove them")
    return Disguise(
        {ord(letter): mask for letter, mask in pairs.items()},
        {ord(mask): letter for letter, mask in pairs.items()},
    )


class _Rendering:
    """One run of a template: what it may still spend, and functions that take the place of Jinja's."""

    def __init__(self, disguise: Disguise) -> None:
        self.disguise = disguise
        self.steps = MOST_STEPS

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise TemplateError(f"the chat template takes more than {MOST_STEPS:,} steps; it may be without end")

    def counted(self, items: Iterable[Any], nodes: int) -> Iterator[Any]:
        """What a loop goes over; each time round costs the nodes of its body."""
        for item in items:
            self.spend(nodes)
            yield item

    def read(self, value: Any) -> Any:
        """A value that a filter or a method goes through."""
        size = len(value) if hasattr(value, "__len__") else 0
        self.spend(1 + size // (16 if isinstance(value, str) else 4))
        return value

    def compared(self, value: Any) -> Any:
        """A side of a comparison, without disguise: what a template finds in a message does not depend on it."""
        self.made(value)
        return self.disguise.show(value) if isinstance(value, str) else value

    def made(self, value: Any) -> Any:
        """A value that an expression made, paid for by its size as a tree, in which a part may come many times."""
        parts = [value]
        while parts:
            part = parts.pop()
            self.read(part)
            if isinstance(part, str):
                self.check_size(len(part))
            elif isinstance(part, dict):
                parts += [*part.keys(), *part.values()]
            elif isinstance(part, list | tuple):
                parts += part
        return value

    def check_size(self, characters: int) -> None:
        if characters > LARGEST_TEXT:
            raise TemplateError(f"the chat template makes a text of more than {LARGEST_TEXT:,} characters")

    def concatenated(self, pieces: Iterable[Any]) -> str:
        """`"".join`, stopped before it grows too large."""
        texts: list[str] = []
        size = 0
        for piece in pieces:
            texts.append(str(piece))
            size += len(texts[-1])
            self.check_size(size)
        return "".join(texts)

    def called(self, method: Any, *arguments: Any, **named: Any) -> Any:
        """A method of a string. Where the string is in disguise, so is what is looked for in it."""
        text = self.read(method.__self__)
        if text != self.disguise.show(text):
            arguments = tuple(self.disguise.hide(item) if isinstance(item, str) else item for item in arguments)
            named = {
                name: self.disguise.hide(item) if isinstance(item, str) else item for name, item in named.items()
            }
        if method.__name__ == "join":
            arguments = tuple(list(items) for items in arguments)
            self.check_size(sum(len(text) + len(item) for items in arguments for item in items))
        if method.__name__ == "replace":
            self.check_size(len(text) + text.count(arguments[0]) * len(arguments[1]))
        return method(*arguments, **named)

    def replaced(self, value: Any, *arguments: Any) -> Any:
        return self.called(str(value).replace, *arguments)

    def joined(self, items: Iterable[Any], separator: str = "") -> Any:
        return self.called(str(separator).join, map(str, items))

    def to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Hugging Face's `tojson`, which does not escape HTML."""
        if (indent or 0) > 16 or len("".join(separators or ())) > 16:
            raise TemplateError("the chat template wants JSON with more than 16 characters between two values")
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def check_operator(self, operator: str, left: Any, right: Any) -> None:
        """Refuse the operators, and their uses, that make much of little."""
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or (operator == "%" and not numbers):
            raise TemplateError(
                f"the chat template uses the operator {operator} in a way that Octavo does not offer"
            )
        if operator == "*" and numbers and abs(left * right) > 2**63:
            raise TemplateError("the chat template multiplies its way to a number of more than 63 bits")
        if operator == "*" and not numbers:
            self.check_size(math.prod(value if isinstance(value, int) else len(value) for value in (left, right)))


def run_template(source: str, variables: Mapping[str, Any], disguise: Disguise, now: datetime) -> str:
    import jinja2

    code, nodes = _compiled(source)
    sandbox = _sandbox(_Rendering(disguise), nodes, now)
    template = jinja2.Template.from_code(sandbox, code, sandbox.make_globals(None))
    try:
        return template.render(variables)
    except TemplateError:
        raise
    except Exception as error:  # a template is a stranger's program and may raise anything
        raise TemplateError(f"the chat template fails on these messages: {error}") from error


@lru_cache(maxsize=16)
def _compiled(source: str) -> tuple[CodeType, int]:
    """A template as Python code that runs under a `_Rendering`, and the number of its nodes."""
    import jinja2

    if len(source) > LARGEST_TEMPLATE:
        raise TemplateError(f"the chat template has {len(source)} characters; {LARGEST_TEMPLATE} are the limit")
    # These tags mark replies for training; their bodies are ordinary.
    source = re.sub(r"\{%([-+]?)\s*generation\s*([-+]?)%\}", r"{%\1 if true \2%}", source)
    source = re.sub(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}", r"{%\1 endif \2%}", source)
    sandbox = _sandbox(_Rendering(Disguise({}, {})), nodes=0, now=datetime.now())
    try:
        tree = sandbox.parse(source)
        nodes = sum(1 for _ in tree.find_all(jinja2.nodes.Node))
        _instrument(tree)
        return sandbox.compile(tree, filename="chat template"), nodes
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template is broken in line {error.lineno}: {error.message}") from error
    except (MemoryError, RecursionError, SyntaxError) as error:
        raise TemplateError(f"the chat template is nested too deeply: {error}") from error


def _instrument(tree: Any) -> None:
    """Lead loops, comparisons and new values through a `_Rendering`, by filters that no template can name."""
    from jinja2 import nodes

    def through(name: str, node: Any, *arguments: int) -> Any:
        constants = [nodes.Const(argument) for argument in arguments]
        return nodes.Filter(node, name, constants, [], None, None, lineno=node.lineno)

    def rewritten(node: Any) -> Any:
        size = sum(1 for _ in node.find_all(nodes.Node)) if isinstance(node, nodes.For) else 0
        for field, value in node.iter_fields():
            if isinstance(value, list):
                value[:] = [rewritten(item) if isinstance(item, nodes.Node) else item for item in value]
            elif isinstance(value, nodes.Node):
                setattr(node, field, rewritten(value))
        match node:
            case nodes.For(recursive=True):
                raise TemplateError(
                    f"the chat template loops recursively in line {node.lineno}; write it as a macro"
                )
            case nodes.For():
                node.iter = through("!counted", node.iter, size)
            case nodes.CallBlock():
                node.call = cast(Any, node.call).node  # Jinja wants the call itself here
            case nodes.Compare() | nodes.Operand():
                node.expr = through("!compared", node.expr)
            case nodes.Concat():
                return through("!concatenated", nodes.List(node.nodes, lineno=node.lineno))
            case nodes.Filter(node=nodes.Expr()):
                node.node = through("!read", node.node)
                return through("!made", node)
            case nodes.Add() | nodes.Mul() | nodes.Call() | nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load"):
                return through("!made", node)
            case nodes.NSRef(attr=str(name)) if name.startswith("_"):
                raise TemplateError(
                    f"the chat template sets {name}; names there must not begin with an underscore"
                )
        return node

    rewritten(tree)


@cache
def _sandbox_type() -> Any:
    """Jinja's sandbox for strangers' templates, in which everything called and multiplied is paid for."""
    import jinja2
    from jinja2.runtime import BlockReference, Macro
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Namespace(jinja2.utils.Namespace):
        def __repr__(self) -> str:  # Jinja's shows what is inside, over and over
            return "namespace"

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "%"})
        namespace = Namespace
        rendering: _Rendering
        macro_cost: int

        def wrap_str_format(self, value: Any) -> None:
            """Jinja would offer str.format, before it asks what is safe."""

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            grows = isinstance(obj, str) and attr in GROWING_METHODS
            return not grows and super().is_safe_attribute(obj, attr, value)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            self.rendering.check_operator(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, /, *arguments: Any, **named: Any) -> Any:
            if isinstance(getattr(function, "__self__", None), str):
                own = {name: value for name, value in named.items() if not name.startswith("_")}  # not Jinja's
                return self.rendering.called(function, *arguments, **own)
            self.rendering.spend(self.macro_cost if isinstance(function, Macro | BlockReference) else 1)
            return super().call(context, function, *arguments, **named)

    return Sandbox


def _sandbox(rendering: _Rendering, nodes: int, now: datetime) -> Any:
    """Hugging Face's environment for chat templates, less what makes much of little."""
    import jinja2
    from jinja2.sandbox import safe_range

    sandbox = _sandbox_type()(
        trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.rendering, sandbox.macro_cost = rendering, nodes
    sandbox.concat = rendering.concatenated
    # A finalizer that takes the context is not run on constants while compiling.
    sandbox.finalize = jinja2.pass_context(lambda _, value: rendering.made(value))
    sandbox.globals = {
        "range": safe_range,
        "dict": lambda **items: items,
        "namespace": lambda **variables: sandbox.namespace(variables),
        "raise_exception": _raise_exception,
        "strftime_now": now.strftime,
    }
    sandbox.filters = {name: sandbox.filters[name] for name in sandbox.filters.keys() - GROWING_FILTERS} | {
        "join": rendering.joined,
        "replace": rendering.replaced,
        "tojson": rendering.to_json,
        "!counted": rendering.counted,
        "!compared": rendering.compared,
        "!concatenated": rendering.concatenated,
        "!read": rendering.read,
        "!made": rendering.made,
    }
    return sandbox


def _raise_exception(message: str) -> None:
    raise TemplateError(f"the chat template refuses these messages: {message}")
