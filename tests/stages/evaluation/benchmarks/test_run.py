"""lm-eval on a loaded model beside the same numbers by hand; nothing of a task runs, nothing of the process changes."""

import json
import math
import os
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rapidun.base.errors import ConfigError, DataError
from rapidun.base.files import read_json
from rapidun.base.store import Store
from rapidun.base.tracker import Tracker
from rapidun.config.compose import compose_config
from rapidun.config.lm_eval import LmEvalConfig
from rapidun.models.load import ModelLoader
from rapidun.report.metrics import CAPABILITY, Kind, better_of, find_metric
from rapidun.report.tables import before_after_rows
from rapidun.stages.evaluation.benchmarks.recipe import benchmarks
from rapidun.stages.evaluation.benchmarks.run import flat, run_benchmarks
from rapidun.stages.evaluation.benchmarks.tasks import Task, read_tasks
from rapidun.stages.recipes import Recipes

needs_lm_eval = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-eval is not installed (pip install 'rapidun[lm-eval]')"
)
CHOICES = ["red", "blue", "a house"]
ROWS = [{"question": f"what of {n}?", "label": n % 3} for n in range(7)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    task = {
        "task": "toy", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "toy.jsonl"}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": CHOICES, "doc_to_target": "label",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        ],
    }  # fmt: skip
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(task))
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def run(folder: Path, model: Path, tmp_path: Path, **more: Any) -> dict[str, Any]:
    cfg = LmEvalConfig(tasks=["toy"], include_path=str(folder), **more)
    run_benchmarks(
        cfg, read_tasks(folder, ["toy"]), loader=ModelLoader(device="cpu"), model=model, adapter=None, seed=0,
        work=tmp_path / "work", out=tmp_path / "out", name="lm_eval_unlearned", tracker=Tracker(),
    )  # fmt: skip
    found: dict[str, Any] = read_json(tmp_path / "out" / "lm_eval.json")
    return found


def by_hand(folder: Path) -> tuple[float, float]:
    """Accuracy of the likeliest choice behind the question, by its sum of log p and by that over its letters."""
    model, tokenizer = ModelLoader(device="cpu").load(folder)
    right = [0, 0]
    for row in ROWS:
        scores = []
        for choice in CHOICES:
            prompt = tokenizer(row["question"], add_special_tokens=False).input_ids
            ids = tokenizer(f"{row['question']} {choice}", add_special_tokens=False).input_ids
            with torch.no_grad():
                log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(float(log_p[t - 1, ids[t]]) for t in range(len(prompt), len(ids))))
        normed = [score / len(choice) for score, choice in zip(scores, CHOICES, strict=True)]
        for place, values in enumerate((scores, normed)):
            right[place] += values.index(max(values)) == row["label"]
    return right[0] / len(ROWS), right[1] / len(ROWS)


@needs_lm_eval
def test_accuracy_by_hand_and_nothing_left_behind(folder: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    random.seed(5)
    torch.manual_seed(5)
    expected = random.getstate(), torch.get_rng_state()
    places = dict(os.environ)
    found = run(folder, tiny_model_dir, tmp_path)
    assert (random.getstate(), dict(os.environ)) == (expected[0], places)
    assert torch.equal(torch.get_rng_state(), expected[1])
    acc, acc_norm = by_hand(tiny_model_dir)
    assert found["metrics"] == {"lm_eval.toy.acc": pytest.approx(acc), "lm_eval.toy.acc_norm": pytest.approx(acc_norm)}
    assert found["tasks"] == {"toy": 7}
    assert run(folder, tiny_model_dir, tmp_path, limit=3)["tasks"] == {"toy": 3}


@needs_lm_eval
def test_a_template_cannot_reach_what_is_not_its_own(folder: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """What slips through the reading of a template is stopped where it is rendered."""
    [task] = read_tasks(folder, ["toy"])
    sly = {**task.settings, "doc_to_text": "{{ ''['_'~'_class_'~'_'].mro() }}"}
    with pytest.raises(DataError, match="need tasks that lm-eval can run, got"):
        run_benchmarks(
            LmEvalConfig(tasks=["toy"], include_path=str(folder)), [Task("toy", task.file, sly, task.rows)],
            loader=ModelLoader(device="cpu"), model=tiny_model_dir, adapter=None, seed=0, work=tmp_path / "work",
            out=tmp_path / "out", name="x", tracker=Tracker(),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_names_are_flat() -> None:
    given = {
        "toy": {
            "alias": "toy", "acc,none": 0.5, "acc_stderr,none": "N/A", "exact_match,strict": 1,
            "perplexity,none": math.inf, "name": "toy",
        }
    }  # fmt: skip
    found, missing = flat(given)
    assert found == {"lm_eval.toy.acc": 0.5, "lm_eval.toy.exact_match.strict": 1.0}
    assert missing == ["lm_eval.toy.perplexity"]


def test_they_stand_in_the_same_tables() -> None:
    rows = before_after_rows({"lm_eval.toy.acc": 0.5}, {"lm_eval.toy.acc": 0.25, "ppl_clean": 3.0})
    row = rows[-1]
    assert (row.metric.group, row.metric.label, row.verdict) == (CAPABILITY, "toy, acc", "worse")
    assert better_of("before.lm_eval.toy.acc") == 1 and better_of("lm_eval.toy.word_perplexity") == -1
    metric = find_metric("retrain.lm_eval.toy.byte_perplexity")
    assert metric is not None and metric.kind is Kind.perplexity


def test_by_role_from_links(tmp_path: Path) -> None:
    (tmp_path / "lm_eval.json").write_text('{"metrics": {"lm_eval.toy.acc": 0.5}}')
    assert benchmarks({"evaluation/.lm_eval.poisoned.toy": tmp_path, "evaluation/.after": tmp_path}) == {
        "poisoned": {"lm_eval.toy.acc": 0.5}
    }


@needs_lm_eval
def test_recipes_follow_the_files(folder: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    overrides = [
        "debug=fast", f"store_dir={store.root}", "evaluation.lm_eval.tasks=[toy]",
        f"evaluation.lm_eval.include_path={folder}",
    ]  # fmt: skip

    def made(*more: str) -> dict[str, str]:
        cfg = compose_config([*overrides, *more])
        recipes = Recipes(cfg, store, find_data=lambda r: store.make(r.key, r.build)[0], tracker=Tracker())
        assert recipes.faults() == []
        return {r.link: r.fingerprint for r in recipes.of_stage("evaluation")}

    first = made()
    assert {name for name in first if "lm_eval" in name} == {
        "evaluation/.lm_eval.unlearned.toy", "evaluation/.lm_eval.poisoned.toy"
    }  # fmt: skip
    assert made("evaluation.lm_eval.batch_size=2") == first
    assert made("evaluation.lm_eval.limit=2")["evaluation/.after"] == first["evaluation/.after"]
    (folder / "toy.jsonl").write_text('{"question": "other?", "label": 0}\n')
    changed = made()
    assert {name for name in first if changed[name] != first[name]} == {name for name in first if "lm_eval" in name}


def test_faults_come_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    (folder / "toy.yaml").write_text("task: toy\nprocess_docs: !function utils.f\n")
    cfg = compose_config(
        ["debug=fast", "evaluation.lm_eval.tasks=[toy]", f"evaluation.lm_eval.include_path={folder}"]
    )  # fmt: skip
    store = Store(tmp_path / "store")
    faults = Recipes(cfg, store, find_data=lambda r: store.make(r.key, r.build)[0], tracker=Tracker()).faults()
    assert any("!function" in fault for fault in faults)
    with pytest.raises(ConfigError, match=r"lm_eval\.include_path"):
        compose_config(["evaluation.lm_eval.tasks=[toy]"])
