"""`rapidun doctor` says what is there and what will not work."""

from pathlib import Path

import pytest

from rapidun import doctor


def test_it_prints_versions_devices_memory_and_modes(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    for word in ("python", "torch", "bitsandbytes", "cpu", "gpu", "memory", "disk", "wandb mode", "model hub"):
        assert word in text, word


def test_a_missing_package_is_a_problem_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("gguf-that-is-not-there",))
    monkeypatch.setattr(doctor, "OPTIONAL", {})
    assert any("pip install gguf-that-is-not-there" in problem for problem in doctor.examine().problems)
    assert doctor.main([]) == 1


@pytest.mark.parametrize(
    ("env", "netrc", "mode"),
    [
        ({}, "", "offline"),
        ({"WANDB_API_KEY": "x" * 40}, "", "online"),
        ({}, "machine api.wandb.ai login user password x", "online"),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "x" * 40}, "", "disabled"),
    ],
)
def test_wandb_mode(
    env: dict[str, str], netrc: str, mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "netrc").write_text(netrc)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    shown = doctor.wandb_mode()
    assert shown.startswith(mode)
    assert "xxxx" not in shown
