"""model=hf: what the size of a model decides, read without its weights."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rapidun.base.errors import ConfigError, ModelError
from rapidun.cli.main import main
from rapidun.config.compose import compose_run
from rapidun.config.paths import config_dir
from rapidun.config.run import BY_SIZE
from rapidun.models.neutral import num_parameters, read_header, settle
from rapidun.stages.context import Memo
from rapidun.stages.poison.recipe import settle_by_size

# parameters, method -> poison's rate, rows in a pass, passes in a step, unlearning's rate; as conf/model/hf.yaml says
TABLE = [
    (134.5e6, "full", (1e-4, 8, 1, 5e-4)),
    (350e6, "full", (1e-4, 8, 1, 5e-4)),
    (494e6, "full", (5e-5, 8, 1, 2e-4)),
    (1.5e9, "lora", (2e-4, 8, 1, 2e-4)),
    (8.03e9, "full", (2e-5, 2, 4, 6e-5)),
    (70e9, "lora", (2e-4, 2, 4, 6e-5)),
]


@pytest.mark.parametrize(("number", "method", "expected"), TABLE)
def test_the_size_decides_what_nobody_set(number: float, method: str, expected: tuple[float, ...]) -> None:
    cfg = compose_run(["model=hf", "model.path=DIR", f"poison={method}"]).cfg
    line = settle(cfg, lambda: int(number))
    poison = cfg.poison
    assert (
        poison.learning_rate, poison.per_device_train_batch_size, poison.gradient_accumulation_steps,
        cfg.unlearning.learning_rate,
    ) == expected  # fmt: skip
    assert (poison.num_train_epochs, cfg.unlearning.num_train_epochs) == (2, 2)
    assert all(getattr(getattr(cfg, section), name) is not None for section, name in BY_SIZE)
    assert f"poison.learning_rate={expected[0]:g}" in line and "million parameters" in line


def test_the_published_and_the_measured_settings_are_those_of_their_presets() -> None:
    """SmolLM2's file and RapidUn's own numbers (docs/method.md, section 5) stand at the two ends of the table."""
    small, smol = (compose_run([name, "model.path=DIR"]).cfg for name in ("model=hf", "model=smollm2_135m"))
    settle(small, lambda: 134_515_008)
    large, llama = (compose_run([name, "model.path=DIR"]).cfg for name in ("model=hf", "model=llama3_8b"))
    settle(large, lambda: 8_030_261_248)
    for mine, theirs in ((small, smol), (large, llama)):
        for section in ("poison", "unlearning"):
            found, known = getattr(mine, section), getattr(theirs, section)
            assert found.learning_rate == known.learning_rate
            assert found.num_train_epochs == known.num_train_epochs
        assert mine.poison.per_device_train_batch_size * mine.poison.gradient_accumulation_steps == 8


def test_what_is_set_stays() -> None:
    overrides = ["poison.learning_rate=3e-3", "unlearning.learning_rate=7e-4", "poison.per_device_train_batch_size=4"]
    cfg = compose_run(["model=hf", "model.path=DIR", *overrides]).cfg
    line = settle(cfg, lambda: 8_000_000_000)
    assert (cfg.poison.learning_rate, cfg.unlearning.learning_rate) == (3e-3, 7e-4)
    # typed rows of a pass are not multiplied
    assert (cfg.poison.per_device_train_batch_size, cfg.poison.gradient_accumulation_steps) == (4, 1)
    assert "learning_rate" not in line
    cfg = compose_run(["model=smollm2_135m", "model.path=DIR"]).cfg
    assert settle(cfg, lambda: pytest.fail("nothing is open: no size is asked for")) == ""


def test_a_model_from_scratch_has_no_size_to_go_by() -> None:
    for wrong in (["model=hf"], ["poison.learning_rate=null"], ["unlearning.gradient_accumulation_steps=null"]):
        with pytest.raises(ConfigError, match=r"model\.path"):
            compose_run(wrong)


def save(folder: Path, **tensors: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({name.replace("_", "."): value for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


def test_parameters_are_counted_in_the_headers(tmp_path: Path, tiny_model_dir: Path) -> None:
    folder = save(tmp_path / "a", a=np.zeros((3, 5), "f4"), b=np.zeros(7, "f4"))
    save_file({"c": np.zeros((2, 2), "f2")}, folder / "model-00002.safetensors")
    assert num_parameters(folder) == 26
    from transformers import AutoModelForCausalLM

    # a tied head is kept once
    assert num_parameters(tiny_model_dir) == AutoModelForCausalLM.from_pretrained(tiny_model_dir).num_parameters()


def test_packed_weights_count_as_what_they_hold(tmp_path: Path) -> None:
    folder = save(
        tmp_path / "a", q_weight=np.zeros((50, 1), "u1"), q_weight_absmax=np.zeros(9, "f4"), n=np.zeros(6, "f4")
    )
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}))
    assert num_parameters(folder) == 106
    folder = save(tmp_path / "b", q_qweight=np.zeros((4, 3), "i4"))
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    assert num_parameters(folder) == 96


@pytest.mark.parametrize(
    "content",
    [
        b"", b"x", b"\0" * 64, (10).to_bytes(8, "little") + b"{" * 10, (2).to_bytes(8, "little") + b"[]",
        (1 << 62).to_bytes(8, "little"), (9).to_bytes(8, "little") + b'{"a": {}}', b"version https://git-lfs",
        (57).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}  ',
    ],
)  # fmt: skip
def test_a_header_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        read_header(tmp_path / "model.safetensors")


def test_the_head_of_the_file_has_the_numbers_of_the_code() -> None:
    head = (config_dir() / "model/hf.yaml").read_text(encoding="utf-8")
    for number in ("1e-4", "5e-4", "5e-5", "2e-4", "2e-5", "6e-5", "2 x 4", "350 million", "3 billion"):
        assert number in head


def test_a_run_says_and_keeps_what_the_size_decided(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["debug=fast", "model=hf", f"model.path={tiny_model_dir}", "stages=[data]", "run_dir=out"]
    assert main(args) == 0
    assert "so poison.learning_rate=0.0001" in capsys.readouterr().out
    text = (tmp_path / "out/config.yaml").read_text()
    assert (
        "learning_rate: 0.0001" in text
        and "learning_rate: 0.0005" in text
        and "null" not in text.split("poison:")[1].split("\n")[1]
    )
    again = compose_run(["model=hf", f"model.path={tiny_model_dir}"]).cfg
    assert main([*args[:-2], "stages=[poison]", "run_dir=out"]) == 0, "the same folder takes further stages"
    # for the pack alone the model need not be there
    assert main(["debug=fast", "model=hf", "model.path=./nowhere", "stages=[data]", "run_dir=other"]) == 0
    memo = Memo()
    assert settle_by_size(again, memo) and settle_by_size(again, memo) == ""
    assert list(memo.known) == [("parameters", str(tiny_model_dir), None)]


@pytest.mark.slow
def test_all_stages_with_a_model_of_ones_own(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["debug=fast", "model=hf", f"model.path={tiny_model_dir}"]
    assert main([*args, "run_dir=out", "max_length=128"]) == 0
    assert main(["-m", *args, "max_length=128", "seed=1,2", "sweep.name=x"]) == 0
    settings = json.loads((tmp_path / "out/settings.json").read_text())
    assert (settings["poison"]["learning_rate"], settings["unlearning"]["learning_rate"]) == (1e-4, 5e-4)
