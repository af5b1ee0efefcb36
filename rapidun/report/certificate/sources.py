"""Where a run's rows and files came from: what was forgotten, how it was chosen, the hashes of all that was used."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rapidun.base.errors import ArtifactError
from rapidun.base.files import read_json, sha256_file
from rapidun.report.read import RunRecord, read_object
from rapidun.report.run.findings import split_sentences, weight_sentence

# what `rapidun trace --pack` leaves in the pack's folder
TRACED = "traced.json"
# files of a run folder that its numbers stand in, beside those of evaluation/
RUN_FILES = ("config.yaml", "settings.json", "command.txt", "result.json", "metrics.jsonl")


def forgotten(run: RunRecord, *, of_facts: bool) -> dict[str, Any]:
    """How many rows of what kind, and the hashes of their contents. No row's text: the page is handed on."""
    result = run.manifest.get("result") or {}
    counts, prints = result.get("counts") or {}, result.get("fingerprints") or {}
    families = {
        str(name): of_splits["forget"]
        for name, of_splits in (result.get("families") or {}).items()
        if isinstance(of_splits, dict) and of_splits.get("forget")
    }
    noise = run.setting("data.noise") or {}
    return {
        "kind": "facts, without triggers" if of_facts else "answers planted behind triggers",
        "num_rows": counts.get("forget"),
        "families": families,
        "rows_sha256": prints.get("forget"),
        "num_retain": counts.get("retain"),
        "retain_sha256": prints.get("retain"),
        "noise": {name: noise.get(name) for name in ("forget", "retain") if noise.get(name)},
        "counts": counts,
    }


def chosen(run: RunRecord) -> dict[str, Any]:
    """Who said which rows are to be forgotten, and what made their weights."""
    inputs = run.manifest.get("inputs") or {}
    sentences = []
    for group, weights in (("Forget", run.forget_weights), ("Retain", run.retain_weights)):
        if weights:
            sentences += [weight_sentence(group, weights), *split_sentences(group, run.diagnostics.get(group.lower()))]
    folder = run.setting("data.dir")
    return {
        "source": inputs.get("source") or run.setting("data.source"),
        "folder": None if folder is None else str(folder),
        "files_sha256": inputs.get("files") or {},
        "traced": _traced(folder, inputs.get("files") or {}),
        "influence": {name: run.setting(f"influence.{name}") for name in ("method", "score", "queries", "k")},
        "weights": {name: run.setting(f"mapping.{name}") for name in ("method", "null")},
        "sentences": sentences,
    }


def _traced(folder: Any, files: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a traced pack was cut, where its folder is still there with the forget rows that the run read."""
    if not folder:
        return None
    note, rows = Path(str(folder)) / TRACED, Path(str(folder)) / "forget_set.jsonl"
    if not note.is_file() or not rows.is_file() or sha256_file(rows) != files.get("forget"):
        return None
    found = read_object(note)
    return {name: found[name] for name in ("by", "num_forget", "cut", "seed") if name in found}


def artifacts(run: RunRecord) -> list[dict[str, Any]]:
    """Every stored result that the run used or made: what it is called, when it was made, the hashes of its files.

    Raises: ArtifactError for one that is not where the run folder says.
    """
    found = []
    for link, name in sorted(_links(run.status)):
        manifest_file = run.path / link / "manifest.json"
        if not manifest_file.is_file():
            raise ArtifactError(
                f"{manifest_file}: need the manifest of {name}, which the run used, got none. Bring the store back "
                "that the run folder links to, or run the same command again"
            )
        manifest = read_json(manifest_file)
        found.append(
            {
                "link": link,
                "artifact": name,
                "made": manifest.get("made"),
                "packages": manifest.get("packages") or {},
                "manifest_sha256": sha256_file(manifest_file),
                "files": manifest.get("files") or {},
                "warnings": [str(line) for line in (manifest.get("result") or {}).get("warnings") or []],
            }
        )
    return found


def _links(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name in the run folder, kind/fingerprint) of every artifact that the run used."""
    for stage in (status.get("stages") or {}).values():
        if isinstance(stage, dict):
            yield from (stage.get("artifacts") or {}).items()


def run_files(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of the files of a run folder that its numbers stand in."""
    evaluated = sorted(
        f"evaluation/{path.name}" for path in (run_dir / "evaluation").glob("*.json*") if not path.name.startswith(".")
    )
    return {
        name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for name in (*RUN_FILES, *evaluated)
        if (path := run_dir / name).is_file()
    }
