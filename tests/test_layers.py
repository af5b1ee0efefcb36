"""The house in one table: reads every import of the package and says where a stray one belongs.

`python -m pytest -s tests/test_layers.py` prints the table, the longest function and file, and the late imports.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

import rapidun
from rapidun.config import run
from rapidun.stages import recipes

ROOT = Path(rapidun.__file__).parent

# Imports run down this table, never up.
ORDER = {
    "cli": "what is typed",
    "sweep": "many runs",
    "pipeline": "one run: its stages in order, its folder, its tracker",
    "stages": "what each stage is and does",
    "models": "models, adapters, losses, training",
    "report": "what is read back and shown",
    "config": "every setting",
    "base": "files, locks, processes, errors",
}
# Within stages/: the six meet through recipes and artifacts, never by importing each other.
STAGES = run.STAGES
HEAVY = {
    "torch", "numpy", "transformers", "peft", "accelerate", "bitsandbytes", "tokenizers", "matplotlib", "wandb",
    "scipy",
}  # fmt: skip
# Loaded on the way to --help, --cfg job, configuration errors and runs of cached stages: nothing heavy at import.
LIGHT = (
    "base/*.py", "config/*.py", "pipeline/*.py", "pipeline/tracking/__init__.py", "pipeline/tracking/run.py",
    "pipeline/tracking/sink.py", "pipeline/tracking/lines.py", "stages/*.py", "stages/*/recipe.py", "sweep/*.py",
    "cli/main.py", "cli/run.py", "cli/help.py", "cli/completion.py", "cli/shells.py", "cli/commands.py",
    "cli/importing/command.py", "cli/index.py", "cli/influence.py", "cli/sweep*.py", "cli/doctor/*.py",
    "cli/tracing/command.py", "__init__.py",
)  # fmt: skip
# function-level imports of our own that are meant: each says why on its line, and there are few
MOST_LATE = 51


class Import(NamedTuple):
    file: Path
    line: int
    module: str
    late: bool
    typing_only: bool


@cache
def modules() -> dict[str, Path]:
    return {dotted(path): path for path in sorted(ROOT.rglob("*.py"))}


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file; `from package import module` counts as an import of the module."""
    todo: list[tuple[ast.AST, bool, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), False, False)]
    while todo:
        node, late, typing_only = todo.pop()
        if isinstance(node, ast.Import):
            yield from (Import(path, node.lineno, alias.name, late, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import out in full"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                file = ROOT.parent / Path(*inner.split("."))
                is_module = inner.startswith("rapidun.") and (file.with_suffix(".py").is_file() or file.is_dir())
                yield Import(path, node.lineno, inner if is_module else str(node.module), late, typing_only)
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = typing_only or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        todo += [(child, late, typing_only) for child in ast.iter_child_nodes(node)]


@cache
def ours() -> list[Import]:
    found = [one for path in modules().values() for one in imports(path)]
    return [one for one in found if one.module.split(".")[0] == "rapidun" and one.module != dotted(one.file)]


def place(one: Import) -> str:
    return f"{named(one.file)}:{one.line}"


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_the_package_root_is_the_table() -> None:
    """The eight layers, what Python and type checkers look for, and nothing else."""
    found = {path.name for path in ROOT.iterdir() if path.name not in ("__pycache__", "conf")}
    assert found == {*ORDER, "__init__.py", "__main__.py", "py.typed"}


def test_imports_run_down_the_table() -> None:
    rank = {name: number for number, name in enumerate(ORDER)}
    stray = []
    for one in ours():
        here, there = layer(dotted(one.file)), layer(one.module)
        if here in ("", "__main__"):  # the root's files hand on what is below them
            continue
        if there == "" or rank[there] < rank[here]:
            stray.append(f"{place(one)}: {one.module} is above {here}/; move what both need to {here}/ or below it")
    assert not stray, "\n".join(stray)


def test_no_stage_imports_a_stage() -> None:
    stray = []
    for one in ours():
        here, there = dotted(one.file).split("."), one.module.split(".")
        if here[1:2] == there[1:2] == ["stages"] and len(here) > 2 and len(there) > 2:
            both = here[2], there[2]
            if both[0] in STAGES and both[1] in STAGES and both[0] != both[1]:
                stray.append(f"{place(one)}: {one.module}; ask the context for it, or move it to stages/rows/")
    assert not stray, "\n".join(stray)


def siblings(folder: Path) -> dict[str, set[str]]:
    """What the files and subfolders of a folder import of each other."""
    inside = dotted(folder / "__init__.py")
    found: dict[str, set[str]] = {}
    for one in ours():
        here, there = dotted(one.file), one.module
        if here.startswith(f"{inside}.") and there.startswith(f"{inside}."):
            depth = len(inside.split("."))
            both = here.split(".")[depth], there.split(".")[depth]
            if both[0] != both[1]:
                found.setdefault(both[0], set()).add(both[1])
    return found


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Circles that a walk along the arrows comes back on, each once, as [a, b, a]."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
            return
        if name in done:
            return
        for other in sorted(arrows.get(name, ())):
            walk(other, [*path, name])
        done.add(name)

    for name in sorted(arrows):
        walk(name, [])
    return found


def test_circles_are_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}}) == []


FOLDERS = sorted({path.parent for path in ROOT.rglob("*.py")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT.parent)))
def test_siblings_form_no_circle(folder: Path) -> None:
    """Neither files nor packages import each other in a circle, at any depth: subfolders count as one."""
    found = circles(siblings(folder)) if folder != ROOT else []
    lines = [" -> ".join(circle) for circle in found]
    for circle in found:
        for here, there in pairwise(circle):
            inside = dotted(folder / "__init__.py")
            lines += [
                f"  {place(one)}: {one.module}"
                for one in ours()
                if dotted(one.file).startswith(f"{inside}.{here}") and one.module.startswith(f"{inside}.{there}")
            ][:2]
    assert not lines, "\n".join(lines)


def test_late_imports_of_our_own_are_few_and_say_why() -> None:
    late = sorted({(place(one), one.file, one.line) for one in ours() if one.late and not one.typing_only})
    silent = []
    for where, file, line in late:
        lines = file.read_text(encoding="utf-8").splitlines()
        # one comment speaks for the imports below it in the same block
        above = line - 2
        while above >= 0 and lines[above].strip().startswith(("from ", "import ")):
            above -= 1
        if not any("#" in lines[number] for number in range(max(above, 0), line)):
            silent.append(f"{where}: {lines[line - 1].strip()}: import it above, or say why not")
    assert not silent, "\n".join(silent)
    assert len(late) <= MOST_LATE, "\n".join(where for where, _, _ in late)


def light() -> list[Path]:
    return sorted({path for pattern in LIGHT for path in ROOT.glob(pattern)})


@pytest.mark.parametrize("path", light(), ids=named)
def test_nothing_heavy_is_imported_before_a_run_starts(path: Path) -> None:
    for one in imports(path):
        heavy = one.module.split(".")[0] in HEAVY and not one.late and not one.typing_only
        assert not heavy, f"{place(one)}: import {one.module} inside the function that needs it"


@pytest.mark.parametrize("path", sorted((ROOT / "config").glob("*.py")), ids=lambda path: path.stem)
def test_settings_need_the_standard_library_only(path: Path) -> None:
    if any(one.module.split(".")[0] in ("hydra", "omegaconf", "yaml") for one in imports(path)):
        assert path.stem in ("cells", "compose", "grid", "hydra_settings", "overrides", "plain", "yaml_files"), (
            "OmegaConf ends at config/compose.py"
        )
    if path.stem in (*STAGES, "model", "parts", "sweep", "tracking", "run"):
        for one in imports(path):
            fine = one.module.split(".")[0] in sys.stdlib_module_names or layer(one.module) in ("config", "base")
            assert fine, f"{place(one)}: {one.module} belongs in a stage"


def test_hydra_and_omegaconf_end_at_config() -> None:
    for path in modules().values():
        for one in imports(path):
            if one.module.split(".")[0] in ("hydra", "omegaconf"):
                above = path.relative_to(ROOT).parts[0] == "config" or path == ROOT / "cli" / "run.py"
                assert above, f"{place(one)}: {one.module}; take a RunConfig"


@pytest.mark.parametrize("path", sorted((ROOT / "stages" / "mapping").glob("*.py")), ids=lambda path: path.stem)
def test_mapping_works_without_torch(path: Path) -> None:
    for one in imports(path):
        fine = one.module.split(".")[0] != "torch" and one.module != "safetensors.torch"
        assert fine, f"{place(one)}: {one.module}; use numpy and safetensors.numpy"


@pytest.mark.parametrize(
    "path", [path for path in ROOT.rglob("*/__init__.py")], ids=lambda path: str(path.parent.relative_to(ROOT))
)
def test_package_init_files_stay_empty(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert all(isinstance(node, ast.Expr) for node in body), f"{named(path)}: move the code into a module"


def test_every_stage_has_a_recipe_and_a_section() -> None:
    assert set(recipes.STAGES) == set(STAGES)
    for stage in STAGES:
        assert (ROOT / "stages" / stage / "recipe.py").is_file()
        assert (ROOT / "config" / f"{stage}.py").is_file()


def test_print_the_table() -> None:
    """Shown with -s: what a newcomer sees from the street."""
    sizes = {name: [len(p.read_text().splitlines()) for p in (ROOT / name).rglob("*.py")] for name in ORDER}
    print()
    for name, phrase in ORDER.items():
        print(f"  {name:<9} {len(sizes[name]):>3} files {sum(sizes[name]):>6} lines   {phrase}")
    lengths = {named(path): len(path.read_text().splitlines()) for path in modules().values()}
    functions = {
        f"{named(path)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    }
    for what, sizes_of in (("file", lengths), ("function", functions)):
        longest = max(sizes_of, key=sizes_of.__getitem__)
        print(f"  longest {what} {longest}, {sizes_of[longest]} lines")
    late = {place(one) for one in ours() if one.late and not one.typing_only}
    print(f"  late imports of our own {len(late)}; lines in all {sum(lengths.values())}")
