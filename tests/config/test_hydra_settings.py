"""No file and no override makes Hydra run anything: each attempt would leave a marker, and none may."""

from pathlib import Path

import pytest

from rapidun.base.errors import ConfigError
from rapidun.cli.main import main
from rapidun.config.compose import compose_config

HANDLER = "_target_: logging.FileHandler, filename: MARK"
# name -> what an experiment file says below `hydra:` (MARK: a file that is made when it is obeyed)
IN_FILES = {
    "callback": f"hydra:\n  callbacks:\n    x: {{{HANDLER}}}\n",
    "callback by reference": f"hydra:\n  callbacks: {{x: {{{HANDLER}}}}}\n  verbose: false\n",
    "sweeper": f"hydra:\n  sweeper: {{{HANDLER}}}\n",
    "launcher": f"hydra:\n  launcher: {{{HANDLER}}}\n",
    "inside the space": f"hydra:\n  sweeper:\n    params: {{seed: '1,2', x: {{{HANDLER}}}}}\n",
    "by reference": "cluster:\n  environment: {_target_: logging.FileHandler, filename: MARK}\n"
    "hydra:\n  sweeper:\n    params: '${cluster.environment}'\n",
    "logging": "hydra:\n  job_logging:\n    version: 1\n    root: {handlers: [x]}\n"
    "    handlers: {x: {class: logging.FileHandler, filename: MARK}}\n",
    "logging of hydra": "hydra:\n  hydra_logging:\n    version: 1\n    root: {handlers: [x]}\n"
    "    handlers: {x: {class: logging.FileHandler, filename: MARK}}\n",
    "environment": "hydra:\n  job:\n    env_set: {LD_PRELOAD: MARK}\n",
    "folder": "hydra:\n  run: {dir: MARK}\n  sweep: {dir: MARK}\n",
}
TYPED = (
    "+hydra.callbacks.x._target_=logging.FileHandler",
    "++hydra.callbacks.x={_target_: logging.FileHandler, filename: MARK}",
    "hydra.callbacks={x: {_target_: logging.FileHandler, filename: MARK}}",
    "hydra.sweeper._target_=logging.FileHandler",
    "hydra.launcher._target_=logging.FileHandler",
    "++hydra.sweeper.params.x={_target_: logging.FileHandler, filename: MARK}",
    "++hydra.job_logging.handlers.x.class=logging.FileHandler",
    "++hydra.job.env_set.LD_PRELOAD=MARK",
    "hydra.searchpath=[pkg://antigravity]",
    "hydra.run.dir=MARK",
    "hydra.sweep.dir=MARK",
    "hydra.output_subdir=MARK",
    "hydra.job.chdir=true",
    "hydra/env=mine",
    "+hydra/callbacks=mine",
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def experiment(place: Path, text: str) -> str:
    file = place / "experiment/mine.yaml"
    file.write_text("# @package _global_\n" + text.replace("MARK", str(place / "marker")))
    return f"+experiment={file}"


WAYS = {
    "run": ["stages=[data]"],
    "shown": ["--cfg=job"],
    "sweep": ["-m", "seed=1,2", "sweep.dry_run=true"],
    "tuned": ["-m", "hydra/sweeper=rapidun_optuna", "mapping.tau_f=interval(0.1,2)", "sweep.dry_run=true"],
}


ASKED = [*((name, "tuned") for name in IN_FILES), *(("callback", way) for way in WAYS if way != "tuned")]


@pytest.mark.parametrize(("name", "way"), ASKED)
@pytest.mark.bad_input
def test_files(place: Path, capsys: pytest.CaptureFixture[str], name: str, way: str) -> None:
    assert main([*WAYS[way], experiment(place, IN_FILES[name])]) == 2
    assert "rapidun: " in capsys.readouterr().err
    assert not (place / "marker").exists() and not list((place / "here").iterdir())


@pytest.mark.parametrize("text", TYPED)
@pytest.mark.bad_input
def test_typed(place: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert main([*WAYS["tuned"], text.replace("MARK", str(place / "marker"))]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rapidun: hydra") and "hydra.verbose" in said, said
    assert not (place / "marker").exists() and not list((place / "here").iterdir())


@pytest.mark.filterwarnings(r"ignore:\s*'hydra:UserWarning")
def test_a_folder_of_config_files_shadows_no_sweeper(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"_target_: logging.FileHandler\nfilename: {place / 'marker'}\n"
    for group, name in (("sweeper", "rapidun"), ("launcher", "basic"), ("job_logging", "mine"), ("callbacks", "mine")):
        file = place / "conf" / "hydra" / group / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    more = place / "conf/experiment/logs.yaml"
    more.parent.mkdir()
    more.write_text("# @package _global_\ndefaults:\n  - override /hydra/job_logging: mine\n")
    extra = f"--config-dir={place / 'conf'}"
    for words in (["seed=1,2"], ["seed=1,2", "+experiment=logs"]):
        assert main(["-m", "sweep.dry_run=true", extra, *words]) == 2
    # Hydra itself refuses a launcher of another shape; the sweeper's shape is free
    assert capsys.readouterr().err.count("rapidun: ") == 2
    assert not (place / "marker").exists()


def test_what_the_docs_use_stays(place: Path) -> None:
    text = "hydra:\n  sweeper:\n    params: {mapping.tau_f: '0.3,0.7'}\n  verbose: true\n"
    assert compose_config([experiment(place, text), "seed=3"]).seed == 3
    for words in (["hydra.verbose=true"], ["hydra/job_logging=default"], ["hydra/hydra_logging=default"]):
        assert compose_config(words).seed == 42
    assert main(["-m", "sweep.dry_run=true", "hydra/launcher=rapidun_local", "seed=1,2", "hydra.verbose=true"]) == 0


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join(f'*a{i - 1}' for _ in range(9))}]\n" for i in range(1, 12)
)
ENDLESS = {
    "aliases": BOMB,
    "one that holds itself": "seed: &a [*a]\n",
    "merge keys": "x: &x {seed: 3}\n<<: *x\n",
    "brackets": "seed: " + "[" * 3000 + "]" * 3000 + "\n",
    "braces": "seed: " + "{a: " * 3000 + "}" * 3000 + "\n",
    "indents": "".join(" " * i + "a:\n" for i in range(1500)),
    "a loop": "defaults:\n  - mine\n",
    "a loop by reference": "name: ${run_dir}\nrun_dir: ${name}\n",
    "size": "# " + "x" * 2_000_000 + "\n",
}


@pytest.mark.parametrize("name", ENDLESS)
@pytest.mark.bad_input
def test_files_without_end(place: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["--cfg=job", experiment(place, ENDLESS[name])]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rapidun: ") and len(said) < 1000, said[:2000]


BRACKETS = ["seed=" + "[" * 3000 + "]" * 3000, "mapping.forget=" + "{a:" * 3000 + "1" + "}" * 3000]


@pytest.mark.parametrize("text", BRACKETS)
@pytest.mark.bad_input
def test_brackets_typed(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(ConfigError, match="nested"):
        compose_config([text])
    assert main([text]) == 2
    assert len(capsys.readouterr().err) < 1000
