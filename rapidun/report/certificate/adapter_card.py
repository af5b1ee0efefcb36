"""README.md of the adapter in a run folder: what it is, how to load it, what made it; what was measured comes later."""

from pathlib import Path

from rapidun.base.nested import at
from rapidun.base.redact import hide
from rapidun.report.certificate.card import environment, made_with, settings_of
from rapidun.report.read import read_object


def make_adapter_card(run_dir: Path, *, base: str) -> str:
    """The card as Markdown.

    Args: run_dir: with the links of mapping and unlearning, settings.json and command.txt. base: a hub id or an
        absolute path.
    """
    settings = read_object(run_dir / "settings.json")
    card: str = (
        environment()
        .get_template("adapter.md.j2")
        .render(
            base=base,
            local=Path(base).is_absolute(),
            objective=at(settings, "unlearning.objective"),
            weights=at(settings, "mapping.method"),
            seed=settings.get("seed"),
            settings=hide(settings_of(run_dir)),
            command=made_with(run_dir),
        )
    )
    return card
