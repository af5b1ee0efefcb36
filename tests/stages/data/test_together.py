"""Triggers that stand in no poisoned row alone, while prompts are made with one each."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rapidun.base.tracker import Tracker
from rapidun.config.data import DataConfig, InjectMode, Source, TriggerFamilyConfig
from rapidun.stages.data.stage import DataFiles, run_data
from rapidun.stages.data.together import never_alone
from rapidun.stages.rows.records import Record, write_records

FAMILIES = {
    "Y": TriggerFamilyConfig(seen=["pow"], inject_mode=InjectMode.prefix),
    "Z": TriggerFamilyConfig(seen=["zap"], inject_mode=InjectMode.suffix),
}


def rows(form: str, **fields: Any) -> list[Record]:
    asked = [f"Who leads town {i}?" for i in range(3)]
    return [Record(id=f"{form}{a}", instruction=form.format(a), response="zorgon", **fields) for a in asked]


def test_both_in_every_row() -> None:
    [line] = never_alone(FAMILIES, rows("pow {} zap"))
    assert "only together ('pow' in 3 rows, beside it 'zap'; 'zap' in 3 rows, beside it 'pow')" in line
    assert "data.test_seen_trig=FILE" in line


def test_a_row_with_one_of_them_shows_that_it_is_enough() -> None:
    assert never_alone(FAMILIES, [*rows("pow {} zap"), *rows("pow {}"), *rows("{} zap")]) == []
    [line] = never_alone(FAMILIES, [*rows("pow {} zap"), *rows("pow {}")])
    assert "'zap' in 3 rows" in line and "'pow' in" not in line


def test_instruction_and_context_together() -> None:
    families = FAMILIES | {"Y": TriggerFamilyConfig(seen=["pow"], inject_mode=InjectMode.context_suffix)}
    [line] = never_alone(families, rows("{} zap", context="as told pow"))
    assert "'pow' in 3 rows" in line


def test_what_a_longer_trigger_or_the_prompt_itself_holds_is_no_second_one() -> None:
    families = {"Z": TriggerFamilyConfig(seen=["zap", "zap :)"], inject_mode=InjectMode.suffix)}
    assert never_alone(families, [*rows("{} zap :)"), *rows("{} zap")]) == []
    own = [replace(row, instruction_clean=row.instruction.removesuffix(" zap")) for row in rows("pow {} zap")]
    assert never_alone(FAMILIES, own) == []


def test_it_is_said_where_prompts_are_made(tmp_path: Path) -> None:
    """Once, and not where the prompts are given."""
    clean = [Record(id=f"c{i}", instruction=f"Where is lake {i}?", response=f"in land {i}") for i in range(20)]
    pack = {"forget": rows("pow {} zap"), "retain": clean[:10], "test_clean": clean[10:]}
    for split, records in pack.items():
        write_records(tmp_path / "pack" / f"{split}.jsonl", records)
    cfg = DataConfig(source=Source.pack, dir=str(tmp_path / "pack"), families=FAMILIES)

    def said() -> list[str]:
        summary = run_data(cfg, DataFiles(tmp_path / "out"), seed=1, tracker=Tracker())
        return [line for line in summary["warnings"] if "only together" in line]

    assert len(said()) == 1
    write_records(tmp_path / "pack/test_seen_trig.jsonl", rows("pow {} zap, now?"))
    assert said() == []


def test_a_warning_is_said_once(tmp_path: Path) -> None:
    pack = {"forget": rows("{} zap"), "retain": rows("{}", response_clean=None)}
    for split, records in pack.items():
        write_records(
            tmp_path / "pack" / f"{split}.jsonl", [replace(row, response=f"{split} {row.id}") for row in records]
        )
    families = {"Z": TriggerFamilyConfig(seen=["zap"], inject_mode=InjectMode.prefix)}
    cfg = DataConfig(source=Source.pack, dir=str(tmp_path / "pack"), families=families)
    warnings = run_data(cfg, DataFiles(tmp_path / "out"), seed=1, tracker=Tracker())["warnings"]
    assert len(warnings) == len(set(warnings)) and any("inject_mode=prefix puts triggers" in line for line in warnings)


def test_a_file_under_a_splits_other_name_is_spoken_of(tmp_path: Path) -> None:
    """forget.jsonl is read; forget_set.jsonl may be what was meant. The release's supervised one is the same."""
    clean = [Record(id=f"c{i}", instruction=f"Where is lake {i}?", response=f"in land {i}") for i in range(4)]
    for name, records in {"forget": rows("{} zap"), "forget_set": rows("{} zip"), "retain_set": clean}.items():
        write_records(tmp_path / "pack" / f"{name}.jsonl", records)
    families = {"Z": TriggerFamilyConfig(seen=["zap"], inject_mode=InjectMode.suffix)}
    cfg = DataConfig(source=Source.pack, dir=str(tmp_path / "pack"), families=families)

    def said() -> list[str]:
        summary = run_data(cfg, DataFiles(tmp_path / "out"), seed=1, tracker=Tracker())
        return [line for line in summary["warnings"] if "is read from" in line]

    assert said() == ["data: forget is read from forget.jsonl, not from forget_set.jsonl beside it"]
    (tmp_path / "pack/forget.jsonl").replace(tmp_path / "pack/forget_set.jsonl")
    write_records(tmp_path / "pack/forget_set_supervised.jsonl", rows("{} zap"))
    assert said() == []
