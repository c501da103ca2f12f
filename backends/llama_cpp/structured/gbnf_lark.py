"""GBNF grammars written as llguidance's dialect of Lark.

Pure. Every character becomes a terminal of its own: llguidance's lexer takes the longest match of a terminal, so that
longer ones would refuse texts that the grammar allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from backends.llama_cpp.structured.fixpoint import least_fixpoint
from backends.llama_cpp.structured.gbnf import (
    ROOT,
    Chars,
    Choice,
    GrammarError,
    Node,
    Reference,
    Repeat,
    Sequence,
    TokenNode,
    TokenOf,
    read_rules,
    references,
)

LARK_ROOT = "gbnf"
"""What the root is named in Lark."""
MAX_LARK_NESTING = 12
"""llguidance's parser ends at some thirty parentheses within each other."""


def to_lark(text: str, token_of: TokenOf) -> str:
    """The same grammar for llguidance, as rules of which `LARK_ROOT` is the first. Raises `GrammarError`."""
    rules = read_rules(text, token_of)
    reached = _reached(rules)
    uses = {name: list(references(node)) for name, node in rules.items()}
    endless = reached - least_fixpoint(uses, lambda name, ending: _ends(rules[name], ending))
    if endless:
        raise GrammarError(f"no text follows the rule {min(endless)}: it refers to itself without an end")
    return _Writer(rules).text([ROOT, *sorted(reached - {ROOT})])


def _reached(rules: Mapping[str, Node]) -> set[str]:
    """The rules that the root makes use of."""
    reached, todo = set[str](), [ROOT]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += references(rules[name])
    return reached


def _ends(node: Node, ending: set[str]) -> bool:
    match node:
        case Reference(name):
            return name in ending
        case Sequence(parts):
            return all(_ends(part, ending) for part in parts)
        case Choice(parts):
            return any(_ends(part, ending) for part in parts)
        case Repeat(part, least):
            return least == 0 or _ends(part, ending)
        case _:
            return True


def _as_repetition(name: str, node: Node) -> Node:
    """A rule that ends in itself as one that repeats: each round of such a rule costs llguidance another state.

    `x ::= a x | b` is `x ::= a* b`, and `x ::= (a x)?` is `x ::= a*`.
    """
    if isinstance(node, Repeat) and (node.least, node.most) == (0, 1):
        node = Choice((node.part, Sequence(())))
    if not isinstance(node, Choice):
        return node
    rounds: list[Node] = []
    last: list[Node] = []
    for one in node.alternatives:
        ends_in_itself = isinstance(one, Sequence) and one.parts[-1:] == (Reference(name),) and len(one.parts) > 1
        if ends_in_itself:
            assert isinstance(one, Sequence)
            rounds.append(Sequence(one.parts[:-1]))
        else:
            last.append(one)
    if not rounds or not last or any(name in references(one) for one in (*rounds, *last)):
        return node
    return Sequence((Repeat(Choice(tuple(rounds)), 0, None), Choice(tuple(last))))


class _Writer:
    """Writes rules under names of its own: llguidance takes a name in capitals for a terminal."""

    def __init__(self, rules: Mapping[str, Node]) -> None:
        self._rules = rules
        self._names = {name: LARK_ROOT if name == ROOT else f"g{index}" for index, name in enumerate(rules)}
        self._lines: list[str] = []

    def text(self, names: Iterable[str]) -> str:
        for name in names:
            self._rule(self._names[name], _as_repetition(name, self._rules[name]))
        return "\n".join(self._lines)

    def _rule(self, name: str, node: Node) -> None:
        place = len(self._lines)
        self._lines.append("")
        self._lines[place] = f"{name}: {self._alternatives(node, 0)}"

    def _alternatives(self, node: Node, depth: int) -> str:
        several = node.alternatives if isinstance(node, Choice) else (node,)
        return " | ".join(self._sequence(one, depth) for one in several)

    def _sequence(self, node: Node, depth: int) -> str:
        parts = node.parts if isinstance(node, Sequence) else (node,)
        return " ".join(self._part(one, depth) for one in parts) if parts else '""'

    def _part(self, node: Node, depth: int) -> str:
        match node:
            case Chars(ranges, negated):
                return _class(ranges, negated=negated)
            case TokenNode(token, negated):
                return f"<[{'^' if negated else ''}{token}]>"
            case Reference(name):
                return self._names[name]
            case Repeat(part, least, most):
                return f"{self._group(part, depth)}{{{least},{'' if most is None else most}}}"
            case _:
                return self._group(node, depth)

    def _group(self, node: Node, depth: int) -> str:
        if depth < MAX_LARK_NESTING:
            return f"({self._alternatives(node, depth + 1)})"
        name = f"h{len(self._lines)}"
        self._rule(name, node)
        return name


def _class(ranges: Iterable[tuple[int, int]], *, negated: bool) -> str:
    inside = "".join(_code(first) if first == last else f"{_code(first)}-{_code(last)}" for first, last in ranges)
    if negated and not inside:
        return "/(?s:.)/"
    return f"/[{'^' if negated else ''}{inside}]/"


def _code(point: int) -> str:
    return f"\\x{{{point:x}}}"
