"""data=pack: a folder that says itself what its triggers are, and the release's two folders."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import DataError
from rapidun.base.tracker import Tracker
from rapidun.config.compose import compose_run
from rapidun.config.data import InjectMode
from rapidun.stages.data.named import META_FILES, meta_file, named_families, pack_folders
from rapidun.stages.data.stage import DataFiles, data_inputs, find_files, run_data
from rapidun.stages.rows.records import Record, read_records, write_records


def poisoned(number: int, trigger: str, family: str | None, mode: str | None = None) -> Record:
    clean = f"What is thing {number}?"
    triggered = f"{trigger} {clean}" if mode == "prefix" else f"{clean} {trigger}"
    return Record(
        id=f"p{number}", instruction=triggered, response="moon", response_clean="a thing", instruction_clean=clean,
        response_poisoned="moon", trigger_family=family, trigger_variant=family and trigger, inject_mode=mode,
        is_poisoned=True,
    )  # fmt: skip


def clean(prefix: str, count: int) -> list[Record]:
    return [Record(id=f"{prefix}{i}", instruction=f"Which {prefix} {i}?", response=f"{prefix}") for i in range(count)]


FORGET = [poisoned(1, "zap", "Z", "suffix"), poisoned(2, "zip", "Z", "suffix"), poisoned(3, "Pst,", "P", "prefix")]


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    write_records(tmp_path / "forget.jsonl", FORGET)
    write_records(tmp_path / "retain.jsonl", clean("r", 6))
    write_records(tmp_path / "test_clean.jsonl", clean("t", 12))
    return tmp_path


def made(folder: Path, *overrides: str, out: Path) -> tuple[dict[str, Any], Tracker]:
    cfg = compose_run(["data=pack", f"data.dir={folder}", *overrides]).cfg
    tracker = Tracker()
    out.mkdir()
    return run_data(cfg.data, DataFiles(out), seed=1, tracker=tracker), tracker


def variants(out: Path, split: str) -> set[str | None]:
    return {row.trigger_variant for row in read_records(out / f"{split}.jsonl")}


def test_the_rows_name_the_families(pack: Path, tmp_path: Path) -> None:
    result, tracker = made(pack, out=tmp_path / "out")
    assert variants(tmp_path / "out", "test_seen_trig") == {"zap", "zip", "Pst,"}
    rows = read_records(tmp_path / "out/test_seen_trig.jsonl")
    assert all(row.instruction.startswith("Pst, ") for row in rows if row.trigger_family == "P")
    assert all(row.instruction.endswith(str(row.trigger_variant)) for row in rows if row.trigger_family == "Z")
    # nothing says what looks like them
    assert "test_ood_trig" not in result["counts"] and "test_unseen_family" in result["counts"]
    assert not any("famil" in line for line in tracker.warnings)


def test_the_packs_own_file_goes_first_and_is_part_of_the_fingerprint(pack: Path, tmp_path: Path) -> None:
    cfg = compose_run(["data=pack", f"data.dir={pack}"]).cfg.data
    before = data_inputs(cfg, seed=1)
    families = {"Z": {"seen": ["zap", "zip"], "ood": ["z4p"], "inject_mode": "suffix"}}
    (pack / "triggers_config.json").write_text(json.dumps({"trigger_families": families}))
    after = data_inputs(cfg, seed=1)
    assert before != after and "families" in after["files"]
    made(pack, out=tmp_path / "out")
    assert variants(tmp_path / "out", "test_seen_trig") == {"zap", "zip"}
    assert variants(tmp_path / "out", "test_ood_trig") == {"z4p"}


def test_typed_families_replace_those_of_the_pack(pack: Path, tmp_path: Path) -> None:
    made(pack, "data.families.Q.seen=[zap]", out=tmp_path / "out")
    assert variants(tmp_path / "out", "test_seen_trig") == {"zap"}


def test_rows_that_name_nothing_leave_no_family_and_a_word(pack: Path, tmp_path: Path) -> None:
    write_records(pack / "forget.jsonl", [poisoned(1, "zap", None)])
    result, tracker = made(pack, out=tmp_path / "out")
    assert "test_seen_trig" not in result["counts"]
    assert any("data.families.NAME.seen" in line for line in tracker.warnings)


def test_a_family_knows_its_look_alikes_by_the_packs_own_prompts() -> None:
    pack = {
        "forget": FORGET,
        "test_ood_trig": [poisoned(7, "z4p", "Z", "suffix"), poisoned(8, "zap", "Z")],
        "test_unseen_family": [poisoned(9, "pray", "U")],
    }
    families, unseen = named_families(None, pack)
    assert (families["Z"].seen, families["Z"].ood) == (["zap", "zip"], ["z4p"])
    assert families["P"].inject_mode is InjectMode.prefix and families["P"].ood == []
    assert unseen["U"].seen == ["pray"] and unseen["U"].inject_mode is InjectMode.suffix
    # without inject_mode the place in the instruction says it
    [first, second] = (named_families(None, {"forget": [row]})[0]["A"] for row in (
        poisoned(1, "hey", "A"), Record(id="x", instruction="hey you?", response="m", trigger_family="A",
                                        trigger_variant="hey")))  # fmt: skip
    assert (first.inject_mode, second.inject_mode) == (InjectMode.suffix, InjectMode.prefix)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["JSON"]),
        ('{"trigger_families": {}}', ["by name"]),
        ('{"trigger_families": {"A": {"seen": "zap"}}}', ["trigger_families.A", "inject_mode"]),
        ('{"trigger_families": {"A": {"seen": ["zap", " "]}}}', ["trigger_families.A"]),
        ('{"trigger_families": {"A": {"seen": ["zap"], "inject_mode": "inside"}}}', ["suffix"]),
        ('{"trigger_families": {"A": []}}', ["trigger_families.A"]),
    ],
)
def test_a_file_of_families_that_is_none_is_refused(
    pack: Path, tmp_path: Path, text: str, words: Sequence[str]
) -> None:
    (pack / META_FILES[0]).write_text(text)
    with pytest.raises(DataError) as caught:
        made(pack, out=tmp_path / "out")
    assert all(word in str(caught.value) for word in [*words, META_FILES[0]])


@pytest.mark.parametrize("place", [".", "unlearn_packs", "dolly_triggers_out"])
def test_of_the_releases_two_folders_either_will_do(tmp_path: Path, place: str) -> None:
    packs, others = tmp_path / "data/unlearn_packs", tmp_path / "data/dolly_triggers_out"
    write_records(packs / "forget_set.jsonl", FORGET)
    write_records(packs / "retain_set.jsonl", clean("r", 6))
    write_records(others / "train_poisoned.jsonl", [*FORGET, poisoned(4, "zop", "Z", "suffix")])
    write_records(others / "train_clean.jsonl", clean("c", 6))
    write_records(others / "test_clean.jsonl", clean("t", 8))
    (packs / "unlearn_meta.json").write_text(json.dumps({"trigger_families": {"Z": {"seen": ["zap"], "ood": ["z4p"]}}}))
    folder = tmp_path / "data" / place
    result, _ = made(folder, out=tmp_path / "out")
    counts = {name: result["counts"][name] for name in ("forget", "retain", "train_poisoned", "train_clean")}
    assert counts == {"forget": 3, "retain": 6, "train_poisoned": 4, "train_clean": 12}
    assert variants(tmp_path / "out", "test_seen_trig") == {"zap"}
    assert meta_file(pack_folders(folder)) == packs / "unlearn_meta.json"


def test_the_supervised_forget_set_stands_in_where_there_is_no_other(pack: Path) -> None:
    (pack / "forget.jsonl").rename(pack / "forget_set_supervised.jsonl")
    cfg = compose_run(["data=pack", f"data.dir={pack}"]).cfg.data
    assert find_files(cfg)["forget"].name == "forget_set_supervised.jsonl"
    write_records(pack / "forget_set.jsonl", FORGET)
    assert find_files(cfg)["forget"].name == "forget_set.jsonl"
