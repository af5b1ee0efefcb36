"""sweep.where: which cells of the grid are kept, an expression over the keys of the configuration (expressions.py)."""

from collections.abc import Collection, Mapping
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

from rapidun.base.errors import ConfigError
from rapidun.config import keys
from rapidun.config.expressions import ERRORS, Expression
from rapidun.config.run import RunConfig


class Where:
    """An expression, checked against the schema and ready to be asked about cells.

    Keys stand for their values (choices for their names): mapping.tau_f <= mapping.tau_r. The name of a config group
    stands for the file chosen from it: mapping == "rapidun_release"; the method in it is mapping.method.
    """

    def __init__(self, expression: str, *, groups: Collection[str]) -> None:
        """Raises: ConfigError if it is not an expression, holds more than is allowed, or names an unknown key."""
        self._groups = groups
        self._expression = Expression(
            expression, setting="sweep.where", example="mapping.tau_f <= mapping.tau_r", fault=self._fault
        )

    @property
    def expression(self) -> str:
        return self._expression.text

    def holds(self, cfg: RunConfig, *, choices: Mapping[str, str | None]) -> bool:
        """Whether the cell is kept. `choices`: the file chosen from each config group.

        Raises: ConfigError if it cannot be worked out or is not true or false.
        """
        try:
            result = self._expression.value(lambda name: self._value(name, cfg, choices))
        except ERRORS as error:
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

    def _fault(self, name: str) -> str | None:
        if name in self._groups:
            return None
        kind = keys.required(keys.find(name))
        if kind is None:
            quoted = "" if "." in name else f' Text stands in quotes: "{name}"'
            return f"{keys.unknown_key(name)}{quoted}"
        if is_dataclass(kind):
            return f"{name} is a section; need one of its keys: {', '.join(keys.children(name))}"
        return None

    def _value(self, name: str, cfg: RunConfig, choices: Mapping[str, str | None]) -> Any:
        if name in self._groups:
            return choices.get(name)
        value: Any = cfg
        for part in name.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        return value.name if isinstance(value, Enum) else value

    def _shown(self, cfg: RunConfig, choices: Mapping[str, str | None]) -> str:
        shown = []
        for name in self._expression.names:
            try:
                shown.append(f"{name}={self._value(name, cfg, choices)!r}")
            except KeyError:
                shown.append(f"{name} is not there")
        return ", ".join(shown) or "nothing is asked"
