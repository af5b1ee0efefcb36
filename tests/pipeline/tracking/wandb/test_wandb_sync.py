from pathlib import Path

import pytest

from rapidun.base.errors import ConfigError, DataError
from rapidun.cli import wandb as wandb_sync
from rapidun.cli.wandb import main, offline_runs


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for cell, run in (("aaaa", "offline-run-20260102_000000-x-r1"), ("bbbb", "offline-run-20260101_000000-x")):
        folder = tmp_path / "sweep" / cell / "wandb" / run
        folder.mkdir(parents=True)
        (folder / "run-x.wandb").write_bytes(b":W&B\0\0\0 and records")
    killed_at_once = tmp_path / "sweep" / "aaaa" / "wandb" / "offline-run-20260103_000000-empty"
    killed_at_once.mkdir()
    (killed_at_once / "run-empty.wandb").write_bytes(b":W&B\0\0\0")
    return tmp_path / "sweep"


def test_runs_are_found_oldest_first(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [run.name for run in offline_runs(sweep)]
    assert names == ["offline-run-20260101_000000-x", "offline-run-20260102_000000-x-r1"]
    (sweep / "bbbb" / "wandb" / names[0] / "run-x.wandb.synced").write_text("")
    assert main(["sync", str(sweep), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "2 offline runs" in out and "1 of them synced before" in out
    assert out.count("would sync") == 1 and names[1] in out


def test_without_a_key_it_says_what_to_do(sweep: Path) -> None:
    with pytest.raises(ConfigError, match=r"need a W&B key, got none\. Run `wandb login` once, or set WANDB_API_KEY"):
        main(["sync", str(sweep)])
    with pytest.raises(DataError, match="need a folder"):
        main(["sync", str(sweep / "absent")])


def test_without_a_server_the_runs_are_kept(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "f00dfacef00dfacef00dfacef00dfacef00dface")
    assert main(["sync", str(sweep)]) == 1
    assert "the W&B server does not answer; nothing was uploaded" in capsys.readouterr().err
    assert len(offline_runs(sweep)) == 2


def test_uploads_are_counted_by_wandbs_mark(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B's command ends with 0 even where it could not upload."""
    monkeypatch.setattr(wandb_sync, "has_key", lambda address: True)
    monkeypatch.setattr(wandb_sync, "answers", lambda address: True)
    called: list[list[str]] = []

    def run(command: list[str], **options: object) -> None:
        called.append(command)
        (Path(command[-1]) / "run-x.wandb.synced").write_text("")

    monkeypatch.setattr(wandb_sync.subprocess, "run", run)
    assert main(["sync", str(sweep)]) == 1
    assert [command[1:4] for command in called] == [["-m", "wandb", "sync"]]
    assert [Path(path).name for path in called[0][4:]] == [run.name for run in offline_runs(sweep)]
    said = capsys.readouterr()
    assert "1 of 2 runs uploaded" in said.out
    assert "not uploaded: " in said.err
    assert main(["sync", str(sweep)]) == 0
    assert called[1][4:] == called[0][4:5]
