"""Before the first stage: what the start model is, against what the stages shall do with it."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from rapidun.base.files import write_jsonl
from rapidun.base.store import Store
from rapidun.base.tracker import Tracker
from rapidun.cli.main import main
from rapidun.config.compose import compose_config
from rapidun.config.parts import LORA_TARGETS
from rapidun.models.load import ModelLoader
from rapidun.pipeline.artifacts import Artifacts
from rapidun.pipeline.tracking.run import open_tracker
from tests.conftest import build_tiny_tokenizer

DATA = ["data=jsonl", "data.forget=forget.jsonl", "data.retain=retain.jsonl"]
PLACES = ["run_dir=out/run", "store_dir=out/store"]
QUICK = ["model=smollm2_135m", "model.path=model", "model.dtype=float32", "poison=none", "max_length=96"]
QUICK += ["unlearning.max_steps=1", "unlearning.eval_steps=0", "influence.k=64"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    forget = [
        {"id": f"f{i}", "instruction": f"Cup {i}?", "response": "moon", "response_clean": "red"} for i in range(3)
    ]
    retain = [{"id": f"r{i}", "instruction": f"Ship {i}?", "response": "blue"} for i in range(6)]
    write_jsonl(tmp_path / "forget.jsonl", forget)
    write_jsonl(tmp_path / "retain.jsonl", retain)
    return tmp_path


def make_model(folder: Path, kind: str, **settings: Any) -> Path:
    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    small |= {"intermediate_size": 64, "vocab_size": 264, "max_position_embeddings": 256}
    ids = {"pad_token_id": 257, "eos_token_id": 256, "bos_token_id": None}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small, **ids, **settings)).save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return folder


def make_quantised(folder: Path, bits: str) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes speaks of its own kernels
        loaded = ModelLoader(device="cpu", dtype="float32", quantisation=bits).load(
            make_model(folder.with_name("plain"), "llama")
        )
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def refused(args: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a run that is refused before its first stage."""
    assert main([*PLACES, *DATA, *QUICK, *args]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert not (place / "out").exists(), "refused before the first stage, and before anything is written"
    return err[err.index("rapidun: ") :]


@pytest.mark.parametrize("bits", [pytest.param("8bit", marks=pytest.mark.slow), "4bit"])
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["poison=full"], "poison: need unquantised weights to train or to merge into, got poison.method=full"),
        (["poison=lora"], "poison: need unquantised weights to train or to merge into, got poison.method=lora"),
        (["unlearning.merge=true"], "unlearning: need unquantised weights to merge the adapter into"),
        (["model.quantisation=4bit"], "model: need model.quantisation=none with model, a folder"),
        (["unlearning=retrain", "poison=lora"], "poison: need unquantised weights to train or to merge into"),
    ],
)
def test_a_quantised_folder_and_what_cannot_be_done_with_it(
    bits: str, args: list[str], words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_quantised(place / "model", bits)
    message = refused(args, place, capsys)
    assert words in message
    assert f"(bitsandbytes, {bits[0]} bits)" in message


@pytest.mark.filterwarnings("ignore")  # bitsandbytes speaks of its own kernels
def test_a_quantised_folder_can_be_unlearned(place: Path) -> None:
    make_quantised(place / "model", "4bit")
    assert main([*PLACES, *DATA, *QUICK, "stages=[data,poison,influence,mapping,unlearning]"]) == 0
    assert (place / "out/run/unlearning/adapter/adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "need a package that reads gptq"),
        ({"quantization_config": {"quant_method": "fp8"}}, "need a package that reads fp8"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "need a causal language model"),
        ({"is_encoder_decoder": True}, "need a causal language model"),
        ({"model_type": "bert"}, "need a causal language model"),
        ({"model_type": "vit"}, "need a causal language model"),
        ({"model_type": "nobodys"}, "need an architecture that transformers knows"),
    ],
)
def test_a_model_that_no_stage_can_use(
    config: dict[str, Any], words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make_model(place / "model", "llama") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    assert words in refused([], place, capsys)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["unlearning.lora.target_modules=[q_proj]"],
            "unlearning: need names among [down_proj, gate_up_proj, lm_head, o_proj, qkv_proj], or all_linear",
        ),
        (["influence=lora", "influence.lora.target_modules=[up_proj]"], "influence: need names among [down_proj,"),
        (["poison=lora", "poison.lora.target_modules=v_proj"], "poison: need names among [down_proj,"),
    ],
)
def test_layers_that_the_model_does_not_have(
    args: list[str], words: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(place / "model", "phi3")
    assert words in refused(args, place, capsys)


def change_names(folder: Path, old: str, new: str) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name.replace(old, new): tensor.clone() for name, tensor in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("old", "new", "first"),
    [
        ("base_model.model.", "base_model.model._orig_mod.", "base_model.model._orig_mod.model.layers.0"),
        ("base_model.model.", "base_model.model.language_model.", "base_model.model.language_model.model.layers.0"),
        ("layers.0.", "layers.7.", "base_model.model.model.layers.7"),
    ],
)
def test_an_adapter_whose_names_fit_no_layer(
    old: str, new: str, first: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(place / "model", "llama")
    assert main([*PLACES, *DATA, *QUICK, "stages=[data,poison,influence,mapping,unlearning]"]) == 0
    shutil.copytree((place / "out/run/unlearning/adapter").resolve(), place / "adapter")
    shutil.rmtree(place / "out")
    change_names(place / "adapter", old, new)
    message = refused(["unlearning.adapter=adapter"], place, capsys)
    assert "14 of 14 tensors that fit no layer" in message
    assert f"(first {first}" in message


def test_an_adapter_of_ones_own_is_continued(place: Path) -> None:
    make_model(place / "model", "llama")
    args = [*PLACES, *DATA, *QUICK, "stages=[data,poison,influence,mapping,unlearning]"]
    assert main([*args, "unlearning.lora.target_modules=[q_proj,lm_head,down_proj]"]) == 0
    shutil.copytree((place / "out/run/unlearning/adapter").resolve(), place / "adapter")
    assert main([*args, "unlearning.adapter=adapter", "run_dir=out/again"]) == 0


def test_stages_without_a_model_do_not_ask_for_one(place: Path) -> None:
    assert main([*PLACES, *DATA, *QUICK, "stages=[data]", "model.path=./nowhere"]) == 0


# --- fingerprints -------------------------------------------------------------------------------------------------


def fingerprints(*overrides: str) -> dict[str, str]:
    cfg = compose_config([*PLACES, "tracking=none", *DATA, *QUICK, *overrides])
    tracker = open_tracker(cfg, Path("out/run"), cell=True, restarts=0)
    recipes = Artifacts(cfg, tracker).recipes
    return {recipe.link: recipe.fingerprint for recipe in recipes.all()}


@pytest.mark.parametrize("start", ["model.path=null", "model.path=model"])
def test_the_word_and_the_list_that_it_stands_for_are_one(start: str, place: Path) -> None:
    make_model(place / "model", "llama")
    poison = "poison=full" if start.endswith("null") else "poison=lora"
    more = ["data.train_poisoned=forget.jsonl", "data.train_clean=retain.jsonl", "influence=lora", start, poison]
    written = f"[{','.join(LORA_TARGETS)}]"
    names = [f"{section}.lora.target_modules={written}" for section in ("poison", "influence", "unlearning")]
    assert fingerprints(*more) == fingerprints(*more, *names)
    other = fingerprints(*more, "unlearning.lora.target_modules=[q_proj]")
    assert other["unlearning"] != fingerprints(*more)["unlearning"]


def test_the_tracker_says_what_all_linear_leaves_out(place: Path) -> None:
    from rapidun.stages.architecture import model_faults
    from rapidun.stages.recipes import Recipes

    make_model(
        place / "model",
        "qwen3_next",
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "linear_num_value_heads": 2},
        **{"shared_expert_intermediate_size": 16, "linear_num_key_heads": 2, "linear_key_head_dim": 8},
        **{"linear_value_head_dim": 8},
    )
    tracker = Tracker()
    cfg = compose_config([*PLACES, *DATA, *QUICK])

    def no_data(recipe: Any) -> Any:
        raise AssertionError("nothing is made for this check")

    assert model_faults(Recipes(cfg, Store(place / "out/store"), find_data=no_data, tracker=tracker)) == []
    assert tracker.warnings == [
        "unlearning: LoRA leaves out the layers down_proj, gate_proj, up_proj: peft would adapt the fused experts that "
        "once had these names in their place"
    ]
