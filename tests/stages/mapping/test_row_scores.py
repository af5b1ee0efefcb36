"""Strength, aggregates and combinations of several influences, each against numbers worked by hand or by loops."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rapidun.base.errors import DataError
from rapidun.base.tracker import Tracker
from rapidun.config.mapping import Aggregate, Combine, Map, MappingConfig, Null, ScoreFiles, ScoreKind, Weighting
from rapidun.stages.mapping.inputs import MappingFiles
from rapidun.stages.mapping.row_scores import GroupScores, combined, score_rows
from rapidun.stages.mapping.scores import read_scores
from rapidun.stages.mapping.stage import run_mapping

CLUSTERED = {"forget": [0, 3, 7], "retain": [1, 4, 6]}


def write_scores(folder: Path, blocks: dict[str, Any], *, num_forget: int, num_retain: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scores.safetensors"
    save_file({name: np.asarray(block, dtype=np.float32) for name, block in blocks.items()}, path)
    ids = {"forget": [f"f{i}" for i in range(num_forget)], "retain": [f"r{i}" for i in range(num_retain)]}
    (folder / "ids.json").write_text(json.dumps(ids))
    return path


def clustered_blocks(*, low: dict[str, list[int]], seed: int = 0, nf: int = 12, nr: int = 20) -> dict[str, np.ndarray]:
    """Signs at random, strength .1 between rows of the same kind and .01 to others: `low` rows belong elsewhere."""
    generator = np.random.default_rng(seed)
    forget_like = np.array([i not in low["forget"] for i in range(nf)] + [i in low["retain"] for i in range(nr)])
    size = np.where(forget_like[:, None] == forget_like[None, :], 0.1, 0.01)
    gram = size * generator.uniform(0.9, 1.1, size.shape) * generator.choice([-1, 1], size.shape)
    f, r = slice(0, nf), slice(nf, None)
    return {"ff": gram[f, f], "fr": gram[f, r], "rf": gram[r, f], "rr": gram[r, r]}


def config(**changes: Any) -> MappingConfig:
    scores = ScoreFiles(kind=ScoreKind.strength, **changes.pop("scores", {}))
    settings = {"method": Weighting.recommended, "aggregate": Aggregate.mean, "map": Map.split, **changes}
    return MappingConfig(scores=scores, **settings)


def run(cfg: MappingConfig, out: Path, *, seed: int = 42, **files: Path) -> tuple[dict[str, list[float]], dict]:
    summary = run_mapping(cfg, MappingFiles(out=out, **files), seed=seed, tracker=Tracker())
    weights = {
        group: [json.loads(line)["weight"] for line in (out / f"{group}_weights.jsonl").read_text().splitlines()]
        for group in ("forget", "retain")
    }
    return weights, summary


def write_pack(folder: Path, *, wrong: dict[str, list[int]], nf: int = 12, nr: int = 20) -> dict[str, Path]:
    paths = {}
    for group, count in (("forget", nf), ("retain", nr)):
        rows = [
            {
                "id": f"{group[0]}{row}",
                "instruction": f"question {group} {row}",
                "response": f"answer {row}",
                "is_poisoned": (group == "forget") != (row in wrong[group]),
            }
            for row in range(count)
        ]
        paths[group] = folder / f"{group}.jsonl"
        paths[group].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def test_strength_and_aggregates_against_loops(tmp_path: Path, make_blocks: Callable) -> None:
    blocks = make_blocks(5, 7)
    path = write_scores(tmp_path, blocks, num_forget=5, num_retain=7)
    single = {name: np.asarray(block, dtype=np.float32).astype(float) for name, block in blocks.items()}

    def by_hand(name: str, row: int, reduce: Callable[[list[float]], float], own: bool) -> float:
        return reduce([abs(v) for query, v in enumerate(single[name][row]) if not (own and query == row)])

    for aggregate, reduce in (
        (Aggregate.mean, statistics.fmean),
        (Aggregate.median, statistics.median),
        (Aggregate.top, lambda values: statistics.fmean(sorted(values)[-3:])),
    ):
        found = score_rows(config(aggregate=aggregate, aggregate_top=3), read_scores(path)).groups
        for row in range(5):
            expected = by_hand("ff", row, reduce, True) - by_hand("fr", row, reduce, False)
            assert found["forget"].scores[row] == pytest.approx(expected, abs=1e-12)
        for row in range(7):
            expected = by_hand("rr", row, reduce, True) - by_hand("rf", row, reduce, False)
            assert found["retain"].scores[row] == pytest.approx(expected, abs=1e-12)


def test_recommended_drops_wrong_rows_and_keeps_the_mean(tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "i", clustered_blocks(low=CLUSTERED), num_forget=12, num_retain=20)
    pack = write_pack(tmp_path, wrong=CLUSTERED)
    weights, summary = run(config(), tmp_path / "out", scores=scores, ids=tmp_path / "i" / "ids.json", **pack)
    for group, n in (("forget", 12), ("retain", 20)):
        low = CLUSTERED[group]
        assert [row for row, weight in enumerate(weights[group]) if weight == 0] == low
        assert sorted(set(weights[group])) == [0.0, n / (n - len(low))]
        facts = summary[group]
        assert facts["num_dropped"] == facts["num_wrong"] == facts["num_wrong_dropped"] == len(low)
        assert facts["auroc_scores"] == facts["auroc_weights"] == 1.0 and facts["num_right_dropped"] == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "row_scores.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines if line["is_wrong"]] == ["f0", "f3", "f7", "r1", "r4", "r6"]
    # the paper's signed median sees nothing there, and says that it is noise
    _, signed = run(MappingConfig(), tmp_path / "signed", scores=scores, ids=tmp_path / "i" / "ids.json", **pack)
    assert abs(signed["forget"]["auroc_scores"] - 0.5) < 0.35
    assert sum("scatter about zero" in line for line in signed["warnings"]) == 2


def test_recommended_abstains_on_one_cluster(tmp_path: Path) -> None:
    blocks = clustered_blocks(low={"forget": [], "retain": []})
    scores = write_scores(tmp_path / "i", blocks, num_forget=12, num_retain=20)
    weights, summary = run(config(), tmp_path / "out", scores=scores)
    assert set(weights["forget"]) == set(weights["retain"]) == {1.0}
    assert "the evidence for two clusters" in summary["forget"]["abstained"] and summary["retain"]["num_dropped"] == 0


@pytest.mark.parametrize("null", [Null.shuffled, Null.random, Null.uniform])
def test_nulls_of_any_weighting(tmp_path: Path, null: Null) -> None:
    scores = write_scores(tmp_path / "i", clustered_blocks(low=CLUSTERED), num_forget=12, num_retain=20)
    pack = write_pack(tmp_path, wrong=CLUSTERED)
    given = tmp_path / "given.jsonl"
    given.write_text("".join(json.dumps({"index": i, "weight": float(i)}) + "\n" for i in range(20)))
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"index": i, "weight": 0.5 * (i % 3)}) + "\n" for i in range(12)))
    from_file = MappingConfig(method=Weighting.file)
    from_file.forget.path, from_file.retain.path = str(few), str(given)
    release = MappingConfig(method=Weighting.rapidun_release, top_k=4, drop_diagonal=False, bounded=False)
    for place, base in enumerate((config(), from_file, release, MappingConfig(method=Weighting.oracle))):
        before, _ = run(base, tmp_path / "a", scores=scores, **pack)
        base.null = null
        after, summary = run(base, tmp_path / "b", scores=scores, **pack)
        again, _ = run(base, tmp_path / "b", scores=scores, **pack)
        other, _ = run(base, tmp_path / "c", scores=scores, seed=7, **pack)
        assert again == after and (other != after or null is Null.uniform), place
        for group in ("forget", "retain"):
            mean = statistics.fmean(before[group])
            assert statistics.fmean(after[group]) == pytest.approx(mean, rel=1e-12)
            assert after[group].count(0.0) == (before[group].count(0.0) if null is not Null.uniform else 0)
            if null is Null.shuffled:
                assert sorted(after[group]) == sorted(before[group]) and after[group] != before[group]
            if null is Null.uniform:
                assert after[group] == pytest.approx([mean] * len(after[group]))
        assert summary["null"] == null.name and summary["of"]["forget"]["num_rows"] == 12


def test_shuffled_is_the_null_of_rapidun(tmp_path: Path, make_blocks: Callable) -> None:
    scores = write_scores(tmp_path / "i", make_blocks(6, 9), num_forget=6, num_retain=9)
    for name in ("shuffled", "random"):
        named, _ = run(MappingConfig(method=Weighting[name]), tmp_path / "a", scores=scores)
        null, _ = run(MappingConfig(null=Null[name]), tmp_path / "b", scores=scores)
        assert named == null


def test_combined_scores_by_hand() -> None:
    one = GroupScores(np.array([1.0, 2.0, 3.0]), 2.0)
    two = GroupScores(np.array([300.0, 100.0, 200.0]), 200.0)
    same = GroupScores(np.array([5.0, 5.0, 5.0]), 5.0)
    assert combined([one]) is one
    spread = statistics.pstdev([1, 2, 3])
    assert combined([one, two]).scores == pytest.approx([0.0, -0.5 / spread, 0.5 / spread])
    assert combined([one, same]).scores == pytest.approx([-0.5 / spread, 0.0, 0.5 / spread])


def test_agreement_of_two_influences(tmp_path: Path) -> None:
    first = write_scores(tmp_path / "a", clustered_blocks(low=CLUSTERED), num_forget=12, num_retain=20)
    other = {"forget": [3, 5, 7], "retain": [4, 6, 9]}
    second = write_scores(tmp_path / "b", clustered_blocks(low=other, seed=1), num_forget=12, num_retain=20)
    both = config(scores={"also": [str(second)], "combine": Combine.agree})
    weights, _ = run(both, tmp_path / "out", scores=first, ids=tmp_path / "a" / "ids.json")
    assert [row for row, weight in enumerate(weights["forget"]) if weight == 0] == [3, 7]
    assert [row for row, weight in enumerate(weights["retain"]) if weight == 0] == [4, 6]


def test_one_influence_is_not_two_opinions(tmp_path: Path) -> None:
    first = write_scores(tmp_path / "a", clustered_blocks(low=CLUSTERED), num_forget=12, num_retain=20)
    second = write_scores(tmp_path / "b", clustered_blocks(low=CLUSTERED), num_forget=12, num_retain=20)
    with pytest.raises(DataError, match=r"also\[0\]: need influence that differs from the others"):
        run(config(scores={"also": [str(second)]}), tmp_path / "out", scores=first, ids=tmp_path / "a" / "ids.json")


def test_a_null_of_equal_weights_is_said_to_be_none(tmp_path: Path) -> None:
    blocks = clustered_blocks(low={"forget": [], "retain": []})
    scores = write_scores(tmp_path / "i", blocks, num_forget=12, num_retain=20)
    weights, summary = run(config(null=Null.shuffled), tmp_path / "out", scores=scores)
    assert set(weights["forget"]) == {1.0}
    assert sum("equal before null=shuffled" in line for line in summary["warnings"]) == 2
    assert all("before they were exchanged for null=shuffled" in line for line in summary["notes"])


def test_the_threshold_divides_dropped_from_kept(tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "i", clustered_blocks(low=CLUSTERED), num_forget=12, num_retain=20)
    _, summary = run(config(), tmp_path / "out", scores=scores)
    lines = [json.loads(line) for line in (tmp_path / "out" / "row_scores.jsonl").read_text().splitlines()]
    for group in ("forget", "retain"):
        for line in lines:
            if line["group"] == group:
                assert (line["weight"] == 0) == (line["score"] < summary[group]["split_threshold"])


def test_other_rows_are_not_combined(tmp_path: Path) -> None:
    first = write_scores(tmp_path / "a", clustered_blocks(low=CLUSTERED), num_forget=12, num_retain=20)
    files = {"scores": first, "ids": tmp_path / "a" / "ids.json"}
    fewer = write_scores(tmp_path / "b", clustered_blocks(low=CLUSTERED, nr=19), num_forget=12, num_retain=19)
    with pytest.raises(DataError, match=r"also\[0\]: need 12 forget and 20 retain rows .* got 12 and 19"):
        run(config(scores={"also": [str(fewer)]}), tmp_path / "out", **files)
    second = write_scores(tmp_path / "c", clustered_blocks(low=CLUSTERED), num_forget=12, num_retain=20)
    ids = json.loads((tmp_path / "c" / "ids.json").read_text())
    ids["retain"].reverse()
    (tmp_path / "c" / "ids.json").write_text(json.dumps(ids))
    with pytest.raises(DataError, match="the retain rows of the first influence in the same order"):
        run(config(scores={"also": [str(second)]}), tmp_path / "out", **files)
    (tmp_path / "c" / "ids.json").unlink()
    with pytest.raises(DataError, match="to know that its rows are the same ones"):
        run(config(scores={"also": [str(second)]}), tmp_path / "out", **files)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e3])
def test_the_floor_follows_the_unit_of_the_scores(tmp_path: Path, make_blocks: Callable, factor: float) -> None:
    """K-FAC cosines are a thousand times smaller than plain ones; their weights are not flatter for it."""
    blocks = make_blocks(6, 9)
    one = write_scores(tmp_path / "a", blocks, num_forget=6, num_retain=9)
    small = {name: factor * block for name, block in blocks.items()}
    two = write_scores(tmp_path / "b", small, num_forget=6, num_retain=9)
    weights, _ = run(MappingConfig(), tmp_path / "x", scores=one)
    scaled, summary = run(MappingConfig(), tmp_path / "y", scores=two)
    for group in ("forget", "retain"):
        assert scaled[group] == pytest.approx(weights[group], rel=1e-4)
        assert not summary[group]["mad_floor_hit"]
    # as released, in the unit of the scores
    flat, _ = run(MappingConfig(mad_floor_relative=False, mad_floor=1e3), tmp_path / "z", scores=one)
    assert np.ptp(flat["forget"]) < 0.02


def test_rounding_is_no_spread(tmp_path: Path) -> None:
    """Scores that differ in the last digits only give weights of 1, whatever their size."""
    generator = np.random.default_rng(0)
    shapes = {"ff": (6, 6), "fr": (6, 9), "rf": (9, 6), "rr": (9, 9)}
    for size in (1e-5, 1.0):
        blocks = {name: size * (1 + 1e-7 * generator.standard_normal(shape)) for name, shape in shapes.items()}
        scores = write_scores(tmp_path / "a", blocks, num_forget=6, num_retain=9)
        weights, _ = run(MappingConfig(), tmp_path / "x", scores=scores)
        assert weights["forget"] == pytest.approx([1.0] * 6, abs=2e-3)


def test_oracle_needs_a_pack_that_knows(tmp_path: Path) -> None:
    pack = write_pack(tmp_path, wrong=CLUSTERED)
    weights, _ = run(MappingConfig(method=Weighting.oracle), tmp_path / "out", **pack)
    assert [row for row, weight in enumerate(weights["retain"]) if weight == 0] == CLUSTERED["retain"]
    rows = [json.loads(line) for line in pack["retain"].read_text().splitlines()]
    for row in rows:
        del row["is_poisoned"]
    pack["retain"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="need rows that say is_poisoned with method=oracle, got 20 retain rows"):
        run(MappingConfig(method=Weighting.oracle), tmp_path / "out", **pack)
