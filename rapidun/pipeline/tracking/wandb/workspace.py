"""Turns a specification into W&B's own objects, a workspace and a report, and saves them there."""

import warnings
from typing import Any, NamedTuple

from rapidun.base.errors import ConfigError

# of a report's grid, which is 24 wide
WIDTHS = {"comparer": 24, "media": 24, "parallel": 24}
HEIGHTS = {"comparer": 9, "media": 10, "parallel": 9}


class Addresses(NamedTuple):
    workspace: str
    report: str


def publish(spec: dict[str, Any]) -> Addresses:
    """Save workspace and report under the specification's entity and project.

    Raises: ConfigError if wandb-workspaces is not installed; what W&B raises if it refuses.
    """
    workspace = build_workspace(spec).save()
    report = build_report(spec)
    report.save()
    return Addresses(str(workspace.url), str(report.url))


def build_workspace(spec: dict[str, Any]) -> Any:
    """The workspace: the runs as a table beside the panels, best first."""
    ws, _ = _modules()
    columns = [_column(name) for name in spec["leaderboard"]["columns"] if name != "run:displayName"]
    order = [_ordering(ws, entry) for entry in spec["leaderboard"]["order"]]
    return ws.Workspace(
        entity=spec["entity"] or "",
        project=spec["project"],
        name=spec["title"],
        sections=[
            ws.Section(name=section["name"], panels=[_panel(panel) for panel in section["panels"]], is_open=True)
            for section in spec["sections"]
            if section["panels"]
        ],
        runset_settings=ws.RunsetSettings(
            filters=_filters(ws, spec["filters"]),
            pinned_columns=["run:displayName", *columns],
            **({"order": order} if order else {}),
        ),
    )


def build_report(spec: dict[str, Any]) -> Any:
    """The report: the leaderboard, then a grid of panels for each section."""
    ws, wr = _modules()
    columns = [_column(name) for name in spec["leaderboard"]["columns"]]

    def runset() -> Any:
        order = [
            wr.OrderBy(wr.SummaryMetric(entry["by"].partition(":")[2]), ascending=entry["ascending"])
            for entry in spec["leaderboard"]["order"]
        ]
        return wr.Runset(
            entity=spec["entity"] or "",
            project=spec["project"],
            name=spec["title"],
            filters=_filters(ws, spec["filters"]),
            pinned_columns=columns,
            visible_columns=columns,
            column_order=columns,
            lock_columns=True,
            **({"order": order} if order else {}),
        )

    blocks: list[Any] = [
        wr.P(f"{counted(spec)}. Every number stands in the folder as well; this page only shows it."),
        wr.H2("Leaderboard"),
        wr.PanelGrid(runsets=[runset()], panels=[], hide_run_sets=False),
    ]
    for section in spec["sections"]:
        if section["panels"]:
            panels = [_placed(panel, number) for number, panel in enumerate(section["panels"])]
            blocks += [wr.H2(section["name"]), wr.PanelGrid(runsets=[runset()], panels=panels)]
    return wr.Report(
        entity=spec["entity"] or "", project=spec["project"], title=spec["title"][:128], blocks=blocks, width="fluid"
    )


def counted(spec: dict[str, Any]) -> str:
    """`12 cells`; of a run's dashboard `1 run`."""
    if "ID" in spec["filters"]:
        return "1 run"
    return f"{spec['cells']} {'cell' if spec['cells'] == 1 else 'cells'}"


def _filters(ws: Any, wanted: dict[str, Any]) -> Any:
    """Equal to a value, or one of several."""
    return ws.And(
        *(
            ws.Metric(name).isin(one) if isinstance(one, list) else ws.Metric(name) == one
            for name, one in wanted.items()
        )
    )


def _placed(spec: dict[str, Any], number: int) -> Any:
    """A panel at its place in a report's grid: small ones two a row."""
    _, wr = _modules()
    panel = _panel(spec)
    width, height = WIDTHS.get(spec["kind"], 12), HEIGHTS.get(spec["kind"], 8)
    panel.layout = wr.Layout(x=0 if width == 24 else 12 * (number % 2), y=10 * (number // 2), w=width, h=height)
    return panel


def _panel(spec: dict[str, Any]) -> Any:
    _, wr = _modules()
    kind = spec["kind"]
    if kind == "scatter":
        return wr.ScatterPlot(title=spec["title"], x=_value(wr, spec["x"]), y=_value(wr, spec["y"]), running_ymin=True)
    if kind == "scalar":
        return wr.ScalarChart(title=spec["metric"].partition(":")[2], metric=_value(wr, spec["metric"]))
    if kind == "bar":
        return wr.BarPlot(
            title=spec["title"], metrics=[_value(wr, spec["metric"])], groupby=_value(wr, spec["group"]),
            groupby_aggfunc="mean", groupby_rangefunc="stderr", orientation="h",
        )  # fmt: skip
    if kind == "parallel":
        return wr.ParallelCoordinatesPlot(
            title=spec["title"],
            columns=[
                wr.ParallelCoordinatesPlotColumn(_value(wr, name), inverted=name in spec["inverted"])
                for name in spec["columns"]
            ],
        )
    if kind == "importance":
        return wr.ParameterImportancePlot(with_respect_to=spec["metric"].partition(":")[2])
    if kind == "line":
        return wr.LinePlot(
            title=spec["title"],
            x=spec["x"].partition(":")[2],
            y=[name.partition(":")[2] for name in spec["y"]],
            **(
                {"groupby": _value(wr, spec["group"]), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
                if spec["group"]
                else {}
            ),
        )
    if kind == "comparer":
        return wr.RunComparer(diff_only="split")
    if kind == "media":
        return wr.MediaBrowser(media_keys=[name.partition(":")[2] for name in spec["keys"]])
    raise ValueError(f"dashboard: no such kind of panel: {kind}")


def _value(wr: Any, name: str) -> Any:
    """`config:mapping.tau_f` -> W&B's Config."""
    source, _, key = name.partition(":")
    return {"config": wr.Config, "summary": wr.SummaryMetric, "history": wr.Metric, "run": wr.Metric}[source](key)


def _column(name: str) -> str:
    """`config:mapping.tau_f` -> `config:mapping.value.tau_f`, as the table of runs names it."""
    source, _, key = name.partition(":")
    if source != "config":
        return name
    first, dot, rest = key.partition(".")
    return f"config:{first}.value{dot}{rest}"


def _ordering(ws: Any, entry: dict[str, Any]) -> Any:
    return ws.Ordering(ws.Summary(entry["by"].partition(":")[2]), ascending=entry["ascending"])


def _modules() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            # its own use of pydantic's older names
            warnings.simplefilter("ignore", DeprecationWarning)
            import wandb_workspaces.reports.v2 as reports
            import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ConfigError(
            f"dashboard: need the package wandb-workspaces to publish, got none ({error}). "
            "pip install 'rapidun[dashboard]'"
        ) from None
    return workspaces, reports
