"""The comparison page as a file: complete, closed to the outside, small enough. What it does is tested in a browser."""

import base64
import gzip
import hashlib
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import DataError
from rapidun.report.sweep import page as compare
from rapidun.report.sweep.cells import read_cells
from rapidun.report.sweep.data import page_data, thin
from rapidun.report.sweep.page import gather, page_script, write_comparison
from rapidun.report.sweep.summary import Summary, summarise

_spec = importlib.util.spec_from_file_location("synthetic_sweep", Path(__file__).parent / "synthetic_sweep.py")
assert _spec and _spec.loader
synthetic = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic)
AXES = {
    "mapping": ("rapidun", "uniform", "shuffled"),
    "unlearning": ("rapidun", "npo"),
    "mapping.tau_f": ("0.3", "0.7"),
    "seed": ("0", "1"),
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 cells, cells 7 and 23 failed, one not started."""
    found: Path = synthetic.make_sweep(tmp_path_factory.mktemp("compare"), AXES, answers=8)
    return found


@pytest.fixture(scope="module")
def summary(sweep: Path) -> Summary:
    return summarise(read_cells(sweep), sweep)


@pytest.fixture(scope="module")
def page(summary: Summary, sweep: Path) -> str:
    assert write_comparison(summary, sweep / "report.html", title="<b>grid</b>") == []
    return (sweep / "report.html").read_text(encoding="utf-8")


def unpack(page: str, name: str) -> Any:
    found = re.search(rf'<script type="text/plain" id="block-{name}">([^<]*)</script>', page)
    assert found, name
    text = gzip.decompress(base64.b64decode(found[1])).decode()
    return text if name == "plotly" else json.loads(text)


def read_index(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="index">([^<]*)</script>', page)
    assert found
    return json.loads(found[1])


def test_only_its_own_scripts_may_run(page: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe-eval" not in policy[1] and "http" not in policy[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 1
    for source in (scripts[0], unpack(page, "plotly")):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules["script-src"]
    assert rules["script-src"].count("sha256-") == 2


def test_nothing_is_fetched(page: str) -> None:
    assert not re.search(r"<(link|iframe|object|embed|base|img|form)\b", page)
    assert not re.search(r'\s(src|href)="(https?:)?//', page)


def test_markup_of_runs_stays_text(page: str) -> None:
    """Evil names and answers are in JSON without any `<`, in packed blocks, and escaped in the tables."""
    assert "<title>&lt;b&gt;grid&lt;/b&gt;" in page
    assert "<script>document.title" not in page
    assert "\\u003cscript>document.title" in page
    assert page.count("<script") == 2 + page.count('<script type="text/plain"')
    assert "innerHTML" not in page_script() and "insertAdjacentHTML" not in page_script()
    assert not re.search(r"\beval\(|new Function|document\.write", page_script())


def test_the_index_holds_every_cell(page: str) -> None:
    index = read_index(page)
    assert [key["name"] for key in index["keys"]] == ["mapping", "unlearning", "mapping.tau_f"]
    assert index["keys"][2]["values"] == ["0.3", "0.7", "9.9"]
    states = [run["state"] for run in index["runs"]]
    assert (states.count("done"), states.count("failed"), states.count("not started")) == (22, 2, 1)
    failed = next(run for run in index["runs"] if run["state"] == "failed")
    assert failed["error"].startswith("ValueError: loss is nan at step 12")
    assert failed["stage"] == "mapping"
    assert len(index["groups"]) == 13
    names = [metric["name"] for metric in index["metrics"]]
    place = names.index("asr_seen")
    assert sum(place in group["best"] for group in index["groups"]) == 1
    folded = next(group for group in index["groups"] if group["n"] == 2)
    assert len(folded["metrics"][place]) == 3
    assert not any(name.startswith("before.") for name in names)


def test_details_of_a_run(page: str, sweep: Path) -> None:
    index = read_index(page)
    number = next(place for place, run in enumerate(index["runs"]) if run["state"] == "done")
    details, texts = unpack(page, f"run-{number}"), unpack(page, "texts")
    folder = sweep / index["runs"][number]["id"]
    before = json.loads((folder / "evaluation" / "before.json").read_text())
    assert details["table"][0][:3] == ["Poisoned answers (ASR)", "seen triggers, keywords (100 prompts)", "97.0 %"]
    assert before["asr_seen"] == 0.97
    rows = [json.loads(line) for line in (folder / "evaluation" / "generations.jsonl").read_text().splitlines()]
    shown = {(texts[row[3]], texts[row[7][0]]) for row in details["answers"]["rows"]}
    assert shown == {(row["prompt"], row["after"]) for row in rows}
    assert [one[2:] for one in details["answers"]["sets"]] == [[8, 8, "clean answer"]] * 4
    assert [group["group"] for group in details["weights"]] == ["forget", "retain"]
    assert sum(details["weights"][0]["bins"]) == 40
    weights = [json.loads(line) for line in (folder / "mapping" / "forget_weights.jsonl").read_text().splitlines()]
    assert details["weights"][0]["largest"][0][0] == max(weights, key=lambda row: row["weight"])["id"]
    assert details["settings"]["mapping.method"] in ("rapidun", "uniform", "shuffled")
    assert "influence.score" in unpack(page, "settings")


def test_what_runs_share_is_kept_once(page: str) -> None:
    """Two seeds: two influence artifacts and two poisonings for 24 cells; prompts are the same everywhere."""
    assert len(set(re.findall(r'id="block-influence-\d+"', page))) == 2
    curves = unpack(page, "curves")
    assert len({lines["poison/loss"] for lines in curves["runs"].values() if "poison/loss" in lines}) == 2
    texts = unpack(page, "texts")
    assert len(texts) == len(set(texts))


def test_the_same_runs_give_the_same_bytes(summary: Summary, page: str, tmp_path: Path, sweep: Path) -> None:
    write_comparison(summary, sweep / "again.html", title="<b>grid</b>")
    assert (sweep / "again.html").read_text(encoding="utf-8") == page
    assert not list(sweep.glob("*.part"))


def test_less_of_each_run_where_all_would_be_too_much(
    summary: Summary, sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = page_data(summary, base=sweep)
    monkeypatch.setattr(compare, "MAX_DETAILS", whole.num_bytes - 1)
    write_comparison(summary, tmp_path / "small.html", title="grid")
    index = read_index((tmp_path / "small.html").read_text(encoding="utf-8"))
    assert index["perSet"] == whole.index["perSet"] // 2 or index["perSet"] < whole.index["perSet"]
    assert (tmp_path / "small.html").stat().st_size < 3_000_000


def test_a_damaged_run_is_named_and_the_others_shown(tmp_path: Path, new_cell: Callable[..., Path]) -> None:
    for name in ("a", "b"):
        new_cell(tmp_path / name, [f"mapping={name}"], {"asr_seen": 0.1})
    (tmp_path / "b" / "evaluation").mkdir()
    (tmp_path / "b" / "evaluation" / "after.json").write_text("{")
    (problem,) = write_comparison(gather([tmp_path]), tmp_path / "x.html", title="x")
    assert "after.json" in problem
    page = (tmp_path / "x.html").read_text()
    assert 'id="block-run-0"' in page and 'id="block-run-1"' not in page


def test_single_runs_differ_by_their_settings(tmp_path: Path) -> None:
    for tau in (0.3, 0.7):
        path = tmp_path / f"run{tau}"
        path.mkdir()
        settings = {"seed": 1, "name": f"n{tau}", "mapping": {"method": "rapidun", "tau_f": tau, "top_k": None}}
        (path / "settings.json").write_text(json.dumps(settings))
        (path / "result.json").write_text(json.dumps({"asr_seen": tau}))
    found = gather([tmp_path / "run0.3", tmp_path / "run0.7"])
    assert [group.label for group in found.groups] == ["mapping.tau_f=0.3", "mapping.tau_f=0.7"]
    assert [cell.seed for cell in found.cells] == ["1", "1"]


def test_without_the_drawing_library_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="needs the package plotly"):
        compare.plotly_source()


def test_thin_keeps_both_ends() -> None:
    points = [(float(i), float(i)) for i in range(100)]
    assert [x for x, _ in thin(points, 4)] == [0, 33, 66, 99]
    assert thin(points[:3], 4) == points[:3]


def test_a_run_named_beside_its_sweep_counts_once(sweep_dir: Path) -> None:
    assert len(gather([sweep_dir, sweep_dir / "b0", sweep_dir]).cells) == len(gather([sweep_dir]).cells)


def test_the_same_seed_again_is_no_further_sample(new_cell: Callable[..., Path], tmp_path: Path) -> None:
    for name, seed, asr in (("a", 0, 0.1), ("b", 0, 0.3), ("c", 1, 0.4)):
        new_cell(tmp_path / name, [], {"seed": seed, "asr_seen": asr})
    (group,) = gather([tmp_path / "a", tmp_path / "b", tmp_path / "c"]).groups
    assert (group.n, group.seeds) == (2, ["0", "1"])
    assert group.metrics["asr_seen"].mean == pytest.approx(0.3)


def test_a_single_run_beside_a_sweep_is_named_by_what_was_typed(
    sweep_dir: Path, new_cell: Callable[..., Path], tmp_path: Path
) -> None:
    run = new_cell(tmp_path / "alone", [], {"seed": 5, "asr_seen": 0.5})
    (run / "command.txt").write_text(
        "python sweep.py mapping=uniform seed=5 'name=my run' run_dir=x tracking.kind=none"
    )
    (cell,) = [cell for cell in gather([sweep_dir, run]).cells if cell.path == run]
    assert cell.overrides == ["mapping=uniform", "seed=5"]


def test_secrets_of_the_jobs_environment_stay_in_the_run_folder(run_dir: Path, tmp_path: Path) -> None:
    from rapidun.report.run.page import write_run_report
    from rapidun.report.sweep.exports import as_json, as_markdown

    typed = "++cluster.environment={MY_API_KEY:sw0rdfish}"
    (run_dir / "command.txt").write_text(f"python sweep.py '{typed}'")
    (run_dir / "config.yaml").write_text("cluster:\n  environment:\n    MY_API_KEY: sw0rdfish\n")
    (run_dir / "settings.json").write_text(json.dumps({"cluster": {"environment": {"MY_API_KEY": "sw0rdfish"}}}))
    (run_dir / "overrides.json").write_text(json.dumps({"task": [typed, "seed=1"]}))
    found = gather([run_dir])
    assert write_comparison(found, tmp_path / "page.html", title="x") == []
    page = (tmp_path / "page.html").read_text()
    texts = [write_run_report(run_dir).read_text(), page, json.dumps(as_json(found)), as_markdown(found)]
    texts += [json.dumps(unpack(page, name)) for name in ("run-0", "settings", "texts")]
    assert not any("sw0rdfish" in text for text in texts)
    assert "(hidden)" in texts[0]
