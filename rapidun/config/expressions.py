"""Expressions that a user writes as a setting: comparisons of named numbers, worked out by simpleeval.

What one may hold is listed here. Nothing in it reaches a Python object's attributes.
"""

import ast
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from simpleeval import DEFAULT_OPERATORS, EvalWithCompoundTypes, InvalidExpression

from rapidun.base.errors import ConfigError

MAX_LENGTH = 2000
# a whole number of more digits than this is no measurement: what makes one would go on for hours
MOST_BITS = 4096
# of a text or a list that an expression makes
MOST_ITEMS = 100_000
MOST_DIGITS = 100
CONSTANTS = {"true": True, "false": False, "null": None}
_OPERATORS = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.USub, ast.UAdd, ast.Not, ast.Eq, ast.NotEq, ast.Gt, ast.Lt,
    ast.GtE, ast.LtE, ast.In, ast.NotIn, ast.Is, ast.IsNot,
)  # fmt: skip
_NODES = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.BinOp, ast.Compare, ast.IfExp, ast.Name, ast.Load,
    ast.Constant, ast.List, ast.Tuple, ast.Call, ast.Mod, ast.Pow, *_OPERATORS,
)  # fmt: skip
_BY_SIZE = (ast.Gt, ast.Lt, ast.GtE, ast.LtE)
_WORKED_OUT = "comparisons, and/or/not, arithmetic, in, if/else, min, max, abs, round, len"
# what working one out may raise
ERRORS = (InvalidExpression, ArithmeticError, LookupError, TypeError, ValueError, RecursionError)


def _round(number: Any, digits: Any = None) -> Any:
    if digits is not None and not (isinstance(digits, int) and abs(digits) <= MOST_DIGITS):
        raise InvalidExpression(f"round: need at most {MOST_DIGITS} digits, got {digits!r}")
    return round(_bounded(number), digits)


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise InvalidExpression(f"need numbers of at most {MOST_BITS} bits, got one of {value.bit_length()}")
    if isinstance(value, str | list | tuple) and len(value) > MOST_ITEMS:
        raise InvalidExpression(f"need texts and lists of at most {MOST_ITEMS:,} items, got {len(value):,}")
    return value


def _times(a: Any, b: Any) -> Any:
    for one, other in ((a, b), (b, a)):
        if isinstance(one, str | list | tuple) and isinstance(other, int) and len(one) * other > MOST_ITEMS:
            raise InvalidExpression(f"need texts and lists of at most {MOST_ITEMS:,} items, got {len(one) * other:,}")
    return _bounded(_bounded(a) * _bounded(b))


def _plus(a: Any, b: Any) -> Any:
    return _bounded(_bounded(a) + _bounded(b))


FUNCTIONS = {"min": min, "max": max, "abs": abs, "round": _round, "len": len}


def _modulo(a: Any, b: Any) -> Any:
    if isinstance(a, str):  # text % value would be formatting, which can make very long texts
        raise InvalidExpression("% is for numbers")
    return a % b


def _power(a: Any, b: Any) -> float:
    """In floating point, which ends at once whatever the exponent."""
    return float(a) ** float(b)


class Expression:
    """Parsed and checked: `names` are those that it asks for, constants left out.

    Args:
        setting: the key that it is the value of, for messages. example: what one looks like.
        fault: what is wrong with a name; None where it is known.
    Raises: ConfigError if it is none, holds more than is allowed, or names something unknown.
    """

    def __init__(self, text: str, *, setting: str, example: str, fault: Callable[[str], str | None]) -> None:
        self.text = text
        self._node = _parse(text, setting, example)
        faults = list(dict.fromkeys(_faults(self._node, setting, fault)))
        if faults:
            raise ConfigError(faults)
        self._evaluator = EvalWithCompoundTypes(
            operators={kind: DEFAULT_OPERATORS[kind] for kind in _OPERATORS}
            | {ast.Mod: _modulo, ast.Pow: _power, ast.Mult: _times, ast.Add: _plus},
            functions=dict(FUNCTIONS),
        )
        asked = dict.fromkeys(node.id for node in ast.walk(self._node) if isinstance(node, ast.Name))
        self.names = [name for name in asked if name not in FUNCTIONS and name not in CONSTANTS]

    @property
    def decides(self) -> bool:
        """Whether it is true or false whatever its names stand for: comparisons, and/or/not of such."""
        return _decides(self._node)

    def value(self, of: Callable[[str], Any]) -> Any:
        """What it comes to, each name standing for `of(name)`. Raises: one of ERRORS."""
        self._stand_for(of)
        return self._evaluator.eval(self.text, previously_parsed=self._node)

    def excesses(self, of: Callable[[str], Any]) -> list[float]:
        """By how much each part of a conjunction is missed, one number for each part of the outermost `and`.

        Not above 0 where the part holds, above 0 where it does not. Of a <= b it is (a - b) / |b|, a share of the
        bound (a - b where b is 0); of `and` the largest, of `or` the smallest; of what is not a comparison of numbers
        by size, -1 or 1. A part that does not hold is missed by at least 1e-12 (a < a is no success), one that cannot
        be worked out where another part already fails, by 1.

        Raises: one of ERRORS, as `value` does.
        """
        holds = bool(self.value(of))
        return [min(self._part(part), 0.0) if holds else self._part(part) for part in self._parts]

    @property
    def num_parts(self) -> int:
        """As many numbers `excesses` has."""
        return len(self._parts)

    @property
    def _parts(self) -> list[ast.expr]:
        node = self._node
        return node.values if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And) else [node]

    def _part(self, node: ast.AST) -> float:
        try:
            missed = self._excess(node)
            holds = bool(self._evaluator.eval(self.text, previously_parsed=node))
        except ArithmeticError:
            return 1.0
        return min(missed, 0.0) if holds else max(missed, 1e-12)

    def _stand_for(self, of: Callable[[str], Any]) -> None:
        self._evaluator.names = lambda node: CONSTANTS[node.id] if node.id in CONSTANTS else of(node.id)

    def _excess(self, node: ast.AST, *, wanted: bool = True) -> float:
        """Of one part; `wanted` is false inside a `not`."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self._excess(node.operand, wanted=not wanted)
        if isinstance(node, ast.BoolOp):
            found = [self._excess(part, wanted=wanted) for part in node.values]
            return max(found) if isinstance(node.op, ast.And) is wanted else min(found)
        if isinstance(node, ast.Compare) and all(isinstance(op, _BY_SIZE) for op in node.ops):
            sides = [self._evaluator.eval(self.text, previously_parsed=side) for side in (node.left, *node.comparators)]
            found = [_missed(op, *pair) for op, pair in zip(node.ops, pairwise(sides), strict=True)]
            return max(found) if wanted else min(-missed for missed in found)
        return -1.0 if bool(self._evaluator.eval(self.text, previously_parsed=node)) is wanted else 1.0


def _decides(node: ast.AST) -> bool:
    if isinstance(node, ast.BoolOp):
        return all(map(_decides, node.values))
    if isinstance(node, ast.IfExp):
        return _decides(node.body) and _decides(node.orelse)
    truth = isinstance(node, ast.Constant) and isinstance(node.value, bool)
    truth = truth or (isinstance(node, ast.Name) and node.id in ("true", "false"))
    return truth or isinstance(node, ast.Compare) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not))


def _missed(op: ast.cmpop, left: Any, right: Any) -> float:
    """By how much `left op right` is missed, as a share of the bound `right`; below 0 where there is room."""
    over = float(left) - float(right)
    if isinstance(op, ast.Gt | ast.GtE):
        over = -over
    return over / abs(float(right)) if right else over


class _Keys(ast.NodeTransformer):
    """Turns `mapping.tau_f`, which Python reads as an attribute of a name, into the one name it is here."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        parts = [node.attr]
        inner: ast.AST = node.value
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            return ast.copy_location(ast.Name(".".join([inner.id, *reversed(parts)]), ast.Load()), node)
        return self.generic_visit(node)


def _parse(expression: str, setting: str, example: str) -> ast.expr:
    if len(expression) > MAX_LENGTH:
        raise ConfigError(f"{setting}: need at most {MAX_LENGTH} characters, got {len(expression)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd escapes in texts
            tree = ast.parse(expression.strip(), mode="eval")
        return _Keys().visit(tree).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or "nested too deeply"
        place = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise ConfigError(
            f"{setting}: need an expression such as {example!r}, got {expression!r}: {reason}{place}. Equal is "
            "written =="
        ) from None


def _faults(root: ast.AST, setting: str, fault: Callable[[str], str | None]) -> Iterator[str]:
    called = set()
    for node in ast.walk(root):
        if not isinstance(node, _NODES):
            yield f"{setting}: need {_WORKED_OUT}; got {type(node).__name__}: {_source(node) or _source(root)}"
        elif isinstance(node, ast.Call):
            called.add(node.func)
            if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords:
                yield f"{setting}: need one of the functions {', '.join(FUNCTIONS)}; got {_source(node)}"
        elif isinstance(node, ast.Name) and node not in called and node.id not in CONSTANTS:
            wrong = fault(node.id)
            if wrong:
                yield f"{setting}: {wrong}"


def _source(node: ast.AST) -> str:
    try:
        return ast.unparse(node)
    except (AttributeError, ValueError):
        return type(node).__name__
