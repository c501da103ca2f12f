"""Questions about a whole schema: whether any finite answer follows it, and how much of it must hold at once.

Pure. Made for schemas whose references all go to `$defs`, as `schema` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from backends.llama_cpp.structured.fixpoint import least_fixpoint

Node = Mapping[str, Any] | bool

_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties")
_SINGLE = ("items", "additionalProperties")
_AT_ONCE = ("pattern", "format", "minLength", "maxLength")
_ROOT = ""
_MANY = Decimal(10**12)


def ends(whole: Mapping[str, Any]) -> bool:
    """Whether an answer that follows the schema can end. One that requires itself without a way out cannot."""
    nodes: dict[str, Node] = {_ROOT: whole, **whole.get("$defs", {})}
    uses = {name: list(_references(node)) for name, node in nodes.items()}
    return _ROOT in least_fixpoint(uses, lambda name, found: _ends(nodes[name], found))


def _name(reference: str) -> str:
    return reference.rpartition("/")[2]


def _references(node: Node) -> Iterator[str]:
    if isinstance(node, bool):
        return
    if "$ref" in node:
        yield _name(node["$ref"])
    for one in _inner(node):
        yield from _references(one)


def _inner(node: Mapping[str, Any]) -> Iterator[Node]:
    for key in _LISTS:
        yield from node.get(key, ())
    for key in _MAPS:
        yield from node.get(key, {}).values()
    for key in _SINGLE:
        if key in node:
            yield node[key]


def _ends(node: Node, found: set[str]) -> bool:
    if isinstance(node, bool):
        return node
    if "$ref" in node and _name(node["$ref"]) not in found:
        return False
    if not all(_ends(one, found) for one in node.get("allOf", ())):
        return False
    for key in ("anyOf", "oneOf"):
        if key in node and not any(_ends(one, found) for one in node[key]):
            return False
    if node.get("type") == "object":
        named, further = node.get("properties", {}), node.get("additionalProperties", True)
        return all(_ends(named.get(key, further), found) for key in node.get("required", ()))
    if node.get("type") == "array":
        least, first = node.get("minItems", 0), node.get("prefixItems", ())
        demanded = [*first[:least], *([node.get("items", True)] if least > len(first) else ())]
        return all(_ends(one, found) for one in demanded)
    return True


class Together:
    """What applies to one value at once, counted too high rather than too low."""

    def __init__(self, defs: Mapping[str, Node]) -> None:
        self._known: dict[str, tuple[int, float]] = {}
        for name in _inside_out(defs):
            self._known[name] = self.of(defs[name])

    def of(self, node: Node) -> tuple[int, float]:
        """The most patterns, formats and lengths of one text, and the largest product of multiples of one number."""
        if isinstance(node, bool):
            return 0, 1
        texts = sum(key in node for key in _AT_ONCE)
        multiple: float = multiple_units(node["multipleOf"]) if "multipleOf" in node else 1
        joined = [self.of(one) for one in node.get("allOf", ())]
        if "$ref" in node:
            # One that is not known yet refers back to this one, and adds nothing to itself.
            joined.append(self._known.get(_name(node["$ref"]), (0, 1)))
        joined += [_most(self.of(one) for one in node.get(key, ())) for key in ("anyOf", "oneOf")]
        for some, product in joined:
            texts += some
            multiple *= product
        within = _most(self.of(one) for one in _inner(node))
        return max(texts, within[0]), max(multiple, within[1])


def _inside_out(defs: Mapping[str, Node]) -> list[str]:
    """The names such that those which others refer to come first, as far as they do not refer to each other."""
    order: dict[str, None] = {}
    entered: set[str] = set()
    todo = [(name, False) for name in defs]
    while todo:
        name, left = todo.pop()
        if left:
            order[name] = None
        elif name not in entered:
            entered.add(name)
            todo.append((name, True))
            todo += [(used, False) for used in _references(defs[name])]
    return list(order)


def _most(several: Iterator[tuple[int, float]]) -> tuple[int, float]:
    texts, multiple = 0, 1.0
    for some, product in several:
        texts, multiple = max(texts, some), max(multiple, product)
    return texts, multiple


def multiple_units(value: float) -> float:
    """A multiple in units of its last digit: 0.25 is 25. Never more than `_MANY`."""
    digits = Decimal(repr(value)).normalize()
    exponent = digits.as_tuple().exponent
    assert isinstance(exponent, int)
    return float(min(digits.scaleb(-exponent) if exponent < 0 else digits, _MANY))
