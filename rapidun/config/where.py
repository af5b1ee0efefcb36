"""sweep.where: which cells of the grid are kept, an expression over the keys of the configuration.

simpleeval works it out; what it may hold is listed here. Nothing in it reaches a Python object's attributes.
"""

import ast
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

from simpleeval import DEFAULT_OPERATORS, EvalWithCompoundTypes, InvalidExpression

from rapidun.base.errors import ConfigError
from rapidun.config import keys
from rapidun.config.run import RunConfig

MAX_LENGTH = 2000
FUNCTIONS = {"min": min, "max": max, "abs": abs, "round": round, "len": len}
CONSTANTS = {"true": True, "false": False, "null": None}
_OPERATORS = (
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.USub, ast.UAdd, ast.Not, ast.Eq, ast.NotEq, ast.Gt, ast.Lt,
    ast.GtE, ast.LtE, ast.In, ast.NotIn, ast.Is, ast.IsNot,
)  # fmt: skip
_NODES = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.BinOp, ast.Compare, ast.IfExp, ast.Name, ast.Load,
    ast.Constant, ast.List, ast.Tuple, ast.Call, ast.Mod, ast.Pow, *_OPERATORS,
)  # fmt: skip
_WORKED_OUT = "comparisons, and/or/not, arithmetic, in, if/else, min, max, abs, round, len"


def _modulo(a: Any, b: Any) -> Any:
    if isinstance(a, str):  # text % value would be formatting, which can make very long texts
        raise InvalidExpression("% is for numbers")
    return a % b


def _power(a: Any, b: Any) -> float:
    """In floating point, which ends at once whatever the exponent."""
    return float(a) ** float(b)


class Where:
    """An expression, checked against the schema and ready to be asked about cells.

    Keys stand for their values (choices for their names): mapping.tau_f <= mapping.tau_r. The name of a config group
    stands for the file chosen from it: mapping == "rapidun_release"; the method in it is mapping.method.
    """

    def __init__(self, expression: str, *, groups: Collection[str]) -> None:
        """Raises: ConfigError if it is not an expression, holds more than is allowed, or names an unknown key."""
        self.expression = expression
        self._groups = groups
        self._node = _parse(expression)
        faults = list(dict.fromkeys(_faults(self._node, groups)))
        if faults:
            raise ConfigError(faults)
        self._evaluator = EvalWithCompoundTypes(
            operators={kind: DEFAULT_OPERATORS[kind] for kind in _OPERATORS} | {ast.Mod: _modulo, ast.Pow: _power},
            functions=dict(FUNCTIONS),
        )

    def holds(self, cfg: RunConfig, *, choices: Mapping[str, str | None]) -> bool:
        """Whether the cell is kept. `choices`: the file chosen from each config group.

        Raises: ConfigError if it cannot be worked out or is not true or false.
        """
        self._evaluator.names = lambda node: self._value(node.id, cfg, choices)
        try:
            result = self._evaluator.eval(self.expression, previously_parsed=self._node)
        except (InvalidExpression, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            hint = "; a null has to be asked for first: KEY is not None and ..." if "NoneType" in str(error) else ""
            raise ConfigError(
                f"sweep.where: cannot be worked out where {self._shown(cfg, choices)}: {error}{hint}. "
                f"Change sweep.where=..."
            ) from None
        if not isinstance(result, bool):
            raise ConfigError(
                f"sweep.where: need an expression that is true or false, got {self.expression!r}, which is {result!r}. "
                f"Compare it with something"
            )
        return result

    def _value(self, name: str, cfg: RunConfig, choices: Mapping[str, str | None]) -> Any:
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in self._groups:
            return choices.get(name)
        value: Any = cfg
        for part in name.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        return value.name if isinstance(value, Enum) else value

    def _shown(self, cfg: RunConfig, choices: Mapping[str, str | None]) -> str:
        names = dict.fromkeys(node.id for node in ast.walk(self._node) if isinstance(node, ast.Name))
        shown = []
        for name in names:
            if name not in FUNCTIONS and name not in CONSTANTS:
                try:
                    shown.append(f"{name}={self._value(name, cfg, choices)!r}")
                except KeyError:
                    shown.append(f"{name} is not there")
        return ", ".join(shown) or "nothing is asked"


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


def _parse(expression: str) -> ast.expr:
    if len(expression) > MAX_LENGTH:
        raise ConfigError(f"sweep.where: need at most {MAX_LENGTH} characters, got {len(expression)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd escapes in texts
            tree = ast.parse(expression.strip(), mode="eval")
        return _Keys().visit(tree).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or "nested too deeply"
        place = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise ConfigError(
            f"sweep.where: need an expression such as 'mapping.tau_f <= mapping.tau_r', got {expression!r}: "
            f"{reason}{place}. Equal is written =="
        ) from None


def _faults(root: ast.AST, groups: Collection[str]) -> Iterator[str]:
    called = set()
    for node in ast.walk(root):
        if not isinstance(node, _NODES):
            yield f"sweep.where: need {_WORKED_OUT}; got {type(node).__name__}: {_source(node)}"
        elif isinstance(node, ast.Call):
            called.add(node.func)
            if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords:
                yield f"sweep.where: need one of the functions {', '.join(FUNCTIONS)}; got {_source(node)}"
        elif isinstance(node, ast.Name) and node not in called and node.id not in (*CONSTANTS, *groups):
            kind = keys.required(keys.find(node.id))
            if kind is None:
                quoted = "" if "." in node.id else f' Text stands in quotes: "{node.id}"'
                yield f"sweep.where: {keys.unknown_key(node.id)}{quoted}"
            elif is_dataclass(kind):
                yield f"sweep.where: {node.id} is a section; need one of its keys: {', '.join(keys.children(node.id))}"


def _source(node: ast.AST) -> str:
    try:
        return ast.unparse(node)
    except (AttributeError, ValueError):
        return type(node).__name__
