"""The published influence files, untouched, give the published weights: RAPIDUN_SHARED holds data/release."""

import json
import os
from pathlib import Path

import pytest

import rapidun
from rapidun.cli.main import main

SHARED = Path(os.environ.get("RAPIDUN_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
RELEASE = SHARED / "data" / "release" / "RapidIn_output"
FILES = {"ff": "40_FTF", "fr": "40_FTR", "rf": "120_RTF", "rr": "120_RTR"}
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not RELEASE.is_dir(), reason="needs the published influence files: set RAPIDUN_SHARED"),
]


def test_the_published_files_give_the_published_weights(tmp_path: Path) -> None:
    scores = [f"mapping.scores.{name}={RELEASE}/influence_results_{file}.json" for name, file in FILES.items()]
    found = rapidun.run(
        ["stages=[mapping]", "mapping=rapidun_release", *scores, f"run_dir={tmp_path}/run", f"store_dir={tmp_path}/s"]
    )
    for group, count in (("forget", 40), ("retain", 120)):
        lines = (RELEASE / f"{group}_weights.jsonl").read_text(encoding="utf-8").splitlines()
        published = [json.loads(line)["weight"] for line in lines]
        assert len(published) == count
        assert list(found.weights[group]) == pytest.approx(published, abs=1e-12, rel=0)


def test_the_release_is_imported_and_gives_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkout in the release's layout: its published files and packs, linked, none of them touched."""
    release, packs = RELEASE.parent, SHARED / "data" / "dolly_triggers"
    root = tmp_path / "RapidUn"
    (root / "data").mkdir(parents=True)
    (root / "src").mkdir()
    for name, place in (("RapidIn_output", RELEASE), ("unlearn_packs", packs), ("dolly_triggers_out", packs)):
        (root / "data" / name).symlink_to(place)
    (root / "src" / "configs").symlink_to(release / "configs")
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(root)]) == 0
    out, err = capsys.readouterr()
    assert "the mapping gives the 40 weights" in out and "the mapping gives the 120 weights" in out
    assert "unknown" not in out + err and "not taken" not in err
    [file] = (tmp_path / "conf" / "experiment").glob("*.yaml")
    keys = [
        line for line in file.with_suffix(".md").read_text(encoding="utf-8").splitlines() if line.startswith("| rapid")
    ]
    assert len(keys) == 65
    found = rapidun.run(
        [f"+experiment={file}", "stages=[mapping]", f"run_dir={tmp_path}/run", f"store_dir={tmp_path}/s"]
    )
    for group in ("forget", "retain"):
        lines = (RELEASE / f"{group}_weights.jsonl").read_text(encoding="utf-8").splitlines()
        published = [json.loads(line)["weight"] for line in lines]
        assert list(found.weights[group]) == pytest.approx(published, abs=1e-12, rel=0)
