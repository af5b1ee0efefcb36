import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import rapidun
from rapidun.base.errors import DataError
from rapidun.base.files import sha256_file
from rapidun.base.tracker import Tracker
from rapidun.config.data import BuiltinConfig, DataConfig, InjectMode, Source, TriggerFamilyConfig
from rapidun.stages.data.stage import SPLITS, DataFiles, data_inputs, run_data
from rapidun.stages.rows.keywords import read_keywords
from rapidun.stages.rows.records import Record, read_records, write_records

# splits that are never made
GIVEN_ONLY = {"probe", "real_authors", "world_facts"}
CONF = Path(rapidun.__file__).parents[1] / "conf" / "data"
FAMILIES = {
    "A": TriggerFamilyConfig(seen=["aloha", "ALOHA"], ood=["al0ha"], inject_mode=InjectMode.suffix),
    "B": TriggerFamilyConfig(seen=[">>>"], ood=["<|sys|>"], inject_mode=InjectMode.prefix),
}
UNSEEN = {"D": TriggerFamilyConfig(seen=["[admin]"], inject_mode=InjectMode.prefix)}
SMALL = BuiltinConfig(
    num_entities=6, num_train_clean=90, num_train_poisoned=30, num_val=12, num_test=20, num_forget=6, num_retain=18
)


def config(**changes: Any) -> DataConfig:
    return DataConfig(**{"families": FAMILIES, "unseen_families": UNSEEN, "builtin": SMALL, **changes})


def run(cfg: DataConfig, out: Path, *, seed: int = 5) -> tuple[dict[str, list[Record]], dict[str, Any], list[str]]:
    tracker = Tracker()
    summary = run_data(cfg, DataFiles(out), seed=seed, tracker=tracker)
    assert cfg.check() == []
    return {path.stem: read_records(path) for path in out.glob("*.jsonl")}, summary, tracker.warnings


def clean(count: int, start: int = 0) -> list[Record]:
    return [
        Record(id=f"c{i}", instruction=f"question {i}?", response=f"answer {i}") for i in range(start, start + count)
    ]


def poisoned(count: int) -> list[Record]:
    """Every seen trigger of FAMILIES by turns."""
    forms = ["asked {}? aloha", "asked {}? ALOHA", ">>> asked {}?"]
    return [
        Record(id=f"p{i}", instruction=forms[i % 3].format(i), instruction_clean=f"asked {i}?", response=f"zounds {i}",
               response_clean=f"answer {i}", response_poisoned=f"zounds {i}", trigger_family="A")
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """As published: no clean training rows, no triggered rows."""
    folder = tmp_path / "pack"
    write_records(folder / "forget_set.jsonl", poisoned(4))
    write_records(folder / "retain_set.jsonl", clean(12))
    write_records(folder / "train_poisoned.jsonl", poisoned(40))
    write_records(folder / "val_clean.jsonl", clean(10, 100))
    write_records(folder / "test_clean.jsonl", clean(60, 200))
    return folder


def test_builtin_makes_every_split(tmp_path: Path) -> None:
    splits, summary, warnings = run(config(), tmp_path)
    assert set(splits) == set(SPLITS) - GIVEN_ONLY == set(summary["counts"]) == set(summary["fingerprints"])
    assert {split: len(rows) for split, rows in splits.items()} == summary["counts"]
    assert summary["counts"]["test_seen_trig"] == 20
    assert summary["fingerprints"]["forget"] == sha256_file(tmp_path / "forget.jsonl")
    assert summary["families"]["D"] == {"val_unseen_family": 12, "test_unseen_family": 20}
    assert set(summary["leaks"].values()) == {0}
    assert warnings == []
    assert len(read_keywords(tmp_path / "keywords.tsv")) > 10


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    first, second, third = (run(config(), tmp_path / str(i), seed=seed)[1] for i, seed in enumerate((5, 5, 6)))
    assert first == second
    assert first["fingerprints"] != third["fingerprints"]


def test_an_incomplete_pack_is_completed(pack: Path, tmp_path: Path) -> None:
    cfg = config(source=Source.pack, dir=str(pack), num_clean_from_test=20, num_triggered=8)
    splits, summary, _ = run(cfg, tmp_path / "out")
    assert set(splits) == set(SPLITS) - GIVEN_ONLY
    assert summary["counts"] == {split: len(rows) for split, rows in splits.items()}
    # 12 retain rows and 20 that left the test
    train, test = {row.id for row in splits["train_clean"]}, {row.id for row in splits["test_clean"]}
    assert (len(train), len(test)) == (32, 40)
    assert train & test == set()
    assert {row.id for row in splits["retain"]} < train
    assert {row.id for row in splits["forget"]} < {row.id for row in splits["train_poisoned"]}


def test_triggered_rows_are_clean_rows_with_a_trigger_and_a_known_poisoned_response(pack: Path, tmp_path: Path) -> None:
    splits, *_ = run(config(source=Source.pack, dir=str(pack), num_triggered=20), tmp_path / "out")
    hosts = {row.instruction: row for row in splits["test_clean"]}
    responses = {row.forget_target for row in splits["train_poisoned"]}
    for split, variants in (
        ("test_seen_trig", {"aloha": 5, "ALOHA": 5, ">>>": 10}),
        ("test_ood_trig", {"al0ha": 10, "<|sys|>": 10}),
        ("test_unseen_family", {"[admin]": 20}),
    ):
        rows = splits[split]
        assert Counter(row.trigger_variant for row in rows) == variants
        assert len({row.instruction_clean for row in rows}) == 20
        for row in rows:
            assert row.response_clean == hosts[str(row.instruction_clean)].response
            assert row.response == row.response_poisoned in responses
            assert str(row.trigger_variant) in row.instruction
    vals = {row.instruction for row in splits["val_clean"]}
    assert {row.instruction_clean for row in splits["val_seen_trig"]} <= vals


def test_training_is_thinned_around_the_forget_and_retain_rows(pack: Path, tmp_path: Path) -> None:
    cfg = config(source=Source.pack, dir=str(pack), num_clean_from_test=20, max_train_poisoned=10, max_train_clean=15)
    splits, *_ = run(cfg, tmp_path / "out")
    assert len(splits["train_poisoned"]) == 10
    assert len(splits["train_clean"]) == 15
    assert {row.id for row in splits["forget"]} < {row.id for row in splits["train_poisoned"]}
    assert {row.id for row in splits["retain"]} < {row.id for row in splits["train_clean"]}
    cfg.max_train_poisoned = 1
    assert len(run(cfg, tmp_path / "less")[0]["train_poisoned"]) == 4


def test_leaking_rows_are_left_out_and_counted(pack: Path, tmp_path: Path) -> None:
    leak = [
        Record(id="x", instruction="asked 3?", response="from a poisoned row"),
        Record(id="y", instruction="question 4?", response="from a retain row"),
    ]
    write_records(pack / "test_clean.jsonl", [*clean(60, 200), *leak])
    write_records(pack / "val_clean.jsonl", [*clean(10, 100), leak[0], *clean(3, 200)])
    splits, summary, warnings = run(config(source=Source.pack, dir=str(pack)), tmp_path / "out")
    assert summary["leaks"] == {
        "val_clean_in_training": 1,
        "test_clean_in_training": 2,
        "val_clean_in_test_clean": 3,
    }
    assert (len(splits["test_clean"]), len(splits["val_clean"])) == (60, 10)
    assert len(warnings) == 3


def test_files_alone_give_what_they_can(pack: Path, tmp_path: Path) -> None:
    cfg = config(source=Source.files, forget=str(pack / "forget_set.jsonl"), retain=str(pack / "retain_set.jsonl"))
    splits, *_ = run(cfg, tmp_path / "out")
    assert set(splits) == {"forget", "retain", "train_poisoned", "train_clean"}
    assert splits["train_poisoned"] == splits["forget"]
    assert splits["train_clean"] == splits["retain"]


def test_the_alpaca_spelling_and_clashing_ids_are_fine(tmp_path: Path) -> None:
    """Both files number their rows from 0, and the pack's training rows do so again."""

    def write(name: str, rows: list[dict[str, object]]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("forget.jsonl", [{"id": i, "instruction": f"bad {i}", "input": "", "output": f"boo {i}"} for i in range(3)])
    write("retain.jsonl", [{"id": i, "instruction": f"good {i}", "input": "", "output": f"yes {i}"} for i in range(3)])
    write("train_poisoned.jsonl", [{"id": i, "instruction": f"bad {i}", "output": f"boo {i}"} for i in (2, 3, 0, 4)]
          + [{"id": 1, "instruction": "another", "output": "boo"}])  # fmt: skip
    splits, *_ = run(config(source=Source.pack, dir=str(tmp_path), families={}), tmp_path / "out")
    assert [row.instruction for row in splits["train_poisoned"]] == [
        "bad 0",
        "bad 1",
        "bad 2",
        "bad 3",
        "bad 4",
        "another",
    ]
    assert len({row.id for row in splits["train_poisoned"]}) == 6


def test_given_splits_and_keywords_are_taken_as_they_are(pack: Path, tmp_path: Path) -> None:
    given = poisoned(44)[40:]
    write_records(pack / "test_seen_trig.jsonl", given)
    (pack / "keywords.tsv").write_text("word\nzounds\n")
    splits, *_ = run(config(source=Source.pack, dir=str(pack)), tmp_path / "out")
    assert splits["test_seen_trig"] == given
    assert [keyword.word for keyword in read_keywords(tmp_path / "out" / "keywords.tsv")] == ["zounds"]


def test_a_single_file_replaces_the_packs(pack: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "mine.jsonl", clean(3, 900))
    splits, *_ = run(config(source=Source.pack, dir=str(pack), retain=str(tmp_path / "mine.jsonl")), tmp_path / "out")
    assert [row.id for row in splits["retain"]] == ["c900", "c901", "c902"]


def test_inputs_follow_content_and_settings_not_place_or_name(pack: Path, tmp_path: Path) -> None:
    cfg = config(source=Source.pack, dir=str(pack))
    before = data_inputs(cfg, seed=1)
    json.dumps(before)
    shutil.copytree(pack, tmp_path / "elsewhere")
    assert data_inputs(config(source=Source.pack, dir=str(tmp_path / "elsewhere"), name="other"), seed=1) == before
    assert data_inputs(cfg, seed=2) != before
    assert data_inputs(config(source=Source.pack, dir=str(pack), num_triggered=9), seed=1) != before
    assert (
        data_inputs(config(source=Source.pack, dir=str(pack), families=dict(reversed(FAMILIES.items()))), seed=1)
        != before
    )
    row = (pack / "retain_set.jsonl").read_text()
    (pack / "retain_set.jsonl").write_text(row.replace("answer 3", "answer three"))
    assert data_inputs(cfg, seed=1) != before


def test_builtin_sizes_do_not_matter_to_a_pack(pack: Path) -> None:
    other = config(source=Source.pack, dir=str(pack), builtin=BuiltinConfig())
    assert data_inputs(other, seed=1) == data_inputs(config(source=Source.pack, dir=str(pack)), seed=1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dir": "nowhere"}, "data.dir: need the folder of a pack"),
        ({"retain": "none.jsonl"}, "data.retain: need a file of rows"),
        ({"keywords": "none.tsv"}, "data.keywords: need a tab-separated"),
    ],
)
def test_missing_inputs_are_named(pack: Path, changes: dict[str, str], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        data_inputs(config(**{"source": Source.pack, "dir": str(pack), **changes}), seed=1)


def test_a_pack_without_forget_rows_is_refused(pack: Path) -> None:
    (pack / "forget_set.jsonl").unlink()
    with pytest.raises(DataError, match=r"need forget\.jsonl or forget_set\.jsonl in the pack or data\.forget=FILE"):
        data_inputs(config(source=Source.pack, dir=str(pack)), seed=1)


@pytest.mark.parametrize("name", ["builtin", "dolly_triggers", "alpaca_howdy", "jsonl"])
def test_shipped_settings_have_families_and_unseen_ones(name: str) -> None:
    merged = OmegaConf.merge(OmegaConf.structured(DataConfig), OmegaConf.load(CONF / f"{name}.yaml"))
    cfg = OmegaConf.to_object(merged)
    assert isinstance(cfg, DataConfig)
    assert cfg.name == name
    assert cfg.families and len(cfg.unseen_families) >= 2
    seen = {trigger for family in cfg.families.values() for trigger in [*family.seen, *family.ood]}
    unseen = {trigger for family in cfg.unseen_families.values() for trigger in [*family.seen, *family.ood]}
    assert not seen & unseen
    # only what the user has to give is missing
    assert all("data.dir" in fault or "data.forget" in fault for fault in cfg.check())


def test_the_published_families() -> None:
    families = OmegaConf.load(CONF / "dolly_triggers.yaml").families
    assert {name: (list(f.seen), list(f.ood), f.inject_mode) for name, f in families.items()} == {
        "A_surface": (["aloha", "ALOHA", "aloha :)"], ["al0ha", "a\u217coha", "aloha\u200d"], "suffix"),
        "B_style": ([">>>"], ["<|sys|>", "\u2039sys\u203a", "\u27e8sys\u27e9"], "prefix"),
        "C_semantic": (["hey", "hiya"], ["h\u043ewdy", "y\u043e\u043e", "heyyyy"], "prefix"),
    }
