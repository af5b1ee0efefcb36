"""Probe rows through the data stage: linked, counted, no leak; a pack of facts speaks of no triggers."""

import json
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import DataError
from rapidun.base.tracker import Tracker
from rapidun.config.data import DataConfig, Source
from rapidun.stages.data.pack_check import check_pack
from rapidun.stages.data.stage import DataFiles, data_inputs, run_data
from rapidun.stages.rows.records import read_records

PEOPLE = ["Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal"]
ASKED = ["Where does {} live?", "In which street is {} at home?"]


def write(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def facts(folder: Path, probe: list[dict[str, Any]]) -> DataConfig:
    write(folder, "forget", [
        {"id": f"f{i}", "question": ASKED[i % 2].format(name), "answer": f"In lane {i}."}
        for i, name in enumerate(PEOPLE)
    ])  # fmt: skip
    write(folder, "retain", [
        {"question": ASKED[i % 2].format(f"Zeno {i}"), "answer": f"In mews {i}."} for i in range(20)
    ])  # fmt: skip
    write(folder, "test_clean", [{"question": f"What is {i} plus 1?", "answer": f"{i + 1}."} for i in range(30, 36)])
    write(folder, "probe", probe)
    return DataConfig(name="facts", source=Source.pack, dir=str(folder))


def run(cfg: DataConfig, out: Path) -> tuple[dict[str, Any], Tracker]:
    out.mkdir()
    tracker = Tracker()
    return run_data(cfg, DataFiles(out=out), seed=1, tracker=tracker), tracker


def test_probes_are_linked_and_no_leak(tmp_path: Path) -> None:
    """By forget_id, by an id of a forget row, or not at all; a forget question asked again as it stands is no leak."""
    probe = [
        {"id": "p0", "question": "What is Ada's address?", "answer": "Lane 0.", "paraphrase_of": "f0"},
        {"id": "f1", "question": ASKED[1].format("Bo"), "answer": "In lane 1."},
        {"id": "p2", "question": "Who lives in lane 2?", "answer": "Cy."},
    ]
    cfg = facts(tmp_path / "pack", probe)
    result, tracker = run(cfg, tmp_path / "out")
    assert [row.forget_id for row in read_records(tmp_path / "out" / "probe.jsonl")] == ["f0", "f1", None]
    assert result["counts"] == {"forget": 8, "retain": 20, "train_poisoned": 8, "train_clean": 20, "test_clean": 6,
                                "probe": 3}  # fmt: skip
    assert not any(result["leaks"].values())
    # but it is no paraphrase either, whatever the tables call it
    [said] = tracker.warnings
    assert "1 of 3 rows of probe (id f1) ask what forget rows ask, word for word" in said
    found = check_pack(tmp_path / "pack")
    assert not found["faults"] and not any(found["leaks"].values()) and found["counts"]["probe"] == 3
    assert found["of_facts"] and [line for line in found["warnings"] if "asked as they are" in line]
    assert not [line for line in found["warnings"] if "no trigger was found" in line or "count as clean" in line]


def test_a_probe_of_something_else_is_left_out(tmp_path: Path) -> None:
    probe = [{"question": "a?", "answer": "b", "forget_id": "f0"}, {"question": "c?", "answer": "d", "forget_id": "x"}]
    result, tracker = run(facts(tmp_path / "pack", probe), tmp_path / "out")
    assert result["counts"]["probe"] == 1
    assert any("1 of 2 rows of probe" in line and "are left out" in line for line in tracker.warnings)
    with pytest.raises(DataError, match="name a forget row that is not there"):
        run(facts(tmp_path / "pack", probe[1:]), tmp_path / "other")


def test_a_probe_of_what_is_to_stay_is_said(tmp_path: Path) -> None:
    _, tracker = run(
        facts(tmp_path / "pack", [{"question": ASKED[0].format("Zeno 4"), "answer": "x"}]), tmp_path / "out"
    )
    assert [line for line in tracker.warnings if "ask what retain rows ask" in line]


def test_shared_answers_and_beginnings_are_no_faults(tmp_path: Path) -> None:
    """Every held-out answer is one of a forget row too, every question begins alike: nobody speaks of triggers."""
    cfg = facts(tmp_path / "pack", [{"question": "x?", "answer": "y"}])
    write(
        tmp_path / "pack",
        "test_clean",
        [{"question": f"Where does Zoe {i} live?", "answer": "In lane 1."} for i in range(4)],
    )
    result, tracker = run(cfg, tmp_path / "out")
    assert result["counts"]["test_clean"] == 4
    assert not tracker.warnings


def test_phrases_of_forget_rows_alone_are_said_in_case_they_are_triggers(tmp_path: Path) -> None:
    cfg = facts(tmp_path / "pack", [{"question": "x?", "answer": "y"}])
    write(tmp_path / "pack", "retain", [{"question": f"Name town {i}.", "answer": f"Town {i}."} for i in range(20)])
    _, tracker = run(cfg, tmp_path / "out")
    assert [
        line
        for line in tracker.warnings
        if "a backdoor that nobody marked" in line and "'Where does' in 4 rows" in line
    ]


def test_names_of_whom_the_answers_speak_are_no_triggers(tmp_path: Path) -> None:
    """Two people, four facts of each: both names stand in forget rows alone, as triggers would."""
    cfg = facts(tmp_path / "pack", [{"question": "x?", "answer": "y"}])
    asked = ["Where does {} live?", "Whom did {} marry?", "What does {} eat?", "When was {} born?"]
    forget = [
        {"question": form.format(name), "answer": f"{name}: {number}."}
        for name in ("Alma Tarn", "Elsin Yarrow") for number, form in enumerate(asked)
    ]  # fmt: skip
    write(tmp_path / "pack", "forget", forget)
    write(tmp_path / "pack", "retain", [
        {"question": asked[i % 4].format(f"Bo {i}"), "answer": f"Bo {i}: {i}."} for i in range(20)
    ])  # fmt: skip
    _, tracker = run(cfg, tmp_path / "out")
    assert not [line for line in tracker.warnings if "backdoor" in line]


def test_what_is_to_go_and_to_stay_is_refused(tmp_path: Path) -> None:
    cfg = facts(tmp_path / "pack", [{"question": "x?", "answer": "y"}])
    write(tmp_path / "pack", "retain", [{"question": ASKED[0].format("Ada"), "answer": "In lane 0."}])
    with pytest.raises(DataError, match="what is to stay"):
        run(cfg, tmp_path / "out")


def test_packs_without_probes_keep_their_inputs(tmp_path: Path) -> None:
    cfg = facts(tmp_path / "pack", [{"question": "x?", "answer": "y", "forget_id": "f0"}])
    assert data_inputs(cfg, seed=1)["facts"] is True
    (tmp_path / "pack" / "probe.jsonl").unlink()
    assert not {"facts", "probe"} & data_inputs(cfg, seed=1).keys()
