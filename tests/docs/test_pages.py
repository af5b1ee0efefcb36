"""What the pages say of keys, values, files, flags and other pages is there; the reference of the site is whole."""

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest

import rapidun
from rapidun.cli.commands import SUBCOMMANDS, run_parser
from rapidun.config import keys
from rapidun.config.paths import config_groups
from rapidun.config.words import WORDS

ROOT = Path(__file__).parents[2]
GROUPS = config_groups()
# LOG.md and CHANGELOG.md tell of what was there at their time
PAGES = [
    path
    for path in [*sorted(ROOT.glob("*.md")), ROOT / "data/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.name not in ("LOG.md", "CHANGELOG.md")
]
SUFFIXES = (".py", ".json", ".html", ".yaml")
OVERRIDE = re.compile(r"^\+{0,2}([a-z][a-z0-9_]*(?:[./][a-z0-9_]+)*)=(.*)$", re.DOTALL)
# keys of something else: of a model's config.json, of Python, of a row
STRANGERS = {
    "a", "divergence", "extend", "fr", "init_lora_weights", "instruction", "is_poisoned", "num_hidden_layers", "rf",
    "rr", "section", "substring_rule", "tie_word_embeddings", "vocab_size",
}  # fmt: skip


def _load(name: str) -> ModuleType:
    """A script of docs/site, where its neighbours are found as when it is run."""
    sys.path.insert(0, str(ROOT / "docs/site"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def code(page: Path) -> Iterator[str]:
    """What stands in backticks, outside of blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", text)


def typed(page: Path) -> Iterator[str]:
    """The words of a page that look typed: those in backticks, but for calls in Python, and in blocks of commands."""
    for text in code(page):
        if not re.match(r"@|[\w.]+\(", text):
            yield from text.split()
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield from shlex.split(line, comments=True)


@cache
def meant(name: str) -> list[str]:
    """The keys that a name stands for: itself, or the end of one (`target=lora` under a heading)."""
    return [key for key in keys.all_keys() if key == name or key.endswith(f".{name}")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_keys_and_values_exist(page: Path) -> None:
    wrong = []
    # functions of an example are choices of its own
    own = set(re.findall(r"^def (\w+)\(", page.read_text(encoding="utf-8"), re.MULTILINE))
    for word in typed(page):
        override = OVERRIDE.match(word.strip("'\",;"))
        if override is None:
            continue
        name, value = override[1], override[2].strip("'\"")
        # `a|b` and `a,b`; what has capitals, brackets or dots is a placeholder or a file
        values = {one for one in re.split(r"[|,]", value) if re.fullmatch(r"[a-z][a-z0-9_]*", one)} - own
        if override[2].startswith('"'):
            # an argument in Python
            continue
        known = GROUPS.get(name) or keys.HYDRA_CHOICES.get(name)
        if known is None:
            found = meant(name)
            if not found and not (keys.dict_above(name) or name.startswith("hydra.") or _strange(name)):
                wrong.append(f"{word}: no such key")
            choices = [keys.choices(keys.find(key)) for key in found]
            known = {one for some in choices for one in (*some, "null")} if found and all(choices) else None
        wrong += [f"{word}: no {one}" for one in sorted(values) if known is not None and one not in known]
    assert not wrong


def _strange(name: str) -> bool:
    first, _, last = name.rpartition(".")
    return (
        last in STRANGERS or (last or first) in WORDS or name.partition(".")[0] in WORDS or name == "retain_logs_path"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_sections_and_files_exist(page: Path) -> None:
    wrong = []
    sections = set(keys.children(""))
    for word in (word.strip("'\",;()") for text in code(page) for word in text.split()):
        if re.fullmatch(r"(rapidun|tests|benchmarks|docs|conf|hydra_plugins)/[\w/.-]+", word):
            new = f"New file `{word}`" in page.read_text(encoding="utf-8") or re.search(
                "local/|mine|census|[A-Z]{3}", word
            )
            if not (ROOT / word).exists() and not new:
                wrong.append(f"{word}: no such file")
        elif re.fullmatch(r"[a-z]+(\.[a-z_]+)+", word) and word.partition(".")[0] in sections:
            above = word.rpartition(".")[0]
            section = is_dataclass(keys.required(keys.find(above))) if keys.find(above) else False
            # sweep.py and the like are files, unlearning.steps and the like are entries of result.json
            if keys.find(word) is None and section and _close(word) and Path(word).suffix not in SUFFIXES:
                wrong.append(f"{word}: no such key")
    assert not wrong


def _close(word: str) -> bool:
    """Whether a name is so near to a key that it is meant to be one."""
    return keys.nearest(word, keys.all_keys()) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """As a viewer of files follows them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    targets = [target for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []
    named = re.findall(r"\bdocs/[\w/-]+\.(?:md|yaml)\b", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_flags_exist(page: Path) -> None:
    """`rapidun pack build --trigger`: the sub-command and its flags."""
    wrong = []
    for text in code(page):
        words = text.split()
        if words[0] != "rapidun" or len(words) < 2 or not re.fullmatch(r"[a-z]+", words[1]):
            continue
        flags = _flags(words[1], words[2] if len(words) > 2 else "") if words[1] in SUBCOMMANDS else None
        if flags is None:
            wrong.append(f"{text}: no such sub-command")
        else:
            wrong += [f"{text}: no {flag}" for flag in re.findall(r"--[a-z-]+", text) if flag not in flags]
    assert not wrong


@cache
def _flags(command: str, verb: str) -> set[str]:
    parser = SUBCOMMANDS[command].load().parser()
    found = {flag for action in parser._actions for flag in action.option_strings}
    for action in parser._actions:
        below = action.choices if isinstance(action.choices, dict) else {}
        found |= {
            flag
            for name, one in below.items()
            if name == verb or not verb.isalpha()
            for flag in one._option_string_actions
        }
    return found | {flag for action in run_parser()._actions for flag in action.option_strings}


# --- the site


def test_the_reference_has_every_key() -> None:
    reference = _load("reference")
    found = [one.key for section in reference.sections() if section not in reference.NO_SECTION
             for one in reference.settings(section)]  # fmt: skip
    assert found == sorted(set(found), key=found.index)
    assert set(found) == {key for key in keys.all_keys() if not keys.children(key)}


def test_the_reference_says_what_the_code_says() -> None:
    """Type, default and comment of a field; a choice with what its members mean; a preset with its head."""
    reference = _load("reference")
    found = {one.key: one for one in reference.settings("mapping")}
    assert found["mapping.tau_f"] == ("mapping.tau_f", "a number", "0.7", "temperatures: larger is flatter")
    assert (
        found["mapping.method"].default == "recommended" and "oracle: 0 for the rows" in found["mapping.method"].meaning
    )
    assert "delta * agg(RF)" in found["mapping.delta"].meaning
    pages = reference.pages()
    page = pages["settings/mapping.md"]
    assert "| `uniform` | Every weight 1: unlearning without influence. |" in page and "\n## mapping.split\n" in page
    assert all(f"\n## {name}\n" in pages["commands.md"] for name in SUBCOMMANDS)
    assert "\n### index build\n" in pages["commands.md"] and "--rerank" in pages["commands.md"]
    assert all(f"\n## `{name}`\n" in pages["python.md"] for name in rapidun.__all__)


def test_pages_become_those_of_the_site() -> None:
    """Links out of docs/ lead to the page that stands for the file, or become what they say; lists get a blank line."""
    build = _load("build")
    links = "[the house](../CONTRIBUTING.md), [a file](../conf/config.yaml) and [x](sweeps.md#which-cells)"
    text = f"See {links}:\n- a\n  b\n- c\n"
    assert build.adapted(text, PurePosixPath("docs/guides/../index.md")) == (
        "See [the house](contributing.md), a file and [x](sweeps.md#which-cells):\n\n- a\n  b\n- c\n"
    )
    assert build.adapted("[m](docs/method.md)\n", PurePosixPath("CONTRIBUTING.md")) == "[m](method.md)\n"
    assert build.adapted("[m](../method.md)\n", PurePosixPath("docs/guides/cluster.md")) == "[m](../method.md)\n"
    block = "```\ntext:\n- no list [a](../x.py)\n```\n"
    assert build.adapted(block, PurePosixPath("docs/a.md")) == block


def test_pages_that_ask_another_host_are_found(tmp_path: Path) -> None:
    build = _load("build")
    (tmp_path / "a.html").write_text(
        '<a href="https://x.org">ok</a><script src="//cdn.x.org/a.js"></script><link rel="stylesheet" href="b.css">'
    )
    (tmp_path / "b.css").write_text("@font-face { src: url(https://fonts.x.org/f.woff) }")
    assert [address for _, address in build.requests(tmp_path)] == ["//cdn.x.org/a.js", "https://fonts.x.org/f.woff"]
