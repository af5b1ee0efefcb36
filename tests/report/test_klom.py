"""KLOM by hand, beside numpy's histogram; over run folders: what counts once, what is refused, what chance gives."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapidun.base.errors import ArtifactError, DataError
from rapidun.cli.klom import main
from rapidun.report.klom import by_chance, klom, klom_rows
from rapidun.report.sweep.cells import read_cell


def test_by_hand() -> None:
    """Models at 0, 0, 10, 10 and retrained ones at 0, 0, 0, 10: p = (1/2, 1/2), q = (3/4, 1/4)."""
    models, retrained = np.array([[0.0], [0.0], [10.0], [10.0]]), np.array([[0.0], [0.0], [0.0], [10.0]])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert klom(models, retrained) == pytest.approx([expected])
    other_way = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert klom(retrained, models) == pytest.approx([other_way])


def test_apart_the_same_and_constant() -> None:
    apart = klom(np.full((3, 1), 5.0), np.full((4, 1), -5.0))
    assert apart == pytest.approx([math.log(1e5)])
    same = np.arange(6.0).reshape(3, 2)
    assert klom(same, same[::-1]) == pytest.approx([0.0, 0.0])
    assert klom(np.ones((3, 1)), np.ones((3, 1))) == pytest.approx([0.0])
    # beyond the limit there is no difference
    assert klom(np.full((3, 1), 200.0), np.full((3, 1), 900.0)) == pytest.approx([0.0])


def test_beside_numpys_histogram() -> None:
    rng = np.random.default_rng(0)
    models, retrained = rng.normal(1, 2, (9, 30)), rng.normal(0, 1, (12, 30))
    found = klom(models, retrained)
    for point in range(30):
        both = np.concatenate([models[:, point], retrained[:, point]])
        span = (both.min(), both.max())
        p, q = (np.histogram(part[:, point], bins=20, range=span)[0] / len(part) for part in (models, retrained))
        expected = sum(a * math.log(a / max(b, 1e-5)) for a, b in zip(p, q, strict=True) if a)
        assert found[point] == pytest.approx(expected)


@pytest.mark.parametrize("shapes", [((2, 4), (3, 4)), ((3, 4), (2, 4)), ((3, 4), (3, 5))])
def test_fewer_than_three_are_refused(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="at least 3 models of each kind"):
        klom(np.zeros(shapes[0]), np.zeros(shapes[1]))
    with pytest.raises(ValueError, match="finite"):
        klom(np.full((3, 1), np.nan), np.zeros((3, 1)))


def test_by_chance_is_that_of_models_of_one_kind() -> None:
    """Of one distribution the value is about what chance gives; where they are apart it is far above."""
    rng = np.random.default_rng(1)
    pool = rng.normal(0, 1, (6, 400))
    assert klom(pool[:3], pool[3:]).mean() == pytest.approx(by_chance(pool[:3], pool[3:]).mean(), rel=0.1)
    apart = pool[:3] + 50
    assert klom(apart, pool[3:]).mean() > 1.15 * by_chance(apart, pool[3:]).mean()
    many = rng.normal(0, 1, (12, 5))  # more ways than are tried
    assert np.isfinite(by_chance(many[:6], many[6:])).all()
    assert (by_chance(many[:6], many[6:]) == by_chance(many[:6], many[6:])).all()


def run_folder(root: Path, name: str, seed: int, shift: float, **more: Any) -> Path:
    folder = root / name
    (folder / "evaluation").mkdir(parents=True)
    (folder / "status.json").write_text('{"state": "done"}')
    (folder / "result.json").write_text(json.dumps({"seed": seed, "asr_seen": 0.1}))
    (folder / "config.yaml").write_text(f"seed: {seed}\nmapping: {{tau_f: 1}}\n")
    (folder / "overrides.json").write_text(
        json.dumps({"task": [f"seed={seed}", f"poison.seed={seed}", "mapping=uniform"]})
    )
    rng = np.random.default_rng(seed)

    def points(offset: float) -> dict[str, Any]:
        return {
            "forget": [
                {"id": f"f{n}", "tokens": "ab", "margin": offset + float(value)}
                for n, value in enumerate(rng.normal(0, 1, 5))
            ]
        }

    margins = {
        "unlearned": {"model": f"u{seed}", "points": points(shift)},
        "retrain": {"model": f"r{seed}", "points": points(0.0)},
        "poisoned": {"model": f"p{seed}", "points": points(40.0)},
    }
    for role, values in more.items():
        margins[role] = {**margins[role], **values}
    (folder / "evaluation" / "margins.json").write_text(json.dumps(margins))
    return folder


def rows_of(folders: list[Path]) -> Any:
    return klom_rows([read_cell(folder) for folder in folders])


def test_over_run_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [run_folder(tmp_path, f"c{seed}", seed, 0.0) for seed in (1, 2, 3, 4)]
    unlearned, poisoned = rows_of(folders)
    assert (unlearned.role, unlearned.points, unlearned.num_points) == ("unlearned", "forget", 5)
    assert (unlearned.num_models, unlearned.num_retrained) == (4, 4)
    # 40 away, in other bins than all retrained models
    assert poisoned.role == "poisoned" and poisoned.mean == pytest.approx(math.log(1e5), rel=0.05)
    assert unlearned.mean < poisoned.mean and 0 <= unlearned.median <= unlearned.high
    assert main([str(tmp_path), "--json", str(tmp_path / "found.json")]) == 0
    assert "4 unlearned" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "found.json").read_text())[0]["num_points"] == 5


def test_a_shared_model_counts_once(tmp_path: Path) -> None:
    """Three runs beside one retrained model have one retrained model."""
    folders = [run_folder(tmp_path, f"c{seed}", seed, 0.0, retrain={"model": "one"}) for seed in (1, 2, 3)]
    with pytest.raises(DataError, match=r"need at least 3 different retrained models .* got 1 of 3 runs"):
        rows_of(folders)


def test_what_is_refused(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path, f"c{seed}", seed, 0.0) for seed in (1, 2)]
    with pytest.raises(DataError, match="3 different unlearned models"):
        rows_of(folders)
    third = run_folder(tmp_path, "c3", 3, 0.0, unlearned={"points": {"forget": []}})
    with pytest.raises(DataError, match=r"points \(forget\) that all models were asked"):
        rows_of([*folders, third])
    (third / "evaluation" / "margins.json").write_text("[]")
    with pytest.raises(ArtifactError, match="need the margins of each model"):
        rows_of([*folders, third])
    (third / "evaluation" / "margins.json").unlink()
    with pytest.raises(DataError, match=r"evaluation\.privacy\.run=\[margins\]"):
        rows_of([*folders, third])
    with pytest.raises(DataError, match="need a run folder or a sweep folder"):
        main([str(tmp_path / "none")])
