"""Merging and saving: what is read back gives what was trained, weights that are tied included."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from rapidun.base.errors import ModelError
from rapidun.models import warm
from rapidun.models.adapters import confirm_adapter, confirm_saved, save_adapter, save_merged, untie_adapted
from rapidun.models.load import ModelLoader, load_adapter, peft_renaming
from rapidun.models.selfcheck import a_few, agrees, mean_loss
from tests.conftest import build_tiny_model, build_tiny_tokenizer

LOADER = ModelLoader(device="cpu", dtype="float32")
IDS = torch.tensor([[5, 6, 7, 8]])
ROWS = [([5, 6, 7, 8, 256], [-100, -100, 7, 8, 256]), ([9, 1, 2], [-100, 1, 2]), ([3, 4], [-100, 4])]


def adapted(model: Any, **settings: Any) -> Any:
    torch.manual_seed(1)
    given = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    with peft_renaming():
        model = get_peft_model(model, LoraConfig(**(given | settings))).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # B ~ N(0, 0.1), as in the report; a head that is trained as a whole moves as well
            torch.nn.init.normal_(parameter, std=0.1 if "lora_" in name else 0.3)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def merge(model: Any, out: Path, base: Path, **loader: Any) -> Any:
    save_merged(
        model,
        build_tiny_tokenizer(),
        out / "merged",
        start=base,
        loader=ModelLoader(**{"device": "cpu", "dtype": "float32", **loader}),
        work=out,
        rows=ROWS,
        section="poison",
    )
    return LOADER.load(out / "merged").model


TIED: dict[str, dict[str, Any]] = {
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "the embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "the head as a whole": {"modules_to_save": ["lm_head"]},
    "the embedding as a whole": {"modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("what", TIED)
def test_tied_weights_are_untied_before_a_merge(
    what: str, tiny_model: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = adapted(tiny_model, **TIED[what])
    expected = logits(model)
    merged = merge(model, tmp_path, tiny_model_dir)
    assert torch.allclose(logits(merged), expected, atol=1e-5)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    tensors = load_file(tmp_path / "merged" / "model.safetensors")
    assert not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])


def test_heads_that_no_adapter_touches_stay_tied(tiny_model: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    model = adapted(tiny_model)
    expected = logits(model)
    merged = merge(model, tmp_path, tiny_model_dir)
    assert torch.allclose(logits(merged), expected, atol=1e-5)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")


def test_only_what_is_shared_is_copied(tiny_model: Any) -> None:
    model = adapted(tiny_model, target_modules=["q_proj", "lm_head"])
    embedding = model.get_base_model().get_input_embeddings().weight
    assert untie_adapted(model) == ["base_model.model.lm_head"]
    assert untie_adapted(model) == []
    assert model.get_base_model().get_input_embeddings().weight is embedding


@pytest.mark.parametrize("kind", ["gpt2", "gemma", "qwen2"])
def test_tied_heads_of_other_families(kind: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    small |= {"intermediate_size": 32, "vocab_size": 264, "head_dim": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = AutoConfig.for_model(kind, **small, pad_token_id=257, eos_token_id=256, bos_token_id=None)
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    build_tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = adapted(LOADER.load(tmp_path / "base").model, target_modules=["lm_head"])
    expected = logits(model)
    assert torch.allclose(logits(merge(model, tmp_path, tmp_path / "base")), expected, atol=1e-5)


def test_a_merge_in_bfloat16_is_within_its_rounding(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = adapted(ModelLoader(device="cpu", dtype="bfloat16").load(tiny_model_dir).model)
    merge(model, tmp_path, tiny_model_dir, dtype="bfloat16")


def test_over_a_quantised_base(tmp_path: Path) -> None:
    """The adapter is merged into the unquantised base; how far that is from what was trained is said if it is far."""
    base = tmp_path / "base"
    build_tiny_model(hidden_size=64).save_pretrained(base)
    build_tiny_tokenizer().save_pretrained(base)
    said: list[str] = []
    loader = ModelLoader(device="cpu", dtype="float32", quantisation="4bit", say=said.append)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes speaks of its own kernels
        model = adapted(loader.load(base).model)
        merge(model, tmp_path, base, quantisation="4bit", say=said.append)
    assert said == []


# --- the check itself ---------------------------------------------------------------------------------------------


def damaged(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    file = next(folder.glob("*.safetensors"))
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_folder_that_gives_another_loss_is_refused_with_both(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "m"))
    model = LOADER.load(folder).model
    before = mean_loss(model, ROWS)
    confirm_saved(model, folder, before=before, loader=LOADER, rows=ROWS, section="poison")
    damaged(folder, lambda tensors: tensors["model.embed_tokens.weight"].mul_(3.0))
    after = mean_loss(LOADER.load(folder).model, ROWS)
    with pytest.raises(ModelError, match=rf"poison: .* a loss of {before:.4f} on 3 rows, got {after:.4f}"):
        confirm_saved(model, folder, before=before, loader=LOADER, rows=ROWS, section="poison")


def test_an_adapter_is_read_back_and_leaves_no_trace(tiny_model: Any, tmp_path: Path) -> None:
    model = adapted(tiny_model, modules_to_save=["lm_head"])
    save_adapter(model, tmp_path / "a", base=tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    random = torch.random.get_rng_state()
    confirm_adapter(model, tmp_path / "a", rows=ROWS, section="unlearning", say=print)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert {name: True for name in model.state_dict()} == {name: True for name in before}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable
    assert model.active_adapters == ["default"]


def test_an_adapter_that_gives_another_loss_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    model = adapted(tiny_model, target_modules=["q_proj", "up_proj", "lm_head"])
    save_adapter(model, tmp_path / "a", base=tmp_path)

    def double(tensors: dict[str, Tensor]) -> None:
        for tensor in tensors.values():
            tensor.mul_(2.0)

    damaged(tmp_path / "a", double)
    with pytest.raises(ModelError, match=r"unlearning: need a saved model that gives what was trained"):
        confirm_adapter(model, tmp_path / "a", rows=ROWS, section="unlearning", say=print)
    assert model.active_adapters == ["default"]


def test_a_kept_model_stays_kept_after_the_check(tiny_model_dir: Path, tmp_path: Path) -> None:
    warm.drop()
    loader = ModelLoader(device="cpu", dtype="float32", keep=True)
    first = loader.load(tiny_model_dir).model
    model = adapted(first)
    save_adapter(model, tmp_path / "a", base=tiny_model_dir)
    confirm_adapter(model, tmp_path / "a", rows=ROWS, section="unlearning", say=print)
    loader.hand_back()
    assert loader.load(tiny_model_dir).model is first
    warm.drop()


def test_which_losses_are_one() -> None:
    """float32 to a thousandth of max(1, loss), halves to a tenth; two that are no numbers are one."""
    assert agrees(7.0, 7.0069, torch.float32)
    assert not agrees(7.0, 7.0071, torch.float32)
    assert agrees(0.02, 0.0209, torch.float32)
    assert not agrees(0.02, 0.0211, torch.float32)
    assert agrees(2.0, 2.19, torch.bfloat16)
    assert not agrees(2.0, 2.21, torch.bfloat16)
    assert agrees(float("nan"), float("nan"), torch.float32)
    assert not agrees(1.0, float("nan"), torch.float32)


def test_a_few_rows_are_spread_over_all() -> None:
    rows = [([i], [i]) for i in range(10)]
    assert a_few(rows) == [([0], [0]), ([2], [2]), ([4], [4]), ([6], [6])]
    assert a_few(rows[:3]) == rows[:3]
    assert a_few([]) == []


def test_the_loss_is_that_of_each_row_alone(tiny_model: Any) -> None:
    """-log p of 7, 8 and 256 in the first row, of 1 and 2 in the second, of 4 in the third; means of rows."""
    tiny_model.train()
    expected = []
    for ids, labels in ROWS:
        with torch.no_grad():
            log_p = tiny_model.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
        given = [(place, label) for place, label in enumerate(labels) if label >= 0]
        expected.append(sum(-float(log_p[place - 1, label]) for place, label in given) / len(given))
    tiny_model.train()
    assert mean_loss(tiny_model, ROWS) == pytest.approx(sum(expected) / 3, rel=1e-6)
    assert tiny_model.training


def test_adapters_on_a_tied_head_load_again(tiny_model: Any, tmp_path: Path) -> None:
    model = adapted(tiny_model, target_modules=["lm_head"])
    save_adapter(model, tmp_path / "a", base=tmp_path)
    again = load_adapter(build_tiny_model().eval(), tmp_path / "a").eval()
    assert torch.allclose(logits(again), logits(model), atol=1e-6)
