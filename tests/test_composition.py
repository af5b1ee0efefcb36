"""Composing and checking a run: every file of conf/, faults in files, sweeps, cell names."""

from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import rapidun
from rapidun.composition import cell_hash, compose_cells, compose_config, config_yaml
from rapidun.config import Quantisation, RunConfig
from rapidun.errors import ConfigError
from rapidun.mapping.config import Weighting
from rapidun.paths import config_dir, config_groups

# what a file needs besides itself
NEEDS = {
    "data=dolly_triggers": ["data.dir=pack"],
    "data=alpaca_howdy": ["data.dir=pack"],
    "data=jsonl": ["data.forget=f.jsonl", "data.retain=r.jsonl"],
    "mapping=file": ["mapping.forget=f.jsonl", "mapping.retain=r.jsonl"],
    "poison=none": ["model.path=model"],
    "poison=lora": ["model.path=model"],
    "experiment=dolly_smollm2": ["data.dir=pack"],
}
CHOICES = [f"{group}={name}" for group, names in config_groups().items() for name in names]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_file_of_conf_composes_and_passes_its_checks(choice: str) -> None:
    assert isinstance(compose_config([choice, *NEEDS.get(choice, [])]), RunConfig)


def test_every_group_of_the_defaults_list_has_files() -> None:
    groups = config_groups()
    for group in (
        "model",
        "data",
        "poison",
        "influence",
        "mapping",
        "unlearning",
        "evaluation",
        "tracking",
        "resources",
    ):
        assert groups[group], group


@pytest.mark.parametrize("name", config_groups()["experiment"])
def test_an_experiment_says_in_its_head_what_it_makes_and_how_to_run_it(name: str) -> None:
    head = (config_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").split("\ndefaults:")[0]
    assert "Makes" in head and f"+experiment={name}" in head


def test_the_defaults_are_plain_values() -> None:
    cfg = compose_config()
    assert (cfg.seed, cfg.max_length, cfg.run_dir, cfg.model.name) == (42, 256, None, "tiny")
    assert cfg.mapping.method is Weighting.rapidun
    assert cfg.model.quantisation is Quantisation["none"]
    assert type(cfg.stages) is list


def test_overrides_reach_their_keys() -> None:
    cfg = compose_config(
        ["mapping=uniform", "+seed=3", "mapping.forget=w.jsonl", "data.families.D.seen=[x]", "data.families.D.ood=[y]"]
    )
    assert cfg.mapping.method is Weighting.uniform
    assert cfg.seed == 3
    assert cfg.mapping.forget.path == "w.jsonl"
    assert (cfg.data.families["D"].seen, cfg.data.families["D"].ood) == (["x"], ["y"])
    assert "A_surface" in cfg.data.families


def test_an_experiment_wins_over_groups_and_the_command_line_over_both() -> None:
    assert compose_config(["+experiment=dolly_smollm2", "data.dir=pack"]).model.name == "smollm2_135m"
    cfg = compose_config(["+experiment=dolly_smollm2", "data.dir=pack", "model=tiny", "name=mine"])
    assert (cfg.model.name, cfg.name) == ("tiny", "mine")


def test_wrong_keys_and_wrong_ranges_come_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(["mapping.tauf=1", "mapping=rapidunn", "mapping.tau_r=0", "seed=-1", "+typo=1"])
    text = str(caught.value)
    assert len(caught.value.faults) == 5
    for word in ("mapping.tau_f?", "mapping=rapidun?", "tau_r > 0", "0 <= seed", "typo: no such key"):
        assert word in text


@pytest.mark.parametrize(
    ("group", "text", "words"),
    [
        ("mapping", "tauf: 1", ["mapping/mine.yaml", "did you mean mapping.tau_f?"]),
        ("mapping", "tau_f: abc", ["mapping/mine.yaml", "mapping.tau_f: need a number"]),
        ("mapping", "tau_f: 0", ["need tau_f > 0"]),
        ("mapping", "tau_f: 1\n  x: [", ["mine.yaml:2: not YAML"]),
        ("mapping", "tau_f: \xff", ["not UTF-8"]),
        ("experiment", "# @package _global_\nsed: 3", ["experiment/mine.yaml", "did you mean seed?"]),
        (
            "experiment",
            "# @package _global_\ndefaults:\n  - override /mapping: nix",
            ["mapping/nix: no such", "uniform"],
        ),
        ("experiment", "# @package _global_\nmapping:\n  tau_f: ${nothing}", ["mapping.tau_f", "nothing"]),
    ],
)
def test_faults_in_files_of_conf_name_the_file_and_the_key(
    tmp_path: Path, group: str, text: str, words: list[str]
) -> None:
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        compose_config([f"{group}=mine"], extra_dir=tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_composing_works_while_hydra_is_in_use_and_leaves_it_alone(tmp_path: Path) -> None:
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert rapidun.compose(["seed=5"]).seed == 5
        with pytest.raises(ConfigError):
            rapidun.compose(["sed=5"])
        assert GlobalHydra.instance().hydra is outer
    assert not GlobalHydra.instance().is_initialized()


def test_config_yaml_composes_to_the_same_configuration(tmp_path: Path) -> None:
    cfg = compose_config(["mapping.tau_f=0.123", "model.quantisation=none", "debug=fast"])
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "again.yaml").write_text("# @package _global_\n" + config_yaml(cfg), encoding="utf-8")
    assert compose_config(["experiment=again"], extra_dir=tmp_path) == cfg


def test_a_sweep_is_the_product_and_every_cell_is_checked() -> None:
    cells = compose_cells(["seed=0,1", "mapping=uniform,rapidun", "mapping.tau_r=2"])
    assert [cell.overrides for cell in cells] == [
        ["seed=0", "mapping=uniform", "mapping.tau_r=2"],
        ["seed=0", "mapping=rapidun", "mapping.tau_r=2"],
        ["seed=1", "mapping=uniform", "mapping.tau_r=2"],
        ["seed=1", "mapping=rapidun", "mapping.tau_r=2"],
    ]
    # 5 <= 8 is fine, 5 > 3 is not: only the product shows it
    with pytest.raises(ConfigError, match=r"w_min=5\.0, retain\.w_max=3\.0"):
        compose_cells(["mapping.bounded=false", "mapping.retain.w_min=0.2,5", "mapping.retain.w_max=3,8"])


def test_a_fault_that_all_cells_share_is_named_once() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_cells(["seed=0,1,2", "mapping.tau_f=0"])
    assert len(caught.value.faults) == 1


def test_a_grid_in_an_experiment_file_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      mapping.tau_f: 0.3,0.7\n      seed: 1,2\n"
    (tmp_path / "experiment" / "grid.yaml").write_text(text, encoding="utf-8")
    assert len(compose_cells(["+experiment=grid"], extra_dir=tmp_path)) == 4
    assert len(compose_cells(["+experiment=grid", "seed=5"], extra_dir=tmp_path)) == 2
    (tmp_path / "experiment" / "grid.yaml").write_text(text.replace("seed:", "sed:"), encoding="utf-8")
    with pytest.raises(ConfigError, match="did you mean seed"):
        compose_cells(["+experiment=grid"], extra_dir=tmp_path)


@pytest.mark.parametrize("wrong", ["run_dir=x", "sweep.name=a,b", "sweep.name=a/b", "sweep.name=.."])
def test_cells_have_folders_of_their_own(wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
        compose_cells(["seed=1,2", wrong])


def test_a_cell_is_named_by_what_its_numbers_depend_on() -> None:
    base = cell_hash(compose_config())
    assert len(base) == 10
    for same in ("name=x", "run_dir=x", "store_dir=x", "tracking=wandb", "resources=gpu", "sweep.name=x"):
        assert cell_hash(compose_config([same])) == base, same
    for other in ("seed=1", "mapping.tau_f=0.71", "mapping=uniform", "stages=[data]", "model.dtype=bfloat16"):
        assert cell_hash(compose_config([other])) != base, other
