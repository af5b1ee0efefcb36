"""Composing and checking a run: every file of conf/, faults in files, sweeps, cell names."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import rapidun
from rapidun.base.errors import ConfigError
from rapidun.base.files import sha256_json
from rapidun.config import compose as composer
from rapidun.config.cells import cell_hash, compose_cells, compose_rows, compose_sweep, search_space, sweep_name
from rapidun.config.compose import CONFIG_NAME, Composer, compose_config, hydra_ready
from rapidun.config.grid import make_grid, read_parts
from rapidun.config.mapping import Weighting
from rapidun.config.model import Quantisation
from rapidun.config.overrides import check_overrides
from rapidun.config.paths import config_dir, config_groups
from rapidun.config.plain import config_yaml
from rapidun.config.run import BOOKKEEPING, RunConfig

# what a file needs besides itself
NEEDS = {
    "data=dolly_triggers": ["data.dir=pack"],
    "data=alpaca_howdy": ["data.dir=pack"],
    "data=pack": ["data.dir=pack"],
    "model=hf": ["model.path=model"],
    "data=jsonl": ["data.forget=f.jsonl", "data.retain=r.jsonl"],
    "mapping=file": ["mapping.forget=f.jsonl", "mapping.retain=r.jsonl"],
    "poison=none": ["model.path=model"],
    "poison=lora": ["model.path=model"],
    "experiment=dolly_smollm2": ["data.dir=pack"],
    "experiment=study_weights_smollm2": ["data.dir=pack"],
    "experiment=paper_alpaca_howdy": ["data.dir=pack"],
    "experiment=paper_llama3_8b_dolly": ["data.dir=pack"],
    "experiment=paper_mistral_7b_dolly": ["data.dir=pack"],
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
    assert cfg.mapping.method is Weighting.recommended
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
    # a new setting with a default may change this; the list of settings that do not count may not
    assert base == "2be588dbe5"
    assert set(BOOKKEEPING) < {item.name for item in fields(RunConfig)}
    for same in ("name=x", "run_dir=x", "store_dir=x", "tracking=wandb", "resources=gpu", "sweep.name=x"):
        assert cell_hash(compose_config([same])) == base, same
    for other in ("seed=1", "mapping.tau_f=0.71", "mapping=uniform", "stages=[data]", "model.dtype=bfloat16"):
        assert cell_hash(compose_config([other])) != base, other


# each of these is a sweep of a few cells; the composer must give what Hydra composes for each row
SWEEPS = [
    ["seed=1,2", "mapping.tau_f=0.3,1e-3,7"],
    ["mapping.forget.w_min=0.1,0.2", "unlearning.lora.r=4,8", "model.scratch.vocab_size=512"],
    ["model.dtype=float32,bfloat16", "model.quantisation=none", "influence.score=dot,cosine"],
    ["stages=[data],[influence,mapping]", "tracking.tags=[],[a,'b c'],[1,true]"],
    ["mapping.top_k=null,3,40", "sweep.max_failures=null"],
    ["name='a b',\"it's\",plain,'1e3','null'", "data.keywords=null,'x=y'"],
    ["mapping.tau_f=0.3,0.7", "mapping=uniform,rapidun_release,shuffled"],
    ["mapping=random,rapidun", "mapping.tau_f=0.3,0.7", "unlearning=ga,rapidun", "seed=1,2"],
    ["debug=fast", "max_length=64,96", "poison.max_steps=2,3"],
    ["debug=fast,null", "max_length=64,96"],
    ["+experiment=dolly_smollm2", "data.dir=pack", "seed=0,1", "unlearning.learning_rate=1e-4,2e-4"],
    ["experiment=dolly_smollm2,null", "data=dolly_triggers", "data.dir=pack,other", "mapping.tau_r=1"],
    ["data.families.D.seen=[x]", "data.families.E.ood=[y]", "seed=1,2"],
    ["data.families={D: {seen: [x]}},{}", "seed=1,2"],
    ["~data.families.A_surface", "seed=1,2"],
    ["mapping.forget.w_min=0.3,0.4", "mapping.forget={w_min: 0.5}"],
    ["mapping.forget={w_min: 0.5}", "mapping.forget.w_min=0.3,0.4"],
    ["mapping.forget={w_min: 0.5},{w_max: 4}", "mapping.tau_f=0.3,0.4"],
    ["data.num_triggered=100,200", "name=${seed},x", "seed=1,2"],
    ["mapping.tau_f=${mapping.tau_r},0.4", "mapping.tau_r=1,2"],
    ["cluster.environment={A: x},{B: y}", "cluster.sbatch.nice=100", "seed=1,2"],
    ["resources=cpu,gpu", "resources.mem_gb=8,16.5,null", "seed=1"],
    ["mapping=rapidun", "mapping.bounded=true,false", "mapping.use_harmful=yes,off"],
    ["seed=sort(3,1,2)", "mapping.tau_f=range(0.1,0.5,0.1)", "mapping.mode=rank"],
    ["evaluation=glob(*)", "seed=1"],
    ["hydra.verbose=true", "seed=1,2"],
]


@pytest.mark.parametrize("overrides", SWEEPS, ids=" ".join)
def test_a_cell_is_exactly_what_hydra_composes_for_its_row(overrides: list[str]) -> None:
    cells = {tuple(cell.overrides): cell for cell in compose_cells(overrides)}
    hashes = {cell.hash for cell in cells.values()}
    rows = [row for row, _ in expand(overrides)]
    assert set(cells) <= set(map(tuple, rows))
    with hydra_ready(None) as extra:
        quick = Composer(extra, config_groups())
        compared = rows[:: max(1, len(rows) // 3)]
        for row in rows:
            made, fault = quick.cell(row)
            assert made is not None, fault
            # Hydra takes a third of a second for a row: first, middle and last ones
            if row not in compared:
                continue
            expected: Any = OmegaConf.to_object(compose(CONFIG_NAME, [*row, *extra]))
            assert made.cfg == expected
            assert types_of(made.cfg) == types_of(expected)
            assert cell_hash(expected) == slow_hash(expected) in hashes
            if tuple(row) in cells:
                assert cells[tuple(row)].cfg == expected
                assert cells[tuple(row)].hash == slow_hash(expected)


def expand(overrides: list[str]) -> list[tuple[list[str], dict[str, str]]]:
    """The rows of the whole grid."""
    spelt = check_overrides(overrides, groups=config_groups(), multirun=True).overrides
    return list(make_grid(read_parts(spelt, groups=config_groups())).rows())


def types_of(value: Any) -> Any:
    """The type of every leaf: 1 == 1.0 == True would hide a wrong one."""
    if is_dataclass(value):
        return {item.name: types_of(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, list):
        return [types_of(item) for item in value]
    if isinstance(value, dict):
        return {name: types_of(item) for name, item in value.items()}
    return type(value)


def slow_hash(cfg: RunConfig) -> str:
    """The name of a cell as OmegaConf gives it."""
    plain: Any = OmegaConf.to_container(OmegaConf.structured(cfg), resolve=True, enum_to_str=True)
    for section in ("mapping", "unlearning"):
        # of an extension, where there is one
        assert plain[section].pop("extension") == {}
    return sha256_json({key: value for key, value in plain.items() if key not in BOOKKEEPING})[:10]


def test_values_that_refer_to_others_follow_them_in_every_cell(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nmapping:\n  tau_f: ${mapping.tau_r}\n"
    (tmp_path / "experiment" / "tied.yaml").write_text(text, encoding="utf-8")
    cells = compose_cells(["experiment=tied", "mapping.tau_r=1,2,3"], extra_dir=tmp_path)
    assert [cell.cfg.mapping.tau_f for cell in cells] == [1.0, 2.0, 3.0]


def test_hydra_composes_once_for_each_combination_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[list[str]] = []

    def counted(name: str, overrides: list[str], **options: Any) -> Any:
        rows.append(overrides)
        return compose(name, overrides, **options)

    monkeypatch.setattr(composer, "compose", counted)
    cells = compose_cells(["seed=range(10)", "mapping=uniform,rapidun", "mapping.tau_f=0.3,0.7"])
    assert len(cells) == 40
    # the fixed overrides, then one for each file
    assert len(rows) == 3


def test_cells_share_nothing() -> None:
    first, second = compose_cells(["stages=[data],[data,poison]", "seed=1"])
    first.cfg.stages.append("x")
    first.cfg.data.families.clear()
    again, other = compose_cells(["seed=1,2", "tracking.tags=[a]"])
    again.cfg.tracking.tags.append("b")
    assert second.cfg.stages == ["data", "poison"] and second.cfg.data.families
    assert other.cfg.tracking.tags == ["a"]


def test_a_cell_knows_its_axes() -> None:
    cells = compose_cells(["seed=1,2", "mapping.tau_f=0.5", "mapping=uniform,random", "stages=[data,poison]"])
    assert [cell.axes for cell in cells] == [
        {"seed": "1", "mapping": "uniform"},
        {"seed": "1", "mapping": "random"},
        {"seed": "2", "mapping": "uniform"},
        {"seed": "2", "mapping": "random"},
    ]


def test_cells_are_left_out_before_they_are_checked() -> None:
    made = compose_sweep(
        ["mapping.bounded=false", "mapping.retain.w_min=0.2,5", "mapping.retain.w_max=3,8",
         "sweep.where=mapping.retain.w_min <= mapping.retain.w_max"]
    )  # fmt: skip
    bounds = [(cell.cfg.mapping.retain.w_min, cell.cfg.mapping.retain.w_max) for cell in made.cells]
    assert bounds == [(0.2, 3.0), (0.2, 8.0), (5.0, 8.0)]
    assert made.num_grid == 4
    assert made.notes == ["sweep.where keeps 3 of 4 cells: mapping.retain.w_min <= mapping.retain.w_max"]


def test_where_knows_the_files_chosen_and_the_choices_in_them() -> None:
    swept = ["mapping=rapidun,shuffled,uniform", "seed=1,2"]
    by_file = compose_cells([*swept, 'sweep.where=mapping == "shuffled" or seed == 2'])
    by_key = compose_cells([*swept, 'sweep.where=mapping.method == "shuffled" or seed == 2'])
    assert [cell.axes for cell in by_file] == [cell.axes for cell in by_key]
    assert len(by_file) == 4


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("seed > 5", ["some cell to be left", "'seed > 5', true for none of 2"]),
        ("sed > 5", ["did you mean seed?"]),
        ("seed", ["true or false", "which is 1"]),
        ("mapping.top_k > seed", ["mapping.top_k=None, seed=1"]),
    ],
)
def test_a_wrong_where_is_one_fault_for_all_cells(where: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_cells(["seed=1,2", f"sweep.where={where}"])
    assert len(caught.value.faults) == 1
    for word in words:
        assert word in caught.value.faults[0]


def test_faults_of_overrides_zip_and_experiment_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_cells(["seed=1,2", "mapping.tau_f=1,2,3", "sweep.zip=[seed,mapping.tau_f]", "sed=1"])
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["sed", "sweep.zip"]


def test_zip_pairs_a_file_with_values() -> None:
    cells = compose_cells(
        ["model.scratch.hidden_size=32,64", "debug=fast,null", "sweep.zip=[[debug,model.scratch.hidden_size]]"]
    )
    assert [(cell.axes["debug"], cell.cfg.model.scratch.hidden_size) for cell in cells] == [("fast", 32), ("null", 64)]


def test_cells_with_the_same_settings_are_folded_into_the_first() -> None:
    made = compose_sweep(["seed=1,1,2", "resources.mem_gb=8,16"])
    assert [(cell.cfg.seed, cell.cfg.resources.mem_gb) for cell in made.cells] == [(1, 8.0), (2, 8.0)]
    assert len({cell.hash for cell in made.cells}) == 2
    assert len(made.notes) == 1 and made.notes[0].startswith("4 cells with the same settings")
    zipped = compose_sweep(["seed=1,2", "resources.mem_gb=8,16", "sweep.zip=[seed,resources.mem_gb]"])
    assert [(cell.cfg.seed, cell.cfg.resources.mem_gb) for cell in zipped.cells] == [(1, 8.0), (2, 16.0)]
    assert zipped.notes == []


def test_progress_counts_the_whole_grid() -> None:
    seen: list[tuple[int, int]] = []
    compose_cells(["seed=1,1,2", "sweep.where=seed < 2"], on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_an_experiment_file_may_carry_a_grid_that_is_zipped_and_filtered(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = (
        "# @package _global_\nsweep:\n  zip: [[mapping.tau_f, mapping.tau_r]]\n  where: seed + mapping.tau_r < 4\n"
        "hydra:\n  sweeper:\n    params:\n      mapping.tau_f: 0.3,0.7\n"
        "      mapping.tau_r: range(1,3)\n      seed: 1,2\n"
    )
    (tmp_path / "experiment" / "grid.yaml").write_text(text, encoding="utf-8")
    cells = compose_cells(["+experiment=grid"], extra_dir=tmp_path)
    assert [tuple(cell.axes.values()) for cell in cells] == [("0.3", "1", "1"), ("0.3", "1", "2"), ("0.7", "2", "1")]
    assert [axis.key for axis in search_space(["+experiment=grid", "seed=5"], extra_dir=tmp_path).axes] == [
        "mapping.tau_f",
        "mapping.tau_r",
    ]


def test_rows_of_a_tuner_are_composed_as_given() -> None:
    rows = [["mapping.tau_f=0.31", "mapping=uniform"], ["mapping.tau_r=2"], ["mapping.tau_f=0.31", "seed=2"]]
    cells = compose_rows(rows)
    assert [cell.cfg for cell in cells] == [compose_config(row) for row in rows]
    with pytest.raises(ConfigError, match="tau_f > 0"):
        compose_rows([["mapping.tau_f=1"], ["mapping.tau_f=0"]])
    with pytest.raises(ConfigError, match="no such key"):
        compose_rows([["mapping.tauf=1"]])


def test_the_same_command_has_the_same_name() -> None:
    base = sweep_name(["seed=0,1", "mapping=uniform,rapidun"])
    # the folders of sweeps that were launched before are found again
    assert base == "sweep-a0646bec"
    assert sweep_name(["name=x", "seed=1,2"]) == "x-d0f32227"
    assert sweep_name(["mapping=uniform,rapidun", "+seed=0,1"]) == base
    for unnamed in (
        "sweep.dry_run=true", "sweep.where=seed>0", "resources=gpu", "resources.mem_gb=8", "cluster.partition=x",
        "tracking=wandb", "tracking.project=x", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "store_dir=x",
        "hydra.verbose=true", "hydra.sweeper.n_trials=9",
    ):  # fmt: skip
        assert sweep_name(["seed=0,1", "mapping=uniform,rapidun", unnamed]) == base, unnamed
    for named in (
        "seed=0,2",
        "max_length=9",
        "hydra/sweeper=rapidun_optuna",
        "hydra.sweeper.params.seed=1",
        "clusterx=1",
    ):
        assert sweep_name(["seed=0,1", "mapping=uniform,rapidun", named]) != base, named


def test_a_sweep_name_is_a_plain_file_name() -> None:
    assert sweep_name(["+experiment=dolly_smollm2", "seed=1,2"]).startswith("dolly_smollm2-")
    assert sweep_name(["name='../a b'", "seed=1,2"]).startswith("a_b-")
    assert sweep_name(["name=ü"]).startswith("sweep-")
    assert sweep_name([], name="mine").startswith("mine-")
    assert len(sweep_name([f"name={'x' * 500}"])) <= 80


def test_hydra_composes_once_for_500_cells_that_differ_in_values_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 80 ms each time (benchmarks/composition.py)."""
    asked = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        asked.append(args)
        return compose(*args, **kwargs)

    monkeypatch.setattr("rapidun.config.compose.compose", counted)
    assert len(compose_cells(["seed=range(50)", "mapping.tau_f=range(0.1,1.05,0.1)"])) == 500
    assert 1 <= len(asked) <= 3


# patterns


def test_a_pattern_leaves_out_what_cannot_stand_in_the_grid() -> None:
    """mapping=glob(*) finds `file`, for which nobody named a file: said once, for both seeds."""
    made = compose_sweep(["mapping=glob([file,uniform])", "seed=0,1"])
    assert [cell.axes for cell in made.cells] == [
        {"mapping": "uniform", "seed": "0"},
        {"mapping": "uniform", "seed": "1"},
    ]
    (note,) = made.notes
    assert note.startswith("mapping=glob([file,uniform]) leaves out file: mapping: need mapping.forget, a weights file")
    # what was typed one by one is asked for
    with pytest.raises(ConfigError, match=r"mapping\.forget, a weights file"):
        compose_sweep(["mapping=file,uniform", "seed=0,1"])


def test_a_pattern_excuses_nothing_else() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_sweep(["mapping=glob([file,uniform])", "seed=0,-1"])
    assert caught.value.faults == ["seed: need 0 <= seed < 2**32, got -1. Pass seed=..."]
    with pytest.raises(ConfigError, match=r"mapping\.forget, a weights file"):
        compose_sweep(["mapping=glob(fi*)"])
    with pytest.raises(ConfigError, match="max_length"):
        compose_sweep(["mapping=glob([file,uniform])", "max_length=1"])


def test_every_mapping_that_stands_alone_is_in_the_grid() -> None:
    names = {path.stem for path in (config_dir() / "mapping").glob("*.yaml")}
    assert {cell.axes["mapping"] for cell in compose_cells(["mapping=glob(*)"])} == names - {"file"}


def test_only_cells_that_do_not_fit_are_left_out() -> None:
    """guard needs gradients: with influence=repsim it is left out, with exact it stays."""
    made = compose_sweep(["mapping=glob([guard,uniform])", "influence=exact,repsim"])
    assert [(cell.axes["mapping"], cell.axes["influence"]) for cell in made.cells] == [
        ("guard", "exact"), ("uniform", "exact"), ("uniform", "repsim"),
    ]  # fmt: skip
    (note,) = made.notes
    assert note.startswith(
        "mapping=glob([guard,uniform]) leaves out guard in 1 of its 2 cells: influence: need gradients"
    )
