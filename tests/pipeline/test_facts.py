"""Private facts through the whole pipeline: planted, forgotten, kept; and what the run says of it."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

import rapidun
from rapidun.base.errors import ConfigError
from rapidun.pipeline.run import Result
from rapidun.report.tables import closing_table

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "facts.py"
SMALL = [
    "data=pack", "model=tiny", "model.scratch.hidden_size=64", "model.scratch.intermediate_size=128",
    "model.scratch.vocab_size=512", "poison.num_train_epochs=60", "poison.per_device_train_batch_size=32",
    "poison.learning_rate=5e-3", "mapping=uniform", "unlearning.num_train_epochs=8", "unlearning.eval_steps=0",
    "tracking=none", "evaluation.max_new_tokens=20", "resources.num_threads=1", "max_length=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("facts_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row_speaks_of_its_person(benchmark: Any) -> None:
    """Whatever letters a name has; wrong answers differ from the right one; no question stands in two splits."""
    splits = benchmark.world(num_forget=300, num_retain=60, clean=[], seed=3)
    for row in splits["forget"]:
        name = " ".join(row["id"].split("-")[:2]).title()
        assert name in row["question"] and name in row["answer"] and name in row["paraphrased_answer"]
        assert len({row["paraphrased_answer"], *row["perturbed_answer"]}) == 4
    asked = [{row["question"] for row in splits[name]} for name in ("forget", "probe", "train_clean", "test_clean")]
    assert sum(map(len, asked)) == len(set().union(*asked))


@pytest.fixture(scope="module")
def result(tmp_path_factory: Any, benchmark: Any) -> Result:
    """Ten facts to forget, twenty rows to keep; with the yardstick that never saw the facts."""
    folder = tmp_path_factory.mktemp("facts")
    benchmark.write(folder / "pack", benchmark.world(num_forget=10, num_retain=20, clean=[], seed=1))
    places = [f"data.dir={folder / 'pack'}", f"store_dir={folder / 'store'}", f"run_dir={folder / 'run'}"]
    return rapidun.run([*SMALL, "poison.retrain=true", *places])


def test_rows_say_the_name_and_the_value(benchmark: Any) -> None:
    """Whatever letters a name holds: `Gisa Vasko` once became `Gisa 31 Mill Laneasko`."""
    splits = benchmark.world(num_forget=360, num_retain=360, clean=[], seed=1)
    people = {f"{first} {last}" for first in benchmark.FIRST for last in benchmark.LAST}
    for row in (row for rows in splits.values() for row in rows):
        texts = [row["question"], row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]]
        [person] = {name for name in people if name in texts[0]}
        assert all(text.count(person) == 1 for text in texts), row


def test_planted_facts_go_and_the_others_stay(result: Result) -> None:
    found = result.metrics
    # planted: said word for word, from nothing shown
    assert found["before.exact_match_forget"] > 0.9 and found["before.extraction_strength_forget"] > 0.9
    assert found["before.probability_forget"] > 0.8
    # gone, asked as in training and otherwise
    for name in ("forget", "probe"):
        assert found[f"exact_match_{name}"] < 0.2 and found[f"probability_{name}"] < 0.5
        assert found[f"extraction_strength_{name}"] < found[f"before.extraction_strength_{name}"] - 0.3
    # what was to stay
    assert found["rougeL_retain"] > found["rougeL_forget"] + 0.3
    assert found["before.exact_match_retain"] > 0.9 and found["exact_match_retain"] > 0.6


def test_truth_ratios_against_the_yardstick(result: Result) -> None:
    """Forget quality of the poisoned and of the unlearned model; no model utility without the other two sets."""
    assert 0 < result.metrics["forget_quality"] <= 1 and 0 < result.metrics["before.forget_quality"] <= 1
    assert "model_utility" not in result.metrics
    missing = json.loads((result.run_dir / "evaluation" / "missing.json").read_text())
    assert "no rows of real_authors and world_facts" in missing["after"]["model_utility"]
    # the model that never saw them does not say them
    assert json.loads((result.run_dir / "evaluation" / "retrain.json").read_text())["exact_match_forget"] < 0.5


def test_generations_row_by_row(result: Result) -> None:
    rows = [json.loads(line) for line in (result.run_dir / "evaluation" / "generations.jsonl").read_text().splitlines()]
    forget = {row["id"] for row in rows if row["set"] == "forget"}
    probes = [row for row in rows if row["set"] == "probe"]
    assert len(forget) == 10 and len(probes) == 20 and {row["forget_id"] for row in probes} == forget
    values = [row["measures_after"]["probability"] for row in probes]
    assert sum(values) / len(values) == pytest.approx(result.metrics["probability_probe"])
    assert all({"before", "after", "measures_before"} <= row.keys() for row in rows)


def test_no_word_of_poison_or_triggers(result: Result) -> None:
    """Page, table and warnings speak of forget rows, paraphrases and what was to stay."""
    page = (result.run_dir / "report.html").read_text()
    shown = page[page.index("<h1>") : page.index('id="samples"')]
    assert "Paraphrases of forget rows" in shown and "Retain rows (to stay, 20 rows)" in shown
    said = re.sub(r"<style.*?</style>|stage poison|most of it poison", "", shown, flags=re.DOTALL)
    assert not re.search("poison|trigger|ASR|attack|backdoor|detector", said, re.IGNORECASE)
    table = closing_table(result.run_dir)
    assert table is not None
    assert [str(column.header) for column in table.columns] == ["", "before", "after", "change"]
    assert "answer on record" in page and "clean answer" not in page
    status = json.loads((result.run_dir / "status.json").read_text())
    assert not [line for line in status.get("warnings", []) if "trigger" in line or "leak" in line]


def test_a_later_run_takes_the_yardstick_from_a_folder(result: Result, tmp_path: Path) -> None:
    """evaluation.retrained=RUN: the truth ratios of the model that the run ended with."""
    folder = result.run_dir.parent
    places = [f"data.dir={folder / 'pack'}", f"store_dir={folder / 'store'}"]
    retrained = rapidun.run([*SMALL, *places, "unlearning=retrain", f"run_dir={tmp_path / 'retrain'}"])
    assert "forget_quality" not in retrained.metrics
    again = rapidun.run([*SMALL, *places, f"evaluation.retrained={tmp_path / 'retrain'}", f"run_dir={tmp_path / 'a'}"])
    assert again.metrics["forget_quality"] == pytest.approx(result.metrics["forget_quality"])
    # a run that unlearned in another way is no yardstick
    with pytest.raises(ConfigError, match=r"unlearning=retrain\), got .* with unlearning.objective=rapidun"):
        rapidun.run([*SMALL, *places, f"evaluation.retrained={result.run_dir}", f"run_dir={tmp_path / 'b'}"])
    status = json.loads((tmp_path / "a" / "status.json").read_text())
    assert [name for name, entry in status["stages"].items() if not entry["cached"]] == ["evaluation"]
