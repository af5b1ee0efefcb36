"""Secrets planted wherever a user puts them: every byte that a run, a sweep and a later report leave is searched.

What must hold one to be of use is named here, and is for its owner alone.
"""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# no secret's value stands in another's
IN_JOBS = {"SITE_THING": "plain-name-of-the-site-7731", "HF_TOKEN": "not-even-hf-shaped-4412"}
IN_ENVIRONMENT = {"MY_SERVICE_KEY": "from-the-environment-9917"}
TAG = "ghp_0123456789abcdefghijABCDEFGHIJ012345"
# what a library may say when it fails
TOLD = {
    "hub": "hf_QwErTyUiOpAsDfGhJkLzXcVb",
    "wandb": "f00dfacef00dfacef00dfacef00dfacef00dface",
    "openai": "sk-proj-abcdEFGH1234ijklMNOP5678",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "password": "pass-in-address-5521",
    "bearer": "bearer0123456789abcdefXYZ",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "named": "short-but-named-1",
}
MESSAGE = (
    f"401 for https://me:{TOLD['password']}@host/x with {TOLD['hub']}, wandb login {TOLD['wandb']}, {TOLD['openai']}, "
    f"id {TOLD['aws']}; Authorization: Bearer {TOLD['bearer']}; {TOLD['jwt']}; SOME_TOKEN={TOLD['named']} "
    f"{IN_ENVIRONMENT['MY_SERVICE_KEY']} and {IN_JOBS['SITE_THING']}"
)
SECRETS = [*IN_JOBS.values(), *IN_ENVIRONMENT.values(), *TOLD.values(), TAG]
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# the stage fails for seed 1, as a library would
DRIVER = f"""
import sys
from rapidun.pipeline import artifacts, folder
real = artifacts.Artifacts.run_stage
def run_stage(self, stage):
    if self.cfg.seed == 1:
        raise RuntimeError({MESSAGE!r})
    return real(self, stage)
artifacts.Artifacts.run_stage = run_stage
folder.git_commit = lambda: {COMMIT!r}
from rapidun.cli.main import main
sys.exit(main())
"""
PLAIN = [
    "debug=fast", "stages=[data]", f"tracking.tags=[{TAG}]",
    "+cluster.environment={" + ",".join(f"{name}:{value}" for name, value in IN_JOBS.items()) + "}",
]  # fmt: skip


def command(cwd: Path, *argv: str, secrets: bool = True, expect: int = 0) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in IN_ENVIRONMENT}
    environment |= {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "TRACKIO_DIR": str(cwd / "trackio")}
    environment |= {"HYDRA_FULL_ERROR": "1", **(IN_ENVIRONMENT if secrets else {})}
    code = DRIVER if secrets else "import sys; from rapidun.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def holders(root: Path) -> dict[Path, list[str]]:
    """Files with a secret in them, and which."""
    found = {}
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            if inside := [secret for secret in SECRETS if secret.encode() in content]:
                found[path] = inside
    return found


@pytest.mark.parametrize("tracking", ["wandb", "tensorboard", "trackio"])
def test_a_failed_run_tells_no_secret(tmp_path: Path, tracking: str) -> None:
    pytest.importorskip(tracking if tracking != "tensorboard" else "tensorboard")
    printed = command(tmp_path, *PLAIN, "seed=1", f"tracking={tracking}", "run_dir=run", expect=1)
    assert "data failed: RuntimeError: 401 for https://host/x" in printed
    assert not [secret for secret in SECRETS if secret in printed]
    assert holders(tmp_path) == {}
    # what is not secret is there
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["git_commit"] == COMMIT and "401 for https://host/x with (hidden)" in status["error"]["message"]
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["cluster"]["environment"] == dict.fromkeys(IN_JOBS, "(hidden)")
    if tracking != "tensorboard":
        return
    # the same folder goes on, though what is hidden there cannot be compared
    command(tmp_path, *PLAIN, "seed=1", "run_dir=run", secrets=False)
    assert holders(tmp_path) == {}


def test_a_sweep_tells_no_secret(tmp_path: Path) -> None:
    """One cell done, one failed; then, from a shell without the variable, report, status, and the failed cell again."""
    command(tmp_path, "-m", *PLAIN, "seed=0,1", "sweep.name=grid", expect=1)
    grid = tmp_path / "outputs" / "sweeps" / "grid"
    found = holders(tmp_path)
    assert {path.parent for path in found} <= {grid, grid / "jobs"}, found
    assert {path.name for path in found if path.parent == grid} == {"private.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}
    # the jobs' variables stand in one file alone, for `rapidun sweep retry`
    assert [path.name for path, inside in found.items() if set(inside) & set(IN_JOBS.values())] == ["private.json"]
    pages = [path for path in grid.rglob("*") if path.name in ("report.html", "summary.csv", "summary.md")]
    assert len(pages) == 5
    shown = {path: path.read_bytes() for path in pages if path.name != "summary.csv"}
    assert all(b"401 for https://host/x" in text for path, text in shown.items() if path.parent == grid)
    for page in pages:
        page.unlink()
    command(tmp_path, "report", str(grid), secrets=False)
    [failed] = [path.parent for path in grid.glob("*/status.json") if json.loads(path.read_text())["state"] == "failed"]
    command(tmp_path, "report", str(failed), secrets=False)
    assert (failed / "report.html").is_file() and (grid / "report.html").is_file()
    command(tmp_path, "sweep", "status", str(grid), secrets=False, expect=1)
    command(tmp_path, "sweep", "retry", str(grid), secrets=False)
    later = holders(tmp_path)
    assert later.keys() >= found.keys() and {path.parent for path in later} == {path.parent for path in found}
    assert {stat.S_IMODE(path.stat().st_mode) for path in later} == {0o600}
    assert json.loads((grid / "private.json").read_text())["cluster"]["environment"] == IN_JOBS


def test_folders_of_before_are_shown_without_them(tmp_path: Path) -> None:
    """A run folder that holds secrets as they were typed: its page and the page of its sweep do not."""
    command(tmp_path, *PLAIN, "seed=1", "run_dir=run", secrets=False)
    run = tmp_path / "run"
    text = (run / "config.yaml").read_text().replace("SITE_THING: (hidden)", f"SITE_THING: {IN_JOBS['SITE_THING']}")
    assert IN_JOBS["SITE_THING"] in text
    (run / "config.yaml").write_text(text.replace("name: ", f"name: {TOLD['hub']}", 1))
    (run / "command.txt").write_text(f"python sweep.py cluster.environment.SITE_THING={IN_JOBS['SITE_THING']} seed=1\n")
    status = json.loads((run / "status.json").read_text())
    # values that nothing but the absent variables give away are the one thing that nobody can know later
    told = MESSAGE.partition(IN_ENVIRONMENT["MY_SERVICE_KEY"])[0]
    status |= {"state": "failed", "error": {"message": f"RuntimeError: {told}", "traceback": told}}
    (run / "status.json").write_text(json.dumps(status))
    for page in run.glob("report.html"):
        page.unlink()
    command(tmp_path, "report", str(run), secrets=False)
    page = (run / "report.html").read_text()
    assert [secret for secret in SECRETS if secret in page] == []
