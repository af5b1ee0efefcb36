"""The experiment file, and the table of keys beside it."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rapidun.cli.importing.release_keys import DEFECTS, KEPT, Line, Translation, Verdict
from rapidun.config.plain import as_yaml
from rapidun.config.run import RunConfig

# the order of the sections in the file, as in conf/config.yaml
SECTIONS = ("model", "data", "influence", "mapping", "unlearning")


def experiment_text(made: Translation, *, name: str) -> str:
    """The file that Hydra composes: choices of files, then the settings."""
    source = os.fspath(made.checkout.config).replace("\n", " ")
    table = f"{name}.md"
    choices = "".join(f"  - override /{group}: {choice}\n" for group, choice in made.groups.items())
    return (
        "# @package _global_\n"
        f"# Made by `rapidun import` from {source}\n"
        f"# {table}, beside this file, says key by key what became of it. Run, from any directory:\n"
        f"#   rapidun +experiment=PATH_OF_THIS_FILE\n"
        f"#   rapidun +experiment=PATH_OF_THIS_FILE 'stages=[mapping]'\n"
        "defaults:\n" + choices + "\n" + as_yaml(_nested({"name": name, **made.here}))
    )


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with dots to sections: settings of the whole run first, then section by section."""
    order = {section: place for place, section in enumerate(SECTIONS, start=1)}
    made: dict[str, Any] = {}
    for key in sorted(flat, key=lambda key: order.get(key.partition(".")[0], 0)):
        *above, last = key.split(".")
        section = made
        for part in above:
            section = section.setdefault(part, {})
        section[last] = _literal(flat[key])
    return made


def _literal(value: Any) -> Any:
    """A text that stands for itself, where OmegaConf would read ${...} as a reference."""
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def counts(lines: Sequence[Line]) -> str:
    found = Counter(line.verdict for line in lines)
    parts = [f"{found[verdict]} {verdict.value}" for verdict in Verdict if found[verdict]]
    return f"{len(lines)} keys: {', '.join(parts)}"


def table_text(lines: Sequence[Line]) -> str:
    """For the screen: two columns of names, the verdict, and the reason on a line of its own."""
    rows = [(f"{line.key} = {line.value}", _ours(line), line) for line in lines]
    width = min(64, max(len(theirs) for theirs, _, _ in rows))
    text = []
    for theirs, ours, line in rows:
        word = line.verdict.value
        text.append(f"{word:<9} {theirs:<{width}}  {ours}".rstrip())
        if line.why:
            text.append(f"{'':<9}   {line.why}")
    return "\n".join(text)


def _ours(line: Line) -> str:
    if not line.ours:
        return ""
    return f"{line.ours} = {line.our_value}" if line.our_value else line.ours


def markdown(made: Translation, cfg: RunConfig, *, found: Sequence[str], warnings: Sequence[str]) -> str:
    """The table to keep, with what was found and what the release does otherwise."""
    head = ["# What became of a RapidUn configuration", "", f"From `{_cell(str(made.checkout.config))}`.", ""]
    head += [counts(made.lines) + ".", ""]
    rows = ["| release | value | here | value | | why |", "| --- | --- | --- | --- | --- | --- |"]
    for line in made.lines:
        cells = (line.key, line.value, line.ours, line.our_value, line.verdict.value, line.why)
        rows.append("| " + " | ".join(map(_cell, cells)) + " |")
    chosen = ", ".join(f"{group}={choice}" for group, choice in made.groups.items())
    rest = ["", f"Presets: {chosen}.", "", "## Found", "", *(f"- {_cell(line)}" for line in found)]
    rest += ["", "## To look at", "", *(f"- {_cell(line)}" for line in warnings)] if warnings else []
    rest += [
        "",
        "## What the release does otherwise, and this software does not",
        "",
        *(f"- {line}" for line in DEFECTS),
    ]
    rest += ["", f"Kept in `mapping=rapidun_release`: {KEPT}.", ""]
    steps = f"`unlearning.lr_scheduler_type={cfg.unlearning.lr_scheduler_type}`"
    rest += [
        f"Settings that the configuration has no key for stand at their presets ({steps}, say): `rapidun --cfg job`."
    ]
    return "\n".join([*head, *rows, *rest]) + "\n"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def output_file(out: str | None, config: Path) -> Path:
    """NAME -> conf/experiment/NAME.yaml below the current folder; a path ending in .yaml is itself."""
    if out is not None and (out.endswith(".yaml") or "/" in out):
        return Path(out).expanduser()
    return Path("conf", "experiment", f"{out or config.stem}.yaml")
