import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rapidun.base.errors import ConfigError, DataError
from rapidun.base.tracker import Tracker
from rapidun.config.mapping import Aggregate, MappingConfig, ScoreFiles, ValueMode, Weighting
from rapidun.stages.mapping.inputs import MappingFiles
from rapidun.stages.mapping.stage import run_mapping
from rapidun.stages.mapping.weightings import WEIGHTINGS

ROOT = Path(__file__).parents[3]


def release_config(paths: dict[str, Path], **changes: Any) -> MappingConfig:
    scores = ScoreFiles(**{name: str(path) for name, path in paths.items()})
    settings: dict[str, Any] = {
        "top_k": 40,
        "drop_diagonal": False,
        "bounded": False,
        "mad_floor_relative": False,
        **changes,
    }
    return MappingConfig(method=Weighting.rapidun_release, scores=scores, **settings)


def run(config: MappingConfig, out: Path, *, seed: int = 42, **files: Path) -> tuple[list[float], list[float], dict]:
    """The weights of F and of R, and the diagnostics, as they are on disk."""
    run_mapping(config, MappingFiles(out=out, **files), seed=seed, tracker=Tracker())
    lines = {
        group: [json.loads(line) for line in (out / f"{group}_weights.jsonl").read_text().splitlines()]
        for group in ("forget", "retain")
    }
    for rows in lines.values():
        assert [row["index"] for row in rows] == list(range(len(rows)))
    diagnostics = json.loads((out / "diagnostics.json").read_text())
    return (
        [row["weight"] for row in lines["forget"]],
        [row["weight"] for row in lines["retain"]],
        diagnostics,
    )


def ids_of(out: Path, group: str) -> list[str | None]:
    return [json.loads(line)["id"] for line in (out / f"{group}_weights.jsonl").read_text().splitlines()]


def oracle(
    paths: dict[str, Path], *, top_k: int = 40, tau_f: float = 0.7, tau_r: float = 1.2, harmful: bool = False
) -> tuple[list[float], list[float]]:
    """The published run in plain Python, straight from the files: no numpy, no function of the package."""
    files = {name: json.loads(path.read_text()) for name, path in paths.items()}
    entries = {name: [file[str(q)] for q in range(sum(key.isdigit() for key in file))] for name, file in files.items()}
    num_forget, num_retain = len(entries["ff"]), len(entries["rr"])

    def aggregate(name: str, num_train: int, kind: str = "helpful") -> list[float]:
        by_row: list[list[float]] = [[] for _ in range(num_train)]
        for entry in entries[name]:
            pairs = list(zip(entry[kind], entry[f"{kind}_infl"], strict=True))
            pairs.sort(key=lambda pair: pair[1], reverse=True)  # stable: ties keep the file's order
            kept = dict(pairs[:top_k])
            for row in range(num_train):
                by_row[row].append(kept.get(row, 0.0))
        return [statistics.median(row) for row in by_row]

    def weigh(scores: list[float], tau: float) -> list[float]:
        median = statistics.median(scores)
        mad = statistics.median([abs(score - median) for score in scores])
        z = [(score - median) / max(1.4826 * mad, 1e-3) for score in scores]
        u = [math.exp(min(max(value / tau, math.log(0.2)), math.log(3.0))) for value in z]
        return [value / (sum(u) / len(u)) for value in u]

    forget = [a - b for a, b in zip(aggregate("ff", num_forget), aggregate("fr", num_forget), strict=True)]
    retain = [a - b for a, b in zip(aggregate("rr", num_retain), aggregate("rf", num_retain), strict=True)]
    if harmful:
        for own, other, scores, n in (("ff", "fr", forget, num_forget), ("rr", "rf", retain, num_retain)):
            low, cross = aggregate(own, n, "harmful"), aggregate(other, n, "harmful")
            scores[:] = [s - (a + b) for s, a, b in zip(scores, low, cross, strict=True)]
    return weigh(forget, tau_f), weigh(retain, tau_r)


def assert_equal(found: tuple[list[float], list[float], dict], expected: tuple[list[float], list[float]]) -> None:
    for ours, theirs in zip(found[:2], expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_release_recipe_reproduces_the_published_sizes(
    tmp_path: Path, make_blocks: Callable, write_release: Callable, seed: int
) -> None:
    paths = write_release(make_blocks(40, 120, seed=seed))
    found = run(release_config(paths), tmp_path / "out")
    assert_equal(found, oracle(paths))
    assert np.ptp(found[0]) > 0.5  # the test can fail: weights differ from 1
    # top 40 of 120 leaves two thirds of the block at 0
    assert found[2]["zero_share_after_top_k"]["rr"] == pytest.approx(2 / 3)
    assert any("after top k 67 %" in line and "retain" in line for line in found[2]["warnings"])


@pytest.mark.parametrize(
    ("top_k", "decimals"), [(40, 0), (3, 0), (1, 0), (7, None), (500, 1)], ids=["ties", "3", "1", "no ties", "all"]
)
def test_release_recipe_with_ties(
    tmp_path: Path, make_blocks: Callable, write_release: Callable, top_k: int, decimals: int | None
) -> None:
    paths = write_release(make_blocks(9, 21, decimals=decimals))
    config = release_config(paths, top_k=top_k, tau_f=0.4, tau_r=2.0)
    assert_equal(run(config, tmp_path / "out"), oracle(paths, top_k=top_k, tau_f=0.4, tau_r=2.0))


def test_ties_follow_the_file_and_not_the_index(tmp_path: Path, make_blocks: Callable, write_release: Callable) -> None:
    """Blocks of whole numbers have ties in nearly every list, which our files write with the higher index first."""
    blocks = make_blocks(9, 21, decimals=0)
    by_file = run(release_config(write_release(blocks), top_k=3), tmp_path / "file")
    save_file(blocks, tmp_path / "s.safetensors")
    config = MappingConfig(method=Weighting.rapidun_release, top_k=3, drop_diagonal=False, bounded=False)
    by_index = run(config, tmp_path / "index", scores=tmp_path / "s.safetensors")
    assert by_file[:2] != by_index[:2]


def test_release_recipe_on_lists_cut_short(tmp_path: Path, make_blocks: Callable, write_release: Callable) -> None:
    paths = write_release(make_blocks(9, 21), listed=5)
    for top_k in (4, 5, 8):
        found = run(release_config(paths, top_k=top_k), tmp_path / "out")
        assert_equal(found, oracle(paths, top_k=top_k))
        assert any("block rr lists 5 of 21" in line for line in found[2]["warnings"]) is (top_k == 8)


@pytest.mark.parametrize("listed", [None, 6])
def test_release_recipe_with_the_harmful_lists(
    tmp_path: Path, make_blocks: Callable, write_release: Callable, listed: int | None
) -> None:
    paths = write_release(make_blocks(9, 21, decimals=0), listed=listed)
    found = run(release_config(paths, top_k=4, use_harmful=True), tmp_path / "out")
    assert_equal(found, oracle(paths, top_k=4, harmful=True))


@pytest.mark.parametrize("num_retain", [1, 3])
def test_release_recipe_with_one_row(
    tmp_path: Path, make_blocks: Callable, write_release: Callable, num_retain: int
) -> None:
    paths = write_release(make_blocks(1, num_retain))
    found = run(release_config(paths), tmp_path / "out")
    assert_equal(found, oracle(paths))
    assert found[0] == [1.0]


def test_release_recipe_with_constant_and_negative_scores(
    tmp_path: Path, make_blocks: Callable, write_release: Callable
) -> None:
    constant = {name: np.full_like(block, 0.25) for name, block in make_blocks(5, 9).items()}
    paths = write_release(constant, name="constant-")
    found = run(release_config(paths), tmp_path / "out")
    assert found[:2] == ([1.0] * 5, [1.0] * 9)
    assert_equal(found, oracle(paths))
    negative = {name: -np.abs(block) - 0.1 for name, block in make_blocks(9, 21).items()}
    paths = write_release(negative, name="negative-")
    for top_k in (4, 40):
        assert_equal(run(release_config(paths, top_k=top_k), tmp_path / "out"), oracle(paths, top_k=top_k))


def test_json_lines_give_the_same(tmp_path: Path, make_blocks: Callable, write_release: Callable) -> None:
    blocks = make_blocks(6, 11)
    one = run(release_config(write_release(blocks)), tmp_path / "a")
    two = run(release_config(write_release(blocks, lines=True)), tmp_path / "b")
    assert one[:2] == two[:2]


def test_lists_cut_short_need_top_k(tmp_path: Path, make_blocks: Callable, write_release: Callable) -> None:
    paths = write_release(make_blocks(9, 21), listed=8)
    with pytest.raises(DataError, match=r"mapping\.scores\.rf: need the influence of all 21 training rows"):
        run(release_config(paths, top_k=None), tmp_path / "out")
    with pytest.raises(DataError, match="mode=rank"):
        run(release_config(paths, mode=ValueMode.rank), tmp_path / "out")
    # the helpful and the harmful list together may hold every row
    blocks = make_blocks(9, 11)
    full = run(release_config(write_release(blocks, name="full-"), top_k=None), tmp_path / "full")
    halves = run(release_config(write_release(blocks, listed=8, name="half-"), top_k=None), tmp_path / "half")
    assert full[:2] == halves[:2]


@pytest.fixture
def artifact(tmp_path: Path) -> tuple[Path, Path]:
    """scores.safetensors (cosine, with the Gram matrix) and ids.json of 8 forget and 20 retain rows."""
    z = np.random.default_rng(3).standard_normal((28, 12)) * np.linspace(0.5, 4, 28)[:, None]
    z[:, 0] += 1.0
    gram = z @ z.T
    norms = np.sqrt(np.diag(gram))
    cosine = gram / norms[:, None] / norms
    blocks = {"ff": cosine[:8, :8], "fr": cosine[:8, 8:], "rf": cosine[8:, :8], "rr": cosine[8:, 8:]}
    tensors = {name: np.ascontiguousarray(block, np.float32) for name, block in blocks.items()}
    tensors |= {"gram": gram.astype(np.float32), "norms": norms.astype(np.float32)}
    folder = tmp_path / "influence"
    folder.mkdir()
    save_file(tensors, folder / "scores.safetensors")
    ids = {"forget": [f"f{row}" for row in range(8)], "retain": [f"r{row}" for row in range(20)]}
    (folder / "ids.json").write_text(json.dumps(ids))
    return folder / "scores.safetensors", folder / "ids.json"


def test_default_mapping_in_plain_python(tmp_path: Path, artifact: tuple[Path, Path]) -> None:
    """Cosine, i = j left out, median, bounded: the scale is found by halving an interval."""
    from safetensors.numpy import load_file

    blocks = {name: block.astype(np.float64).tolist() for name, block in load_file(artifact[0]).items()}
    forget, retain, diagnostics = run(MappingConfig(), tmp_path / "out", scores=artifact[0], ids=artifact[1])
    for found, own, other, tau in ((forget, "ff", "fr", 0.7), (retain, "rr", "rf", 1.2)):
        scores = [
            statistics.median([v for j, v in enumerate(row) if j != i]) - statistics.median(blocks[other][i])
            for i, row in enumerate(blocks[own])
        ]
        median = statistics.median(scores)
        scale = max(1.4826 * statistics.median([abs(s - median) for s in scores]), 1e-3)
        bottom, top = -50.0, 50.0
        for _ in range(200):
            middle = (bottom + top) / 2
            w = [min(max(math.exp(middle + (s - median) / scale / tau), 0.2), 3.0) for s in scores]
            bottom, top = (middle, top) if sum(w) < len(w) else (bottom, middle)
        np.testing.assert_allclose(found, w, rtol=0, atol=1e-12)
        assert np.ptp(found) > 0.5
    assert ids_of(tmp_path / "out", "forget") == [f"f{row}" for row in range(8)]
    assert diagnostics["forget"]["mean"] == pytest.approx(1.0, abs=1e-14)
    assert diagnostics["scores_from"] == "blocks"


def test_release_recipe_takes_dot_products_from_the_gram_matrix(tmp_path: Path, artifact: tuple[Path, Path]) -> None:
    from safetensors.numpy import load_file

    config = MappingConfig(method=Weighting.rapidun_release, top_k=5, drop_diagonal=False, bounded=False)
    found = run(config, tmp_path / "a", scores=artifact[0], ids=artifact[1])
    assert found[2]["scores_from"] == "gram" and not any("gram" in line for line in found[2]["warnings"])
    gram = load_file(artifact[0])["gram"]
    blocks = {"ff": gram[:8, :8], "fr": gram[:8, 8:], "rf": gram[8:, :8], "rr": gram[8:, 8:]}
    save_file({name: np.ascontiguousarray(block) for name, block in blocks.items()}, tmp_path / "dot.safetensors")
    config.scores.path = str(tmp_path / "dot.safetensors")
    bare = run(config, tmp_path / "b")
    assert bare[:2] == found[:2]
    assert any("influence.score=dot" in line for line in bare[2]["warnings"])
    assert ids_of(tmp_path / "b", "retain") == [None] * 20


@pytest.mark.parametrize("mode", ValueMode)
@pytest.mark.parametrize("aggregate", Aggregate)
@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize(("top_k", "use_harmful"), [(None, False), (6, False), (6, True)])
def test_laws_hold_under_every_setting(
    tmp_path: Path,
    artifact: tuple[Path, Path],
    mode: ValueMode,
    aggregate: Aggregate,
    bounded: bool,
    top_k: int | None,
    use_harmful: bool,
) -> None:
    """Mean 1, bounds, and permuting the rows permutes the weights."""
    from safetensors.numpy import load_file

    config = MappingConfig(mode=mode, aggregate=aggregate, bounded=bounded, top_k=top_k, use_harmful=use_harmful)
    forget, retain, _ = run(config, tmp_path / "out", scores=artifact[0])
    for weights in (forget, retain):
        assert math.fsum(weights) / len(weights) == pytest.approx(1.0, abs=1e-14)
        assert not bounded or (min(weights) >= 0.2 and max(weights) <= 3.0)
    blocks = load_file(artifact[0])
    f, r = np.random.default_rng(0).permutation(8), np.random.default_rng(1).permutation(20)
    order = {"f": f, "r": r}
    moved = {
        name: np.ascontiguousarray(blocks[name][order[name[0]]][:, order[name[1]]]) for name in ("ff", "fr", "rf", "rr")
    }
    save_file(moved, tmp_path / "moved.safetensors")
    forget_moved, retain_moved, _ = run(config, tmp_path / "moved", scores=tmp_path / "moved.safetensors")
    np.testing.assert_allclose(forget_moved, np.array(forget)[f], rtol=0, atol=1e-12)
    np.testing.assert_allclose(retain_moved, np.array(retain)[r], rtol=0, atol=1e-12)


def test_large_tau_is_uniform(tmp_path: Path, artifact: tuple[Path, Path]) -> None:
    forget, retain, _ = run(MappingConfig(tau_f=1e12, tau_r=1e12), tmp_path / "out", scores=artifact[0])
    np.testing.assert_allclose([*forget, *retain], 1.0, rtol=0, atol=1e-9)


def test_uniform_needs_no_scores(tmp_path: Path, artifact: tuple[Path, Path], write_pack: Callable) -> None:
    config = MappingConfig(method=Weighting.uniform)
    pack = write_pack(3, 4)
    assert run(config, tmp_path / "a", **pack)[:2] == ([1.0] * 3, [1.0] * 4)
    assert ids_of(tmp_path / "a", "retain") == ["r0", "r1", "r2", "r3"]
    assert run(config, tmp_path / "b", scores=artifact[0], ids=artifact[1])[:2] == ([1.0] * 8, [1.0] * 20)
    assert run(config, tmp_path / "c", scores=artifact[0])[:2] == ([1.0] * 8, [1.0] * 20)
    with pytest.raises(ConfigError, match="need influence scores for method=uniform"):
        run(config, tmp_path / "d")


def test_shuffled_and_random_start_from_the_rapidun_weights(tmp_path: Path, artifact: tuple[Path, Path]) -> None:
    rapidun = run(MappingConfig(), tmp_path / "a", scores=artifact[0], ids=artifact[1])
    shuffled = run(MappingConfig(method=Weighting.shuffled), tmp_path / "b", scores=artifact[0], ids=artifact[1])
    random = run(MappingConfig(method=Weighting.random), tmp_path / "c", scores=artifact[0], ids=artifact[1])
    for group in (0, 1):
        assert shuffled[group] != rapidun[group] and sorted(shuffled[group]) == sorted(rapidun[group])
        assert math.fsum(random[group]) / len(random[group]) == pytest.approx(1.0, abs=1e-14)
    assert shuffled[2]["rapidun"]["retain"] == rapidun[2]["retain"]
    for method, before in ((Weighting.shuffled, shuffled), (Weighting.random, random)):
        config = MappingConfig(method=method)
        assert run(config, tmp_path / "d", scores=artifact[0])[:2] == before[:2]
        assert run(config, tmp_path / "e", scores=artifact[0], seed=1)[:2] != before[:2]


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_weights_made_elsewhere(tmp_path: Path, write_pack: Callable) -> None:
    config = MappingConfig(method=Weighting.file)
    config.forget.path = write_lines(tmp_path / "f.jsonl", [{"id": "f1", "weight": 3}, {"id": "f0", "weight": 1}])
    config.retain.path = write_lines(tmp_path / "r.jsonl", [{"index": 0, "weight": 1.0}])
    pack = write_pack(2, 1)
    forget, retain, diagnostics = run(config, tmp_path / "a", **pack)
    assert (forget, retain) == ([1.0, 3.0], [1.0])
    assert ids_of(tmp_path / "a", "forget") == ["f0", "f1"]
    assert ["forget weights of the file have mean 2" in line for line in diagnostics["warnings"]] == [True]
    config.forget.path = write_lines(
        tmp_path / "g.jsonl", [{"index": 0, "id": "f1", "weight": 1}, {"index": 1, "id": "f0", "weight": 1}]
    )
    warnings = run(config, tmp_path / "g", **pack)[2]["warnings"]
    assert ["2 of 2 lines have an index" in line for line in warnings] == [True]
    assert run(config, tmp_path / "h")[2]["warnings"] == []
    config.forget.path = str(tmp_path / "f.jsonl")
    # no pack: the file says which rows there are
    assert run(config, tmp_path / "b")[:2] == ([3.0, 1.0], [1.0])
    assert ids_of(tmp_path / "b", "forget") == ["f1", "f0"] and ids_of(tmp_path / "b", "retain") == [None]
    with pytest.raises(DataError, match=r"f\.jsonl:2: need a weight for each of the 3 rows"):
        run(config, tmp_path / "c", **write_pack(3, 1))


def test_ids_come_from_the_scores_or_the_pack(
    tmp_path: Path, artifact: tuple[Path, Path], write_pack: Callable, make_blocks: Callable, write_release: Callable
) -> None:
    config = MappingConfig(scores=ScoreFiles(path=str(artifact[0])))
    run(config, tmp_path / "a")
    assert ids_of(tmp_path / "a", "forget")[:2] == ["f0", "f1"]  # ids.json beside the scores
    config = release_config(write_release(make_blocks(3, 5)))
    run(config, tmp_path / "b", **write_pack(3, 5))
    assert ids_of(tmp_path / "b", "retain") == ["r0", "r1", "r2", "r3", "r4"]
    run(config, tmp_path / "c")
    assert ids_of(tmp_path / "c", "retain") == [None] * 5
    with pytest.raises(
        DataError, match=r"forget\.jsonl: need as many forget rows as the influence scores have, 3, got 2"
    ):
        run(config, tmp_path / "d", **write_pack(2, 5))
    with pytest.raises(DataError, match="Were the scores made for other rows"):
        run(MappingConfig(), tmp_path / "e", scores=artifact[0], ids=artifact[1], **write_pack(7, 20))


def test_scores_of_the_config_replace_the_artifact(
    tmp_path: Path, artifact: tuple[Path, Path], make_blocks: Callable, write_release: Callable
) -> None:
    paths = write_release(make_blocks(3, 5))
    found = run(release_config(paths), tmp_path / "a", scores=artifact[0], ids=artifact[1])
    assert len(found[0]) == 3 and ids_of(tmp_path / "a", "forget") == [None] * 3


def test_without_scores(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method=rapidun, got none\. Add the influence stage"):
        run(MappingConfig(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_ids(tmp_path: Path, artifact: tuple[Path, Path]) -> None:
    (tmp_path / "ids.json").write_text('{"forget": []}')
    with pytest.raises(DataError, match=r"ids\.json: need"):
        run(MappingConfig(), tmp_path / "out", scores=artifact[0], ids=tmp_path / "ids.json")


def test_warnings_reach_the_tracker(tmp_path: Path, artifact: tuple[Path, Path]) -> None:
    tracker = Tracker()
    files = MappingFiles(out=tmp_path / "out", scores=artifact[0])
    summary = run_mapping(MappingConfig(tau_f=0.01), files, seed=0, tracker=tracker)
    assert tracker.warnings == summary["warnings"]
    assert any("of forget weights stand at w_m" in line and "Raise mapping.tau_f" in line for line in tracker.warnings)


def test_every_weighting_is_dispatched() -> None:
    assert set(WEIGHTINGS) == set(Weighting)


def test_needs_no_torch_and_is_quick(tmp_path: Path, make_blocks: Callable, write_release: Callable) -> None:
    """The published sizes from release-format files and a pack's ids, in a process of its own."""
    paths = {name: str(path) for name, path in write_release(make_blocks(40, 120)).items()}
    script = f"""
import sys
from pathlib import Path
from rapidun.config.mapping import MappingConfig, ScoreFiles, Weighting
from rapidun.stages.mapping.inputs import MappingFiles
from rapidun.stages.mapping.stage import run_mapping
from rapidun.base.tracker import Tracker
config = MappingConfig(method=Weighting.rapidun_release, top_k=40, drop_diagonal=False, bounded=False,
                       scores=ScoreFiles(**{paths!r}))
run_mapping(config, MappingFiles(out=Path({str(tmp_path / "out")!r})), seed=0, tracker=Tracker())
import rapidun.stages.rows.records
heavy = [name for name in ("torch", "transformers", "omegaconf", "hydra", "wandb") if name in sys.modules]
raise SystemExit(f"imported {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out" / "retain_weights.jsonl").read_text().splitlines()) == 120
