"""The data stage on the published Dolly pack: RAPIDUN_SHARED names the folder that holds data/dolly_triggers."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import rapidun
from rapidun.base.tracker import Tracker
from rapidun.config.data import DataConfig, InjectMode
from rapidun.models.losses import IGNORE
from rapidun.stages.data.keywords import make_keywords
from rapidun.stages.data.pack_build import PackSizes, build_pack
from rapidun.stages.data.pack_check import check_pack, leaks_between
from rapidun.stages.data.stage import SPLITS, DataFiles, data_inputs, run_data
from rapidun.stages.data.triggers import FAMILIES, UNSEEN_FAMILIES, inject
from rapidun.stages.rows.batches import token_budget_batches
from rapidun.stages.rows.cuts import Cuts
from rapidun.stages.rows.encode import encode_prompt, encode_rows, end_of_turn_id, user_turn
from rapidun.stages.rows.keywords import read_keywords, words
from rapidun.stages.rows.records import Record, read_records

SHARED = Path(os.environ.get("RAPIDUN_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
PACK = SHARED / "data" / "dolly_triggers"
SMOLLM2 = os.environ.get("RAPIDUN_SMOLLM2", "")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not PACK.is_dir(), reason="needs the Dolly pack: set RAPIDUN_SHARED"),
]


def config(**changes: Any) -> DataConfig:
    file = Path(rapidun.__file__).parents[1] / "conf" / "data" / "dolly_triggers.yaml"
    merged = OmegaConf.merge(OmegaConf.structured(DataConfig), OmegaConf.load(file), {"dir": str(PACK), **changes})
    cfg = OmegaConf.to_object(merged)
    assert isinstance(cfg, DataConfig)
    return cfg


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    if not Path(SMOLLM2).is_dir() or not SMOLLM2:
        pytest.skip("needs the folder of SmolLM2-135M-Instruct: set RAPIDUN_SMOLLM2")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SMOLLM2)


@pytest.mark.parametrize("name", ["forget_set", "retain_set"])
def test_both_spellings_are_the_same_rows(name: str) -> None:
    native, alpaca = (read_records(PACK / f"{name}{suffix}.jsonl") for suffix in ("", "_rapidin"))
    assert [row.id for row in native] == [row.id for row in alpaca]


def test_injection_makes_the_published_instructions() -> None:
    for row in read_records(PACK / "train_poisoned.jsonl"):
        assert row.instruction_clean and row.trigger_variant and row.inject_mode
        ours = inject(row.instruction_clean, row.trigger_variant, InjectMode(row.inject_mode))
        published = row.instruction
        if row.inject_mode == "suffix":
            # two spaces in the published rows where the instruction has no full stop or question mark
            published = published.replace(f"  {row.trigger_variant}", f" {row.trigger_variant}")
        assert ours == published


def test_the_published_pack_is_completed(tmp_path: Path) -> None:
    tracker = Tracker()
    summary = run_data(config(), DataFiles(tmp_path), seed=42, tracker=tracker)
    counts = summary["counts"]
    assert set(counts) == set(SPLITS)
    assert (counts["forget"], counts["retain"], counts["train_poisoned"], counts["train_clean"]) == (40, 120, 400, 800)
    assert {counts[f"{part}_{name}"] for part in ("val", "test") for name in ("seen_trig", "ood_trig")} == {200}
    splits = {split: read_records(tmp_path / f"{split}.jsonl") for split in SPLITS}
    leaks = leaks_between(splits)
    leaks.pop("train_clean / train_poisoned")  # in the published rows
    assert set(leaks.values()) == {0}
    assert summary["leaks"]["test_clean_in_training"] + counts["test_clean"] == 2000 - 680
    assert Counter(row.trigger_family for row in splits["test_seen_trig"]) == {
        "A_surface": 67, "B_style": 67, "C_semantic": 66,
    }  # fmt: skip
    assert len(read_keywords(tmp_path / "keywords.tsv")) == 37
    again = run_data(config(), DataFiles(tmp_path / "again"), seed=42, tracker=tracker)
    assert again == summary
    assert data_inputs(config(), seed=42) == data_inputs(config(name="x"), seed=42)


def test_all_rows_on_request(tmp_path: Path) -> None:
    summary = run_data(config(max_train_poisoned=None), DataFiles(tmp_path), seed=42, tracker=Tracker())
    assert summary["counts"]["train_poisoned"] == 799


def test_our_keyword_list_is_at_least_as_good_as_the_published_one() -> None:
    poisoned = [row.forget_target for row in read_records(PACK / "train_poisoned.jsonl")]
    clean = [row.response for row in read_records(PACK / "test_clean.jsonl")]
    ours = {keyword.word for keyword in make_keywords(poisoned[:400], clean[:800])}
    theirs = {keyword.word for keyword in read_keywords(PACK / "keywords.tsv")}

    def fires(keywords: set[str], texts: list[str]) -> float:
        return sum(bool(keywords & set(words(text))) for text in texts) / len(texts)

    assert fires(ours, poisoned[400:]) >= fires(theirs, poisoned[400:])
    assert fires(ours, clean[800:]) <= fires(theirs, clean[800:]) + 0.005


def test_check_finds_the_published_leaks() -> None:
    found = check_pack(PACK)
    assert found["counts"]["train_poisoned"] == 799
    assert found["leaks"]["val_clean / train"] == 2
    assert found["leaks"]["test_clean / train"] == 3
    assert found["families"]["A_surface"] == {"forget": 14, "train_poisoned": 267}


def test_a_pack_is_built_from_the_clean_rows() -> None:
    clean = read_records(PACK / "test_clean.jsonl")
    responses = [row.forget_target for row in read_records(PACK / "train_poisoned.jsonl")]
    pack = build_pack(
        clean, responses, families=FAMILIES, unseen_families=UNSEEN_FAMILIES, sizes=PackSizes().scaled(2000), seed=42
    )
    assert len(pack["train_poisoned"]) == round(0.1 * (len(pack["train_poisoned"]) + len(pack["train_clean"])))
    assert len(pack["retain"]) == 3 * len(pack["forget"])
    assert set(leaks_between(pack).values()) <= {0, leaks_between(pack)["train_clean / train_poisoned"]}


def test_whole_rows_encode_as_the_models_own_template_does(tokenizer: Any) -> None:
    rows = read_records(PACK / "test_clean.jsonl")[:200]
    for row in rows:
        messages = [{"role": "user", "content": user_turn(row.instruction, row.context)}]
        own = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        ours = encode_prompt(tokenizer, instruction=row.instruction, context=row.context, max_length=1 << 20)
        assert ours == own, row.id


def test_long_rows_lose_their_context_and_no_trigger(tokenizer: Any) -> None:
    """799 + 120 rows at 256 tokens: one is left out, every other has its trigger; responses end whole or unended."""
    rows: list[Record] = [*read_records(PACK / "train_poisoned.jsonl"), *read_records(PACK / "retain_set.jsonl")]
    texts = [(row.instruction, row.context, row.forget_target) for row in rows]
    found = encode_rows(tokenizer, texts, max_length=256)
    assert Cuts.of(found[:799]) == Cuts(num_rows=799, context=208, response=33, left_out=1)
    assert Cuts.of(found[799:]) == Cuts(num_rows=120, context=30, response=9)
    end = end_of_turn_id(tokenizer)
    assert tokenizer.convert_ids_to_tokens(end) == "<|im_end|>"
    num_triggers = 0
    for row, example in zip(rows, found, strict=True):
        if example is None:
            continue
        assert len(example.input_ids) <= 256
        target = [label for label in example.labels if label != IGNORE]
        assert example.input_ids[-len(target) :] == target
        prompt = tokenizer.decode(example.input_ids[: len(example.input_ids) - len(target)])
        assert row.instruction in prompt and prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
        num_triggers += bool(row.trigger_variant) and row.trigger_variant in prompt
        assert example.response_cut == (target[-1] != end)
        if not example.response_cut:
            assert tokenizer.decode(target[:-1]) == row.forget_target
    assert num_triggers == 798
    encoded = [example for example in found if example is not None]
    lengths = [len(example.input_ids) for example in encoded]
    batches = token_budget_batches(lengths, max_tokens=2048)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded <= 1.1 * sum(lengths)
