"""docs/extending.md to the letter: its file is loaded, its objective, weighting, metric, reader and launcher work."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rapidun.config import extensions
from rapidun.config.extensions import Kind
from rapidun.stages.rows.formats.detect import ENDINGS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FAST = ["debug=fast", "tracking=none", "resources.num_threads=1"]
CHEAP = [*FAST, "stages=[data,poison,influence,mapping,unlearning]"]
# every command line in one process, whose registries are its own
SESSION = """
import contextlib, io, json, sys
from rapidun.cli.main import main
for argv in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(argv)
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


def session(folder: Path, *lines: list[str], env: dict[str, str] | None = None) -> list[tuple[int, str, str]]:
    done = subprocess.run(
        [sys.executable, "-c", SESSION, json.dumps(lines)], cwd=folder, env={**os.environ, **(env or {})},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.split("\n") if line.startswith("[")]


def artifacts(run: Path) -> dict[str, str]:
    stages = json.loads((run / "status.json").read_text())["stages"]
    return {link: id for entry in stages.values() for link, id in entry["artifacts"].items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extending")
    found = re.search(r"## One file with one of each\n\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert found
    (folder / "mine.py").write_text(found[1])
    return folder


CHOSEN = [*FAST, "unlearning=halved", "mapping=coin", "unlearning.extension.share=0.25"]


@pytest.fixture(scope="module")
def first(place: Path) -> tuple[int, str, str]:
    """A run with the example's file, in place/first."""
    [found] = session(place, ["--extend", "mine.py", *CHOSEN, "run_dir=first"])
    return found


def test_the_example_works_and_is_held_to_our_rules(place: Path, first: tuple[int, str, str]) -> None:
    extend, chosen = ["--extend", "mine.py"], CHOSEN
    helped, looked, again, key, kind, faulty, unread, verified, bare = session(
        place,
        [*extend, "--help"],
        ["--extend=mine.py", "doctor", "unlearning=halved"],
        [*extend, *chosen, "run_dir=again"],
        [*extend, *chosen, "unlearning.extension.shore=1"],
        [*extend, *chosen, "unlearning.extension.share=much"],
        [*extend, *chosen, "unlearning.extension.share=2"],
        [*extend, *FAST, "unlearning=npo", "unlearning.extension.share=0.5"],
        ["verify", "first", *extend],
        [*extend, *FAST, "unlearning=halve"],
    )
    assert helped[0] == 0 and "halved           objective, unlearning=halved, of " in helped[1]
    assert "| halved |" in helped[1].replace("\n              ", " ") and "here             launcher" in helped[1]
    assert "extension" in looked[1] and "mine.py, SHA-256" in " ".join(looked[1].split())
    assert first[0] == again[0] == 0, first
    result = json.loads((place / "first/result.json").read_text())
    # a model of four steps says nothing: no word
    assert {"num_words_clean", "before.num_words_clean", "num_words_recovered"} <= set(result)
    assert "words of an answer" in first[1] and "words of an answer" in (place / "first/report.html").read_text()
    lines = (place / "first/mapping/retain_weights.jsonl").read_text().splitlines()
    assert {json.loads(line)["weight"] for line in lines} == {0.0, 2.0}
    made = artifacts(place / "first")
    # who finds the poisoned model does not ask for the one before it
    assert {link: id for link, id in made.items() if link != "model"} == artifacts(place / "again")
    assert "unlearning  reused" in again[1] and "evaluation  reused" in again[1]
    manifest = json.loads((place / "first/unlearning/manifest.json").read_text())["inputs"]
    assert manifest["extension"][0]["name"] == "halved" and manifest["settings"]["extension"] == {"share": 0.25}
    assert "--extend" in (place / "first/command.txt").read_text()
    for found, words in (
        (key, "unlearning.extension.shore: no such key; did you mean unlearning.extension.share?"),
        (kind, "unlearning.extension.share: need a number, got 'much'"),
        (faulty, "unlearning.extension: need 0 < share <= 1, got share=2.0"),
        (unread, "need extension={} with objective=npo, rapidun's own"),
        (bare, "did you mean unlearning=halved?"),
    ):
        assert found[0] == 2 and words in found[2], found
    assert verified[0] == 0, verified
    sha = manifest["extension"][0]["sha256"]
    assert f"was made by halved, code that is not rapidun's (SHA-256 {sha})" in verified[1]


@pytest.mark.slow
def test_without_the_file_it_is_said_and_another_version_makes_it_anew(
    place: Path, first: tuple[int, str, str]
) -> None:
    assert first[0] == 0, first
    text = (place / "mine.py").read_text()
    (place / "other.py").write_text(text.replace("-settings.share *", "-2 * settings.share *"))
    chosen = [*CHEAP, "unlearning=halved", "mapping=coin", "unlearning.extension.share=0.25"]
    bare, verified, shown = session(
        place, [*chosen, "run_dir=none"], ["verify", "first"], ["report", "first", "--html", "page.html"]
    )
    assert bare[0] == 2 and "unlearning: no such choice 'halved'" in bare[2]
    assert verified[0] == 1 and "need the objective halved of " in verified[1] and "Pass --extend FILE" in verified[1]
    assert shown[0] == 0
    [other] = session(place, ["--extend", "other.py", *chosen, "run_dir=other"])
    assert other[0] == 0, other
    mine, theirs = artifacts(place / "first"), artifacts(place / "other")
    assert mine["poison"] == theirs["poison"]
    # the file is part of what made both, whichever function was changed
    assert mine["mapping"] != theirs["mapping"] and mine["unlearning"] != theirs["unlearning"]


@pytest.mark.parametrize("launcher", ["here", pytest.param("joblib", marks=pytest.mark.slow)])
def test_a_sweep_hands_it_to_its_cells(launcher: str, place: Path) -> None:
    name = f"sweep.name={launcher}"
    cheap = [*FAST, "stages=[data,poison,influence,mapping]", "mapping=coin", "seed=0,1", name]
    swept, retried = session(
        place,
        ["--extend", "mine.py", "-m", *cheap, f"hydra/launcher={launcher}"],
        ["sweep", "status", f"outputs/sweeps/{launcher}"],
    )
    assert swept[0] == 0 and "2 cells: 2 done" in swept[1], swept
    assert retried[0] == 0
    jobs = [json.loads(path.read_text()) for path in (place / f"outputs/sweeps/{launcher}/jobs").glob("*.json")]
    files = [one for job in jobs if "units" in job for one in job["extend"]]
    assert files and {one["path"] for one in files} == {str(place / "mine.py")}
    if launcher == "here":
        # whoever has the folder does not run the code in it
        [refused] = session(place, ["sweep", "resume", "outputs/sweeps/here"])
        assert refused[0] == 2 and "need the weighting coin of " in refused[2]
        job = next(path for path in (place / "outputs/sweeps/here/jobs").glob("*.json") if "units" in path.read_text())
        (place / "mine.py").write_text((place / "mine.py").read_text() + "\n# changed\n")
        code = f"from rapidun.sweep.worker import run_job; run_job({str(job)!r})"
        done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "as it was when the sweep was launched" in done.stderr
        (place / "mine.py").write_text((place / "mine.py").read_text().removesuffix("\n# changed\n"))


def test_rows_of_its_own_format(place: Path) -> None:
    pack = place / "pack"
    pack.mkdir()
    for name in ("forget_set", "retain_set"):
        rows = [f"What is {name} {number}?\nIt is {number}." for number in range(4)]
        (pack / f"{name}.blocks").write_text("\n\n".join(rows) + "\n")
    light = [*FAST, "data=pack", f"data.dir={pack}", "stages=[data]"]
    (place / "bad").mkdir()
    for name in ("forget_set", "retain_set"):
        (place / "bad" / f"{name}.blocks").write_text("alone")
    read, bad = session(
        place,
        ["--extend", "mine.py", *light, "run_dir=rows"],
        ["--extend", "mine.py", *FAST, "data=pack", "data.dir=bad", "stages=[data]"],
    )
    assert read[0] == 0, read
    made = json.loads((place / "rows/data/manifest.json").read_text())["inputs"]
    assert made["extension"][0]["name"] == "blocks" and made["formats"]["forget"] == ".blocks"
    assert len((place / "rows/data/forget.jsonl").read_text().splitlines()) == 4
    assert bad[0] == 2 and "need a file that the reader blocks reads" in bad[2]
    [without] = session(place, light)
    assert without[0] == 2 and "need forget.jsonl or forget_set.jsonl in the pack" in without[2]


DECORATED = "from rapidun import {name}\n@{name}({args})\ndef {function}(a, b=None): ...\n"


def decorated(name: str, args: str, function: str = "mine") -> str:
    return DECORATED.format(name=name, args=args, function=function)


SETTINGS = "from dataclasses import dataclass\n@dataclass\nclass S:\n    a: int\n"
BAD = {
    "absent": (None, "need a Python file, got "),
    "syntax": ("def (", "need an extension that can be run, got SyntaxError"),
    "raises": ("x = 1\n1 / 0\n", "line 2: need an extension that can be run, got ZeroDivisionError"),
    "taken": (decorated("objective", "label='a'", "npo"), "that rapidun itself has"),
    "taken metric": (decorated("metric", "label='a'", "rougeL"), "that rapidun itself has"),
    "ending": (decorated("reader", "endings=['.csv']"), "that nothing reads yet"),
    "text": (decorated("reader", "endings='.x'"), "need endings as a list"),
    "settings": (
        SETTINGS + decorated("weighting", "label='a', settings=S"), "whose fields all have defaults",
    ),
    "twice": (2 * decorated("metric", "label='a'"), "need another name for the metric mine"),
}  # fmt: skip


@pytest.mark.bad_input
def test_a_wrong_file_is_one_message_and_adds_nothing(tmp_path: Path) -> None:
    lines = []
    for name, (text, _) in BAD.items():
        if text is not None:
            (tmp_path / f"{name}.py").write_text(text)
        lines.append(["--extend", f"{name}.py", "--version"])
    found = session(tmp_path, *lines, ["--extend"], ["unlearning=x", "--help"])
    for (name, (_, words)), (status, _, err) in zip(BAD.items(), found, strict=False):
        assert status == 2 and words in err and "Traceback" not in err, (name, err)
        assert len(err.strip().split("\n")) == 1, (name, err)
    assert found[-2][0] == 2 and "need a Python file" in found[-2][2]
    assert "Added by extensions" not in found[-1][1]


def test_an_installed_package_is_found_and_a_broken_one_is_a_warning(tmp_path: Path) -> None:
    fine = "from rapidun import metric\n@metric(label='length')\ndef length(g, r):\n    return [len(x) for x in g]\n"
    for name, text in (("fine", fine), ("broken", "import nothing_of_that_name\n")):
        (tmp_path / f"{name}.py").write_text(text)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[rapidun]\n{name} = {name}\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    [helped] = session(tmp_path, ["--help"], env={"PYTHONPATH": path})
    assert helped[0] == 0 and "length           metric" in helped[1] and "fine 1.0 (fine)" in helped[1]
    assert "warning: broken 1.0 (broken)" in helped[2] and "ModuleNotFoundError" in helped[2]


def test_no_config_file_and_no_setting_loads_code(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("open('ran', 'w')\n")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "e.yaml").write_text("# @package _global_\nextend: mine.py\n")
    tried = session(
        tmp_path,
        [*FAST, "extend=mine.py"],
        [*FAST, "+experiment=experiment/e.yaml"],
        [*FAST, "+experiment=./experiment/e.yaml"],
        [*FAST, "unlearning.extension={extend: mine.py}"],
        env={"RAPIDUN_EXTEND": "mine.py", "EXTEND": "mine.py"},
    )
    assert [status for status, _, _ in tried] == [2] * 4
    assert not (tmp_path / "ran").exists()


def test_what_is_ours_is_taken() -> None:
    """The endings that extensions.py holds because their registry is imported late."""
    assert {ending for ending in ENDINGS if not ending.endswith(".gz")} == set(extensions.OUR_ENDINGS) - {".gz"}
    assert not extensions.everything() and extensions.find(Kind.objective, "npo") is None


@pytest.mark.bad_input
def test_the_decorators_are_for_files_that_are_loaded() -> None:
    with pytest.raises(extensions.ConfigError, match="need a file that is loaded by --extend FILE"):

        @extensions.metric(label="a")
        def length(generations: Any, references: Any) -> list[float]:
            return [0.0]
