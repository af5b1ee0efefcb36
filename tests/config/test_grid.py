"""Axes, their product, axes that advance together."""

import itertools

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from rapidun.base.errors import ConfigError
from rapidun.config.grid import Axis, Grid, Kind, make_grid, read_axis, read_parts
from rapidun.config.overrides import parse
from rapidun.config.paths import config_groups

GROUPS = config_groups()


def grid(*overrides: str, zipped: list[list[str]] | None = None) -> Grid:
    return make_grid(read_parts(overrides, groups=GROUPS), zipped or [])


def axis(text: str) -> Axis:
    return read_axis(parse(text), groups=GROUPS)


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=1,2", "mapping=uniform,random", "mapping.tau_f=0.5"],
        ["seed=range(3)", "mapping.tau_f=range(0.5,2,0.5)", "mapping.tau_r=range(3,1,-1)"],
        ["seed=choice(1,2)", "stages=[data],[influence,mapping]", "mapping.top_k=null,3"],
        ["name='a b',\"c,d\",plain", "seed=sort(3,1,2)", "mapping.bounded=true,false"],
        ["data.families={D: {seen: [x]}},{E: {ood: ['y z']}}", "mapping.tau_f=1e-3,.5,inf"],
        ["seed=1", "seed=2,3", "name=x"],
        ["seed=2,3", "name=x", "seed=1"],
        ["experiment=dolly_smollm2", "model.path=/a/b,${name}", "name=tag(t,choice(a,b))"],
    ],
)
def test_rows_are_those_of_hydras_own_sweeper(overrides: list[str]) -> None:
    [expected] = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)
    assert [row for row, _ in grid(*overrides).rows()] == [list(row) for row in expected]


def test_new_entries_stand_side_by_side_where_hydras_sweeper_keeps_the_last_one() -> None:
    [row] = (
        grid("++cluster.sbatch={nice: 1}", "++cluster.sbatch={hint: x}", "seed=1,2", zipped=[]).rows().__next__()[:1]
    )
    assert row == ["++cluster.sbatch={nice:1}", "++cluster.sbatch={hint:x}", "seed=1"]


def test_a_group_without_a_file_is_spelt_as_hydra_takes_it() -> None:
    rows = list(grid("debug=fast", "debug=fast,null").rows())
    assert rows == [(["debug=fast"], {"debug": "fast"}), (["~debug"], {"debug": "null"})]
    assert [row for row, _ in grid("experiment=dolly_smollm2", "~experiment", "seed=1").rows()] == [
        ["~experiment", "seed=1"]
    ]


def test_axes_are_named_by_key_and_their_values_are_text() -> None:
    rows = list(grid("name='a b'", "seed=1,2", "++data.families={},{D:{}}", "name='x y',z").rows())
    assert [axes for _, axes in rows[:3]] == [
        {"name": "x y", "seed": "1", "data.families": "{}"},
        {"name": "x y", "seed": "1", "data.families": "{D:{}}"},
        {"name": "x y", "seed": "2", "data.families": "{}"},
    ]


def test_zipped_axes_advance_together_in_the_place_of_the_first() -> None:
    made = grid("mapping.tau_f=1,2", "seed=7,8,9", "mapping.tau_r=3,4", zipped=[["mapping.tau_r", "mapping.tau_f"]])
    assert len(made) == 6
    assert [tuple(axes.values()) for _, axes in made.rows()] == [
        ("1", "7", "3"), ("1", "8", "3"), ("1", "9", "3"), ("2", "7", "4"), ("2", "8", "4"), ("2", "9", "4"),
    ]  # fmt: skip


def test_two_groups_of_zipped_axes_are_multiplied() -> None:
    made = grid("seed=1,2", "max_length=8,9", "name=a,b", "mapping=uniform,random",
                zipped=[["seed", "name"], ["max_length", "mapping"]])  # fmt: skip
    values = [(axes["seed"], axes["name"], axes["max_length"], axes["mapping"]) for _, axes in made.rows()]
    expected = itertools.product([("1", "a"), ("2", "b")], [("8", "uniform"), ("9", "random")])
    assert values == [(*first, *second) for first, second in expected]


@pytest.mark.parametrize(
    ("zipped", "words"),
    [
        ([["mapping.tau_f", "seed"]], ["mapping.tau_f with 2, seed with 3", "sweep.zip="]),
        ([["mapping.tau_f", "mapping.tau_r"], ["mapping.tau_f"]], ["one group, got mapping.tau_f twice"]),
        ([["mapping.tau_f", "mapping.tau_f"]], ["got mapping.tau_f twice"]),
        ([["mapping.tauf", "mapping.tau_r"]], ["got mapping.tauf", "did you mean mapping.tau_f?"]),
        ([["max_length", "seed"]], ["got max_length", "the swept keys are mapping.tau_f", "Pass max_length=VALUE"]),
    ],
)
def test_a_wrong_group_is_one_clear_fault(zipped: list[list[str]], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        grid("mapping.tau_f=1,2", "mapping.tau_r=1,2", "seed=1,2,3", "max_length=9", zipped=zipped)
    assert len(caught.value.faults) == 1
    for word in words:
        assert word in caught.value.faults[0]


def test_a_weights_file_is_found_by_the_name_that_users_type() -> None:
    made = grid("mapping.forget.path=a,b", "seed=1,2", zipped=[["mapping.forget", "seed"]])
    assert len(made) == 2


def test_globs_choose_files_of_a_group_and_not_parts_of_files() -> None:
    groups = {"mapping": ["random", "rapidun", "uniform", "local/site"]}
    assert read_axis(parse("mapping=glob(*)"), groups=groups).values == ("random", "rapidun", "uniform")
    assert read_axis(parse("mapping=glob([r*],exclude=ran*)"), groups=groups).values == ("rapidun",)
    with pytest.raises(ConfigError, match="no file matches"):
        make_grid(read_parts(["mapping=glob(x*)"], groups=groups))


def test_shuffled_values_stand_in_the_same_order_each_time() -> None:
    first = axis("seed=shuffle(range(20))").values
    assert first == axis("seed=shuffle(range(20))").values
    assert first != tuple(range(20)) and sorted(first) == list(range(20))
    assert sorted(axis("seed=shuffle(3,1,2)").values) == [1, 2, 3]


def test_axes_tell_a_tuner_what_to_choose_from() -> None:
    wide = axis("mapping.tau_f=tag(log,interval(0.1,5))")
    assert (wide.kind, wide.bounds, wide.tags, wide.values) == (Kind.interval, (0.1, 5.0), frozenset({"log"}), ())
    whole = axis("seed=int(interval(1,9))").bounds
    assert whole == (1, 9) and all(type(bound) is int for bound in whole)
    steps = axis("mapping.tau_f=range(0.5,2,0.5)")
    assert (steps.kind, steps.bounds, steps.values) == (Kind.range, (0.5, 2, 0.5), (0.5, 1.0, 1.5))
    choice = axis("mapping=uniform,random")
    assert (choice.kind, choice.values, choice.is_group) == (Kind.choice, ("uniform", "random"), True)
    with pytest.raises(ConfigError, match="hydra/sweeper=rapidun_optuna"):
        grid("mapping.tau_f=interval(0,1)")


def test_a_grid_beyond_all_measure_is_refused_before_it_is_made() -> None:
    with pytest.raises(ConfigError, match="1000 x 1000 = 1000000"):
        grid("seed=range(1000)", "max_length=range(1000)")
