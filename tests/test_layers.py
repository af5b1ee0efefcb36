"""Arrows run one way: reads every import of the package and says where a stray one belongs."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rapidun

ROOT = Path(rapidun.__file__).parent
STAGES = ("data", "poison", "influence", "mapping", "unlearning", "evaluation")
HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "tokenizers",
    "matplotlib",
    "wandb",
    "scipy",
}
# read by every stage: records, their encoding and batches
SHARED_DATA = {"rapidun.data.records", "rapidun.data.encode", "rapidun.data.batches"}
# loaded on the way to --help, --cfg job and configuration errors; the pipeline as well, for runs of cached stages
LIGHT = (
    "__init__", "cli", "launch", "composition", "preflight", "keys", "paths", "help", "doctor/command", "completion",
    "shells", "config", "schema",
    "errors", "files", "store", "plan", "pipeline", "runfolder", "console", "composer", "resolved", "locks", "claims",
    "processes", "recipes", "artifacts", "heartbeat", "preemption", "tracking/__init__", "tracking/base",
    "tracking/run", "tracking/lines", "sweep/entry", "sweep/run", "sweep/plan", "sweep/launch", "sweep/drive",
    "sweep/folder", "sweep/interrupts", "sweep/worker", "sweep/command", "sweep/dryrun", "sweep/grid", "sweep/console",
)  # fmt: skip


def imports(path: Path, *, late: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, module); with late=False only what is imported when the file is."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import out in full"
            yield node.lineno, str(node.module)
            if node.module == "rapidun" or (node.module or "").startswith("rapidun."):
                # `from rapidun.data import records` imports a module as well
                for alias in node.names:
                    if (ROOT.parent / f"{node.module}/{alias.name}".replace(".", "/")).with_suffix(".py").is_file():
                        yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
            continue
        elif not late and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        todo += ast.iter_child_nodes(node)


def sources(pattern: str = "**/*.py") -> list[Path]:
    return sorted(ROOT.glob(pattern))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


IN_STAGES = [path for path in sources() if path.relative_to(ROOT).parts[0] in STAGES]
SHARED = [
    ROOT / f"{name}.py"
    for name in (
        "losses",
        "models",
        "schema",
        "errors",
        "files",
        "training",
        "journal",
        "distributed",
        "warm",
        "preemption",
    )
]
SHARED += sources("tracking/*.py")


def test_the_reader_sees_late_and_early_imports(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("import os\nif TYPE_CHECKING:\n    import torch\ndef f():\n    from rapidun.data import records\n")
    assert [name for _, name in imports(file, late=False)] == ["os"]
    assert {name for _, name in imports(file, late=True)} == {"os", "rapidun.data", "rapidun.data.records"}


@pytest.mark.parametrize("path", sources("*/config.py"), ids=named)
def test_stage_configs_need_the_standard_library_and_schema_only(path: Path) -> None:
    for line, module in imports(path, late=True):
        fine = module.split(".")[0] in sys.stdlib_module_names or module == "rapidun.schema"
        assert fine, f"{named(path)}:{line}: {module} belongs in {path.parent.name}/stage.py or a math file"


@pytest.mark.parametrize("name", LIGHT)
def test_nothing_heavy_is_imported_before_a_run_starts(name: str) -> None:
    path = ROOT / f"{name}.py"
    for line, module in imports(path, late=False):
        heavy = module.split(".")[0] in HEAVY
        assert not heavy, f"{name}.py:{line}: import {module} inside the function that needs it"


@pytest.mark.parametrize("path", IN_STAGES, ids=named)
def test_stages_meet_through_artifacts(path: Path) -> None:
    stage = path.relative_to(ROOT).parts[0]
    for line, module in imports(path, late=True):
        parts = module.split(".")
        other = parts[1] if parts[0] == "rapidun" and len(parts) > 1 else ""
        if other not in STAGES or other == stage or module in SHARED_DATA or len(parts) == 2:
            continue
        if named(path) == "unlearning/stage.py" and module == "rapidun.mapping.files":
            continue
        pytest.fail(f"{named(path)}:{line}: {module} is another stage's: read its artifact, or move what both need up")


@pytest.mark.parametrize("path", [*IN_STAGES, *SHARED], ids=named)
def test_stages_and_math_know_nothing_of_those_who_call_them(path: Path) -> None:
    callers = {
        "rapidun.cli",
        "rapidun.launch",
        "rapidun.pipeline",
        "rapidun.composition",
        "rapidun.runfolder",
        "rapidun.store",
    }
    for line, module in imports(path, late=True):
        assert module not in callers, f"{named(path)}:{line}: {module} calls this file, not the other way round"


@pytest.mark.parametrize("path", sources("mapping/*.py"), ids=named)
def test_mapping_works_without_torch(path: Path) -> None:
    for line, module in imports(path, late=True):
        fine = module.split(".")[0] != "torch" and module != "safetensors.torch"
        assert fine, f"{named(path)}:{line}: {module}; use numpy and safetensors.numpy"


@pytest.mark.parametrize("path", [p for p in sources() if named(p) not in
    ("composition.py", "composer.py", "preflight.py", "sweep/grid.py", "cli.py")], ids=named)  # fmt: skip
def test_hydra_and_omegaconf_end_at_composition(path: Path) -> None:
    for line, module in imports(path, late=True):
        assert module.split(".")[0] not in ("hydra", "omegaconf"), f"{named(path)}:{line}: {module}; take a RunConfig"


@pytest.mark.parametrize("path", sources("*/__init__.py"), ids=named)
def test_package_init_files_stay_empty(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    # a docstring, and names handed on from the package's own modules
    assert all(
        isinstance(node, ast.Expr | ast.ImportFrom) or ast.unparse(node).startswith("__all__ =") for node in body
    ), f"{named(path)}: move the code into a module"
