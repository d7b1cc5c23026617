"""Cases that meet every pair of values of any two axes: most mistakes need no third."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

Case = dict[str, Any]


def pairs_of(case: Case) -> set[tuple[str, Any, str, Any]]:
    return {(a, case[a], b, case[b]) for a, b in itertools.combinations(case, 2)}


def covering_cases(axes: Mapping[str, Sequence[Any]]) -> list[Case]:
    """Greedily: each case starts with a pair not met yet, and takes the value that meets most, axis by axis."""
    missing = {
        (a, value, b, other)
        for a, b in itertools.combinations(axes, 2)
        for value, other in itertools.product(axes[a], axes[b])
    }
    cases = []
    while missing:
        a, value, b, other = min(missing, key=str)
        case = {a: value, b: other}
        for name in axes:
            if name not in case:
                case[name] = max(axes[name], key=lambda choice, name=name: _met(case, name, choice, missing))
        cases.append({name: case[name] for name in axes})
        missing -= pairs_of(cases[-1])
    return cases


def _met(case: Case, name: str, choice: Any, missing: set[tuple[str, Any, str, Any]]) -> int:
    """How many missing pairs `choice` would meet with what a case holds already."""
    return sum(
        (name, choice, other, value) in missing or (other, value, name, choice) in missing
        for other, value in case.items()
    )


def every_case(axes: Mapping[str, Sequence[Any]]) -> list[Case]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
