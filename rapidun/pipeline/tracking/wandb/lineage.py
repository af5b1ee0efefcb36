"""Artifacts in W&B: named by fingerprint, each stage's linked to those that it was made from."""

from pathlib import Path
from typing import Any

# the files that go up with the manifest; models and packs stay where they are and leave their manifest only
FILES = {
    "influence": ("scores.safetensors", "ids.json"),
    "mapping": ("forget_weights.jsonl", "retain_weights.jsonl", "diagnostics.json"),
    "unlearning": ("adapter",),
    "edit": ("adapter", "edits.json"),
    "evaluation": ("metrics.json",),
    "attack": ("attack.json",),
    "privacy": ("privacy.json",),
    "lm_eval": ("lm_eval.json",),
}


def make_artifact(folder: Path, manifest: dict[str, Any]) -> Any:
    """A wandb.Artifact of a folder of the store: its manifest and what FILES lists of it."""
    import wandb

    kind = folder.parent.name
    metadata = {
        key: manifest[key] for key in ("stage", "fingerprint", "seconds", "made", "packages") if key in manifest
    }
    artifact = wandb.Artifact(f"{kind}-{folder.name}", type=kind, metadata=metadata)
    # the store's files never change, so that W&B need not copy them first
    for name in ("manifest.json", *FILES.get(kind, ())):
        path = folder / name
        if path.is_dir():
            artifact.add_dir(str(path), name=name, policy="immutable", skip_cache=True)
        elif path.is_file():
            artifact.add_file(str(path), name=name, policy="immutable", skip_cache=True)
    return artifact


def note_use(run: Any, artifact: Any) -> None:
    """Record that a run reads an artifact, which goes up if it is not there yet."""
    if run.offline:
        # use_artifact refuses offline runs; this is what it does for them once they are synced
        run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)
    else:
        run.use_artifact(artifact)
