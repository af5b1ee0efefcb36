"""Adapter files against the model they are put on: every factor has its place, or the folder is refused with names."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from rapidun.base.errors import ModelError
from rapidun.models.load import load_adapter, peft_renaming
from tests.conftest import build_tiny_model

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
IDS = torch.tensor([[5, 6, 7, 8]])


def adapted(model: Any, **settings: Any) -> Any:
    torch.manual_seed(1)
    given = {"r": 4, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    with peft_renaming():
        return get_peft_model(model, LoraConfig(**(given | settings))).eval()


def saved(folder: Path, change: Change = dict, *, base: Any = None, **settings: Any) -> Path:
    """A trained adapter of the tiny model, its tensors changed."""
    adapted(base or build_tiny_model(), **settings).save_pretrained(folder, save_embedding_layers=False)
    file = folder / "adapter_model.safetensors"
    save_file({name: t.clone() for name, t in change(load_file(file)).items()}, file)
    return folder


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def names(old: str, new: str) -> Change:
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def without(word: str) -> Change:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if word not in name}


def spoilt(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    next(iter(tensors.values()))[0, 0] = float("nan")
    return tensors


FIRST = "base_model.model.model.layers.0.mlp.up_proj.lora_A"
REFUSED: dict[str, tuple[Change, dict[str, Any], str]] = {
    "of a compiled model": (
        names("base_model.model.", "base_model.model._orig_mod."),
        {},
        f"8 factors that it lacks (first {FIRST}.default.weight) and 8 that the model has no place for (first "
        "base_model.model._orig_mod.model.layers.0.mlp.up_proj.lora_A.weight), whose names carry _orig_mod",
    ),
    "of a multimodal wrapper": (
        names("base_model.model.", "base_model.model.language_model."),
        {},
        "no place for (first base_model.model.language_model.model.layers.0",
    ),
    "a layer is missing": (without("layers.1."), {}, "4 factors that it lacks (first base_model.model.model.layers.1"),
    "no B of one module": (
        without("layers.0.mlp.up_proj.lora_B"),
        {},
        f"1 factors that it lacks (first {FIRST.replace('lora_A', 'lora_B')}",
    ),
    "targets that the file knows and the config does not": (
        lambda tensors: tensors | {f"{FIRST.replace('up_proj', 'down_proj')}.weight": torch.ones(4, 32)},
        {},
        "1 that the model has no place for (first base_model.model.model.layers.0.mlp.down_proj.lora_A",
    ),
    "of a wider model": (dict, {"base": build_tiny_model(hidden_size=32)}, "need one made for this model"),
    "not a number": (spoilt, {}, "need finite weights"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_adapter_that_does_not_fit_is_refused_with_names(what: str, tiny_model: Any, tmp_path: Path) -> None:
    change, settings, said = REFUSED[what]
    folder = saved(tmp_path / "a", change, **settings)
    with pytest.raises(ModelError, match=re.escape(said)):
        load_adapter(tiny_model, folder)


def test_an_adapter_of_a_deeper_model_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    config = build_tiny_model().config
    config.num_hidden_layers = 3
    folder = saved(tmp_path / "a", base=LlamaForCausalLM(config))
    with pytest.raises(ModelError, match=r"4 that the model has no place for \(first base_model.model.model.layers.2"):
        load_adapter(tiny_model, folder)


def test_targets_that_the_model_does_not_have_are_refused(tiny_model: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    config = json.loads((folder / "adapter_config.json").read_text()) | {"target_modules": ["query_key_value"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="query_key_value"):
        load_adapter(tiny_model, folder)


def test_a_classifiers_adapter_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.score.weight": torch.ones(2, 16)}, file)
    with pytest.raises(ModelError, match=r"adapter: need one made for"):
        load_adapter(tiny_model, folder)


RIGHT: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank patterns": {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"up_proj": 9}},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "some layers": {"layers_to_transform": [1]},
    "the head as a whole": {"modules_to_save": ["lm_head"]},
    "no task": {"task_type": None},
    "the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("how", RIGHT)
def test_right_adapters_are_loaded_as_peft_loads_them(how: str, trainable: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", **RIGHT[how])
    said: list[str] = []
    ours = load_adapter(build_tiny_model().eval(), folder, trainable=trainable, say=said.append).eval()
    with peft_renaming():
        theirs = PeftModel.from_pretrained(build_tiny_model().eval(), str(folder), is_trainable=trainable).eval()
    assert type(ours) is type(theirs)
    assert torch.equal(logits(ours), logits(theirs))
    assert not torch.equal(logits(ours), logits(build_tiny_model().eval()))
    wanted = {name for name, p in theirs.named_parameters() if p.requires_grad}
    assert {name for name, p in ours.named_parameters() if p.requires_grad} == wanted
    assert bool(wanted) is trainable
    assert said == []


def test_an_adapter_that_was_never_trained_is_spoken_of(tiny_model: Any, tmp_path: Path) -> None:
    said: list[str] = []
    load_adapter(tiny_model, saved(tmp_path / "a", init_lora_weights=True), say=said.append)
    assert len(said) == 1
    assert "all 4 B matrices" in said[0]


def test_one_b_that_is_zero_is_nothing_to_speak_of(tiny_model: Any, tmp_path: Path) -> None:
    def one(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"].zero_()
        return tensors

    said: list[str] = []
    load_adapter(tiny_model, saved(tmp_path / "a", one), say=said.append)
    assert said == []
