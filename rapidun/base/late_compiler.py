"""torch's compiler, loaded when something is compiled and not when bitsandbytes is imported.

bitsandbytes hands functions to `torch.compile` as it is imported, peft imports it wherever it is installed, and
`torch.compile` loads the compiler at once: a second of every process (docs/LOG.md, 2026-12-01), quantised or not.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

LIBRARY = "bitsandbytes"


def compile_late() -> None:
    """From now on bitsandbytes' functions are compiled when they are first called. Imports nothing."""
    if LIBRARY not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds it as the finders behind this one do."""

    def __init__(self) -> None:
        self._is_asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != LIBRARY or self._is_asking:
            return None
        self._is_asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._is_asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, own: Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        import torch

        at_once = torch.compile
        torch.compile = _later(at_once)
        try:
            self._own.exec_module(module)
        finally:
            torch.compile = at_once

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


def _later(compile_now: Callable[..., Any]) -> Any:
    """`torch.compile` whose result is compiled at its first call."""

    def compile_(model: Callable[..., Any] | None = None, **settings: Any) -> Any:
        if model is None:
            return lambda function: compile_(function, **settings)
        compiled: list[Callable[..., Any]] = []

        @wraps(model)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not compiled:
                compiled.append(compile_now(model, **settings))
            return compiled[0](*args, **kwargs)

        return call

    return compile_
