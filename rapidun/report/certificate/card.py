"""README.md of an exported model (a Hugging Face model card): what it is, what was measured of it, its limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapidun.base.nested import at, leaves
from rapidun.base.redact import hide
from rapidun.report.certificate import sources
from rapidun.report.certificate.document import make_document, of_run
from rapidun.report.forgotten import of_facts
from rapidun.report.metrics import ABSENT, format_percent
from rapidun.report.read import RunRecord, read_object

if TYPE_CHECKING:
    import jinja2

# stages of whose artifact every setting is shown that it depends on; all of them stand in the run's config.yaml
SHOWN = ("mapping", "unlearning")
# what marks up, or ends, a line or a table's cell
_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_[]<>|#"} | {"\n": " ", "\r": " "})


def make_card(run: RunRecord, *, what: str, base: str, verified: Mapping[str, Any]) -> str:
    """The card as Markdown.

    Args: what: a sentence on what the folder holds. base: of an adapter, what its config names; else empty. verified:
        what `rapidun verify` looked at.
    """
    stored = sources.artifacts(run)
    if run.after:
        document = make_document(run, verified=verified)
    else:
        facts = of_facts(run.before)
        document = {
            "verdict": None, "tried": [], "kept": [], "limits": [], "not_tried": [], "run": of_run(run, stored),
            "forgotten": sources.forgotten(run, of_facts=facts), "chosen": sources.chosen(run),
        }  # fmt: skip
    card: str = (
        environment()
        .get_template("card.md.j2")
        .render(
            **{name: hide(document[name]) for name in NEEDED},
            what=what,
            base=base,
            local=Path(base).is_absolute() if base else False,
            settings=hide(settings_of(run.path)),
            command=_unfenced(run.command),
            digest=verified.get("digest", ""),
        )
    )
    return card


NEEDED = ("run", "verdict", "tried", "kept", "forgotten", "chosen", "limits", "not_tried")


def environment() -> jinja2.Environment:
    """What renders a card's template."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown: `cell` and `line` take the marks of what is not ours
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(cell=_plain, line=_line, share=_share)
    return made


def settings_of(run_dir: Path) -> list[tuple[str, Any]]:
    """Every setting that the artifacts of SHOWN depend on."""
    return [
        (f"{stage}.{key}", value)
        for stage in SHOWN
        for key, value in leaves(at(read_object(run_dir / stage / "manifest.json"), "inputs.settings") or {})
        if value is not None
    ]


def made_with(run_dir: Path) -> str:
    """The command of a run, as it stands between fences."""
    file = run_dir / "command.txt"
    return _unfenced(file.read_text(encoding="utf-8") if file.is_file() else "")


def _plain(value: Any) -> str:
    """Text of others in a line of Markdown: its marks mean nothing."""
    return str(value).translate(_MARKS)


def _line(value: Any) -> str:
    """Our own sentences, in one line, with nothing in them that is taken for HTML."""
    return str(value).replace("\n", " ").replace("<", "\\<")


def _share(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ABSENT
    low, high = value.get("low"), value.get("high")
    interval = "" if low is None or high is None else f" [{format_percent(low)}, {format_percent(high)}]"
    return f"{format_percent(value['share'])}{interval}"


def _unfenced(command: str) -> str:
    """A command between fences, which it cannot end."""
    return command.strip().replace("```", "` ` `")
