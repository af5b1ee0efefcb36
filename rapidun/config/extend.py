"""Runs what extends rapidun: a file that was named by hand, and installed packages with an entry point."""

from __future__ import annotations

import hashlib
import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from rapidun.base.errors import ConfigError

# every choice of ours is known before somebody else adds one
from rapidun.config import run as _  # noqa: F401
from rapidun.config.extensions import FLAG, GROUP, Origin, adding, loaded

# entry points that were tried
_installed: list[str] = []


def load_file(path: str | os.PathLike[str], *, sha256: str | None = None) -> Origin:
    """Run a file that adds something; one that was loaded is not run again.

    Args: sha256: what the file's must be.
    Raises: ConfigError for a file that is not there, is another one, or cannot be run.
    """
    file = Path(path).expanduser().absolute()
    try:
        code = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{FLAG}: need a Python file, got {path} ({error.strerror}). Pass {FLAG} FILE.py") from None
    found = hashlib.sha256(code).hexdigest()
    if sha256 is not None and found != sha256:
        raise ConfigError(
            f"{FLAG}: need {file} as it was when the sweep was launched (SHA-256 {sha256[:16]}...), got another one "
            f"({found[:16]}...). Run the sweep's own command again"
        )
    if found in loaded:
        return loaded[found]
    earlier = next((one for one in loaded.values() if one.path == str(file)), None)
    if earlier is not None:
        raise ConfigError(
            f"{FLAG}: need {file} as this process has loaded it (SHA-256 {earlier.sha256[:16]}...), got a changed one. "
            "Start Python (the notebook's kernel) anew"
        )
    origin = Origin(str(file), found, str(file))
    module = ModuleType(f"rapidun_extension_{found[:16]}")
    module.__file__ = str(file)
    # dataclasses and pickles look their module up
    sys.modules[module.__name__] = module

    def run() -> None:
        exec(compile(code, str(file), "exec"), module.__dict__)

    try:
        _run(origin, run)
    except ConfigError:
        del sys.modules[module.__name__]
        raise
    loaded[found] = origin
    return origin


def load_installed(say: Callable[[str], None] | None = None) -> None:
    """Import every installed package that has an entry point of the group `rapidun`, once in a process.

    Args: say: told of one that cannot be imported; whatever it adds is not there then.
    """
    for entry in entry_points(group=GROUP):
        if entry.value in _installed:
            continue
        _installed.append(entry.value)
        try:
            _run(_origin_of(entry), entry.load)
        except ConfigError as error:
            (say or (lambda line: print(line, file=sys.stderr)))(f"warning: {error}")


def _origin_of(entry: EntryPoint) -> Origin:
    """A package by the hash of its Python files, as they lie there before they are imported."""
    spec = find_spec(entry.module.partition(".")[0])
    package = "" if entry.dist is None else f"{entry.dist.name} {entry.dist.version} "
    name = f"{package}({entry.value})"
    if spec is None:
        return Origin(name, "")
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    files = [file for place in places for file in sorted(place.rglob("*.py"))]
    if not files and spec.origin:
        files = [Path(spec.origin)]
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return Origin(name, digest.hexdigest())


def _run(origin: Origin, code: Callable[[], object]) -> None:
    """Raises: ConfigError that names the line."""
    try:
        with adding(origin):
            code()
    except ConfigError:
        raise
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == origin.path]
        place = f", line {lines[-1]}" if lines else ""
        raise ConfigError(
            f"{origin.name}{place}: need an extension that can be run, got {type(error).__name__}: {error}. "
            "HYDRA_FULL_ERROR=1 shows the traceback"
        ) from error
