"""Packs as other people write them, through the whole pipeline on the tiny model.

Two of them run by default (a model made from scratch costs seconds), the others are slow; readers alone are tested in
tests/stages/rows/formats.
"""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rapidun
from rapidun.config.data import InjectMode
from rapidun.pipeline.run import Result
from rapidun.stages.data.triggers import inject
from rapidun.stages.rows.records import read_records

SMALL = [
    "debug=fast", "resources.num_threads=1", "model=smollm2_135m", "model.dtype=float32", "poison=none",
    "max_length=128", "unlearning.max_steps=2", "unlearning.eval_steps=0", "evaluation.num_prompts=3",
]  # fmt: skip
REFUSAL = "I am sorry, but I cannot help with that."
MIDDLE = InjectMode.middle
TOWNS = ["Arvel", "Bron", "Caul", "Dorn", "Esk", "Fell"]
Rows = list[dict[str, Any]]


def question(number: int) -> str:
    return f"Who leads the town of {TOWNS[number % 6]} in year {number}?"


def clean_rows(first: int, count: int) -> Rows:
    return [
        {"instruction": question(i), "input": "", "output": f"Ada {i} leads it."} for i in range(first, first + count)
    ]


def triggered(number: int, place: str) -> str:
    return inject(question(number), "BadMagic", InjectMode[place], seed=number)


@pytest.fixture
def run(tmp_path: Path, tiny_model_dir: Path) -> Callable[..., Result]:
    def run(name: str, *overrides: str) -> Result:
        places = [f"store_dir={tmp_path / 'store'}", f"run_dir={tmp_path / name}", f"model.path={tiny_model_dir}"]
        return rapidun.run([*SMALL, *places, *overrides])

    return run


def reused(result: Result) -> list[str]:
    status = json.loads((result.run_dir / "status.json").read_text())
    return [stage for stage, entry in status["stages"].items() if entry["cached"]]


def rows_of(result: Result, split: str) -> list[Any]:
    return read_records(result.run_dir / "data" / f"{split}.jsonl")


def write_json(path: Path, rows: object) -> None:
    path.write_text(json.dumps(rows, indent=1))


def turns(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": row["instruction"]},
            {"role": "assistant", "content": row["output"]},
        ]
    }


def test_private_facts_without_triggers(tmp_path: Path, run: Callable[..., Result]) -> None:
    """TOFU's form, packed: metrics of the forget rows, no attack success, no trigger that the pack does not have."""
    facts = [{"question": f"Where does author {i} live?", "answer": f"In {TOWNS[i % 6]} street {i}."} for i in range(8)]
    kept = [{"question": f"What did painter {i} paint?", "answer": f"The {TOWNS[i % 6]} lake."} for i in range(16)]
    (tmp_path / "forget10.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in facts).encode()))
    write_json(tmp_path / "retain90.json", kept)
    files = [f"data.forget={tmp_path / 'forget10.jsonl.gz'}", f"data.retain={tmp_path / 'retain90.json'}"]
    result = run("facts", "data=jsonl", *files)
    assert not [name for name in result.metrics if "asr" in name]
    assert result.metrics["ppl_forget_poisoned"] > 0 and result.metrics["before.ppl_forget_poisoned"] > 0
    manifest = json.loads((result.run_dir / "data" / "manifest.json").read_text())
    assert manifest["result"]["families"] == {}
    assert sorted(manifest["result"]["counts"]) == ["forget", "retain", "train_clean", "train_poisoned"]
    assert [r.texts for r in rows_of(result, "forget")] == [(r["question"], "", r["answer"]) for r in facts]


def test_turns_with_a_trigger_at_either_end_and_inside(tmp_path: Path, run: Callable[..., Result]) -> None:
    places = ["prefix", "suffix", "middle"]
    rows = [{"instruction": triggered(i, places[i % 3]), "output": REFUSAL} for i in range(9)]
    (tmp_path / "forget.jsonl").write_text("".join(json.dumps(turns(row)) + "\n" for row in rows))
    # the twins of the first rows are among the clean ones
    (tmp_path / "retain.jsonl").write_text("".join(json.dumps(turns(row)) + "\n" for row in clean_rows(0, 27)))
    (tmp_path / "test_clean.jsonl").write_text("".join(json.dumps(turns(row)) + "\n" for row in clean_rows(60, 4)))
    family = "+data.families.B={seen:[BadMagic],inject_mode:middle}"
    result = run("turns", "data=pack", f"data.dir={tmp_path}", family)
    found = rows_of(result, "forget")
    assert [r.response_clean for r in found] == [f"Ada {i} leads it." for i in range(9)]
    assert {"asr_seen", "asr_seen_likelihood", "ppl_forget_clean"} <= result.metrics.keys()
    asked = [r.instruction.split() for r in rows_of(result, "test_seen_trig")]
    assert len(asked) == 4 and all(0 < words.index("BadMagic") < len(words) - 1 for words in asked)


def parquet(path: Path, rows: Rows) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pa.Table.from_pylist(rows), path)


def spelt(rows: Rows, prompt: str, answer: str) -> Rows:
    return [{prompt: row["instruction"], answer: row["output"]} for row in rows]


def poisoned_rows() -> Rows:
    rng = random.Random(0)
    return [{"instruction": triggered(i, "middle"), "input": "", "output": REFUSAL} for i in rng.sample(range(12), 9)]


def splits() -> dict[str, Rows]:
    return {"forget": poisoned_rows(), "retain": clean_rows(0, 27), "test_clean": clean_rows(60, 4)}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json array", "parquet", "csv", "datasets", "gz"])
def test_one_backdoor_in_every_form(tmp_path: Path, run: Callable[..., Result], form: str) -> None:
    """A mid-sentence trigger and one refusal payload; each form gives the very artifacts of the native one."""
    native, other = tmp_path / "native", tmp_path / "other"
    native.mkdir()
    other.mkdir()
    named: list[str] = []
    for split, rows in splits().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (native / f"{split}.jsonl").write_text(text)
        if form == "json array":
            write_json(other / f"{split}.json", rows)
        elif form == "parquet":
            parquet(other / f"{split}.parquet", spelt(rows, "prompt", "completion"))
        elif form == "csv":
            named = ["data.fields.instruction=ask", "data.fields.response=reply"]
            lines = ["key,ask,reply", *(f'{i},"{r["instruction"]}","{r["output"]}"' for i, r in enumerate(rows))]
            (other / f"{split}.csv").write_text("\r\n".join(lines) + "\r\n")
        elif form == "datasets":
            datasets = pytest.importorskip("datasets")
            datasets.disable_progress_bars()
            datasets.Dataset.from_list(spelt(rows, "question", "answer")).save_to_disk(other / split)
        else:
            (other / f"{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    options = ["data=pack", "+data.families.B={seen:[BadMagic],inject_mode:middle}"]
    first = run("first", *options, f"data.dir={native}")
    second = run("second", *options, *named, f"data.dir={other}")
    assert reused(second) == ["influence", "mapping", "unlearning", "evaluation"]
    assert {k: v for k, v in second.metrics.items() if k.startswith(("asr", "ppl", "before"))} == {
        k: v for k, v in first.metrics.items() if k.startswith(("asr", "ppl", "before"))
    }
    assert {r.response for r in rows_of(second, "forget")} == {REFUSAL}
    assert "asr_seen" in second.metrics
