import json
import socket
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import ConfigError, DataError
from rapidun.cli.dashboard import main
from rapidun.config.plain import plain
from rapidun.config.run import RunConfig
from rapidun.pipeline.tracking.wandb.sink import cell_id
from rapidun.pipeline.tracking.wandb.workspace_spec import curve_names, dashboard_spec, swept_values
from rapidun.report.sweep.cells import read_cell


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key; any attempt to reach a server is an error."""
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four cells over mapping, tau_f and seed, one of which has not finished; a shared stage and jobs beside them."""
    folder = tmp_path / "taus"
    settings = {"sweep": {"name": "taus"}, "tracking": {"project": "mine", "entity": "us"}}
    rows = [("uniform", 0.3, 0), ("uniform", 0.3, 1), ("rapidun", 0.7, 0), ("rapidun", 0.7, 1)]
    for number, (mapping, tau, seed) in enumerate(rows):
        cell = folder / f"cell{number}"
        cell.mkdir(parents=True)
        task = [f"mapping={mapping}", f"mapping.tau_f={tau}", f"seed={seed}", "model=tiny"]
        (cell / "overrides.json").write_text(json.dumps({"task": task}))
        (cell / "settings.json").write_text(json.dumps(settings))
        if number < 3:
            result = {"name": "run", "seed": seed, "asr_seen": 0.1 * number, "ppl_clean": 3.0, "rougeL_clean": 0.5}
            (cell / "result.json").write_text(json.dumps({**result, "before.asr_seen": 1.0}))
    lines = [
        {"time": 0, "stage": "unlearning", "step": n, "grad_norm": 1.0, "retain_loss": 1.0, "loss": 1.0} for n in (1, 2)
    ]
    (folder / "cell0" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "stages" / "poison-1").mkdir(parents=True)
    (folder / "stages" / "poison-1" / "overrides.json").write_text('{"task": ["mapping.tau_r=9"]}')
    (folder / "jobs").mkdir()
    return folder


def panels(spec: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [panel for section in spec["sections"] for panel in section["panels"] if panel["kind"] == kind]


def test_specification(sweep: Path) -> None:
    spec = dashboard_spec(sweep)
    assert (spec["project"], spec["entity"], spec["cells"]) == ("mine", "us", 4)
    assert spec["filters"] == {"Group": "taus", "JobType": "cell"}
    swept = ["config:choices.mapping", "config:mapping.tau_f", "config:seed"]
    measured = ["summary:asr_seen", "summary:ppl_clean", "summary:rougeL_clean"]
    assert spec["leaderboard"]["columns"] == ["run:displayName", "run:state", *swept, *measured]
    assert spec["leaderboard"]["order"] == [
        {"by": "summary:asr_seen", "ascending": True},
        {"by": "summary:ppl_clean", "ascending": True},
        {"by": "summary:rougeL_clean", "ascending": False},
    ]
    assert [(p["x"], p["y"]) for p in panels(spec, "scatter")] == [
        ("summary:asr_seen", "summary:ppl_clean"),
        ("summary:asr_seen", "summary:rougeL_clean"),
    ]
    [parallel] = panels(spec, "parallel")
    assert parallel["columns"] == [*swept, *measured]
    assert parallel["inverted"] == ["summary:asr_seen", "summary:ppl_clean"]
    lines = panels(spec, "line")
    assert [line["y"] for line in lines] == [
        ["history:unlearning/loss"],
        ["history:unlearning/retain_loss"],
        ["history:unlearning/grad_norm"],
    ]
    assert {line["x"] for line in lines} == {"history:unlearning/step"}
    assert {line["group"] for line in lines} == {"config:unlearning.objective"}
    assert len(panels(spec, "comparer")) == 1
    assert dashboard_spec(sweep, project="p", entity="e")["project"] == "p"


def test_a_key_that_some_cells_leave_out_is_swept(sweep: Path) -> None:
    (sweep / "cell0" / "overrides.json").write_text('{"task": ["seed=0"]}')
    (sweep / "cell1" / "overrides.json").write_text('{"task": ["seed=0", "+experiment=x", "unlearning=ga"]}')
    cells = [read_cell(sweep / "cell0"), read_cell(sweep / "cell1")]
    assert swept_values(cells) == ["config:choices.experiment", "config:choices.unlearning"]
    assert curve_names([sweep / "cell1"], "unlearning") == []


def test_a_sweep_without_results_yet(sweep: Path) -> None:
    for path in sweep.glob("*/result.json"):
        path.unlink()
    spec = dashboard_spec(sweep)
    assert spec["leaderboard"]["order"] == []
    assert panels(spec, "parallel") == []


def test_the_command_writes_the_specification(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep)]) == 0
    assert json.loads((sweep / "dashboard.json").read_text()) == dashboard_spec(sweep)
    out = capsys.readouterr().out
    assert "4 cells" in out
    assert f"rapidun dashboard {sweep} --publish" in out
    assert f"rapidun wandb sync {sweep}" in out


def test_nothing_to_show(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="found no cells in it"):
            main([str(folder)])


@pytest.mark.parametrize("key", [None, "f00dfacef00dfacef00dfacef00dfacef00dface"])
def test_publishing_needs_a_key_and_a_server(
    sweep: Path, key: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    assert main([str(sweep), "--publish"]) == 1
    said = capsys.readouterr()
    why = "the W&B server 127.0.0.1:9 does not answer" if key else "W&B has no key here"
    assert said.err.startswith(f"rapidun dashboard: nothing was published: {why}")
    assert len(said.err.splitlines()) == 1
    assert (sweep / "dashboard.json").is_file()


def test_a_missing_package_is_named(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from rapidun.pipeline.tracking.wandb.workspace import build_report

    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ConfigError, match=r"need the package wandb-workspaces .* pip install 'rapidun\[dashboard\]'"):
        build_report(dashboard_spec(sweep))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("asked a server")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_workspace(sweep: Path, no_network: None) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs the extra `dashboard`")
    from rapidun.pipeline.tracking.wandb.workspace import build_workspace

    view = build_workspace(dashboard_spec(sweep))._to_model().model_dump(by_alias=True, mode="json")
    text = json.dumps(view)
    assert view["displayName"] == "rapidun sweep taus"
    for kind in ("Scatter Plot", "Parallel Coordinates Plot", "Run History Line Plot", "Run Comparer", "Bar Chart"):
        assert f'"viewType": "{kind}"' in text
    for name in ("config:mapping.value.tau_f", "config:choices.value.mapping", "summary:asr_seen"):
        assert name in text
    for value in ('"taus"', '"cell"'):
        assert value in text


def test_report(sweep: Path, no_network: None) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs the extra `dashboard`")
    from rapidun.pipeline.tracking.wandb.workspace import build_report

    # with an entity it would ask the server for the project's number
    spec = {**dashboard_spec(sweep), "entity": ""}
    report = build_report(spec)._to_model().model_dump(by_alias=True, mode="json")
    text = json.dumps(report)
    assert report["displayName"] == "rapidun sweep taus"
    for kind in ("Scatter Plot", "Parallel Coordinates Plot", "Run History Line Plot", "Run Comparer"):
        assert f'"viewType": "{kind}"' in text
    for heading in ("Leaderboard", *(section["name"] for section in spec["sections"])):
        assert heading in text
    assert text.count('"name": "rapidun sweep taus"') >= 5


def test_every_kind_of_panel_is_known(sweep: Path) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs the extra `dashboard`")
    from rapidun.pipeline.tracking.wandb.workspace import _panel

    for section in dashboard_spec(sweep)["sections"]:
        for panel in section["panels"]:
            assert _panel(panel) is not None
    with pytest.raises(ValueError, match="no such kind of panel: pie"):
        _panel({"kind": "pie"})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run on its own, logged offline twice."""
    folder = tmp_path / "runs" / "2026-01-31_builtin"
    folder.mkdir(parents=True)
    settings = {**plain(RunConfig()), "name": "builtin"}
    settings["tracking"]["project"] = "mine"
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "status.json").write_text('{"state": "done"}')
    (folder / "result.json").write_text(json.dumps({"name": "builtin", "seed": 0, "asr_seen": 0.02, "ppl_clean": 3.0}))
    line = {"time": 0, "stage": "unlearning", "step": 1, "loss": 1.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    base = cell_id(RunConfig(), folder)
    for attempt in (base, f"{base}-r1"):
        (folder / "wandb" / f"offline-run-20260131_120000-{attempt}").mkdir(parents=True)
    return folder


def test_one_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is found by the id under which it was logged, and by those of its later attempts."""
    spec = dashboard_spec(run)
    base = cell_id(RunConfig(), run)
    assert spec["filters"] == {"ID": [base, f"{base}-r1"], "JobType": "cell"}
    assert spec["project"] == "mine" and spec["title"] == "rapidun run builtin 2026-01-31_builtin"
    assert [panel["metric"] for panel in panels(spec, "scalar")] == ["summary:asr_seen", "summary:ppl_clean"]
    assert [panel["y"] for panel in panels(spec, "line")] == [["history:unlearning/loss"]]
    # nothing to compare with
    assert not [kind for kind in ("scatter", "parallel", "importance", "comparer") if panels(spec, kind)]
    assert main([str(run)]) == 0
    assert "1 run, 4 panels in 3 sections" in capsys.readouterr().out
    assert json.loads((run / "dashboard.json").read_text()) == spec


def test_one_run_as_a_workspace_and_a_report(run: Path, no_network: None) -> None:
    pytest.importorskip("wandb_workspaces", reason="needs the extra `dashboard`")
    from rapidun.pipeline.tracking.wandb.workspace import build_report, build_workspace

    spec = {**dashboard_spec(run), "entity": ""}
    view = json.dumps(build_workspace(spec)._to_model().model_dump(by_alias=True, mode="json"))
    assert '"viewType": "Scalar Chart"' in view and '"viewType": "Run History Line Plot"' in view
    assert cell_id(RunConfig(), run) in view and f"{cell_id(RunConfig(), run)}-r1" in view
    report = json.dumps(build_report(spec)._to_model().model_dump(by_alias=True, mode="json"))
    assert "1 run. Every number" in report
