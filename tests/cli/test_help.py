"""`rapidun --help`: short enough to be read, and every example on it is a command that works."""

import re
import shlex

import pytest

from rapidun.cli.commands import SUBCOMMANDS
from rapidun.cli.doctor.request import read_request
from rapidun.cli.help import EXAMPLES, GROUPS, KEYS, help_text
from rapidun.cli.main import main
from rapidun.config.cells import compose_sweep, search_space
from rapidun.config.compose import compose_config
from rapidun.config.keys import find
from rapidun.config.overrides import TUNER
from rapidun.config.paths import config_groups

COMMANDS = [line.strip() for line in EXAMPLES.splitlines() if line.startswith("  rapidun")]


def test_it_fits_on_a_page_or_two() -> None:
    lines = help_text().splitlines()
    assert len(lines) <= 90 and max(map(len, lines)) <= 120
    assert not [line for line in lines if line != line.rstrip()]


def test_it_covers_what_there_is() -> None:
    text = help_text()
    assert set(GROUPS) <= set(config_groups())
    listed = re.findall(r"^  ([a-z]+) ", text.partition("Sub-commands:")[2].partition("Flags:")[0], re.MULTILINE)
    assert sorted(listed) == sorted(SUBCOMMANDS)
    for word in (
        "sweep.where", "sweep.zip", "sweep.dry_run", "sweep.detach", "hydra/launcher=joblib", "rapidun_slurm",
        "resources=", "cluster.", "status|logs|collect|cancel|resume|retry", "rapidun_optuna", "tracking=wandb",
        "dashboard", "wandb sync", "doctor", "completion", "several",
    ):  # fmt: skip
        assert word in text, word


def test_keys_used_most_exist() -> None:
    section = KEYS.partition("Keys used most:")[2].partition("Sub-commands:")[0]
    named = re.findall(r"(?:^|\s)([a-z][a-z_.]*)=", section)
    assert len(named) > 8
    assert [key for key in named if find(key) is None] == []


@pytest.mark.parametrize("line", COMMANDS)
def test_examples_pass_the_composition_check(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    assert program == "rapidun"
    if words[:1] != ["-m"]:
        assert compose_config(words).check() == []
        return
    overrides = words[1:]
    if TUNER in overrides:
        found = search_space(overrides)
        assert [axis.key for axis in found.axes] == ["mapping.tau_f"]
        compose_config([text for text in found.fixed if not text.startswith("hydra")])
        return
    cells = compose_sweep(overrides).cells
    assert len(cells) >= 2
    if any("zip" in text for text in overrides):
        assert [(cell.cfg.mapping.tau_f, cell.cfg.mapping.tau_r) for cell in cells] == [(0.3, 0.5), (0.7, 1.2)]
    if any("where" in text for text in overrides):
        assert len(cells) == 3 and all(cell.cfg.mapping.tau_f <= cell.cfg.mapping.tau_r for cell in cells)


def test_there_are_examples_of_every_kind() -> None:
    assert len(COMMANDS) >= 12
    for start in ("rapidun -m", "rapidun +experiment", "rapidun debug"):
        assert any(line.startswith(start) for line in COMMANDS)


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_sub_commands_explain_themselves(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: rapidun {command}") and len(text.splitlines()) > 5
    assert max(map(len, text.splitlines())) <= 80


def test_the_doctors_own_examples_pass_the_composition_check(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  rapidun doctor ")]
    assert len(lines) == 2
    for _, _, *words in lines:
        found = read_request([word for word in words if word != "-m"], multirun="-m" in words)
        assert found.faults == []
