"""`rapidun doctor` says what is there, what will not work, why, and what to do; nothing holds it up."""

import json
import os
import stat
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from rapidun.cli.doctor import command, inputs, machine, services, software, storage
from rapidun.cli.doctor.findings import Findings, bounded, shown, verdict
from rapidun.cli.doctor.request import Request, read_request
from rapidun.cli.main import main
from rapidun.pipeline.tracking.wandb import mode as wandb_mode
from rapidun.stages.rows.records import Record, write_records

ROOT = Path(__file__).parents[2]
ON_CPU = {
    "torch": {"version": "2.13.0", "cuda": None, "gpus": []},
    "quantisation": {"8bit": "", "4bit": "no kernel"},
}
ON_GPU = {
    "torch": {
        "version": "2.13.0", "cuda": "12.8", "bf16": False,
        "gpus": [{"name": "T4", "memory": 16 * 2**30, "free": 15 * 2**30, "capability": "7.5"}],
    },
    "quantisation": {"8bit": "", "4bit": ""},
}  # fmt: skip
SINFO = "short*|up|30:00|2|2048|(null)\nlong|up|infinite|64|256000|gpu:a100:4\n"


class FakeProbe:
    """Stands for torch in another process."""

    def __init__(self, answer: dict[str, Any] = ON_CPU) -> None:
        self.answer = answer

    def result(self) -> dict[str, Any]:
        return self.answer


def request(*overrides: str, multirun: bool = False) -> Request:
    return read_request(overrides, multirun=multirun)


def problems(found: Findings, *, needed: bool | None = None) -> list[str]:
    return [p.what for p in found.problems if needed is None or p.needed is needed]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, no keys, no network, no SLURM, torch by FakeProbe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "Probe", FakeProbe)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.test")
    monkeypatch.setattr(wandb_mode, "_settings", lambda: SimpleNamespace(api_key=None))
    monkeypatch.setattr(wandb_mode, "answers", lambda address: False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


# --- the command --------------------------------------------------------------------------------------------------


def test_all_sections_in_80_columns_and_nothing_left_behind(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in (
        "python", "torch", "optuna", "submitit", "wandb-workspaces", "filelock", "joblib", "simpleeval", "store", "GiB",
        "file locks", "model", "pack", "cpu", "memory", "gpu", "quantisation", "key", "mode", "commands",
        "the default configuration will work here", "-> model.device=auto uses the CPU",
    ):  # fmt: skip
        assert word in text, word
    assert max(len(line) for line in text.splitlines() if "/" not in line) <= 80
    assert list(here.iterdir()) == []


def test_json_says_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "model.device=cuda"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert list(found["facts"]) == ["software", "storage", "configuration", "machine", "W&B", "SLURM"]
    assert found["facts"]["machine"]["torch"] == "2.13.0 (a CPU build)"
    [problem] = [problem for problem in found["problems"] if problem["asked"]]
    assert problem == {
        "what": "model.device=cuda", "why": "torch is a CPU build", "remedy": "model.device=auto uses the CPU",
        "asked": True,
    }  # fmt: skip


def test_wrong_overrides_are_named_and_the_rest_is_still_looked_at(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "mapping.tauf=1"]) == 1
    text = capsys.readouterr().out
    assert "did you mean mapping.tau_f?" in text.replace("\n    ", " ") and "quantisation" in text
    assert "Traceback" not in text


def test_first_lines_come_before_torch_is_imported(tmp_path: Path) -> None:
    """The process that prints never imports torch; the one that does is asked last."""
    code = """
import sys
from rapidun.cli.main import main
status = main(["doctor"])
sys.exit("torch was imported" if "torch" in sys.modules else status)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "usable (bitsandbytes)" in done.stdout
    assert done.stdout.index("storage") < done.stdout.index("\nmachine")


def test_a_check_that_hangs_or_fails_is_a_finding() -> None:
    start = time.monotonic()
    hung = bounded(lambda: time.sleep(60) or Findings(), title="storage", seconds=0.2)
    assert time.monotonic() - start < 5
    assert hung.problems[0].why == "no answer within 0.2 s" and not hung.problems[0].needed

    def fail() -> Findings:
        raise ValueError("first\nsecond")

    failed = bounded(fail, title="storage", seconds=5)
    assert failed.problems[0].why == "ValueError: first" and failed.problems[0].needed


def test_what_is_asked_for_comes_first_and_long_lines_are_folded() -> None:
    found = Findings()
    found.fact("name", "word " * 40)
    found.problem("a", "why a", "do a")
    found.problem("b", "why b " * 20, "do b", needed=True)
    found.problem("a", "why a", "do a")
    text = verdict(found.problems, overrides=True)
    assert text.index("- b: why b") < text.index("would not work here") < text.index("- a: why a")
    assert text.count("- a: why a") == 1 and "-> do b" in text
    assert max(len(line) for line in (text + shown("title", found)).splitlines()) <= 80


# --- what is asked about ------------------------------------------------------------------------------------------


def test_a_sweep_is_looked_at_cell_by_cell() -> None:
    found = request("model.dtype=float32,bfloat16", "seed=1,2", "hydra/launcher=joblib", multirun=True)
    assert [cfg.model.dtype.name for cfg in found.distinct(lambda cfg: cfg.model.dtype)] == ["float32", "bfloat16"]
    assert len(found.cfgs) == 4 and found.launcher == "joblib" and not found.slurm


def test_a_search_needs_optuna_whatever_its_space() -> None:
    found = request("hydra/sweeper=rapidun_optuna", "mapping.tau_f=interval(0.1,2)", "seed=3", multirun=True)
    assert found.faults == [] and found.tuned and found.cfgs[0].seed == 3


# --- software -----------------------------------------------------------------------------------------------------


def test_a_missing_package_is_a_problem_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_version", lambda name: None if name in ("peft", "trackio", "optuna") else "999")
    monkeypatch.setattr(software, "_ranges", dict)
    found = software.look_at_software(request("tracking=trackio"))
    assert problems(found, needed=True) == ["every run", "tracking=trackio"]
    assert problems(found, needed=False) == ["hydra/sweeper=rapidun_optuna"]
    assert found.problems[0].remedy.startswith("pip install peft")
    searching = request("hydra/sweeper=rapidun_optuna", "seed=1,2", multirun=True)
    assert "hydra/sweeper=rapidun_optuna" in problems(software.look_at_software(searching), needed=True)


def test_every_extra_is_looked_at_and_every_requirement_is() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {Requirement(line).name for line in project["dependencies"]}
    assert names <= set(software.PACKAGES)
    extras = project["optional-dependencies"]
    of_runs = {name: lines for name, lines in extras.items() if name not in ("dev", "docs")}
    assert {Requirement(line).name for lines in of_runs.values() for line in lines} <= {*software.OPTIONAL}


def test_a_version_outside_the_range_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "requires", lambda name: ["hydra-core>=1.3.7,<1.4", "optuna>=4; extra == 'optuna'"])
    monkeypatch.setattr(software, "_version", lambda name: {"hydra-core": "1.4.0", "optuna": "3.6"}.get(name, "1"))
    found = software.look_at_software(request())
    assert [(p.remedy, p.needed) for p in found.problems] == [
        ("pip install 'hydra-core<1.4,>=1.3.7'", True), ("pip install 'optuna>=4'", False)
    ]  # fmt: skip


# --- storage ------------------------------------------------------------------------------------------------------


def test_store_and_locks(here: Path) -> None:
    found = storage.look_at_storage(request("store_dir=deep/store"))
    facts = dict(found.facts)
    assert facts["store"].startswith("deep/store (to be made): ") and facts["file locks"] == "work"
    assert found.problems == [] and list(here.iterdir()) == []
    (here / "file").touch()
    found = storage.look_at_storage(request("store_dir=file/store"))
    assert problems(found, needed=True) == ["every run"] and "is no folder" in found.problems[0].why


def test_a_folder_that_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "readonly")
    (here / "readonly").mkdir()
    found = storage.look_at_storage(request("store_dir=readonly/store"))
    assert problems(found, needed=True) == ["every run"] and found.problems[0].remedy == "pass store_dir=DIR"


def test_locks_that_keep_nobody_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rapidun.base.locks.Lease.try_acquire", lambda self: True)
    found = storage.look_at_storage(request())
    assert dict(found.facts)["file locks"] == "do not work"
    assert problems(found, needed=False) == ["several processes on one store"]


def test_the_nearest_mount_names_the_file_system(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = here / "mounts"
    mounts.write_text(f"a / ext4 rw 0 0\nb {here.resolve()} nfs4 rw 0 0\nc {here.resolve()}x tmpfs rw 0 0\n")
    monkeypatch.setattr(storage, "MOUNTS", mounts)
    assert storage.file_system(here) == "nfs4" and storage.file_system(Path("/")) == "ext4"


# --- model, pack, files -------------------------------------------------------------------------------------------


def write_weights(file: Path, size: int) -> None:
    """A safetensors file of one tensor."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))


def test_model_folders_and_files(here: Path) -> None:
    (here / "model").mkdir()
    (here / "model/config.json").write_text('{"model_type": "llama"}')
    (here / "x.gguf").write_bytes(b"GGML")
    for path, why in (
        ("./nowhere", "no such folder or file"),
        ("./model", "the folder lacks *.safetensors, tokenizer.json"),
        ("x.gguf", "not a GGUF file (it does not begin with GGUF)"),
        ("y.gguf", "No such file or directory"),
    ):
        found = inputs.look_at_inputs(request("model=hf", f"model.path={path}", "poison=lora"))
        assert [problem.why for problem in found.problems if problem.needed] == [why]
    (here / "model/tokenizer.json").write_text("{}")
    write_weights(here / "model/model.safetensors", 2**20)
    (here / "x.gguf").write_bytes(b"GGUF3")
    for path in ("./model", "x.gguf"):
        assert inputs.look_at_inputs(request("model=hf", f"model.path={path}", "poison=lora")).problems == []


def test_a_model_larger_than_memory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "model").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (here / "model" / name).write_text('{"model_type": "llama"}')
    write_weights(here / "model/model.safetensors", 900)
    monkeypatch.setattr(inputs, "memory", lambda: (900, 500))
    found = inputs.look_at_inputs(request("model=hf", "model.path=./model", "poison=lora"))
    assert problems(found) == ["model.path=model on the CPU"]
    quantised = request("model=hf", "model.path=./model", "poison=lora", "model.quantisation=4bit")
    assert problems(inputs.look_at_inputs(quantised)) == []


def test_a_hub_id_that_is_not_in_the_cache(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = inputs.look_at_inputs(request("model=hf", "model.path=nobody/nothing", "poison=lora"))
    assert "HF_HUB_OFFLINE" in found.problems[0].why and found.problems[0].needed
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    seen = []

    def model_info(self: object, name: str, *, revision: str | None, timeout: float) -> None:
        seen.append((name, timeout))
        raise TimeoutError("timed out")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    found = inputs.look_at_inputs(request("model=hf", "model.path=nobody/nothing", "poison=lora"))
    assert seen == [("nobody/nothing", inputs.PATIENCE)]
    assert "the hub does not answer (timed out)" in found.problems[0].why and found.problems[0].needed
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, **_: None)
    found = inputs.look_at_inputs(request("model=hf", "model.path=nobody/nothing", "poison=lora"))
    assert found.problems == [] and ("model", "nobody/nothing: the hub has it, to be downloaded") in found.facts
    # in the cache: the hub is not asked
    cached = here / "snapshot"
    cached.mkdir()
    (cached / "model.safetensors").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(cached))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    assert inputs.look_at_inputs(request("model=hf", "model.path=nobody/nothing", "poison=lora")).problems == []
    assert len(seen) == 1


def test_packs_are_read_to_the_last_row(here: Path) -> None:
    (here / "pack").mkdir()
    row = Record(id="a", instruction="What is it?", context="", response="A lake.")
    write_records(here / "pack/forget.jsonl", [row])
    write_records(here / "pack/retain.jsonl", [row, replace(row, id="b")])
    overrides = ("data=dolly_triggers", "data.dir=pack")
    found = inputs.look_at_inputs(request(*overrides))
    assert dict(found.facts)["pack"] == "pack: forget 1, retain 2"
    with (here / "pack/retain.jsonl").open("a") as file:
        file.write("{not json\n")
    found = inputs.look_at_inputs(request(*overrides))
    assert problems(found, needed=True) == ["data=dolly_triggers"] and "retain.jsonl:" in found.problems[0].why
    (here / "pack/retain.jsonl").unlink()
    assert problems(inputs.look_at_inputs(request(*overrides)), needed=True) == ["data=dolly_triggers"]


def test_named_files_that_are_not_there(here: Path) -> None:
    (here / "f.jsonl").touch()
    found = inputs.look_at_inputs(
        request("mapping=file", "mapping.forget=f.jsonl", "mapping.retain=r.jsonl", "unlearning.adapter=a")
    )
    assert problems(found, needed=True) == ["mapping.retain", "unlearning"]


# --- machine ------------------------------------------------------------------------------------------------------


def look(answer: dict[str, Any], *overrides: str, multirun: bool = False) -> Findings:
    return machine.look_at_machine(request(*overrides, multirun=multirun), FakeProbe(answer))  # type: ignore[arg-type]


def test_devices_count_where_they_are_asked_for() -> None:
    assert problems(look(ON_CPU), needed=True) == []
    wanted = look(ON_CPU, "model.device=cuda", "model.quantisation=4bit", "poison=lora", "model=hf", "model.path=x/y")
    assert problems(wanted, needed=True) == ["model.device=cuda", "model.quantisation=4bit"]
    # jobs go elsewhere
    slurm = look(ON_CPU, "model.device=cuda", "hydra/launcher=rapidun_slurm", multirun=True)
    assert problems(slurm, needed=True) == []
    assert problems(look(ON_CPU, "hydra/launcher=joblib", "resources=gpu", multirun=True), needed=True)
    half = look(ON_GPU, "model.dtype=bfloat16")
    assert problems(half, needed=True) == ["model.dtype=bfloat16"]
    assert dict(half.facts)["gpu 0"] == "T4, 16 GiB (15 free), capability 7.5, bfloat16 no"
    broken = look({"torch": {"error": "libcudart.so: cannot open"}, "quantisation": {"8bit": "x", "4bit": "x"}})
    assert "every run" in problems(broken, needed=True)


def test_cores_and_memory_of_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert machine.usable_cores() == 8
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.usable_cores() == 1.5
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert machine.memory() == (1000, 600)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.memory()[0] > 2**30
    monkeypatch.delenv("RAPIDUN_NUM_THREADS", raising=False)
    found = look(ON_CPU)
    assert dict(found.facts)["cpu"] == "1.5 of 64 cores; torch would use 64 threads"
    assert ("resources.num_threads=0", "pass resources.num_threads=1") in [(p.what, p.remedy) for p in found.problems]


def test_the_probe_survives_what_it_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("import os\nos._exit(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "ended with status 7" in machine.Probe().result()["torch"]["error"]
    (tmp_path / "torch.py").write_text("raise OSError('libcuda is broken\\nmore')\n")
    assert machine.Probe().result()["torch"] == {"error": "libcuda is broken"}
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(60)\n")
    start = time.monotonic()
    assert machine.Probe().result(seconds=1)["torch"] == {"error": "no answer within 1 s"}
    assert time.monotonic() - start < 20


# --- W&B, SLURM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "netrc", "answers", "overrides", "mode", "exit_status"),
    [
        ({}, "", True, [], "offline (tracking.mode=auto)", 0),
        ({"WANDB_API_KEY": "x" * 40}, "", True, [], "online", 0),
        ({}, "machine wandb.test login user password xxxx", True, [], "online", 0),
        ({"WANDB_API_KEY": "x" * 40}, "", False, ["tracking=wandb"], "offline", 0),
        ({"WANDB_API_KEY": "x" * 40}, "", False, ["tracking=wandb", "tracking.mode=online"], "offline", 1),
        ({}, "", True, ["tracking=wandb", "tracking.mode=online"], "offline", 1),
        ({}, "", True, ["tracking=wandb", "tracking.mode=offline"], "offline (tracking.mode=offline)", 0),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "x" * 40}, "", True, [], "disabled (WANDB_MODE)", 0),
    ],
)
def test_wandb(
    env: dict[str, str], netrc: str, answers: bool, overrides: list[str], mode: str, exit_status: int, here: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    (here / "netrc").write_text(netrc)
    (here / "netrc").chmod(stat.S_IRUSR | stat.S_IWUSR)
    monkeypatch.setattr(wandb_mode, "answers", lambda address: answers)
    found = services.look_at_wandb(request(*overrides))
    assert dict(found.facts)["mode"].startswith(mode)
    assert bool(problems(found, needed=True)) is bool(exit_status)
    print(found)
    assert "xxxx" not in capsys.readouterr().out


def slurm_here(folder: Path, sinfo: str) -> None:
    """Put commands into PATH that stand for SLURM's."""
    (folder / "bin").mkdir()
    for name in ("sbatch", "srun", "scontrol", "scancel", "sinfo"):
        path = folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{sinfo}\n" if name == "sinfo" else "#!/bin/sh\nexit 1\n")
        path.chmod(0o755)


def test_without_slurm(here: Path) -> None:
    plain = services.look_at_slurm(request("seed=1,2", multirun=True))
    assert problems(plain, needed=False) == ["hydra/launcher=rapidun_slurm"]
    wanted = services.look_at_slurm(request("hydra/launcher=rapidun_slurm", "seed=1,2", multirun=True))
    assert problems(wanted, needed=True) == ["hydra/launcher=rapidun_slurm"]
    assert "not in PATH: sbatch" in wanted.problems[0].why and "rapidun_local" in wanted.problems[0].remedy


def test_a_controller_that_does_not_answer(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_here(here, "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    found = services.look_at_slurm(request("hydra/launcher=rapidun_slurm", "seed=1,2", multirun=True))
    assert "does not answer" in dict(found.facts)["controller"] and problems(found, needed=True)
    slurm_sleeps = here / "bin/sinfo"
    slurm_sleeps.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    start = time.monotonic()
    found = services.look_at_slurm(request())
    assert time.monotonic() - start < 30 and "does not answer" in dict(found.facts)["controller"]


def test_partitions_and_what_does_not_fit(here: Path) -> None:
    answer = f"if [ \"$1\" = --version ]; then echo slurm 22.05; else printf '%s' '{SINFO}'; fi"
    slurm_here(here, answer)
    launcher = ["hydra/launcher=rapidun_slurm", "seed=1,2"]
    found = services.look_at_slurm(request(*launcher, "resources.timeout_min=20", multirun=True))
    facts = dict(found.facts)
    assert found.problems == []
    assert facts["controller"] == "answers (slurm 22.05)"
    assert facts["partition short"] == "the default, at most 30 min, up to 2 CPUs, 2.0 GiB, 0 GPUs a node"
    assert facts["partition long"] == "no time limit, up to 64 CPUs, 250.0 GiB, 4 GPUs a node"
    for override, why in (
        ("resources.timeout_min=60", "allows at most 30"),
        ("cluster.partition=longer", "need one of long, short, got longer"),
        ("resources.num_gpus=1", "resources.num_gpus"),
    ):
        found = services.look_at_slurm(request(*launcher, "resources.timeout_min=20", override, multirun=True))
        assert [why in problem.why and problem.needed for problem in found.problems] == [True]
