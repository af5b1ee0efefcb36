"""CONTRIBUTING.md is followed to the letter in a copy of the project: what it says works, and touches what it says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
STEP = re.compile(
    r"(?:New file `(?P<new>[^`]+)`|In `(?P<file>[^`]+)`, (?P<where>below|above|instead of) `(?P<anchor>[^`]+)`):\n\n"
    r"```\w+\n(?P<text>.*?)```\n",
    re.DOTALL,
)
FAST = ["debug=fast", "tracking=none", "resources.num_threads=1"]


def recipe(title: str) -> str:
    found = re.search(rf"^### {title}\n(.*?)(?=^### |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def follow(title: str, project: Path) -> set[str]:
    """Take every step of a recipe; return the files that were touched."""
    touched = set()
    for step in STEP.finditer(recipe(title)):
        path = project / (step["new"] or step["file"])
        touched.add(step["new"] or step["file"])
        if step["new"]:
            assert not path.exists(), path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step["text"], encoding="utf-8")
            continue
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        [place] = [number for number, line in enumerate(lines) if step["anchor"] in line][:1]
        if step["where"] == "instead of":
            lines[place] = lines[place].replace(step["anchor"], step["text"].rstrip("\n"))
        else:
            # a signature or a list may go on over several lines: below means below its opening line
            lines.insert(place + (step["where"] == "below"), step["text"])
        path.write_text("".join(lines), encoding="utf-8")
    assert touched, title
    return touched


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One copy, where each recipe is followed beside the others; what is compiled comes along."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("rapidun", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copyfile(ROOT / "sweep.py", folder / "sweep.py")
    return folder


def run(project: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(project)}
    return subprocess.run(
        [sys.executable, "sweep.py", *args], cwd=project, env=environment, capture_output=True, text=True, check=False
    )


def result(project: Path, *args: str) -> dict[str, object]:
    done = run(project, *FAST, *args, "run_dir=out")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, object] = json.loads((project / "out" / "result.json").read_text())
    shutil.rmtree(project / "out")
    return found


def weights(project: Path, seed: int) -> list[float]:
    done = run(project, *FAST, "stages=[data,poison,influence,mapping]", "mapping=coin", f"seed={seed}", "run_dir=out")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (project / "out" / "mapping" / "retain_weights.jsonl").read_text().splitlines()
    shutil.rmtree(project / "out")
    return [json.loads(line)["weight"] for line in lines]


def test_an_objective(project: Path) -> None:
    touched = follow("An objective", project)
    assert len(touched) == 3
    found = result(project, "unlearning=halved")
    assert found["unlearning.steps"] == 4
    refused = run(project, *FAST, "unlearning=halve", "run_dir=out")
    assert refused.returncode == 2 and "unlearning=halved?" in refused.stderr


def test_a_weighting(project: Path) -> None:
    """Seeded: another seed has other weights, the same seed the same, from the store."""
    assert len(follow("A weighting", project)) == 3
    first, again, other = weights(project, 1), weights(project, 1), weights(project, 2)
    assert set(first) <= {0.0, 2.0}
    assert first == again != other
    assert not list((project / "outputs" / "store").glob("influence/*.lease"))


def test_a_stage(project: Path) -> None:
    touched = follow("A stage", project)
    assert len({path for path in touched if not path.startswith("rapidun/stages/census/")}) == 3
    found = result(project, "stages=[data,poison,influence,mapping,unlearning,evaluation,census]")
    assert found["census.forget"] == 6
    assert result(project, "stages=[census]", "census.min_characters=100")["census.forget"] == 0
    refused = run(project, *FAST, "census.min_characters=-1", "run_dir=out")
    assert refused.returncode == 2 and "min_characters >= 0" in refused.stderr


def test_a_metric(project: Path) -> None:
    """The closing table has its row; result.json has it before and after, whatever the store held."""
    assert run(project, *FAST, "run_dir=before").returncode == 0
    assert len(follow("A metric", project)) == 2
    stage = project / "rapidun" / "stages" / "evaluation" / "recipe.py"
    assert "by one" in recipe("A metric") and str(stage.relative_to(project)) in recipe("A metric")
    code = stage.read_text(encoding="utf-8")
    raised = re.sub(r'(versions=\{"evaluation": )(\d+)', lambda found: f"{found[1]}{int(found[2]) + 1}", code)
    assert raised != code
    stage.write_text(raised, encoding="utf-8")
    done = run(project, *FAST, "run_dir=out")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((project / "out" / "result.json").read_text())
    before, after = found["before.num_words_clean"], found["num_words_clean"]
    rows = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("words")]
    assert rows[0][1:3] == [f"{value:.3g}" for value in (before, after)]
