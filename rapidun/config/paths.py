"""Where the config files are: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path

from rapidun.config import extensions


def config_dir() -> Path:
    """The folder with config.yaml and one folder for each group."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def config_groups(extra_dir: Path | None = None) -> dict[str, list[str]]:
    """The choices of each config group, sorted; Hydra's own groups are left out."""
    groups: dict[str, set[str]] = {}
    for root in (config_dir(), *([extra_dir] if extra_dir else [])):
        for file in root.glob("*/**/*.yaml"):
            group, *rest = file.relative_to(root).with_suffix("").parts
            if group != "hydra":
                groups.setdefault(group, set()).add("/".join(rest))
    for group in extensions.GROUPS:
        groups.setdefault(group, set()).update(extensions.names_of(group))
    return {group: sorted(choices) for group, choices in sorted(groups.items())}
