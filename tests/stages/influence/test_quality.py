"""The quality benchmarks: their measures by hand and by brute force, and (slow) a run of each at the smallest size."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def quality():
    yield load("quality")
    del sys.modules["quality"]


def test_auroc_counts_pairs(quality):
    """Positives 3 and 1 against negatives 2, 1, 0: pairs won 3 + (0 + 1/2 + 1) = 4.5 of 6."""
    scores, positive = np.array([3.0, 1, 2, 1, 0]), np.array([1, 1, 0, 0, 0], bool)
    assert quality.auroc(scores, positive) == 4.5 / 6
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert quality.auroc(scores, positive) == pytest.approx(u / 6)


def test_average_precision_by_hand(quality):
    """Order + - + -: precision 1 at the first, 2/3 at the second. All tied: the base rate."""
    positive = np.array([1, 0, 1, 0], bool)
    assert quality.average_precision(np.array([4.0, 3, 2, 1]), positive) == pytest.approx((1 + 2 / 3) / 2)
    assert quality.average_precision(np.ones(4), positive) == 0.5


def test_recall_counts_ties_in_proportion(quality):
    """k = 2 of 5 2 2 1: the first, then half of the two that tie, one of which is positive."""
    scores, positive = np.array([5.0, 2, 2, 1]), np.array([1, 1, 0, 0], bool)
    assert quality.recall_at(1, scores, positive) == 0.5
    assert quality.recall_at(2, scores, positive) == 0.75
    assert quality.recall_at(100, scores, positive) == 1.0


def test_intervals_hold_the_mean_and_shrink(quality):
    values = np.random.default_rng(0).normal(3, 1, 400)
    low, high = quality.interval(values, draws=500, seed=0)
    assert low < values.mean() < high and high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)


def test_spearman_columns_is_scipys(quality):
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 5, (20, 3)).astype(float), generator.normal(size=(20, 3))
    y[:, 2] = 1
    found = load("lds").spearman_columns(x, y)
    assert found[:2] == pytest.approx([stats.spearmanr(x[:, i], y[:, i]).statistic for i in range(2)])
    assert found[2] == 0


@pytest.mark.slow
def test_lds_goes_on_where_it_was(tmp_path):
    """The second run takes every training from the file and prints the same scores."""
    command = [sys.executable, str(FOLDER / "lds.py"), "--small", "--subsets", "4", "--rows", "16", "--queries", "6"]
    command += [
        "--bootstrap",
        "20",
        "--out",
        str(tmp_path / "lds.json"),
        "--methods",
        "cosine",
        "ekfac",
        "bm25",
        "random",
    ]
    printed = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        printed.append([json.loads(line) for line in done.stdout.splitlines()])
    assert [line["mode"] for line in printed[0]] == ["training", "cosine", "ekfac", "bm25", "random"]
    assert printed[0][1:] == printed[1][1:]
    assert printed[1][0]["seconds"] < 0.1
    other = subprocess.run([*command[:-5], "--seed", "1"], capture_output=True, text=True)
    assert other.returncode == 2 and "of the same settings" in other.stderr


@pytest.mark.slow
def test_retrieval_on_the_builtin_pack():
    """One epoch, 8 rows: the shape of what is printed."""
    command = [sys.executable, str(FOLDER / "retrieval.py"), "--tiny", "--rows", "8", "--queries", "2", "--epochs", "1"]
    done = subprocess.run([*command, "--methods", "dot", "random"], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    scored = [line for line in lines if line["mode"] != "answers"]
    assert [(line["mode"], line["queries"]) for line in scored[:4]] == [
        ("dot", "seen"), ("dot", "ood"), ("dot", "unseen"), ("dot", "clean")
    ]  # fmt: skip
    assert all(line["num_poisoned"] == 2 and 0 <= line["auroc"] <= 1 for line in scored)
