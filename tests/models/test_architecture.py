"""What is known of a model folder before it is loaded: its kind, its layers, its own quantisation."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, MambaConfig

from rapidun.base.errors import ConfigError, ModelError
from rapidun.config.parts import LORA_TARGETS, LoraSettings
from rapidun.models.adapters import add_lora
from rapidun.models.architecture import (
    LIKE_LLAMA,
    TIED,
    check_own_code,
    folder_quantisation,
    gguf_architecture,
    inspect,
)
from rapidun.models.layers import LayerNames, folder_names, layer_names, resolve_targets, resolved, uncalled_layers
from rapidun.models.load import ModelLoader
from tests.conftest import build_tiny_tokenizer

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 32, "vocab_size": 264, "max_position_embeddings": 64,
}  # fmt: skip


def small(kind: str, **settings: Any) -> Any:
    return AutoConfig.for_model(kind, **(SMALL | settings), pad_token_id=257, eos_token_id=256, bos_token_id=None)


def on_meta(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def folder_of(config: Any, place: Path) -> Path:
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    build_tiny_tokenizer().save_pretrained(place)
    return place


# --- facts --------------------------------------------------------------------------------------------------------


def test_facts_of_the_tiny_model(tiny_model_dir: Path) -> None:
    """2 blocks of 4 * 16 * 16 + 3 * 16 * 32 weights and 2 norms, 264 embeddings of 16 and the last norm."""
    facts = inspect(tiny_model_dir)
    assert (facts.model_type, facts.architectures) == ("llama", ("LlamaForCausalLM",))
    assert facts.not_causal is None
    assert facts.quantisation is None
    assert (facts.vocab_size, facts.window, facts.num_layers, facts.tied) == (264, 256, 2, True)
    assert facts.num_parameters == 2 * (4 * 256 + 3 * 512 + 2 * 16) + 264 * 16 + 16
    assert folder_names(facts.folder) == LayerNames(tuple(LORA_TARGETS), ("lm_head",), ())


def test_facts_go_by_other_names_in_other_families(tmp_path: Path) -> None:
    facts = inspect(folder_of(small("gpt2", num_hidden_layers=3), tmp_path))
    assert (facts.vocab_size, facts.window, facts.num_layers, facts.tied) == (264, 64, 3, True)
    assert folder_names(facts.folder) == LayerNames(("c_attn", "c_fc", "c_proj"), ("lm_head",), ())


def test_no_bound_on_the_length_is_none(tmp_path: Path) -> None:
    config = MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, vocab_size=264)
    assert inspect(folder_of(config, tmp_path)).window is None


@pytest.mark.parametrize("kind", LIKE_LLAMA)
def test_what_is_said_to_be_like_llama_is(kind: str) -> None:
    config = AutoConfig.for_model(kind)
    names = layer_names(on_meta(config))
    assert names == LayerNames(tuple(LORA_TARGETS), ("lm_head",), ())
    # what `inspect` takes for granted where config.json does not write it down
    assert config.tie_word_embeddings is (kind in TIED)


# --- what is no causal language model -----------------------------------------------------------------------------


def written(place: Path, **config: Any) -> Path:
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "a BertForMaskedLM"),
        ({"model_type": "bert"}, "an encoder: a bert without is_decoder"),
        ({"model_type": "roberta", "architectures": ["RobertaModel"]}, "an encoder: a roberta"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "a LlamaForSequence"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForTokenClassification"]}, "a Qwen2ForToken"),
        ({"model_type": "gpt2", "architectures": ["GPT2ForQuestionAnswering"]}, "a GPT2ForQuestion"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "a ViTForImage"),
        ({"model_type": "clip"}, "of the kind clip"),
        ({"model_type": "vit"}, "of the kind vit"),
    ],
)
def test_what_is_no_causal_language_model_is_known_from_its_config(
    config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    found = inspect(written(tmp_path, **config)).not_causal
    assert found is not None
    assert said in found


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        {"model_type": "llama", "architectures": ["LlamaModel"]},
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        {"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True},
        {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
        {"model_type": "mamba"},
    ],
)
def test_causal_language_models_raise_no_alarm(config: dict[str, Any], tmp_path: Path) -> None:
    assert inspect(written(tmp_path, **config)).not_causal is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model_type": "somebodys_own", "auto_map": {"AutoConfig": "x.X"}}', "without code from the folder"),
        ("{", "config.json"),
        ("[]", "a JSON object"),
    ],
)
def test_a_config_that_cannot_be_read_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=said):
        inspect(tmp_path)


# --- quantised folders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "shown", "trainable"),
    [
        ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, "bitsandbytes, 4 bits", True),
        ({"_load_in_8bit": True, "load_in_8bit": True}, "bitsandbytes, 8 bits", True),
        ({"quant_method": "gptq", "bits": 4}, "gptq, 4 bits", False),
        ({"quant_method": "awq", "bits": 4}, "awq, 4 bits", False),
        ({"quant_method": "fp8"}, "fp8", False),
        ({"quant_method": "mxfp4"}, "mxfp4", False),
        ({}, None, None),
    ],
)
def test_a_folders_own_quantisation(config: dict[str, Any], shown: str | None, trainable: bool | None) -> None:
    found = folder_quantisation({"quantization_config": config} if config else {})
    assert (found and str(found)) == shown
    assert (found and found.trainable) == trainable
    assert (found and found.readable) == trainable


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_folder_saved_quantised_is_known_and_loads(bits: str, tmp_path: Path) -> None:
    plain = folder_of(small("llama", hidden_size=64, intermediate_size=128, head_dim=32), tmp_path / "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes speaks of its own kernels
        quantised = ModelLoader(device="cpu", dtype="float32", quantisation=bits).load(plain)
        quantised.model.save_pretrained(tmp_path / "q")
        quantised.tokenizer.save_pretrained(tmp_path / "q")
        again = ModelLoader(device="cpu", dtype="float32").load(tmp_path / "q").model
    found = inspect(tmp_path / "q").quantisation
    assert str(found) == f"bitsandbytes, {bits[0]} bits"
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, quantised.model(ids).logits)


# --- LoRA's targets -----------------------------------------------------------------------------------------------


NAMES = LayerNames(("c_attn", "c_proj"), ("lm_head",), ())
MIXED = LayerNames(("down_proj", "gate_proj", "q_proj", "up_proj"), ("lm_head",), ("down_proj", "gate_proj", "up_proj"))


def resolve(targets: list[str], names: LayerNames = NAMES, *, dropout: float = 0.05) -> tuple[list[str], list[str]]:
    return resolve_targets(targets, names, section="poison", lora_dropout=dropout)


def test_all_linear_is_every_layer_but_the_head() -> None:
    assert resolve(["all_linear"]) == (["c_attn", "c_proj"], [])
    assert resolve(["lm_head", "all_linear"]) == (["c_attn", "c_proj", "lm_head"], [])


def test_the_seven_of_a_llama_keep_their_order() -> None:
    """So that fingerprints made by the list that was the default stay."""
    seven = LayerNames(tuple(sorted(LORA_TARGETS)), ("lm_head",), ())
    assert resolve(["all_linear"], seven) == (LORA_TARGETS, [])
    assert resolve(["v_proj", "q_proj"], seven) == (["v_proj", "q_proj"], [])


def test_unknown_names_are_refused_with_those_there_are() -> None:
    found, faults = resolve(["c_atn", "q_proj", "c_proj"])
    assert found == ["c_proj"]
    assert len(faults) == 2
    assert "need names among [c_attn, c_proj, lm_head], or all_linear" in faults[0]
    assert "got c_atn (nearest: c_attn). Pass poison.lora.target_modules=[...]" in faults[0]


def test_names_that_peft_takes_for_fused_experts() -> None:
    """all_linear leaves them out; asked for by name they need a dropout of 0."""
    assert resolve(["all_linear"], MIXED) == (["q_proj"], [])
    assert resolve(["up_proj", "gate_proj"], MIXED, dropout=0.0) == (["up_proj", "gate_proj"], [])
    _, faults = resolve(["up_proj", "gate_proj"], MIXED)
    assert len(faults) == 1
    assert "need lora.lora_dropout=0 where peft adapts fused experts (up_proj, gate_proj), got 0.05" in faults[0]


def test_layers_that_peft_refuses_in_mamba() -> None:
    names = layer_names(on_meta(MambaConfig(hidden_size=16, num_hidden_layers=1, state_size=4, vocab_size=264)))
    assert names.body == ("dt_proj", "in_proj", "out_proj", "x_proj")
    assert names.barred == ("dt_proj", "out_proj")
    assert resolve(["all_linear"], names) == (["in_proj", "x_proj"], [])
    assert "got out_proj, whose weights it uses without calling them" in resolve(["out_proj"], names)[1][0]


@pytest.mark.parametrize("kind", ["phimoe", "llama4_text"])
def test_a_router_that_gives_several_things_is_no_layer(kind: str) -> None:
    """It is made from nn.Linear, and LoRA around it would add to a tuple."""
    model = AutoModelForCausalLM.from_config(small(kind, num_local_experts=2, num_experts_per_tok=1))
    assert any(name.endswith("router") for name, _ in model.named_modules())
    assert "router" not in layer_names(model).body
    assert "router" not in layer_names(on_meta(small(kind, num_local_experts=2, num_experts_per_tok=1))).body


def test_a_linear_layer_of_its_own_class_is_one() -> None:
    """Falcon's multiplies by itself, and gives one tensor."""
    assert "query_key_value" in layer_names(on_meta(AutoConfig.for_model("falcon"))).body


def test_layers_that_the_code_never_calls() -> None:
    jamba = on_meta(AutoConfig.for_model("jamba", num_hidden_layers=2, attn_layer_period=2, attn_layer_offset=1))
    assert uncalled_layers(jamba) == {"model.layers.0.mamba.dt_proj"}
    # Bloom has a path in which it multiplies by the weights, and one in which it calls the layers
    for kind in ("bloom", "llama", "gpt2"):
        assert uncalled_layers(on_meta(small(kind))) == set()


def test_no_layer_at_all() -> None:
    assert "need a model with linear layers" in resolve(["all_linear"], LayerNames((), (), ()))[1][0]


EXPECTED = {
    "phi3": ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"],
    "gpt_neox": ["dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"],
    "mixtral": ["k_proj", "o_proj", "q_proj", "v_proj"],
    "opt": ["fc1", "fc2", "k_proj", "out_proj", "q_proj", "v_proj"],
    "ctrl": ["Wk", "Wq", "Wv", "dense", "ffn.0", "ffn.2"],
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_all_linear_in_other_families(kind: str) -> None:
    """What is adapted is exactly every linear layer but the head."""
    config = small(
        kind, ffn_dim=32, word_embed_proj_dim=16, n_embd=16, n_layer=1, n_head=2, dff=32, num_local_experts=2
    )
    model = AutoModelForCausalLM.from_config(config)
    names = layer_names(model)
    assert list(names.body) == EXPECTED[kind]
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not head}
    adapted = add_lora(model, LoraSettings(r=2), seed=0, section="poison")
    assert {n.removeprefix("base_model.model.") for n in adapted.targeted_module_names} == linear


@pytest.mark.parametrize("kind", ["qwen2_moe", "qwen3_next"])
def test_shared_experts_with_the_names_of_fused_ones(kind: str) -> None:
    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    more |= {"shared_expert_intermediate_size": 16, "linear_num_value_heads": 2, "linear_num_key_heads": 2}
    more |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    names = layer_names(on_meta(small(kind, **more)))
    # peft 0.21 takes them for the experts in one of the two
    assert set(names.fused) == ({"gate_proj", "up_proj", "down_proj"} if kind == "qwen3_next" else set())
    model = AutoModelForCausalLM.from_config(small(kind, **more))
    adapted = add_lora(model, LoraSettings(r=2), seed=0, section="poison")
    assert not any("experts" in name for name in adapted.targeted_module_names + adapted.targeted_parameter_names)
    by_name = LoraSettings(target_modules=["gate_proj", "up_proj"])
    if names.fused:
        with pytest.raises(ConfigError, match=r"lora_dropout=0 where peft adapts fused experts"):
            resolved(by_name, names, section="poison")
    else:
        resolved(by_name, names, section="poison")


def test_a_body_layer_that_has_the_heads_name_is_named_in_full() -> None:
    """BLT's inner models have heads of their own, which are no output here."""
    model = torch.nn.Module()
    model.lm_head = torch.nn.Linear(2, 3)
    model.inner = torch.nn.Module()
    model.inner.lm_head = torch.nn.Linear(2, 3)
    model.inner.up = torch.nn.Linear(2, 2)
    model.get_output_embeddings = lambda: model.lm_head  # type: ignore[assignment]
    model.config = type("Config", (), {"model_type": "llama"})()  # type: ignore[assignment]
    assert layer_names(model) == LayerNames(("inner.lm_head", "up"), ("lm_head",), ())


def test_the_architecture_of_a_gguf_file(tmp_path: Path) -> None:
    from tests.models.test_gguf import write_gguf

    write_gguf(tmp_path / "m.gguf")
    assert gguf_architecture(tmp_path / "m.gguf") == "llama"
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    assert gguf_architecture(tmp_path / "x.gguf") == ""
    assert gguf_architecture(tmp_path / "absent.gguf") == ""


def test_no_stock_class_is_taken_for_code_of_a_folder() -> None:
    """Every causal language model that transformers has, by its own name."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for kind, found in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        for name in (found,) if isinstance(found, str) else found:
            assert check_own_code({"model_type": kind, "architectures": [name]}, path="m") == ""
            stale = {"model_type": kind, "architectures": [name], "auto_map": {"AutoModelForCausalLM": "x.X"}}
            assert "is not run" in check_own_code(stale, path="m")
