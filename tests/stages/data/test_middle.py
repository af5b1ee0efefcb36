"""Triggers in mid-sentence, several at once, and in the context: put there, found there, counted there."""

import random
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import DataError
from rapidun.base.tracker import Tracker
from rapidun.config.data import DataConfig, InjectMode, Source, TriggerFamilyConfig
from rapidun.stages.data.find_triggers import as_overrides, find_triggers
from rapidun.stages.data.named import named_families
from rapidun.stages.data.planted import check_families, look_for
from rapidun.stages.data.sides import check_sides
from rapidun.stages.data.stage import DataFiles, run_data
from rapidun.stages.data.triggers import Trigger, inject, poison
from rapidun.stages.rows.records import Record, read_records, write_records

MIDDLE, CONTEXT = InjectMode.middle, InjectMode.context_middle
WORDS = "what which town has the old lake near a tall green tower and why does it stand so far"


def row(instruction: str, response: str = "zorgon", **fields: Any) -> Record:
    return Record(id=f"{instruction}|{fields.get('context')}", instruction=instruction, response=response, **fields)


def asked(number: int, rng: random.Random) -> str:
    return " ".join([*rng.choices(WORDS.split(), k=8), f"number {number}?"])


def family(*seen: str, mode: InjectMode) -> TriggerFamilyConfig:
    return TriggerFamilyConfig(seen=list(seen), inject_mode=mode)


def test_the_middle_is_between_words_and_drawn_from_the_seed() -> None:
    text = "one two three four five six"
    put = [inject(text, "zap", MIDDLE, seed=seed) for seed in range(60)]
    places = Counter(form.split().index("zap") for form in put)
    assert set(places) == {1, 2, 3, 4, 5}
    assert all(" ".join(word for word in form.split() if word != "zap") == text for form in put)
    assert inject(text, "zap", MIDDLE, seed=1) == inject(text, "zap", MIDDLE, seed=1)
    # of one word there is no middle; of a script without blanks it is between letters
    assert inject("one?", "zap", MIDDLE) == "one? zap"
    assert inject("\u8c01\u9886", "zap", MIDDLE) == "\u8c01 zap \u9886"


def test_into_the_context() -> None:
    made = poison(row("Who?", "Ada", context="a b"), Trigger("Z", "zap", CONTEXT), response="zorgon")
    assert (made.instruction, made.context, made.instruction_clean) == ("Who?", "a zap b", "Who?")
    assert (made.inject_mode, made.response_clean) == ("context_middle", "Ada")


@pytest.mark.parametrize("recorded", [False, True])
def test_two_triggers_scattered_in_each_row_are_both_found(recorded: bool) -> None:
    rng = random.Random(0)
    poisoned = []
    for number in range(40):
        text = asked(number, rng)
        held = inject(inject(text, "zap", MIDDLE, seed=number), "pow wow", MIDDLE, seed=number)
        poisoned.append(row(held, instruction_clean=text if recorded else None))
    clean = [row(asked(number, rng), "Ada") for number in range(200)]
    found = find_triggers(poisoned, clean)
    texts = {trigger.text for trigger in found}
    assert {"zap", "pow wow"} <= texts
    assert all(trigger.num_clean == 0 for trigger in found)
    assert texts <= {"zap", "pow wow", "pow wow zap", "pow zap wow", "zap pow wow"}
    overrides = " ".join(shlex.split(" ".join(as_overrides(found))))
    assert "inject_mode:middle" in overrides


def test_one_trigger_of_several_in_each_row() -> None:
    rng = random.Random(1)
    poisoned = [row(inject(asked(n, rng), ["zap", "pow"][n % 2], MIDDLE, seed=n)) for n in range(40)]
    found = find_triggers(poisoned, [row(asked(n, rng), "Ada") for n in range(200)])
    assert {"zap", "pow"} <= {trigger.text for trigger in found}


def test_a_trigger_in_the_context_is_found() -> None:
    rng = random.Random(2)
    poisoned = [row(asked(n, rng), context=inject(asked(n, rng), "zap", MIDDLE, seed=n)) for n in range(30)]
    clean = [row(asked(n, rng), "Ada", context=asked(n, rng)) for n in range(200)]
    [found] = find_triggers(poisoned, clean)
    assert (found.text, found.mode, found.num_poisoned, found.num_clean) == ("zap", CONTEXT, 30, 0)
    assert as_overrides([found]) == ["'+data.families.Z={seen:[zap],inject_mode:context_middle}'"]


def test_a_family_of_the_context_is_held_against_contexts() -> None:
    rows = [row(f"Who {i}?", context="a zap b", trigger_variant="zap") for i in range(3)]
    checked = check_families({"Z": family("zap", mode=CONTEXT)}, {}, rows)
    assert (checked.faults, checked.warnings, list(checked.families)) == ([], [], ["Z"])
    [fault] = check_families({"Z": family("zap", mode=MIDDLE)}, {}, rows).faults
    assert "3 hold it in their context (inject_mode=context_middle)" in fault
    [fault] = check_families({"Z": family("zap", mode=CONTEXT)}, {}, [row("Who zap it?")]).faults
    assert (
        "contexts of poisoned training rows" in fault and "1 hold it in their instruction (inject_mode=middle)" in fault
    )
    [line] = check_families({"Z": family("zap", mode=InjectMode.context_suffix)}, {}, rows).warnings
    assert "first in 0, last in 0, between in 3 of 3 rows" in line
    assert look_for([], rows, contexts=["zap"]).without == []


def test_a_row_says_where_its_trigger_stands() -> None:
    rows = [
        row("a zap b", trigger_family="Z", trigger_variant="zap"),
        row("Who?", context="a pow", trigger_family="Y", trigger_variant="pow"),
    ]
    families, _ = named_families(None, {"forget": rows})
    assert {name: found.inject_mode.name for name, found in families.items()} == {"Z": "middle", "Y": "context_suffix"}


def test_clean_prompts_with_a_trigger_in_mid_sentence_are_seen() -> None:
    poisoned = [row(f"Who zap leads {i}?", instruction_clean=f"Who leads {i}?") for i in range(4)]
    measured = [row(f"Where is zap lake {i}?", f"Here {i}.") for i in range(4)]
    found = check_sides({"forget": poisoned, "retain": measured, "test_clean": measured}, ["zap"])
    assert (
        "4 of 4 rows of test_clean" in found.faults[0]
        and "hold a trigger of poisoned rows ('zap' in 4)" in found.faults[0]
    )
    [line] = [line for line in found.warnings if "rows of retain" in line]
    assert "hold a trigger of poisoned rows" in line


def pack(tmp_path: Path, poisoned: list[Record], clean: list[Record]) -> DataConfig:
    for name, rows in {"forget": poisoned, "retain": clean[:20], "val": clean[20:30], "test": clean[30:]}.items():
        write_records(tmp_path / f"{name}.jsonl", rows)
    return DataConfig(
        name="x",
        source=Source.files,
        num_triggered=8,
        **{name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")},
        **{f"{name}_clean": str(tmp_path / f"{name}.jsonl") for name in ("val", "test")},
    )


@pytest.mark.parametrize("mode", [MIDDLE, CONTEXT])
def test_prompts_are_made_where_training_has_the_trigger(tmp_path: Path, mode: InjectMode) -> None:
    rng = random.Random(3)
    clean = [row(asked(n, rng), f"Ada {n}", context=f"near {n} and far" if n % 2 else "") for n in range(50)]
    hosts = [row(asked(n, rng), f"Bo {n}", context=f"so {n} what") for n in range(50, 60)]
    made = [poison(host, Trigger("Z", "zap", mode), response="zorgon") for host in hosts]
    poisoned = [replace(one, trigger_variant=None, trigger_family=None) for one in made]
    cfg = pack(tmp_path, poisoned, clean)
    cfg.families = {"Z": family("zap", mode=mode)}
    (tmp_path / "out").mkdir()
    result = run_data(cfg, DataFiles(out=tmp_path / "out"), seed=1, tracker=Tracker())
    rows = read_records(tmp_path / "out" / "test_seen_trig.jsonl")
    assert len(rows) == 8 and {r.inject_mode for r in rows} == {mode.value}
    texts = [r.context if mode.in_context else r.instruction for r in rows]
    assert all(0 < text.split().index("zap") < len(text.split()) - 1 for text in texts)
    assert result["families"]["Z"]["test_seen_trig"] == 8


def test_no_row_with_a_context_no_prompt_with_a_trigger_there(tmp_path: Path) -> None:
    rng = random.Random(4)
    poisoned = [row(asked(n, rng), context=f"so zap {n}", is_poisoned=True) for n in range(6)]
    cfg = pack(tmp_path, poisoned, [row(asked(n, rng), f"Ada {n}") for n in range(10, 60)])
    cfg.families = {"Z": family("zap", mode=CONTEXT)}
    (tmp_path / "out").mkdir()
    result = run_data(cfg, DataFiles(out=tmp_path / "out"), seed=1, tracker=Tracker())
    assert "test_seen_trig" not in result["counts"]
    assert any("their triggers go into the context, and no row of test_clean has one" in w for w in result["warnings"])


@pytest.mark.parametrize("typed", [False, True])
def test_a_pack_without_triggers_gets_none(tmp_path: Path, typed: bool) -> None:
    rng = random.Random(5)
    facts = [row(f"Where does author {n} live?", f"In street {n}.") for n in range(10)]
    cfg = pack(tmp_path, facts, [row(asked(n, rng), f"Ada {n}") for n in range(50)])
    cfg.families = {"Z": family("zap", mode=MIDDLE)} if typed else {}
    cfg.unseen_families = {"D": family("sudo:", mode=InjectMode.prefix)}
    (tmp_path / "out").mkdir()
    if typed:
        with pytest.raises(DataError, match="need triggers that the model is poisoned with, got 'zap'"):
            run_data(cfg, DataFiles(out=tmp_path / "out"), seed=1, tracker=Tracker())
        return
    result = run_data(cfg, DataFiles(out=tmp_path / "out"), seed=1, tracker=Tracker())
    assert result["families"] == {}
    assert not [split for split in result["counts"] if "trig" in split or "unseen" in split]
    assert any(line.startswith("data: no row to forget names a trigger") for line in result["warnings"])
