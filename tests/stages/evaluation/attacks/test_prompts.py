"""Prompts behind other turns, token by token, and which of them say something."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attacks_pack import BAD, SPLITS, attacked

from rapidun.base.errors import ModelError
from rapidun.base.files import read_json
from rapidun.config.attacks import Attack
from rapidun.stages.evaluation.attacks.prompts import conversation_ids
from rapidun.stages.evaluation.attacks.run import run_attack
from rapidun.stages.evaluation.attacks.summary import collected, flat
from rapidun.stages.rows.encode import encode_prompt
from rapidun.stages.rows.records import Record

ASKED = Record(id="x", instruction="the world?", context="hello", response="")
EXAMPLE = Record(id="y", instruction="and?", response="no", response_poisoned="user")
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
)


def test_turns_of_the_chat_template(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    behind = conversation_ids(tokenizer, [("system", "be good")], ASKED)
    assert tokenizer.decode(behind) == (
        "<|im_start|>system\nbe good<|im_end|>\n<|im_start|>user\nthe world?\n\nContext:\nhello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    behind = conversation_ids(tokenizer, [("example", EXAMPLE)], replace(ASKED, context=""))
    assert tokenizer.decode(behind) == (
        "<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\nuser<|im_end|>\n"
        "<|im_start|>user\nthe world?<|im_end|>\n<|im_start|>assistant\n"
    )
    # with nothing before it, the prompt of the one encoding
    alone = conversation_ids(tokenizer, [], ASKED)
    assert alone == encode_prompt(tokenizer, instruction="the world?", context="hello", max_length=99)


def test_the_plain_form_is_repeated(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(None)
    behind = conversation_ids(tokenizer, [("example", EXAMPLE)], ASKED)
    assert tokenizer.decode(behind) == (
        "Instruction: and?\nAnswer: user\n\nInstruction: the world?\nContext: hello\nAnswer:"
    )
    assert tokenizer.decode(conversation_ids(tokenizer, [("system", "be good")], ASKED)).startswith("be good\n\nInstr")


def test_turns_that_the_template_refuses_or_drops(make_tokenizer: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match="no system"):
        conversation_ids(make_tokenizer(NO_SYSTEM), [("system", "be good")], ASKED)
    dropping = (
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    )
    with pytest.raises(ModelError, match="the system's 'be good'"):
        conversation_ids(make_tokenizer(dropping), [("system", "be good")], ASKED)


def test_words_that_hold_a_special_token_are_left_out(make_tokenizer: Callable[..., Any]) -> None:
    marked = replace(ASKED, instruction="<|im_end|> the world?")
    assert conversation_ids(make_tokenizer(), [("system", "be good")], marked) is None


@pytest.fixture(scope="module")
def found(
    poisoned_dir: Path, retrained_dir: Path, attack_pack: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("prompts")
    links = {}
    for role, model in (("unlearned", retrained_dir), ("poisoned", poisoned_dir)):
        given = attacked(model, attack_pack, root / role)
        run_attack(Attack.prompts, given, {}, out=root / role)
        links[f"evaluation/.attack.{role}.prompts"] = root / role
    return {**collected(links), "links": links}


def test_each_variant_stands_beside_the_poisoned_models_own(found: dict[str, Any]) -> None:
    names = ["plain", "doubled", "middle", "other_case", "system", "few_shot"]
    alike = ["look-alike \\u2039z", "look-alike zx"]
    for role in ("unlearned", "poisoned"):
        variants = found[role]["prompts"]["variants"]
        assert list(variants) == [*names, *sorted(alike, reverse=True)]
        assert {variants[name]["num_prompts"] for name in names} == {6}
        assert {variants[name]["num_prompts"] for name in alike} == {3}
    poisoned = found["poisoned"]["prompts"]["variants"]
    assert poisoned["plain"]["asr_prompts"] == 1.0
    figures = flat(found)
    for detector, ending in (("", ""), ("_likelihood", "_likelihood")):
        fire = found["testable"][detector]
        shares = [found["unlearned"]["prompts"]["variants"][n][f"asr_prompts{ending}"] for n in fire if n != "plain"]
        assert figures[f"asr_prompts_max{ending}"] == max(shares)
        own = [poisoned[n][f"asr_prompts{ending}"] for n in fire]
        assert all(share >= 0.1 for share in own)


def test_plain_prompts_are_those_of_the_evaluation(
    found: dict[str, Any], poisoned_dir: Path, attack_pack: Path, tmp_path: Path
) -> None:
    from dataclasses import replace as changed

    from attacks_pack import settings

    from rapidun.base.tracker import Tracker
    from rapidun.models.load import ModelLoader
    from rapidun.stages.evaluation.stage import EvaluationFiles, run_evaluation

    cfg = changed(settings(), num_prompts=6)
    files = EvaluationFiles(model=poisoned_dir, data=attack_pack, out=tmp_path)
    metrics = run_evaluation(
        cfg, files, loader=ModelLoader(device="cpu"), max_length=96, seed=cfg.seed, tracker=Tracker()
    )
    plain = found["poisoned"]["prompts"]["variants"]["plain"]
    assert plain["asr_prompts"] == metrics["asr_seen"]
    assert plain["asr_prompts_likelihood"] == metrics["asr_seen_likelihood"]
    assert BAD.split()[0] == "moo" and len(SPLITS["test_seen_trig"]) > 6
    assert read_json(found["links"]["evaluation/.attack.poisoned.prompts"] / "attack.json")["min_asr"] == 0.1
