"""Shell completion: what may follow, and that bash, zsh and fish offer it."""

import argparse
import os
import pty
import re
import resource
import select
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from rapidun.cli.commands import SUBCOMMANDS, run_parser
from rapidun.cli.completion import complete
from rapidun.cli.main import main
from rapidun.cli.shells import SCRIPTS
from rapidun.config import keys
from rapidun.config.paths import config_groups
from rapidun.sweep.pruning import PRUNERS
from rapidun.sweep.tuning.search import SAMPLERS, Tuning

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a pack, a sweep, a `rapidun` in PATH and a `sweep.py` beside a stranger's program."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "paper.txt").touch()
    cells = tmp_path / "outputs/sweeps/taus-1"
    (cells / "0123456789").mkdir(parents=True)
    (cells / "stages").mkdir()
    (cells / "sweep.json").touch()
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/rapidun"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/sweep.py" "$@"\n')
    command.chmod(0o755)
    # answers the shell, and instead of a run shows the words that it was given
    (tmp_path / "sweep.py").write_text(
        "import sys\nfrom rapidun.cli.main import main\n"
        "if sys.argv[1] == 'completion':\n    sys.exit(main())\n"
        "print(*(f'<{word}>' for word in sys.argv[1:]), sep='')\n"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other/sweep.py").write_text("open('was_run', 'w')\n")
    return tmp_path


# --- what may follow ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["rep"], ["report"]),
        (["sweep", "c"], ["collect", "cancel"]),
        (["sweep", "status", ""], ["outputs/sweeps/taus-1"]),
        (["sweep", "logs", "outputs/sweeps/taus-1", ""], ["0123456789"]),
        (["dashboard", "outputs/sweeps/t"], ["outputs/sweeps/taus-1"]),
        (["report", "--c"], ["--csv", "--cells"]),
        (["report", "--csv", "pa"], ["pack/", "paper.txt"]),
        (["report", "pa"], ["pack/"]),
        (["wandb", ""], ["sync"]),
        (["wandb", "sync", "--dry-run", "pa"], ["pack/"]),
        (["index", "build", "--dtype", ""], ["int8", "fp16"]),
        (["index", "build", "--rows", "pa"], ["pack/", "paper.txt"]),
        (["index", "score", "pa"], ["pack/"]),
        (["index", "score", "pack", ""], []),
        (["influence", "check", "--rows", "9", "influence.method=bm"], ["influence.method=bm25"]),
        (["sweep", "status", "outputs/sweeps/taus-1", ""], []),
        (["pack", "nothing", ""], []),
        (["completion", "z"], ["zsh"]),
        (["model", "fetch", ""], ["smollm2_135m"]),
        (["doctor", "model.dtype=b"], ["model.dtype=bfloat16"]),
        (["--mu"], ["--multirun"]),
        (["--cfg", ""], ["job", "hydra", "all"]),
        (["mapping=sh"], ["mapping=shuffled"]),
        (["mapping=uniform,sh"], ["mapping=uniform,shuffled"]),
        (["mapping=shuffled,sh"], []),
        (["seed=1", "mapping.ta"], ["mapping.tau_f=", "mapping.tau_r="]),
        (["mapping.sc"], ["mapping.scores."]),
        (["mapping.forget.w"], ["mapping.forget.w_min=", "mapping.forget.w_max="]),
        (["+exp"], ["+experiment="]),
        (["~d"], ["~debug"]),
        (["mapping.top_k="], ["mapping.top_k=null"]),
        (["unlearning.merge=t"], ["unlearning.merge=true"]),
        (["unlearning.lr_scheduler_type=l"], ["unlearning.lr_scheduler_type=linear"]),
        (["hydra/launcher=rapidun_s"], ["hydra/launcher=rapidun_slurm"]),
        (["hydra.sweeper.n"], ["hydra.sweeper.n_trials="]),
        (["hydra.sweeper.sampler=q"], ["hydra.sweeper.sampler=qmc"]),
        (["stages=[unl"], ["stages=[unlearning,evaluation]", "stages=[unlearning]"]),
        (["data.dir=pa"], ["data.dir=pack/", "data.dir=paper.txt"]),
        (["mapping.forget=paper"], ["mapping.forget=paper.txt"]),
        (["nothing.like=th"], []),
        (["nowhere/"], []),
    ],
    ids=" ".join,
)  # fmt: skip
def test_candidates(words: list[str], found: list[str], here: Path) -> None:
    assert complete(words) == found


def test_the_first_word_may_be_a_sub_command_a_group_or_a_key(here: Path) -> None:
    found = complete([""])
    assert {*SUBCOMMANDS, *(f"{group}=" for group in config_groups()), "seed=", "mapping.", "model."} <= {*found}
    later = complete(["seed=1", ""])
    assert not set(SUBCOMMANDS) & set(later) and "seed=" in later
    assert complete([]) == found


def test_every_key_is_reached_part_by_part() -> None:
    leaves = [key for key in keys.all_keys() if not keys.children(key)]
    assert len(leaves) > 100
    for key in leaves:
        assert f"{key}=" in complete([key]), key
        section = key.rpartition(".")[0]
        assert not section or f"{section}." in complete([section]), key


def test_every_choice_of_every_group_and_enum_is_offered() -> None:
    for group, names in config_groups().items():
        assert {f"{group}={name}" for name in names} <= {*complete([f"{group}="])}
    for key in keys.all_keys():
        assert {f"{key}={name}" for name in keys.choices(keys.find(key))} <= {*complete([f"{key}="])}


def test_groups_of_ones_own_are_offered(here: Path) -> None:
    (here / "more/mapping").mkdir(parents=True)
    (here / "more/mapping/mine.yaml").touch()
    assert complete(["--config-dir", "more", "mapping=mi"]) == ["mapping=mine"]
    assert complete(["mapping=mi"]) == []


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found[0] if found else {}


def test_every_flag_of_every_parser_is_offered_and_its_choices_behind_it() -> None:
    places = [([], run_parser())]
    for name, command in SUBCOMMANDS.items():
        parser = command.load().parser()
        places += [([name], parser), *(([name, verb], inner) for verb, inner in verbs_of(parser).items())]
    assert len(places) == 28
    for words, parser in places:
        flags = {flag: action for action in parser._actions for flag in action.option_strings if flag != "-h"}
        assert set(complete([*words, "-"])) == set(flags), words
        for flag, action in flags.items():
            if action.choices is not None:
                assert complete([*words, flag, ""]) == list(action.choices)


def test_what_the_tuner_takes_is_offered() -> None:
    assert complete(["hydra.sweeper."]) == [f"hydra.sweeper.{field.name}=" for field in fields(Tuning)]
    for name, known in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        assert complete([f"hydra.sweeper.{name}="]) == [f"hydra.sweeper.{name}={choice}" for choice in known]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["-m", "mapping=ra"], ["mapping=random", "mapping=rapidun", "mapping=rapidun_release"]),
        *(([name, "--h"], ["--html", "--help"] if name == "report" else ["--help"]) for name in SUBCOMMANDS),
    ],
    ids=" ".join,
)
def test_an_answer_takes_a_moment_and_neither_hydra_nor_torch(words: list[str], found: list[str], here: Path) -> None:
    code = f"""
import sys
from rapidun.cli.main import main
main(["completion", "query", "--", *{words}])
sys.exit(str([name for name in ("torch", "hydra", "omegaconf", "numpy", "submitit") if name in sys.modules] or "") or 0)
"""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, **CAPTURE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stdout) == (0, "".join(f"{line}\n" for line in found))
    # of a sub-command its module is imported
    most = 0.6 if words[0] in SUBCOMMANDS else 0.3
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < most


def test_the_command_prints_a_script_and_refuses_other_shells(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in SCRIPTS:
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == SCRIPTS[shell]
    assert main(["completion", "tcsh"]) == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err


# --- in the shells ------------------------------------------------------------------------------------------------

CAPTURE = {"capture_output": True, "text": True, "check": False, "timeout": 60}


def environment(folder: Path) -> dict[str, str]:
    python = str(Path(sys.executable).parent)
    path = f"{folder}/bin:{python}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(folder), "TERM": "dumb"}


def need(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    return found


def in_bash(folder: Path, line: str) -> list[str]:
    """Call the completion function as bash would, with the words cut at = as bash cuts them."""
    words = [word for text in line.split(" ") for word in (re.split("(=)", text) if "=" in text else [text])]
    quoted = " ".join(f"'{word}'" for word in words)
    function = "_rapidun_python" if line.startswith("python") else "_rapidun"
    code = f"""
set -u
eval "$(rapidun completion bash)"
COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1} COMP_LINE='{line}' COMP_POINT={len(line)}
{function}
(( ${{#COMPREPLY[@]}} )) && printf '%s\\n' "${{COMPREPLY[@]}}"
true
"""
    done = subprocess.run([need("bash"), "-c", code], cwd=folder, env=environment(folder), **CAPTURE)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("rapidun doc", ["doctor "]),
        ("rapidun mapping=sh", ["shuffled "]),
        ("rapidun -m mapping=uniform,sh", ["uniform,shuffled "]),
        ("rapidun seed=1 mapping.tau", ["mapping.tau_f=", "mapping.tau_r="]),
        ("rapidun sweep can", ["cancel "]),
        ("rapidun --mu", ["--multirun "]),
        ("rapidun data.dir=pac", ["pack/"]),
        ("python sweep.py model.device=c", ["cpu ", "cuda "]),
        ("python other/sweep.py seed", []),
        ("python paper.txt seed", []),
    ],
)
def test_bash(line: str, found: list[str], here: Path) -> None:
    assert in_bash(here, line) == found
    assert not (here / "was_run").exists()


def test_bash_leaves_another_completion_of_python_alone(here: Path) -> None:
    code = 'complete -W mine python; eval "$(rapidun completion bash)"; complete -p python python3 rapidun'
    done = subprocess.run([need("bash"), "-c", code], cwd=here, env=environment(here), **CAPTURE)
    first, second, third = done.stdout.splitlines()
    assert first == "complete -W 'mine' python"
    assert "_rapidun_python" in second and third.endswith("-F _rapidun rapidun")


def type_into(command: list[str], folder: Path, typed: str, *, until: str) -> str:
    """Type into an interactive shell on a terminal; return what it showed up to `until`."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execve(command[0], command, environment(folder))
    shown = ""
    try:
        os.write(terminal, typed.encode())
        end = time.monotonic() + 30
        while until not in shown and time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                shown += os.read(terminal, 4096).decode(errors="replace")
    except OSError:  # the shell ended
        shown += "(ended)"
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    return shown


@pytest.mark.parametrize(
    ("line", "done"),
    [
        ("rapidun doct\t--json", "doctor --json"),
        ("rapidun mapping.tau_f=0.5 mapping=shuf\tseed=1", "mapping.tau_f=0.5 mapping=shuffled seed=1"),
        ("rapidun unlearning.asc\t2", "unlearning.ascent_alpha=2"),
        ("rapidun data.dir=pac\tx", "data.dir=pack/x"),
        ("python sweep.py -m seed=1,2 model.dtype=bf\t", "-m seed=1,2 model.dtype=bfloat16"),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_typed_at_a_terminal(shell: str, line: str, done: str, here: Path) -> None:
    """Completion must not cut or double what stands on the line: the program shows the words that it gets."""
    options = ["--norc", "--noprofile", "-i"] if shell == "bash" else ["-f", "-i"]
    script = f'eval "$(rapidun completion {shell})"\n'
    expected = "".join(f"<{word}>" for word in done.split())
    assert expected in type_into([need(shell), *options], here, f"{script}{line}\n", until=expected)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("rapidun doc", ["doctor"]),
        ("rapidun mapping=sh", ["mapping=shuffled"]),
        ("rapidun seed=1 mapping.tau", ["mapping.tau_f=", "mapping.tau_r="]),
        ("python sweep.py model.device=c", ["model.device=cpu", "model.device=cuda"]),
        ("python other/sweep.py model.dev", []),
    ],
)
def test_fish(line: str, found: list[str], here: Path) -> None:
    code = f"rapidun completion fish | source; complete -C '{line}'"
    done = subprocess.run([need("fish"), "--no-config", "-c", code], cwd=here, env=environment(here), **CAPTURE)
    assert done.returncode == 0, done.stderr
    assert [text for text in done.stdout.splitlines() if "=" in text or text == "doctor"] == found
    assert not (here / "was_run").exists()
