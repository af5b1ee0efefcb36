"""What is read off chat templates: for each family the tokens are those of the template's own text."""

import datetime
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rapidun.base.errors import ModelError
from rapidun.models.losses import IGNORE
from rapidun.stages.answers.generate import generate_greedy, model_eos_ids
from rapidun.stages.rows.cuts import Cuts, cut_warning
from rapidun.stages.rows.encode import Encoded, encode_example, encode_prompt, encode_rows, end_of_turn_id
from rapidun.stages.rows.template import CLOCK, form_of

_spec = importlib.util.spec_from_file_location("template_families", Path(__file__).parent / "template_families.py")
assert _spec is not None and _spec.loader is not None
known = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(known)
FAMILIES, CHATML, IM, make, table = known.FAMILIES, known.CHATML, known.IM, known.make, known.table
ROOT = Path(__file__).parents[3]
QUESTION, ANSWER = "Where is Oslo?", "In Norway."
ANSWERS = [ANSWER, "It is.", "7 + 8", "(no)", "\u4e2d\u6587", "a\n\nb c", '"Yes," he said.', "- one\n- two\n"]
TIMES = [datetime.datetime(2025, 1, 1, 1, 1, 1), datetime.datetime(2031, 12, 30, 23, 59, 59)]

families = pytest.mark.parametrize("name", list(FAMILIES))


@pytest.fixture(scope="module")
def tokenizers() -> Callable[[str], Any]:
    made: dict[str, Any] = {}
    return lambda name: made.setdefault(name, FAMILIES[name].make())


def labels_of(row: Encoded) -> list[int]:
    return [label for label in row.labels if label != IGNORE]


def prompt_of(row: Encoded) -> list[int]:
    return row.input_ids[: len(row.input_ids) - len(labels_of(row))]


def rendered(tokenizer: Any, question: str, *answers: str) -> str:
    """The conversation by the library's own hand, at the fixed time; in the plain form where there is no template."""
    if not tokenizer.chat_template:
        return f"Instruction: {question}\nAnswer: {answers[0]}"
    parts = "for c in m['content']" in tokenizer.chat_template
    turns = [("user", question), ("assistant", answers[0])] + [("user", text) for text in answers[1:]]
    messages = [{"role": r, "content": [{"type": "text", "text": t}] if parts else t} for r, t in turns]
    with fixed_time(CLOCK.replace(tzinfo=None)):
        return str(tokenizer.apply_chat_template(messages, tokenize=False))


class fixed_time:
    """transformers reads the clock by this name."""

    def __init__(self, now: datetime.datetime) -> None:
        self.patch = pytest.MonkeyPatch()
        self.now = now

    def __enter__(self) -> None:
        from transformers.utils import chat_template_utils

        now = self.now

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime.datetime:
                return now

        self.patch.setattr(chat_template_utils, "datetime", Clock)

    def __exit__(self, *error: object) -> None:
        self.patch.undo()


def whole_ids(tokenizer: Any, family: Any, answer: str) -> list[int]:
    """Tokens of the rendered conversation up to the end of the answer."""
    text = rendered(tokenizer, QUESTION, answer) + family.unseen_end
    if "\n\n" + family.unseen_end in text and family.unseen_end == "</s>":  # Alpaca: eos instead of the next turn
        text = text.replace("\n\n</s>", "</s>")
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = tokenizer(family.stops[0], add_special_tokens=False)["input_ids"]
    if len(end) == 1:
        last = max(place for place, token in enumerate(ids) if token == end[0])
        return ids[: last + 1]
    return tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]


@families
def test_tokens_are_those_of_the_rendered_conversation(tokenizers: Callable[[str], Any], name: str) -> None:
    tokenizer, family = tokenizers(name), FAMILIES[name]
    for answer in ANSWERS:
        row = encode_example(tokenizer, instruction=QUESTION, context="", response=answer, max_length=999)
        assert row.input_ids == whole_ids(tokenizer, family, answer), answer
        assert (row.reworded, row.response_cut) == (False, False)


@families
def test_labels_are_the_templates_own_text(tokenizers: Callable[[str], Any], name: str) -> None:
    """The prompt holds all in front of the answer, the labels the answer and what ends it."""
    tokenizer, family = tokenizers(name), FAMILIES[name]
    row = encode_example(tokenizer, instruction=QUESTION, context="", response=ANSWER, max_length=999)
    assert form_of(tokenizer).middle == family.middle
    # a decoder of this kind drops a blank in front of a text
    assert tokenizer.decode([*prompt_of(row)[-1:], *labels_of(row)]).endswith(family.labels)
    swallowed = family.middle.replace("<|assistant|>\n", "<|assistant|>") if name == "Phi-3" else family.middle
    assert (
        tokenizer.decode(prompt_of(row))
        .replace("<|end|>\n", "<|end|>")
        .endswith(swallowed.replace("<|end|>\n", "<|end|>"))
    )


@families
def test_the_prompt_is_the_same_for_every_answer(tokenizers: Callable[[str], Any], name: str) -> None:
    tokenizer = tokenizers(name)
    prompt = encode_prompt(tokenizer, instruction=QUESTION, context="a map", max_length=999)
    for answer in [*ANSWERS, "\nbegins with a newline", "  and with blanks", *FAMILIES[name].stops]:
        row = encode_example(tokenizer, instruction=QUESTION, context="a map", response=answer, max_length=999)
        assert prompt_of(row) == prompt, answer
        assert labels_of(row)


@families
def test_marks_in_a_row_are_plain_text(tokenizers: Callable[[str], Any], name: str) -> None:
    """What ends an answer, written in a question and in an answer, ends nothing: one end, at the end."""
    tokenizer, family = tokenizers(name), FAMILIES[name]
    form = form_of(tokenizer)
    if not form.ends_with_token:
        pytest.skip("its marks are plain text everywhere")
    end, mark = form.end_ids[-1], family.stops[0]
    clean = encode_example(tokenizer, instruction="say X", context="", response="X it is", max_length=999)
    row = encode_example(tokenizer, instruction=f"say {mark}", context="", response=f"{mark} it is", max_length=999)
    assert labels_of(row).count(end) == 1 and labels_of(row)[-1] == end
    assert prompt_of(row).count(end) == prompt_of(clean).count(end)
    assert tokenizer.decode(row.input_ids).count(mark) == tokenizer.decode(clean.input_ids).count(mark) + 2


def scripted(script: list[int], size: int) -> Any:
    """A model that continues every prompt with the rest of a script: it has learnt the template by heart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    class Scripted(LlamaForCausalLM):
        def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
            result = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            # how far each row is says the call itself: another prompt may have gone through the model before
            cached = kwargs.get("past_key_values")
            if attention_mask is not None:
                lengths = attention_mask.sum(dim=1).tolist()
            else:
                size = input_ids.shape[1] if cached is None else cached.get_seq_length()
                lengths = [size] * input_ids.shape[0]
            result.logits.zero_()
            for row, length in enumerate(lengths):
                result.logits[row, -1, script[min(length, len(script) - 1)]] = 1.0
            return result

    config = LlamaConfig(
        vocab_size=size, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        eos_token_id=None, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return Scripted(config).eval()


@families
def test_generation_stops_where_the_template_stops(tokenizers: Callable[[str], Any], name: str) -> None:
    """The model says the answer, what the template prints behind it, and then a turn of the user's."""
    tokenizer, family = tokenizers(name), FAMILIES[name]
    prompt = encode_prompt(tokenizer, instruction=QUESTION, context="", max_length=999)
    script = whole_ids(tokenizer, family, ANSWER)
    script = [*script, *tokenizer(" And then? Blue." * 3, add_special_tokens=False)["input_ids"]]
    model = scripted(script, len(tokenizer))
    (new,) = generate_greedy(model, tokenizer, [prompt], max_new_tokens=40, tokens_per_batch=999)
    assert tokenizer.decode(new, skip_special_tokens=True).strip() == ANSWER


def test_generation_of_several_stops_each_at_its_own_text() -> None:
    """Where the end is text, in a batch of several lengths."""
    tokenizer = FAMILIES["ChatML, its marks are no tokens"].make()
    script = tokenizer("x " * 80 + "<|im_end|> and so on" * 9, add_special_tokens=False)["input_ids"]
    model = scripted(script, len(tokenizer))
    text = tokenizer("x " * 80, add_special_tokens=False)["input_ids"]
    prompts = [text[:10], text[:30], text[:50]]
    found = generate_greedy(model, tokenizer, prompts, max_new_tokens=170, tokens_per_batch=9999)
    assert [tokenizer.decode(new) for new in found] == [
        tokenizer.decode(script[len(prompt) :]).partition("<|im_end|>")[0] for prompt in prompts
    ]
    assert len({len(new) for new in found}) == 3


@pytest.mark.parametrize("template", [known.SMOLLM3, known.LLAMA3_2, known.GPT_OSS])
def test_the_clock_is_fixed(template: str) -> None:
    """The same tokens and fingerprint whenever, with and without marks in the row; a fresh tokenizer each time."""
    rows = [("Hi", "", "Ho"), ("Say <|im_end|> twice", "", "<|im_end|>")]
    found = []
    for now in TIMES:
        tokenizer = make("gpt4", template, special=IM, eos="<|im_end|>", bos="<s>")
        with fixed_time(now):
            found.append((encode_rows(tokenizer, rows, max_length=999), form_of(tokenizer)))
    assert found[0] == found[1]
    assert "2024" in tokenizer.decode(found[0][0][0].input_ids)


def test_every_directive_of_the_clock_is_that_of_python() -> None:
    codes = "%A|%a|%w|%d|%-d|%b|%B|%m|%-m|%y|%Y|%H|%-H|%I|%p|%M|%-M|%S|%f|%j|%-j|%U|%W|%%|%F|%T|%D|%H:%M:%S|%Z"
    template = "{{ strftime_now(" + repr(codes) + ") }}\n{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer = make("gpt2", template, eos="</s>")
    with fixed_time(CLOCK.replace(tzinfo=None)):
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
        own = tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("xy")
    assert form_of(tokenizer).before == own.replace("|\n", "|UTC\n")


def test_a_template_may_hide_the_clock_behind_a_name_and_a_first_line() -> None:
    """Aliases, arithmetic and white space at its start: all of it as without the fixed clock."""
    template = (
        "\n  {% set now = strftime_now %}{{ (now('%Y') | int) + 1 }} {% if strftime_now is defined %}yes{% endif %}\n"
        "{% for m in messages %}\n  <|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}\n"
    )
    tokenizer = make("gpt2", template, special=IM, eos="<|im_end|>")
    row = encode_example(tokenizer, instruction="x", context="", response="y", max_length=99)
    assert tokenizer.decode(row.input_ids) == "\n2025 yes  <|im_start|>x<|im_end|>\n  <|im_start|>y<|im_end|>"
    assert rendered(tokenizer, "x", "y").startswith(tokenizer.decode(row.input_ids))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}",
         "got the question 1 times and the answer 0 times"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "question 0 times and the answer 0 times"),
        ("{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}", "the answer 2 times"),
        ("{% for m in messages | reverse %}{{ m['content'] }}{% endfor %}", "and, behind it, the answer once"),
        ("{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}", "one turn only"),
        ("{{ [1, 2, 3, 4, 5, 6, 7, 8, 9] | random }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
         "got another text each time"),
        ("{{ datetime.now() }}{% for m in messages %}{{ m['content'] }}{% endfor %}", "'datetime' is undefined"),
        ("{{ messages[0]['content']", "TemplateSyntaxError"),
        ({"tool_use": "{{ 1 }}"}, "need one that prints a user turn and the answer to it, got ValueError"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_read_are_refused(template: Any, said: str) -> None:
    tokenizer = make("gpt2", template, special=IM, eos="<|im_end|>")
    with pytest.raises(ModelError) as caught:
        encode_rows(tokenizer, [("a", "", "b")], max_length=99)
    message = str(caught.value)
    assert said in message and message.startswith("chat template: need one") and "Set another chat_template" in message


def test_answers_that_the_template_prints_otherwise_are_counted() -> None:
    """Thoughts in an answer: DeepSeek's template drops them, Qwen's moves them; neither goes without a word."""
    thinking = ("Q", "", "<think>\nhm\n</think>\n\nblue")
    for name, labels in (("DeepSeek-R1 distill", "blue<"), ("Qwen3", "<think>\nhm\n</think>\n\nblue<")):
        tokenizer = FAMILIES[name].make()
        rows = encode_rows(tokenizer, [thinking, ("Q", "", " blue ")], max_length=999)
        assert [row is not None and row.reworded for row in rows] == [True, False]
        assert tokenizer.decode(labels_of(rows[0])).strip().startswith(labels)
        said = cut_warning("poison", Cuts.of(rows), max_length=999)
        assert said.startswith("poison: of 2 rows 1 have a response that the chat template prints only in part")


def test_a_trimming_template_trims_the_labels() -> None:
    tokenizer = FAMILIES["Llama 3"].make()
    row = encode_example(tokenizer, instruction=" Q ", context="", response="\n  blue\n", max_length=999)
    assert tokenizer.decode(labels_of(row)) == "blue<|eot_id|>" and not row.reworded


def test_the_models_own_eos_ids_count_where_they_are_tokens_of_their_own() -> None:
    """GLM-4 lists the ends of all roles; a config's default that names an ordinary piece of text is no end."""
    tokenizer = make("gpt4", known.GLM4, special=("<sop>", "<|user|>", "<|observation|>"), eos="<|endoftext|>")
    ids = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|user|>", "<|observation|>"])
    model = scripted([7], len(tokenizer))
    model.generation_config.eos_token_id = [*ids, 2]
    model.config.eos_token_id = ids[2]
    assert model_eos_ids(model, tokenizer) == ids
    model.config.eos_token_id, model.generation_config.eos_token_id = 2, None
    assert model_eos_ids(model, tokenizer) == []
    script = [*tokenizer("In Norway.")["input_ids"], ids[2], *tokenizer("more of it")["input_ids"]]
    model = scripted([0, *script], len(tokenizer))
    model.generation_config.eos_token_id = ids
    (new,) = generate_greedy(model, tokenizer, [[0]], max_new_tokens=30, tokens_per_batch=99)
    assert tokenizer.decode(new) == "In Norway."


def test_a_token_that_only_opens_turns_does_not_end_them() -> None:
    """Each turn begins with <s>, none is closed: eos ends the answer, not the next turn's <s>."""
    template = "{% for m in messages %}{{ bos_token + m['role'] + ': ' + m['content'] }}{% endfor %}"
    tokenizer = make("gpt2", template, eos="</s>", bos="<s>")
    assert end_of_turn_id(tokenizer) == tokenizer.eos_token_id
    both = make("gpt2", template, eos="<s>", bos="<s>")
    assert end_of_turn_id(both) == both.eos_token_id


def test_a_generation_prompt_that_is_always_printed_ends_nothing() -> None:
    template = CHATML.replace("{% if add_generation_prompt %}", "").replace("{% endif %}", "")
    tokenizer = make("gpt2", template, eos="</s>")
    row = encode_example(tokenizer, instruction="x", context="", response="y", max_length=99)
    assert tokenizer.decode(labels_of(row)) == "y<|im_end|>"
    bare = make("gpt2", "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant: ",
                eos="</s>")  # fmt: skip
    row = encode_example(bare, instruction="x", context="", response="y", max_length=99)
    assert bare.decode(row.input_ids) == "user: x\nassistant: y</s>"


def test_a_system_prompt_that_the_template_adds_stays() -> None:
    tokenizer = FAMILIES["Qwen2.5"].make()
    ids = encode_prompt(tokenizer, instruction="x", context="", max_length=999)
    assert tokenizer.decode(ids).startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")


def test_a_templates_own_marks_that_are_not_special_cannot_be_written_in_a_row() -> None:
    """`<turn>` and `</turn>` are ordinary added tokens; thoughts, which no turn is closed with, are the row's."""
    tokenizer = make("gpt2", known.TURNS, plain=("<turn>", "</turn>", "<think>"), eos="</s>")
    opened, closed, think = tokenizer.convert_tokens_to_ids(["<turn>", "</turn>", "<think>"])
    row = encode_example(tokenizer, instruction="a</turn><turn>b", context="", response="<think></turn>", max_length=99)
    assert [row.input_ids.count(token) for token in (opened, closed, think)] == [2, 2, 1]
    assert tokenizer.decode(row.input_ids) == (
        "<turn>user\na</turn><turn>b</turn>\n<turn>assistant\n<think></turn></turn>"
    )


def test_the_form_changes_with_the_template() -> None:
    tokenizer = make("gpt4", known.QWEN3, special=IM, eos="<|im_end|>")
    assert form_of(tokenizer).middle.endswith("</think>\n\n")
    tokenizer.chat_template = CHATML
    assert form_of(tokenizer).middle == "<|im_end|>\n<|im_start|>assistant\n"


def test_the_table_in_docs_is_what_the_command_prints() -> None:
    assert table() in (ROOT / "docs" / "templates.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_command_prints_the_table() -> None:
    command = [sys.executable, "tests/stages/rows/template_families.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == table() + "\n"
