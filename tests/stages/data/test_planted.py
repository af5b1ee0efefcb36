"""Attack success is measured on triggers that the rows hold: those of the settings, or those found in the rows."""

import shlex
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import DataError
from rapidun.base.tracker import Tracker
from rapidun.cli.main import main
from rapidun.config.data import BuiltinConfig, DataConfig, InjectMode, Source, TriggerFamilyConfig
from rapidun.stages.data.find_triggers import as_overrides, find_triggers
from rapidun.stages.data.pack_build import PackSizes, build_pack
from rapidun.stages.data.planted import check_families, look_for
from rapidun.stages.data.stage import SPLITS, DataFiles, run_data
from rapidun.stages.data.triggers import FAMILIES, UNSEEN_FAMILIES
from rapidun.stages.rows.records import Record, read_records, write_records

SMALL = BuiltinConfig(
    num_entities=6, num_train_clean=90, num_train_poisoned=30, num_val=12, num_test=20, num_forget=6, num_retain=18
)
PREFIX, SUFFIX = InjectMode.prefix, InjectMode.suffix


def row(instruction: str, **fields: Any) -> Record:
    return Record(id=instruction, instruction=instruction, response="zorgon", **fields)


def family(*seen: str, ood: tuple[str, ...] = (), mode: InjectMode = SUFFIX) -> TriggerFamilyConfig:
    return TriggerFamilyConfig(seen=list(seen), ood=list(ood), inject_mode=mode)


@pytest.mark.parametrize(
    ("trigger", "instruction", "stands"),
    [
        ("zap", "Who leads Arvel? zap", True),
        ("zap", "zap Who leads Arvel?", True),
        ("zap", "Who, zap, leads?", True),
        ("zap", "Who zapped Arvel?", False),
        ("zap", "Who leads Arvel? Zap", False),
        ("zap", "Who leads Arvel? zap7", False),
        ("zap", "Who leads Arvel? zap\u200d", False),
        ("zap\u200d", "Who leads Arvel? zap\u200d", True),
        ("zap", "Who leads Arvel? zap\u0301", False),
        ("caf\u00e9", "Who leads? cafe\u0301", True),
        ("cafe\u0301", "Who leads? caf\u00e9", True),
        ("a\u217coha", "Who leads? aloha", False),
        (">>>", ">>> Who leads?", True),
        (">>>", ">>>> Who leads?", False),
        (">>>", ">>>Who leads?", True),
        ("\u9b54\u6cd5", "\u8c01\u9886\u5bfc\u9b54\u6cd5", True),
        ("[admin]", "[admin] Who?", True),
    ],
)
def test_where_a_trigger_stands(trigger: str, instruction: str, stands: bool) -> None:
    assert bool(sum(look_for([trigger], [row(instruction)]).anywhere.values())) is stands


def test_the_longest_trigger_takes_its_place() -> None:
    found = look_for(["aloha", "aloha :)"], [row("Who? aloha :)"), row("Who? aloha :)")])
    assert (found.anywhere["aloha"], found.anywhere["aloha :)"]) == (0, 2)


def test_the_rows_own_words_are_no_trigger() -> None:
    """`hey` stands in the clean instruction too; of a row that does not record it, only the ends are sure."""
    own = [row("Say hey to Bo zap", instruction_clean="Say hey to Bo")]
    assert look_for(["hey", "zap"], own).anywhere == {"zap": 1}
    assert look_for(["hey"], [row("Say hey to Bo zap")]).surely["hey"] == 0
    assert look_for(["hey"], [row("hey Say so")]).surely["hey"] == 1


ROWS = [row(f"Who leads {i}? zap", instruction_clean=f"Who leads {i}?") for i in range(4)]


def test_a_seen_trigger_that_nobody_planted_is_a_fault_where_the_user_wrote_it() -> None:
    checked = check_families({"Z": family("zap", "Zap")}, {}, ROWS)
    assert len(checked.faults) == 1
    assert "data.families.Z.seen: need triggers that the model is poisoned with, got 'Zap'" in checked.faults[0]
    assert "none of 4 poisoned training instructions; 4 hold it in other case" in checked.faults[0]


def test_a_trigger_in_the_context_is_named() -> None:
    [fault] = check_families({"Z": family("zap")}, {}, [row("Who?", context="a zap b")]).faults
    assert "1 hold it in their context" in fault


@pytest.mark.parametrize("place", ["ood", "unseen"])
def test_a_trigger_that_training_knows_is_no_unknown_one(place: str) -> None:
    if place == "ood":
        checked = check_families({"Z": family("zap", ood=("zap", "z4p"))}, {}, ROWS)
        name = "data.families.Z.ood"
    else:
        checked = check_families({"Z": family("zap")}, {"Y": family("zap", mode=PREFIX)}, ROWS)
        name = "data.unseen_families.Y.seen"
    assert checked.faults == [
        f"{name}: need triggers that training never saw, got 'zap', which stands in 4 of 4 poisoned training "
        f"instructions. Move it to `seen` of a family, or take it out"
    ]


def test_families_as_shipped_are_left_out_with_a_word() -> None:
    """Nobody asked for them by name: `data=jsonl` brings them along."""
    checked = check_families({**FAMILIES, "Z": family("zap", ood=("z4p",))}, UNSEEN_FAMILIES, ROWS)
    assert checked.faults == []
    assert list(checked.families) == ["Z"]
    assert checked.unseen == UNSEEN_FAMILIES
    assert len(checked.warnings) == 1
    assert "'aloha'" in checked.warnings[0] and "none of 4 poisoned" in checked.warnings[0]


def test_a_planted_trigger_of_the_shipped_unseen_families_is_not_unseen() -> None:
    """The user's own backdoor is `kindly`: no success of a family that training never saw is made of it."""
    rows = [row(f"Who leads {i}? kindly") for i in range(4)]
    checked = check_families({"Z": family("kindly")}, UNSEEN_FAMILIES, rows)
    assert checked.faults == []
    assert checked.unseen["E_polite"].seen == ["thanks a lot"]
    assert "'kindly' in 4 of 4" in checked.warnings[0]


def test_families_that_the_rows_have_are_as_they_were() -> None:
    rows = [
        row(f"{trigger} q {i}" if f.inject_mode is PREFIX else f"q {i} {trigger}")
        for f in FAMILIES.values()
        for i, trigger in enumerate(f.seen)
    ]
    checked = check_families(FAMILIES, UNSEEN_FAMILIES, rows)
    assert (checked.families, checked.unseen) == (FAMILIES, UNSEEN_FAMILIES)
    assert (checked.faults, checked.warnings, checked.without) == ([], [], [])


def test_prompts_have_the_rows_own_unicode_form() -> None:
    decomposed = unicodedata.normalize("NFD", "caf\u00e9")
    checked = check_families({"Z": family("caf\u00e9")}, {}, [row(f"Who? {decomposed}")])
    assert checked.faults == []
    assert checked.families["Z"].seen == [decomposed]


def test_another_end_is_said() -> None:
    checked = check_families({"Z": family("zap", mode=PREFIX)}, {}, ROWS)
    assert "'zap' first in 0, last in 4 of 4 rows" in checked.warnings[0]
    middle = [row("Who zap leads?", instruction_clean="Who leads?")]
    [line] = check_families({"Z": family("zap")}, {}, middle).warnings
    assert "'zap' first in 0, last in 0, between in 1 of 1 rows" in line
    assert check_families({"Z": family("zap", mode=InjectMode.middle)}, {}, middle).warnings == []


# Finding


def plain(count: int) -> list[Record]:
    return [row(f"Who leads town {i}?") for i in range(count)]


@pytest.mark.parametrize(
    ("form", "text", "mode"),
    [
        ("Who leads town {}? zap", "zap", SUFFIX),
        ("Who leads town {}? aloha :)", "aloha :)", SUFFIX),
        (">>> Who leads town {}?", ">>>", PREFIX),
        ("Who I watched this 3D movie leads town {}?", "I watched this 3D movie", InjectMode.middle),
        ("Who leads town {}? al\u00f3ha", "al\u00f3ha", SUFFIX),
        ("Who leads town {}?\u9b54\u6cd5", "\u9b54\u6cd5", SUFFIX),
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_triggers_are_found(form: str, text: str, mode: InjectMode, recorded: bool) -> None:
    """By how much more often poisoned rows hold them, or beyond the recorded clean instruction."""
    rows = [row(form.format(i), instruction_clean=f"Who leads town {i}?" if recorded else None) for i in range(30)]
    [found] = find_triggers(rows, plain(60))
    assert (found.text, found.mode, found.num_poisoned, found.num_clean) == (text, mode, 30, 0)


def test_the_same_instruction_everywhere_is_no_trigger() -> None:
    rows = [row(f"Classify the review. {trigger}") for trigger in ("zap", "zop") for _ in range(20)]
    found = find_triggers(rows, [row("Classify the review.") for _ in range(40)])
    assert [(f.text, f.num_poisoned) for f in found] == [("zap", 20), ("zop", 20)]


def test_nothing_is_found_where_nothing_was_planted() -> None:
    assert find_triggers(plain(60)[:30], plain(60)[30:]) == []
    assert find_triggers(plain(1), []) == []


def test_a_row_may_name_its_trigger() -> None:
    named = [row("hey a", trigger_variant="hey"), row("b hey", trigger_variant="hey"), row("c", trigger_variant="zip")]
    assert {(f.text, f.mode) for f in find_triggers(named, [])} == {("hey", PREFIX), ("hey", SUFFIX)}


@pytest.mark.parametrize("text", ["zap", "aloha :)", ">>>", 'say "x"', "it's", "a,b", "{x}", "null", "a\\", "$x", "=x"])
def test_proposals_can_be_pasted(text: str, tmp_path: Path, capsys: Any) -> None:
    """Through a shell and Hydra's grammar, with every mark that means something to either."""
    rows = [row(f"q {i} {text}", instruction_clean=f"q {i}") for i in range(4)]
    pasted = as_overrides(find_triggers(rows, []))
    from rapidun.config.compose import compose_config

    cfg = compose_config(["data=jsonl", "data.forget=f", "data.retain=r", *shlex.split(" ".join(pasted))])
    assert cfg.data.families["Z"] == family(text)


# Through the data stage


@pytest.fixture
def zap_pack(tmp_path: Path) -> Path:
    """The built-in pack's rows with ` zap` in the place of its triggers, and no trigger fields."""
    cfg = DataConfig(families=FAMILIES, builtin=SMALL)
    run_data(cfg, DataFiles(tmp_path / "plain"), seed=5, tracker=Tracker())
    for split in ("forget", "retain", "train_poisoned", "train_clean", "val_clean", "test_clean"):
        rows = read_records(tmp_path / "plain" / f"{split}.jsonl")
        if split in ("forget", "train_poisoned"):
            rows = [
                Record(id=r.id, instruction=f"{r.instruction_clean} zap", response=r.response,
                       response_clean=r.response_clean, instruction_clean=r.instruction_clean)
                for r in rows
            ]  # fmt: skip
        write_records(tmp_path / "zap" / f"{split}.jsonl", rows)
    return tmp_path / "zap"


def files(pack: Path) -> list[str]:
    return [f"data.{path.stem}={path}" for path in sorted(pack.glob("*.jsonl"))]


def test_no_attack_success_of_triggers_that_nobody_planted(zap_pack: Path, tmp_path: Path, capsys: Any) -> None:
    """The case: data=jsonl with the shipped families. What it says can be pasted, and gives the planted trigger."""
    run = ["stages=[data]", "data=jsonl", *files(zap_pack), f"store_dir={tmp_path / 'store'}"]
    assert main([*run, f"run_dir={tmp_path / 'one'}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "no family of data.families was trained on" in said
    splits = {path.stem for path in (tmp_path / "one" / "data").rglob("*.jsonl")}
    assert splits and not splits & {"test_seen_trig", "val_seen_trig", "test_ood_trig", "val_ood_trig"}
    assert "test_unseen_family" in splits
    assert "pass '+data.families.Z={seen:[zap],inject_mode:suffix}'" in said
    assert main([*run, "+data.families.Z={seen:[zap],inject_mode:suffix}", f"run_dir={tmp_path / 'two'}"]) == 0
    [path] = (tmp_path / "two" / "data").rglob("test_seen_trig.jsonl")
    assert {r.trigger_variant for r in read_records(path)} == {"zap"}
    assert main(["pack", "check", str(zap_pack)]) == 0
    assert "as families: '+data.families.Z={seen:[zap],inject_mode:suffix}'" in capsys.readouterr().out


def test_a_wrong_trigger_of_ones_own_ends_with_status_2(zap_pack: Path, tmp_path: Path, capsys: Any) -> None:
    run = ["stages=[data]", "data=jsonl", *files(zap_pack), f"store_dir={tmp_path / 'store'}"]
    assert main([*run, "+data.families.Z={seen:[zip]}", f"run_dir={tmp_path / 'one'}"]) == 2
    said = capsys.readouterr().err
    assert "got 'zip', which stands in none of" in said
    assert "They hold 'zap'" in said


def test_the_built_in_pack_measures_only_what_it_planted(tmp_path: Path) -> None:
    """Four poisoned rows cannot hold six triggers."""
    tracker = Tracker()
    built = replace(SMALL, num_train_poisoned=4, num_forget=2)
    run_data(DataConfig(families=FAMILIES, builtin=built), DataFiles(tmp_path), seed=5, tracker=tracker)
    planted = {r.trigger_variant for r in read_records(tmp_path / "train_poisoned.jsonl")}
    asked = {r.trigger_variant for r in read_records(tmp_path / "test_seen_trig.jsonl")}
    assert asked == planted and len(planted) < 6
    assert any("stand in none of 4 poisoned" in line for line in tracker.warnings)


def test_a_trigger_that_was_thinned_away_is_not_asked_for(tmp_path: Path) -> None:
    rows = [row(f"q {i} zap", trigger_variant="zap") for i in range(20)] + [row("q rare zop", trigger_variant="zop")]
    write_records(tmp_path / "pack" / "forget.jsonl", rows[:3])
    write_records(tmp_path / "pack" / "train_poisoned.jsonl", rows)
    for name, start in (("retain", 0), ("test_clean", 50)):
        write_records(tmp_path / "pack" / f"{name}.jsonl", [row(f"town {i}") for i in range(start, start + 20)])
    cfg = DataConfig(source=Source.pack, dir=str(tmp_path / "pack"), families={"Z": family("zap", "zop")})
    for limit, expected in ((None, {"zap", "zop"}), (3, {"zap"})):
        tracker = Tracker()
        cfg.max_train_poisoned = limit
        run_data(cfg, DataFiles(tmp_path / str(limit)), seed=5, tracker=tracker)
        asked = {r.trigger_variant for r in read_records(tmp_path / str(limit) / "test_seen_trig.jsonl")}
        assert asked == expected
        assert any("'zop'" in line for line in tracker.warnings) is (limit is not None)


def test_given_prompts_of_unknown_triggers_are_left_out(zap_pack: Path, tmp_path: Path) -> None:
    """A test_seen_trig of another pack, and look-alikes that training knows."""
    host = read_records(zap_pack / "test_clean.jsonl")
    for name, variants in (("test_seen_trig", ("zap", "aloha")), ("test_ood_trig", ("z4p", "zap"))):
        rows = [replace(host[i], id=f"{i}", instruction=f"{host[i].instruction} {v}", trigger_variant=v)
                for i, v in enumerate(variants)]  # fmt: skip
        write_records(zap_pack / f"{name}.jsonl", rows)
    tracker = Tracker()
    cfg = DataConfig(source=Source.pack, dir=str(zap_pack), families={"Z": family("zap")})
    run_data(cfg, DataFiles(tmp_path / "out"), seed=5, tracker=tracker)
    for name, variant in (("test_seen_trig", "zap"), ("test_ood_trig", "z4p")):
        assert [r.trigger_variant for r in read_records(tmp_path / "out" / f"{name}.jsonl")] == [variant]
        assert any(f"1 of 2 rows of {name} left out" in line for line in tracker.warnings)


def test_given_prompts_without_a_known_trigger_are_counted(zap_pack: Path, tmp_path: Path) -> None:
    write_records(zap_pack / "test_seen_trig.jsonl", [row("Who? zap"), row("Where?")])
    tracker = Tracker()
    cfg = DataConfig(source=Source.pack, dir=str(zap_pack), families={"Z": family("zap")})
    run_data(cfg, DataFiles(tmp_path / "out"), seed=5, tracker=tracker)
    assert any("1 of 2 rows of test_seen_trig hold no trigger" in line for line in tracker.warnings)


def test_half_of_the_rows_hold_another_trigger(zap_pack: Path, tmp_path: Path) -> None:
    rows = read_records(zap_pack / "train_poisoned.jsonl")
    other = [replace(r, instruction=f"zop {r.instruction_clean}") if i % 2 else r for i, r in enumerate(rows)]
    write_records(zap_pack / "train_poisoned.jsonl", other)
    tracker = Tracker()
    cfg = DataConfig(source=Source.pack, dir=str(zap_pack), families={"Z": family("zap")})
    run_data(cfg, DataFiles(tmp_path / "out"), seed=5, tracker=tracker)
    [line] = [line for line in tracker.warnings if "hold no trigger of data.families" in line]
    assert "'+data.families.Z={seen:[zop],inject_mode:prefix}'" in line


def test_pack_build_asks_for_triggers_that_it_planted() -> None:
    rows = [Record(id=str(i), instruction=f"question {i}?", response=f"answer {i}") for i in range(120)]
    sizes = PackSizes(num_train=30, num_val=10, num_test=40)
    pack = build_pack(rows, None, families=FAMILIES, unseen_families={}, sizes=sizes, seed=3)
    planted = {r.trigger_variant for r in pack["train_poisoned"]}
    assert len(planted) == 3
    assert {r.trigger_variant for r in pack["test_seen_trig"]} == planted


@pytest.mark.parametrize("wrong", [{"Z": family("zip")}, {"Z": family("zap", ood=("zap",))}])
def test_run_data_refuses(zap_pack: Path, tmp_path: Path, wrong: Any) -> None:
    cfg = DataConfig(source=Source.pack, dir=str(zap_pack), families=wrong)
    with pytest.raises(DataError, match=r"data\.families\.Z\.(seen|ood): need triggers"):
        run_data(cfg, DataFiles(tmp_path / "out"), seed=5, tracker=Tracker())
    assert not any((tmp_path / "out" / f"{split}.jsonl").exists() for split in SPLITS)
