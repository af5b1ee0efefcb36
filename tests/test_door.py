"""The Python door: `rapidun.run`, `compose`, `sweep`, `load` as a user's script and notebook use them."""

import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rapidun
from rapidun.base.errors import ConfigError
from rapidun.config.keywords import overrides_of, overrides_of_config

ROOT = Path(__file__).parents[1]
LIGHT = ["debug=fast", "tracking=none", "resources.num_threads=1", "stages=[data]"]
# every exported name, as somebody types it who checks with mypy --strict
SCRIPT = """
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import rapidun


def measure(seed: int) -> float:
    cfg: rapidun.RunConfig = rapidun.compose(["mapping=uniform"], seed=seed, unlearning={"learning_rate": 1e-3})
    cfg.seed = seed
    try:
        result: rapidun.Result = rapidun.run(cfg)
    except (rapidun.ConfigError, rapidun.DataError, rapidun.ModelError) as error:
        raise SystemExit(str(error)) from error
    except (rapidun.ArtifactError, rapidun.MachineError):
        return 0.0
    except rapidun.RapidunError as error:
        print(error.ran)
        raise
    weights: Mapping[str, list[float]] = result.weights
    print(len(weights["forget"]), result.scores.keys(), result.run_dir / "report.html")
    return float(result.metrics["asr_seen"])


def best(folder: Path) -> list[str]:
    found = rapidun.sweep(["mapping=rapidun,uniform"], seed=range(3))
    loaded: rapidun.LoadedRun | rapidun.Sweep = rapidun.load(folder)
    base: rapidun.Loaded = loaded
    print(base.path, base.is_sweep, base.to_frame(), base.summary().counts)
    if isinstance(loaded, rapidun.LoadedRun):
        print(loaded.metrics, loaded.settings, loaded.weights)
    else:
        print(loaded.failures)
    names: list[str] = [group.label for groups in found.best.values() for group in groups]
    return names + [cell.path.name for cell in found.cells if cell.error]


def terms(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    kept = rapidun.retain_terms("ce", logits, labels)
    return rapidun.forget_terms("npo", logits, labels, ref_logits=logits, beta=0.1) + kept


version: str = rapidun.__version__


@rapidun.objective(label="half an ascent")
def halved(outputs: Any, settings: object) -> torch.Tensor:
    return -outputs.poisoned.cross_entropy / 2


@rapidun.weighting(label="heads or tails", seed=True)
def coin(inputs: Any) -> dict[str, list[float]]:
    return {group: [1.0] * count for group, count in inputs.counts.items()}


@rapidun.metric(label="words")
def words(generations: list[str], references: list[str]) -> list[int]:
    return [len(one.split()) for one in generations]


@rapidun.reader(endings=[".blocks"])
def blocks(path: Path) -> Iterator[dict[str, str]]:
    yield {"instruction": path.read_text(), "response": ""}


@rapidun.launcher
class Here:
    name = "here"


rapidun.extend("mine.py")
"""
MYPY = """
[mypy]
strict = true
# what is not ours takes most of the time and is not asked about
[mypy-torch.*,numpy.*,pandas.*,matplotlib.*,plotly.*,transformers.*,scipy.*,jinja2.*,rich.*,hydra.*,omegaconf.*]
follow_imports = skip
ignore_missing_imports = true
"""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("seed=1", "need a list of overrides, got the text 'seed=1'. Pass rapidun.run(['seed=1'])"),
        (b"seed=1", "got the text 'seed=1'"),
        ({"seed": 1}, "rapidun.run(**settings)"),
        (7, "need a list of overrides"),
        ([{"seed": 1}], "need overrides that are texts"),
    ],
)
@pytest.mark.bad_input
def test_a_text_where_a_list_belongs_is_one_clear_error(given: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rapidun.run(given)
    assert len(caught.value.faults) == 1 and words in str(caught.value)


@pytest.mark.parametrize("call", [rapidun.compose, rapidun.sweep])
@pytest.mark.bad_input
def test_so_it_is_everywhere(call: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigError, match=r"need a list of overrides, got the text 'seed=1'"):
        call("seed=1")


def test_settings_in_python_are_what_is_typed() -> None:
    settings: dict[str, Any] = {
        "mapping": "uniform", "seed": 1, "unlearning": {"learning_rate": 1e-5, "npo": {"beta": 0.5}},
        "mapping.tau_f": 0.5, "run_dir": Path("a b"), "data.dir": None, "stages": ["data", "poison"],
        "poison.retrain": True, "cluster": {"environment": {"A": "x y"}},
    }  # fmt: skip
    assert overrides_of("run", ["+experiment=e"], settings) == [
        "+experiment=e", "mapping=uniform", "seed=1", "unlearning.learning_rate=1e-05", "unlearning.npo.beta=0.5",
        "mapping.tau_f=0.5", 'run_dir="a b"', "data.dir=null", "stages=[data,poison]", "poison.retrain=true",
        'cluster.environment={A:"x y"}',
    ]  # fmt: skip
    swept = overrides_of("sweep", (), {"mapping": ("a", "b"), "seed": range(3), "stages": ["data"]}, swept=True)
    assert swept == ["mapping=a,b", "seed=0,1,2", "stages=[data]"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": (0, 1)}, "several values of a key are for rapidun.sweep"),
        ({"seed": object()}, "need text, a number"),
    ],
)
@pytest.mark.bad_input
def test_what_no_setting_can_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        rapidun.run([], **settings)


@pytest.mark.bad_input
def test_a_key_given_twice_and_settings_beside_a_configuration() -> None:
    with pytest.raises(ConfigError, match="need seed once"):
        rapidun.run(["seed=1"], seed=2)
    with pytest.raises(ConfigError, match="need a configuration or settings, got both"):
        rapidun.run(rapidun.compose(), seed=2)


def test_a_configuration_is_checked_and_can_be_typed() -> None:
    defaults = rapidun.compose()
    cfg = rapidun.compose(["mapping=uniform"], seed=3, unlearning={"learning_rate": 2e-3})
    checked, typed = overrides_of_config(cfg, defaults=defaults)
    assert checked == cfg and checked is not cfg
    assert rapidun.compose(typed) == cfg
    cfg.unlearning.learning_rate = -1.0
    with pytest.raises(ConfigError, match="learning_rate"):
        rapidun.run(cfg)


def test_run_load_and_show(tmp_path: Path) -> None:
    """One run of the door, by overrides and by a configuration: the second finds everything."""
    first = rapidun.run(LIGHT, run_dir=tmp_path / "first", store_dir=tmp_path / "store")
    cfg = rapidun.compose(LIGHT, run_dir=tmp_path / "second", store_dir=tmp_path / "store")
    second = rapidun.run(cfg)
    assert (tmp_path / "first/data").resolve() == (tmp_path / "second/data").resolve()
    assert "stages=[data]" in (tmp_path / "second/command.txt").read_text()
    for found in (rapidun.load(tmp_path / "first"), second):
        assert found.metrics["name"] == first.metrics["name"]
        assert "Not evaluated" in found._repr_html_()
    with pytest.raises(rapidun.DataError, match="weights that read no influence"):
        _ = first.scores


def test_a_sweep_is_run_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["debug=fast", "tracking=none", "resources.num_threads=1", "stages=[data]", "sweep.name=door"]
    found = rapidun.sweep(settings, **{"data.seed": (0, 1), "hydra/launcher": "basic"})
    assert isinstance(found, rapidun.Sweep) and found.path == Path("outputs/sweeps/door")
    assert [cell.state for cell in found.cells] == ["done", "done"] and found.failures == []
    assert len(found.to_frame()) == 2 and isinstance(found.best, dict)
    assert "2 cells: 2 done" in found._repr_html_() and "data.seed=1" in found._repr_html_()
    # the subpackage of that name is imported by now
    assert inspect.ismodule(rapidun.sweep) and callable(rapidun.sweep)
    assert rapidun.sweep.run is importlib.import_module("rapidun.sweep.run")  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="which left none"):
        rapidun.sweep(["debug=fast", "sweep.dry_run=true", "sweep.name=other", "seed=0,1"])


def test_every_name_is_there_and_told() -> None:
    for name in rapidun.__all__:
        found = getattr(rapidun, name)
        assert name == "__version__" or inspect.getdoc(found), name
    for name in ("run", "compose", "load", "forget_terms"):
        assert "Raises:" in str(inspect.getdoc(getattr(rapidun, name))), name
    assert set(rapidun.__all__) <= set(dir(rapidun))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rapidun.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_importing_takes_no_time_and_python_m_rapidun_runs() -> None:
    code = "import sys, rapidun; print(sorted(name.split('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in ("torch", "hydra", "numpy", "transformers", "rich", "jinja2", "yaml"):
        assert f"'{name}'" not in done.stdout
    done = subprocess.run([sys.executable, "-m", "rapidun", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"rapidun {rapidun.__version__}"


@pytest.mark.slow
def test_a_script_of_every_name_passes_mypy_strict(tmp_path: Path) -> None:
    assert (ROOT / "rapidun" / "py.typed").is_file()
    assert all(f"rapidun.{name}" in SCRIPT for name in rapidun.__all__)
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "mypy.ini").write_text(MYPY)
    # as where it is installed: what is wrong in the package is not the script's
    flags = ["--follow-imports=silent", "--config-file=mypy.ini", f"--cache-dir={tmp_path / 'cache'}"]
    environment = {"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "mypy", *flags, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "script.py").write_text(f"{SCRIPT}rapidun.run(7)\n")
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert 'has incompatible type "int"' in done.stdout


def builder() -> Any:
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "notebooks" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_notebook_in_docs_is_that_of_its_source_and_was_run() -> None:
    pytest.importorskip("nbformat")
    build = builder()
    kept = json.loads(build.NOTEBOOK.read_text(encoding="utf-8"))
    made = build.notebook()
    assert ["".join(cell["source"]) for cell in kept["cells"]] == [cell["source"] for cell in made.cells]
    code = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert sum("text/html" in output.get("data", {}) for output in outputs) >= 3
    assert not any(place in json.dumps(outputs) for place in ("/tmp/", "/home/", "site-packages"))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    build = builder()
    made = build.notebook()
    first = next(cell for cell in made.cells if "settings = [" in cell["source"])
    first["source"] = first["source"].replace("settings = [", 'settings = ["debug=fast", ')
    done = build.run(made, folder=tmp_path)
    assert (tmp_path / "outputs/sweeps/quickstart/runs.csv").is_file()
    shown = [output.get("data", {}) for cell in done.cells for output in cell.get("outputs", ())]
    html = "".join(data.get("text/html", "") for data in shown)
    assert "<svg" in html and "95 % interval" in html and "2 cells: 2 done" in html
    # progress is one line a stage that changed in place: of the run, and of two cells that found the model
    lines = [data["text/plain"] for data in shown if data.get("text/plain", "").startswith("poison ")]
    assert [line.split()[1] for line in lines] == ["done", "reused", "reused"]
