"""The published influence files, untouched, give the published weights: RAPIDUN_SHARED holds data/release."""

import json
import os
from pathlib import Path

import pytest

import rapidun

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
