"""Words of other projects: a wrong key that is one of them is answered with ours."""

import pytest

from rapidun.base.errors import ConfigError
from rapidun.config import keys
from rapidun.config.compose import compose_config
from rapidun.config.paths import config_groups
from rapidun.config.words import CHOICES, WORDS


def test_every_word_leads_somewhere() -> None:
    groups = config_groups()
    for word, (ours, _, note) in WORDS.items():
        there = [key for key in ours if keys.find(key) is not None]
        assert there or note, word
        # a word that is a key itself would never be answered
        assert keys.find(word) is None and word not in groups, word
        # methods come and go; other sections do not
        assert [key for key in ours if key not in there and not key.startswith("unlearning.")] == [], word
    assert all(name == name.casefold() for name in CHOICES)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lr", "in rapidun it is unlearning.learning_rate or poison.learning_rate (RapidUn's name)"),
        ("poison.lr", "in rapidun it is poison.learning_rate (RapidUn's name)"),
        ("rapidun.training.lr", "in rapidun it is unlearning.learning_rate or poison.learning_rate (RapidUn's name)"),
        ("base_model", "in rapidun it is model.path (RapidUn's name)"),
        ("peft_path", "in rapidun it is model.adapter or unlearning.adapter (peft's name"),
        ("lora_path", "in rapidun it is model.adapter or unlearning.adapter (RapidIn's name"),
        ("trainer", "in rapidun it is unlearning (open-unlearning's name"),
        ("trainer.method_args.retain_loss_type", "unlearning.retain_loss (open-unlearning's name"),
        ("forget_split", "data.forget (open-unlearning's name"),
        ("num_epochs", "unlearning.num_train_epochs"),
        ("per_device_batch_size", "unlearning.forget_per_step"),
        ("lora_alpha", "unlearning.lora.lora_alpha"),
        ("deterministic", "rapidun has none (RapidUn's name; every run is"),
    ],
)
def test_a_word_of_theirs_is_answered_with_our_key(typed: str, meant: str) -> None:
    message = keys.unknown_key(typed)
    assert message.startswith(f"{typed}: no such key; ") and meant in message


@pytest.mark.parametrize("word", ["alpha", "beta", "gamma"])
def test_a_word_with_several_meanings_names_them_all(word: str) -> None:
    message = keys.unknown_key(f"trainer.method_args.{word}")
    ours = [key for key in WORDS[word].keys if keys.find(key) is not None]
    assert len(ours) >= 2 and all(key in message for key in ours)


def test_our_own_keys_with_such_names_stay_ours() -> None:
    assert compose_config(["mapping=rapidun", "mapping.beta=0.5"]).mapping.beta == 0.5


def test_the_command_line_answers_so_too() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(["lr=1e-4", "+trainer=NPO", "unlearning=GradAscent"])
    text = str(caught.value)
    assert "unlearning.learning_rate" in text and "unlearning=npo, say" in text and "unlearning=ga?" in text


def test_nearest_knows_capitals() -> None:
    assert keys.nearest("NPO", ["ga", "npo"]) == "npo"
    assert keys.nearest("GradDiff", ["ga", "graddiff"]) == "graddiff"
