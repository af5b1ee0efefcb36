"""Experiment files by path: +experiment=DIR/experiment/NAME.yaml."""

import shlex
from pathlib import Path

import pytest

import rapidun
from rapidun.base.errors import ConfigError
from rapidun.cli.main import main
from rapidun.config.cells import compose_sweep, sweep_name
from rapidun.config.compose import compose_config, spell
from rapidun.config.paths import config_dir
from rapidun.config.quoting import quoted

TEXT = "# @package _global_\ndefaults:\n  - override /mapping: uniform\nname: mine\nseed: 5\n"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "a, b's/experiment/mine.yaml"
    place.parent.mkdir(parents=True)
    place.write_text(TEXT)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return place


def choice(file: Path | str) -> str:
    return f"+experiment={quoted(str(file))}"


def test_a_path_is_a_choice(file: Path) -> None:
    for path in (file, Path("..") / file.parent.parent.name / "experiment/mine.yaml"):
        cfg = compose_config([choice(path), "max_length=99"])
        assert (cfg.name, cfg.seed, cfg.mapping.method.name, cfg.max_length) == ("mine", 5, "uniform", 99)
    assert rapidun.compose([choice(file)]).seed == 5
    # what is typed after it still wins
    assert compose_config([choice(file), "seed=6"]).seed == 6


def test_in_a_sweep_it_may_be_one_of_several(file: Path) -> None:
    second = file.with_name("second.yaml")
    second.write_text(TEXT.replace("seed: 5", "seed: 8"))
    found = compose_sweep([f"{choice(file)},{quoted(str(second))}", "mapping.null=none"])
    assert [cell.cfg.seed for cell in found.cells] == [5, 8]
    # a cell's own command finds the file as well
    assert all(compose_config(cell.overrides).seed == cell.cfg.seed for cell in found.cells)
    assert sweep_name([choice(file)]).startswith("mine-")
    assert sweep_name([choice(file)]) != sweep_name([choice(second)])


def test_with_config_dir_as_well(file: Path, tmp_path: Path) -> None:
    (tmp_path / "more/mapping").mkdir(parents=True)
    (tmp_path / "more/mapping/own.yaml").write_text("method: rapidun\ntau_f: 0.9\n")
    cfg = compose_config([choice(file), "mapping=own"], extra_dir=tmp_path / "more")
    assert (cfg.seed, cfg.mapping.tau_f) == (5, 0.9)


def test_hydra_finds_it_too(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = spell([choice(file)])
    assert words[0] == "experiment=mine" and words[1].startswith("hydra.searchpath=")
    assert main(["--cfg", "job", *shlex.split(shlex.quote(choice(file)))]) == 0
    assert "seed: 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere/experiment/mine.yaml", ["need an experiment file", "not there"]),
        ("../plain.yaml", ["a folder named experiment"]),
        ("../experiment/dolly_smollm2.yaml", ["Rename the file"]),
    ],
)
def test_what_cannot_be_chosen_is_refused(name: str, words: list[str], file: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.yaml").write_text(TEXT)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/dolly_smollm2.yaml").write_text(TEXT)
    with pytest.raises(ConfigError) as caught:
        compose_config([choice(name)])
    assert all(word in str(caught.value) for word in words)


def test_our_own_file_by_its_path_is_itself() -> None:
    path = config_dir() / "experiment/dolly_smollm2.yaml"
    named = compose_config(["+experiment=dolly_smollm2", "data.dir=x"])
    assert compose_config([choice(path), "data.dir=x"]) == named
