"""The command line in-process, and in processes of their own where what is imported or printed matters."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rapidun.pipeline.run
import rapidun.sweep.worker
from rapidun.base.errors import DataError
from rapidun.base.files import write_json
from rapidun.cli.main import main
from rapidun.config.paths import config_groups
from rapidun.config.run import RunConfig

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "numpy", "peft", "matplotlib", "wandb")


def run_python(code: str, *, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=120
    )


def sweep_py(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "sweep.py"), *args]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=120)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def started(here: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, list[str], str]]:
    """Stand in for the pipeline: note what it was called with, write what the summary reads."""
    calls: list[tuple[RunConfig, list[str], str]] = []

    def fake(cfg: RunConfig, *, overrides: list[str], config_yaml: str, **_: Any) -> None:
        calls.append((cfg, overrides, config_yaml))
        folder = Path(str(cfg.run_dir))
        state = "failed" if cfg.seed >= 90 else "done"
        write_json(folder / "status.json", {"state": state, "stage": "mapping", "stages": {}, "error": None})
        if cfg.seed == 91:
            raise DataError("pack.jsonl:3: need something else")
        if cfg.seed == 92:
            raise ValueError("the numbers went wrong\nsecond line")
        if cfg.seed == 93:
            raise KeyboardInterrupt
        write_json(folder / "result.json", {"name": cfg.name, "seed": cfg.seed, "asr_seen": 0.1})

    monkeypatch.setattr(rapidun.pipeline.run, "run_pipeline", fake)
    monkeypatch.setattr("rapidun.cli.door.run_pipeline", fake)
    monkeypatch.setattr(rapidun.sweep.worker, "run_pipeline", fake)
    return calls


# --- what shows only ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--cfg", "job", "mapping.tau_f=1"], ["--info", "defaults"], ["--version"], ["sed=1"], ["mapping=x"]],
    ids=" ".join,
)
def test_showing_and_refusing_takes_under_a_second_and_no_torch(here: Path, args: list[str]) -> None:
    code = f"""
import sys
from rapidun.cli.main import main
status = main({args!r})
heavy = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else status)
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_python(code, cwd=here)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == (2 if args[0] in ("sed=1", "mapping=x") else 0), done.stderr
    # processor time, which a busy machine does not stretch as it does the clock
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    assert list(here.iterdir()) == []


def test_help_names_every_stage_group_choice_and_sub_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    groups = config_groups()
    for word in [*groups, *(name for names in groups.values() for name in names), "doctor", "pack build", "store list"]:
        assert word in text, word
    assert max(len(line) for line in text.splitlines()) <= 120


def test_cfg_job_prints_what_a_run_would_see(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    assert main(["--cfg", "job", "+mapping.tau_f=0.123", "mapping.forget=w.jsonl"]) == 0
    text = capsys.readouterr().out
    assert "tau_f: 0.123" in text and "path: w.jsonl" in text
    assert main(["--cfg=job", "sed=1"]) == 2


def test_info_defaults_lists_the_groups(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    assert main(["--info", "defaults", "mapping=uniform"]) == 0
    assert "mapping/uniform" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args", [["--foo"], ["--cfg", "jobb"], ["--config-dir", "nowhere"], ["-m", "--cfg", "job"], ["seed=1", "-x"]]
)
def test_wrong_flags_are_refused_like_wrong_keys(
    args: list[str], capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    assert main(args) == 2
    assert capsys.readouterr().err.startswith("rapidun: command line: ")


# --- one run ------------------------------------------------------------------------------------------------------


def test_a_run_gets_the_checked_configuration(started: list[Any], here: Path) -> None:
    assert main(["mapping=uniform", "seed=3", "run_dir=out"]) == 0
    [(cfg, overrides, config_yaml)] = started
    assert (cfg.mapping.method.name, cfg.seed, cfg.run_dir) == ("uniform", 3, "out")
    assert overrides == ["mapping=uniform", "seed=3", "run_dir=out"]
    assert "seed: 3" in config_yaml
    assert [path.name for path in here.iterdir()] == ["out"]


def test_without_run_dir_the_folder_is_named_by_time_and_name(started: list[Any], here: Path) -> None:
    assert main(["name=mine"]) == 0
    assert str(started[0][0].run_dir).startswith("outputs/runs/20") and started[0][0].run_dir.endswith("_mine")


def test_exit_status_tells_users_errors_from_failed_stages(
    started: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["seed=91", "run_dir=a"]) == 2
    assert capsys.readouterr().err == "rapidun: pack.jsonl:3: need something else\n"
    assert main(["seed=92", "run_dir=a"]) == 1
    error = capsys.readouterr().err
    assert error == "rapidun: mapping failed: ValueError: the numbers went wrong (traceback in a/status.json)\n"
    assert main(["seed=93", "run_dir=a"]) == 130
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main(["seed=92", "run_dir=a"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_faults_are_printed_one_a_line_under_one_head(started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mapping.tauf=1", "+typo=1", "mapping.tau_r=0"]) == 2
    head, *lines = capsys.readouterr().err.splitlines()
    assert head == "rapidun: 3 faults, nothing was run"
    assert len(lines) == 3
    assert started == []


@pytest.mark.parametrize("override", ["sweep.dry_run=true", "sweep.where=seed > 1", "hydra/launcher=rapidun_slurm"])
def test_settings_of_a_sweep_need_a_sweep(
    override: str, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without -m a dry run would run."""
    assert main([override]) == 2
    assert "sweeps need -m" in capsys.readouterr().err
    assert started == []


def test_one_process_is_not_two(started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resources=multi_gpu"]) == 2
    assert "torchrun --nproc-per-node 2" in capsys.readouterr().err
    assert started == []


def test_a_packs_folder_needs_a_pack(started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data.dir=somewhere"]) == 2
    assert "data=dolly_triggers" in capsys.readouterr().err
    assert started == []


# every cell of these finds its only artifact made while the sweep is planned
LIGHT_SWEEP = ["debug=fast", "stages=[mapping]", "mapping=uniform"]


# --- sweeps -------------------------------------------------------------------------------------------------------


def test_a_sweep_runs_every_cell_in_a_folder_of_its_own(
    started: list[Any], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", *LIGHT_SWEEP, "seed=1,2", "mapping.tau_f=0.3,0.7", "sweep.name=grid"]) == 0
    folders = [Path(str(cfg.run_dir)) for cfg, _, _ in started]
    assert len(set(folders)) == 4
    assert {folder.parent for folder in folders} == {Path("outputs/sweeps/grid")}
    notes = json.loads((folders[0] / "overrides.json").read_text())
    assert notes["task"] == [*LIGHT_SWEEP, "seed=1", "mapping.tau_f=0.3"]
    assert notes["axes"] == {"seed": "1", "mapping.tau_f": "0.3"}
    # the command that reruns a cell alone goes into the same folder
    assert started[0][1] == [*LIGHT_SWEEP, "seed=1", "mapping.tau_f=0.3", f"run_dir={folders[0]}"]
    assert "sweep: 4 cells: 4 done" in capsys.readouterr().out
    assert (here / "outputs/sweeps/grid/summary.csv").is_file()
    # Hydra wrote nothing elsewhere
    assert [path.name for path in here.iterdir()] == ["outputs"]
    assert {path.name for path in (here / "outputs").iterdir()} == {"store", "sweeps"}
    assert {path.name for path in (here / "outputs/sweeps").iterdir()} == {"grid"}


def test_a_failing_cell_stops_no_other(started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", *LIGHT_SWEEP, "seed=92,91,1"]) == 1
    assert [cfg.seed for cfg, _, _ in started] == [92, 91, 1]
    out, err = capsys.readouterr()
    assert "sweep: 3 cells: 2 failed, 1 done" in out
    assert "Traceback" not in out + err
    [folder] = Path("outputs/sweeps").iterdir()
    logs = [path.read_text() for path in sorted((folder / "jobs").glob("*.log"))]
    assert "failed: ValueError: the numbers went wrong" in logs[0] and "Traceback" in logs[0]
    assert "failed: DataError: pack.jsonl:3: need something else" in logs[1] and "Traceback" not in logs[1]


def test_an_interrupted_sweep_stops(started: list[Any]) -> None:
    assert main(["-m", *LIGHT_SWEEP, "seed=1,93,2"]) == 130
    assert [cfg.seed for cfg, _, _ in started] == [1, 93]


def test_a_sweep_with_a_wrong_value_starts_nothing(started: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "seed=1,2", "mapping.tau_f=0.5,0", "mapping=uniform,unifrm"]) == 2
    assert "2 faults" in capsys.readouterr().err
    assert started == []


def test_overrides_may_stand_on_both_sides_of_a_flag(started: list[Any]) -> None:
    assert main(["seed=1,2", "-m", *LIGHT_SWEEP]) == 0
    assert [cfg.mapping.method.name for cfg, _, _ in started] == ["uniform", "uniform"]


def test_free_entries_and_weights_files_reach_every_cell(started: list[Any], here: Path) -> None:
    for name in ("f.jsonl", "r.jsonl"):
        (here / name).write_text('{"index": 0, "weight": 1.0}\n')
    args = ["debug=fast", "stages=[mapping]", "mapping=file", "mapping.forget=f.jsonl", "mapping.retain=r.jsonl"]
    args += ["data.families.D.seen=[x]", "seed=1"]
    assert main(["-m", *args]) == 0
    assert [cfg.mapping.forget.path for cfg, _, _ in started] == ["f.jsonl"]
    assert [cfg.data.families["D"].seen for cfg, _, _ in started] == [["x"]]


# --- other ways in ------------------------------------------------------------------------------------------------


def test_python_gets_the_same_composition(started: list[Any]) -> None:
    assert rapidun.compose(["mapping=uniform"]).mapping.method.name == "uniform"
    rapidun.run(["mapping=uniform", "seed=1", "run_dir=out"])
    assert started[0][1] == ["mapping=uniform", "seed=1", "run_dir=out"]
    from rapidun.base.errors import ConfigError

    with pytest.raises(ConfigError, match="did you mean seed"):
        rapidun.compose(["sed=1"])


def test_importing_the_package_has_no_weight(here: Path) -> None:
    code = "import sys, rapidun; sys.exit(any(n in sys.modules for n in ('hydra', 'torch', 'numpy')))"
    assert run_python(code, cwd=here).returncode == 0


def test_sweep_py_works_from_any_directory(here: Path) -> None:
    done = sweep_py("mapping.tauf=1", cwd=here)
    assert done.returncode == 2
    assert done.stderr == "rapidun: mapping.tauf: no such key; did you mean mapping.tau_f?\n"
    full = sweep_py("mapping.tauf=1", cwd=here, HYDRA_FULL_ERROR="1")
    assert full.returncode == 2 and "Traceback" in full.stderr


@pytest.mark.parametrize("command", ["report", "pack", "store", "doctor", "model fetch", "sweep"])
def test_sub_commands_explain_themselves(command: str, capsys: pytest.CaptureFixture[str], here: Path) -> None:
    try:
        status = main([*command.split(), "--help"])
    except SystemExit as stop:  # argparse's way to end after help
        status = int(stop.code or 0)
    assert status == 0
    assert "usage: rapidun" in capsys.readouterr().out


def test_report_names_a_folder_that_is_none(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    assert main(["report", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("rapidun: nowhere: need a run folder")
