"""benchmarks/weights.py: its measures against brute force, the planted rows, and a run at the smallest size."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rapidun.stages.rows.records import Record

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def weights():
    sys.path.insert(0, str(FOLDER))
    spec = importlib.util.spec_from_file_location("weights", FOLDER / "weights.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["weights"] = module
    spec.loader.exec_module(module)
    yield module
    for name in ("weights", "quality"):
        del sys.modules[name]
    sys.path.remove(str(FOLDER))


def test_auroc_with_ties_by_brute_force(weights):
    generator = np.random.default_rng(0)
    for _ in range(20):
        scores, right = generator.integers(0, 6, 40).astype(float), generator.random(40) < 0.6
        won = [
            (a > b) + (a == b) / 2 for a, good in zip(scores, right, strict=True) if good
            for b, other in zip(scores, right, strict=True) if not other
        ]  # fmt: skip
        assert weights.auroc(scores, right) == pytest.approx(np.mean(won))


def test_loss_matched_auroc_by_brute_force(weights):
    generator = np.random.default_rng(1)
    scores, loss = generator.integers(0, 9, 80).astype(float), generator.normal(size=80)
    right = generator.random(80) < 0.6
    ranks = loss.argsort().argsort()
    won = {True: [], False: []}
    for i in np.flatnonzero(right):
        for j in np.flatnonzero(~right):
            if abs(ranks[i] - ranks[j]) <= 8:
                won[bool(loss[i] > loss[j])].append((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
    assert min(map(len, won.values())) > 30
    expected = (np.mean(won[True]) + np.mean(won[False])) / 2
    assert weights.loss_matched_auroc(scores, right, loss) == pytest.approx(expected)


def test_a_score_that_only_orders_by_loss_is_one_half(weights):
    """Wrong rows have larger losses on average; loss finds them, and has .5 once losses are matched."""
    generator = np.random.default_rng(2)
    right = generator.random(400) < 0.75
    loss = generator.normal(size=400) + 1.0 * ~right
    assert weights.auroc(-loss, right) > 0.7
    for scores in (loss, -loss, np.exp(loss)):
        assert weights.loss_matched_auroc(scores, right, loss) == 0.5
    # one that sees more than loss keeps it
    assert weights.loss_matched_auroc(2.0 * right - loss, right, loss) > 0.9


def test_no_overlap_in_loss_is_no_number(weights):
    right = np.arange(100) < 60
    assert weights.loss_matched_auroc(np.zeros(100), right, np.arange(100.0)) is None


def test_planted_rows(weights):
    """A share of F and of R is of the other kind, none is in the pack's F or R, and the numbers of rows stay."""
    poisoned = [
        Record(id=f"p{i}", instruction=f"hey q{i}", response=f"x{i}", response_poisoned=f"x{i}", is_poisoned=True)
        for i in range(40)
    ]
    clean = [Record(id=f"c{i}", instruction=f"q{i}", response=f"y{i}") for i in range(60)]
    splits = {"forget": poisoned[:20], "retain": clean[:40], "train_poisoned": poisoned, "train_clean": clean}
    draw = weights.plant(splits, condition="D", seed=0)
    assert (len(draw.forget), len(draw.retain)) == (20, 40)
    assert (int((~draw.right("forget")).sum()), int((~draw.right("retain")).sum())) == (5, 10)
    assert not {row.id for row in draw.forget if row.id.startswith("c")} & {row.id for row in splits["retain"]}
    assert not {row.id for row in draw.retain if row.id.startswith("p")} & {row.id for row in splits["forget"]}
    assert weights.plant(splits, condition="D", seed=1).forget != draw.forget
    assert weights.plant(splits, condition="B25", seed=0).right("retain").all()


@pytest.mark.slow
def test_a_small_world(tmp_path):
    """Every score has a number for F and, but for GUARD, for R; low loss is the other end of high loss."""
    small = [
        "model.scratch.hidden_size=32", "model.scratch.intermediate_size=64", "data.builtin.num_forget=16",
        "data.builtin.num_retain=32", "data.builtin.num_train_clean=200", "data.builtin.num_train_poisoned=60",
        "poison.num_train_epochs=3", "unlearning.max_steps=4",
    ]  # fmt: skip
    command = [
        sys.executable,
        str(FOLDER / "weights.py"),
        "--store",
        str(tmp_path),
        "--seeds",
        "1",
        "--conditions",
        "D",
    ]
    command += ["--draws", "1", "--val", "10", *(f"--override={override}" for override in small)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    *table, last = ran.stdout.strip().split("\n")
    found = json.loads(last)
    assert (found["num_forget"], found["num_retain"]) == (16, 32)
    scores = found["results"]["D"][0]
    assert len(scores) == 20
    for name, groups in scores.items():
        assert set(groups) == {"forget"} | ({"retain"} - ({"retain"} if name.startswith("GUARD") else set()))
        assert all(0 <= group["auroc"] <= 1 for group in groups.values())
    ends = [scores[name]["retain"]["auroc"] for name in ("high loss", "low loss")]
    assert sum(ends) == pytest.approx(1)
    assert sum(line.startswith("| strength, mean |") for line in table) == 2
