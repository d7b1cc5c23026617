"""The house rules, read off the source by `ast`: imports go down only, names do not clash, nothing grows too long.

Rooms and layers are those of docs/architecture.md, and are written down nowhere else.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

LONGEST_FILE = 500
LONGEST_FUNCTION = 60
WIDEST_SIGNATURE = 6
# Here each flag is a parameter, and a signature as wide as the command has flags.
COMMAND_LINE = {"octavo.cli", "octavo.cli_judging", "octavo.cli_publishing", "octavo.cli_serving"}

# From the name of a module, such as "octavo.weights" or "octavo.model.__init__", to its source.
House = dict[str, str]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def read_house() -> House:
    folder = ROOT / "src"
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted(folder.glob("octavo/**/*.py"))
    }


def room(module: str) -> str:
    """`octavo.model.config` stands in the room `model`; `octavo.weights` is a room of one module."""
    return module.split(".")[1]


def code_block(heading: str) -> str:
    """The first fenced block below a heading of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return text.split(f"\n## {heading}\n", 1)[1].split("```")[1]


def layers() -> defaultdict[str, int]:
    """Each room and its layer, counted from the top; octavo/__init__ stands above, for it exports from all."""
    lines = code_block("Imports go down only").strip().splitlines()
    placed = {name: layer for layer, line in enumerate(lines, start=1) for name in line.split()}
    return defaultdict(int, placed)


def imported_names(module: str, source: str) -> Iterator[str]:
    """Absolute names, wherever the line stands: at the top, in a function, for a type checker only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def imports(module: str, house: House) -> set[str]:
    """Modules of the house that a module imports; what is no module itself comes from the one that holds it."""
    found = set()
    for name in imported_names(module, house[module]):
        holder = name.rpartition(".")[0]
        candidates = (name, f"{name}.__init__", holder, f"{holder}.__init__")
        # The version is bound before any room can be imported, so every room may have it.
        if name != "octavo.__version__":
            found |= set([candidate for candidate in candidates if candidate in house][:1])
    return found


def imports_that_do_not_go_down(house: House) -> list[str]:
    layer = layers()
    return [
        f"{module} imports {imported}"
        for module in house
        for imported in sorted(imports(module, house))
        if room(imported) != room(module) and layer[room(imported)] <= layer[room(module)]
    ]


def import_cycles(house: House) -> list[str]:
    try:
        TopologicalSorter({module: imports(module, house) for module in house}).prepare()
    except CycleError as error:
        return [" imports ".join(reversed(error.args[1]))]
    return []


def names_that_clash(house: House) -> list[str]:
    """Importing a module `octavo.load` would bind `octavo.load` anew, and so hide a function of that name."""
    exports = {
        name
        for node in ast.parse(house["octavo.__init__"]).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for name in ast.literal_eval(node.value)
    }
    return [f"octavo.{name} is an export and a module" for name in sorted(exports & {room(m) for m in house})]


def long_files(house: House) -> list[str]:
    lengths = {module: len(source.splitlines()) for module, source in house.items()}
    return [f"{module} has {lines} lines" for module, lines in lengths.items() if lines > LONGEST_FILE]


def functions(source: str) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, Function))


def length(module: str, function: Function) -> int:
    """In lines; a command's signature is its list of flags and does not count."""
    first = function.body[0] if module in COMMAND_LINE else function
    return function.end_lineno - first.lineno + 1


def long_functions(house: House) -> list[str]:
    return [
        f"{module}.{function.name} has {lines} lines"
        for module, source in house.items()
        for function in functions(source)
        if (lines := length(module, function)) > LONGEST_FUNCTION
    ]


def parameters(signature: ast.arguments) -> list[str]:
    """Names of all parameters but `self` and `cls`."""
    every = [*signature.posonlyargs, *signature.args, signature.vararg, *signature.kwonlyargs, signature.kwarg]
    return [parameter.arg for parameter in every if parameter and parameter.arg not in {"self", "cls"}]


def wide_signatures(house: House) -> list[str]:
    return [
        f"{module}.{function.name} has {width} parameters"
        for module, source in house.items()
        if module not in COMMAND_LINE
        for function in functions(source)
        if (width := len(parameters(function.args))) > WIDEST_SIGNATURE
    ]


def swallows_everything(handler: ast.ExceptHandler) -> bool:
    """Whether it catches whatever comes, and goes on. Some libraries raise `Exception`: to raise anew is fine."""
    broad = handler.type is None or re.search(r"\b(Base)?Exception\b", ast.unparse(handler.type))
    return bool(broad) and not isinstance(handler.body[-1], ast.Raise)


def swallowed_exceptions(house: House) -> list[str]:
    return [
        f"{module} swallows everything in line {node.lineno}"
        for module, source in house.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ExceptHandler) and swallows_everything(node)
    ]


# Each rule, a house that breaks it beside what is allowed, and what the rule says.
RULES = [
    (
        imports_that_do_not_go_down,
        {
            "octavo.__init__": "def __getattr__(name):\n    from octavo.model import load",
            "octavo.model.__init__": "import octavo\nfrom octavo import errors",
            "octavo.model.load": "from octavo.weights import Weight\nfrom . import llama\nfrom .. import runtime",
            "octavo.model.llama": "import torch",
            "octavo.runtime.__init__": "",
            "octavo.records": "import octavo.weights",
            "octavo.weights": "from octavo import __version__\ndef later():\n    from octavo.model.load import f",
            "octavo.errors": "if TYPE_CHECKING:\n    from octavo import quantize",
        },
        [
            "octavo.model.__init__ imports octavo.__init__",
            "octavo.model.load imports octavo.runtime.__init__",
            "octavo.records imports octavo.weights",
            "octavo.weights imports octavo.model.load",
            "octavo.errors imports octavo.__init__",
        ],
    ),
    (
        import_cycles,
        {
            "octavo.model.load": "from octavo.model.llama import forward",
            "octavo.model.llama": "def later():\n    from octavo.model import load",
        },
        ["octavo.model.load imports octavo.model.llama imports octavo.model.load"],
    ),
    (
        names_that_clash,
        {"octavo.__init__": "__all__ = ['load', 'quantize']", "octavo.model.load": "", "octavo.quantize": ""},
        ["octavo.quantize is an export and a module"],
    ),
    (
        long_files,
        {"octavo.errors": "pass\n" * 501, "octavo.weights": "pass\n" * 500},
        ["octavo.errors has 501 lines"],
    ),
    (
        long_functions,
        {
            "octavo.errors": "class A:\n  async def long():\n" + "    pass\n" * 60,
            "octavo.weights": "@decorated\ndef f():\n" + "    pass\n" * 59,
            "octavo.cli": "def f(\n  a,\n  b,\n):\n" + "    pass\n" * 60 + "def long():\n" + "    pass\n" * 61,
        },
        ["octavo.errors.long has 61 lines", "octavo.cli.long has 61 lines"],
    ),
    (
        wide_signatures,
        {
            "octavo.errors": "def wide(a, /, b, *c, d, e, f, **g): ...",
            "octavo.weights": "class A:\n  def f(self, a, b, c, d, e, f): ...",
            "octavo.cli": "def command(a, b, c, d, e, f, g): ...",
        },
        ["octavo.errors.wide has 7 parameters"],
    ),
    (
        swallowed_exceptions,
        {
            "octavo.errors": "try: ...\nexcept (OSError, BaseException): ...",
            "octavo.weights": "try: ...\nexcept: ...",
            "octavo.records": "try: ...\nexcept OSError: ...\nexcept Exception as error: ...",
            "octavo.schemes": "try: ...\nexcept Exception as error:\n  raise ValueError('clear') from error",
        },
        [
            "octavo.errors swallows everything in line 2",
            "octavo.weights swallows everything in line 2",
            "octavo.records swallows everything in line 3",
        ],
    ),
]


@pytest.mark.parametrize("rule", [rule for rule, _, _ in RULES])
def test_the_house_keeps_the_rule(rule):
    assert rule(read_house()) == []


@pytest.mark.parametrize(("rule", "house", "complaints"), RULES)
def test_the_rule_can_be_broken(rule, house, complaints):
    assert rule(house) == complaints


def test_every_room_stands_on_one_layer():
    placed = code_block("Imports go down only").split()
    assert sorted(placed) == sorted({room(module) for module in read_house()} - {"__init__"})


def test_the_drawing_shows_every_module_and_no_other():
    drawn = set(re.findall(r"^([\w/]+(?:/|\.py)) ", code_block("The house"), re.MULTILINE))
    paths = {module.removeprefix("octavo.").replace(".", "/") + ".py" for module in read_house()}
    assert drawn == {path.replace("/__init__.py", "/") for path in paths}
