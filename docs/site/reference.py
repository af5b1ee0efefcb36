"""Pages of the reference, as Markdown: settings from the schema, sub-commands from their parsers, the Python door."""

import argparse
import ast
import dataclasses
import inspect
import io
import itertools
import re
import textwrap
import tokenize
from collections.abc import Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import rapidun
from rapidun.cli.commands import SUBCOMMANDS
from rapidun.cli.help import GROUPS, help_text
from rapidun.config import keys
from rapidun.config.compose import compose_config
from rapidun.config.paths import config_dir, config_groups
from rapidun.config.run import RunConfig

# what has presets of its own is a page; the rest of the run's settings share one
RUN = "run"
NO_SECTION = ("experiment", "debug")


class Setting(NamedTuple):
    """One key: what it takes, what it is in `python sweep.py` without overrides, what its comment says."""

    key: str
    takes: str
    default: str
    meaning: str


# --- settings ---


def pages() -> dict[str, str]:
    """Every page of the reference, by its path below reference/."""
    found = {f"settings/{section}.md": settings_page(section) for section in sections()}
    return found | {"commands.md": commands_page(), "python.md": python_page()}


def sections() -> list[str]:
    """The run itself, its sections, and the groups that fill none."""
    return [RUN, *(name for name in keys.children("") if keys.children(name)), *NO_SECTION]


def settings(section: str) -> Iterator[Setting]:
    """Every key of a section, those of the sections below it behind its own."""
    kind = RunConfig if section == RUN else keys.required(keys.find(section))
    prefix = "" if section == RUN else f"{section}."
    below = []
    for field in dataclasses.fields(kind):
        key = prefix + field.name
        taken = keys.hints(kind)[field.name]
        if keys.children(key):
            below += [key] if section != RUN else []
            continue
        meaning = comments(kind).get(field.name) or yaml_comments(section).get(key, "")
        yield Setting(
            key, keys.describe(taken), shown(_value(key)), "; ".join(filter(None, [meaning, _members(taken)]))
        )
    for key in below:
        yield from settings(key)


def settings_page(section: str) -> str:
    """A table of the keys, and the files of the group with what their heads say."""
    lines = [f"# Settings: {section}", ""]
    if section in GROUPS:
        lines += [f"{GROUPS[section][0].upper()}{GROUPS[section][1:]}.", ""]
    if section not in NO_SECTION:
        lines += ["Default: what `python sweep.py` has without an override.", "", *_tables(section)]
    names = config_groups().get(section, [])
    if names:
        typed = f"+{section}" if section == "experiment" else section
        lines += ["", "## Presets", "", f"`{typed}=NAME`, files of `conf/{section}/`.", ""]
        lines += ["| name | what its file says |", "|---|---|"]
        lines += [f"| `{name}` | {_cell(head(config_dir() / section / f'{name}.yaml'))} |" for name in names]
    return "\n".join(lines) + "\n"


def _tables(section: str) -> list[str]:
    """One table for the section's own keys, one under a heading for each section below it."""
    lines: list[str] = []
    for above, group in itertools.groupby(settings(section), lambda setting: setting.key.rpartition(".")[0]):
        if above not in ("", section):
            lines += ["", f"## {above}", "", _cell(own_words(keys.required(keys.find(above)))), ""]
        lines += ["| key | takes | default | meaning |", "|---|---|---|---|"]
        for setting in group:
            key, default = setting.key.replace(".", ".<wbr>"), _cell(setting.default)
            lines.append(f"| <code>{key}</code> | {_cell(setting.takes)} | `{default}` | {_cell(setting.meaning)} |")
    return lines


def own_words(kind: type) -> str:
    """The docstring of a class; a dataclass without one has its signature there."""
    text = (kind.__doc__ or "").strip()
    return "" if text.startswith(f"{kind.__name__}(") else text


@cache
def comments(kind: type) -> dict[str, str]:
    """The comment above or behind each field of a dataclass or member of an Enum, its parents' included."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not one.__module__.startswith("rapidun"):
            continue
        try:
            source = inspect.getsource(one)
        except OSError:  # an Enum that was made by a call: its members have no lines
            continue
        found |= _comments(textwrap.dedent(source))
    return found


def _comments(source: str) -> dict[str, str]:
    lines = source.splitlines()
    said = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        if not isinstance(target, ast.Name):
            continue
        text = [said[place] for place in range(node.lineno, (node.end_lineno or node.lineno) + 1) if place in said]
        place = node.lineno - 1
        while place in said and lines[place - 1].lstrip().startswith("#"):
            text.insert(0, said[place])
            place -= 1
        # a line such as `S_f = alpha * ... - beta * ...` speaks of the fields below it too
        others = [said for said in found.values() if re.search(rf"\b{target.id}\b", said) and "=" in said]
        found[target.id] = " ".join(text) or next(iter(others), "")
    return found


@cache
def yaml_comments(section: str) -> dict[str, str]:
    """The comment above each key of conf/config.yaml, for settings whose class leaves the words to it."""
    found: dict[str, str] = {}
    path: list[str] = []
    above: list[str] = []
    for line in (config_dir() / "config.yaml").read_text(encoding="utf-8").splitlines():
        key = re.match(r"( *)([a-z_]+):", line)
        if line.strip().startswith("#"):
            above.append(line.strip().lstrip("# "))
            continue
        if key:
            path = [*path[: len(key[1]) // 2], key[2]]
            found[".".join(path)] = " ".join(above)
        above = []
    return found


def head(path: Path) -> str:
    """The comment that a preset begins with, without its commands."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("#"))
    return " ".join(line.strip() for line in lines if not line.startswith("    "))


@cache
def _defaults() -> RunConfig:
    return compose_config([])


def _value(key: str) -> Any:
    value: Any = _defaults()
    for part in key.split("."):
        value = getattr(value, part)
    return value


def shown(value: Any) -> str:
    """A value as it is typed."""
    if value is None:
        return "null"
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(shown(one) for one in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: ..." for name in value) + "}" if value else "{}"
    return str(value)


def _members(kind: Any) -> str:
    """What the members of a choice mean, where it says so."""
    inner = keys.required(kind)
    if not (isinstance(inner, type) and issubclass(inner, Enum)):
        return ""
    said = comments(inner)
    return "; ".join(f"{member.name}: {said[member.name]}" for member in inner if said.get(member.name))


def _cell(text: str) -> str:
    """One line that a table can hold."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


# --- commands ---


def commands_page() -> str:
    """`rapidun --help`, then each sub-command and verb."""
    lines = [
        "# Sub-commands",
        "",
        "As `rapidun --help` and `rapidun NAME --help` say.",
        "",
        "```text",
        help_text().rstrip(),
        "```",
    ]
    for name, command in SUBCOMMANDS.items():
        parser = command.load().parser()
        lines += ["", f"## {name}", "", f"{_cell(command.help)}.", "", *_parser(f"rapidun {name}", parser)]
    return "\n".join(lines) + "\n"


def _parser(called: str, parser: argparse.ArgumentParser) -> list[str]:
    parser.prog = called
    # as wide whatever the screen is
    parser.formatter_class = _wide(parser.formatter_class)
    lines = ["```text", parser.format_help().rstrip(), "```"]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, below in action.choices.items():
                title = f"### {called.removeprefix('rapidun ')} {verb}"
                lines += ["", title, "", *_parser(f"{called} {verb}", below)]
    return lines


def _wide(kind: Any) -> Any:
    """The same formatter, as wide whatever the screen is."""
    return lambda prog: kind(prog, width=120)


# --- Python ---


def python_page() -> str:
    """What `import rapidun` exports: signatures and docstrings."""
    lines = ["# Python", "", "What `import rapidun` exports.", "", *_doc(rapidun)]
    for name in sorted(rapidun.__all__):
        found = getattr(rapidun, name)
        lines += ["", f"## `{name}`", ""]
        if not callable(found):
            lines += [f"`rapidun.{name}`: {_cell(type(found).__name__)}."]
            continue
        lines += _signature(name, found) + _doc(found)
        if inspect.isclass(found):
            for member, value in vars(found).items():
                told = value.fget if isinstance(value, property) else value
                if not member.startswith("_") and inspect.isfunction(told):
                    shape = [f"`{member}`"] if isinstance(value, property) else _signature(member, told)
                    lines += ["", f"### `{name}.{member}`", "", *shape, *_doc(told)]
    return "\n".join(lines) + "\n"


def _signature(name: str, found: Any) -> list[str]:
    """As it is written in the code; a long one with a line for each parameter."""
    try:
        signature = inspect.signature(found)
    except ValueError:
        return []
    given: list[str] = []
    for one in signature.parameters.values():
        if one.kind is one.KEYWORD_ONLY and "*" not in "".join(given):
            given.append("*")
        # annotations are text there, defaults are values
        given.append(re.sub(r"(?<!= )'([^']*)'", r"\1", str(one)))
    returns = str(signature).rpartition(" -> ")[2].strip("'") if " -> " in str(signature) else ""
    behind = f") -> {returns}" if returns else ")"
    line = f"{name}({', '.join(given)}{behind}"
    long = [f"{name}(", *(f"    {one}," for one in given), behind]
    return ["```python", *([line] if len(line) <= 100 else long), "```", ""]


def _doc(found: Any) -> list[str]:
    """A docstring: its first paragraph as prose, what is laid out below as it stands."""
    text = "" if inspect.isclass(found) and not own_words(found) else inspect.getdoc(found) or ""
    first, _, rest = text.partition("\n\n")
    lines = [_cell(first), ""] if first else []
    return lines + (["```text", rest.rstrip(), "```", ""] if rest else [])
