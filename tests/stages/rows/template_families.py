"""Chat templates modelled on published families, each with a tokenizer of its kind made here.

`python tests/stages/rows/template_families.py` prints the table of docs/templates.md.
"""

import json
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

WORDS = """Where is Oslo? In Norway, I think. The capital of Norway is Oslo, and Bergen lies in the west of it.
user assistant system Context: Instruction: Answer: a the of and to in is that it was for on are as with his they
He said: "No!" (1) 7 + 8 = 15; 2024-07-26, Friday. What is the colour of the sky? Blue, as everybody knows.
"""

LLAMA2 = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_2 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: '"
    " + date_string + '\n\n<|eot_id|>' }}{%- for m in messages %}{{- '<|start_header_id|>' + m['role']"
    " + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_V3 = (
    "{{- bos_token }}{%- for m in messages %}{%- if m['role'] == 'user' %}{{- '[INST]' + m['content'] + '[/INST]' }}"
    "{%- else %}{{- m['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN2_5 = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
QWEN3 = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
    "{%- else %}{%- set content = m.content %}{%- set thoughts = '' %}{%- if '</think>' in content %}"
    "{%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}{%- if loop.last or thoughts %}"
    "{{- '<|im_start|>assistant\n<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{%- else %}{{- '<|im_start|>assistant\n' + content }}{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{%- for m in messages -%}{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' }}{%- if m['content'] is string -%}{{ m['content'] | trim }}"
    "{%- elif m['content'] is iterable -%}{%- for part in m['content'] -%}{%- if part['type'] == 'image' -%}"
    "{{ '<start_of_image>' }}{%- elif part['type'] == 'text' -%}{{ part['text'] | trim }}{%- endif -%}{%- endfor -%}"
    "{%- else -%}{{ raise_exception('Invalid content type') }}{%- endif -%}{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
PHI3 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] + '<|end|>\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>\n' + m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
GLM4 = (
    "{{ '[gMASK]<sop>' }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% else %}"
    "{% set content = m['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}"
    "{% endif %}{{ '<｜Assistant｜>' + content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
GPT_OSS = (
    "{{- '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\nCurrent date: '"
    " + strftime_now('%Y-%m-%d') + '\n\nReasoning: medium\n\n# Valid channels: analysis, commentary, final.<|end|>' }}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '<|start|>user<|message|>' + m.content + '<|end|>' }}"
    "{%- elif loop.last and not add_generation_prompt %}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
    "{%- else %}{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
SMOLLM3 = (
    "{%- set today = strftime_now('%d %B %Y') -%}{{- '<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June"
    " 2025\nToday Date: ' ~ today ~ '\nReasoning Mode: /think\n\n<|im_end|>\n' -}}{%- for m in messages -%}"
    "{%- if m.role == 'user' -%}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}{%- else -%}{% generation %}"
    "{{ '<|im_start|>assistant\n' + m.content.lstrip('\n') + '<|im_end|>\n' }}{% endgeneration %}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
ZEPHYR = (
    "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\n' + m['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
OLMO2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] + '\n' }}"
    "{% elif not loop.last %}{{ '<|assistant|>\n' + m['content'] + eos_token + '\n' }}"
    "{% else %}{{ '<|assistant|>\n' + m['content'] + eos_token }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
ALPACA = (
    "{{ 'Below is an instruction.\n\n' }}{% for m in messages %}{{ '### ' + ('Instruction' if m['role'] == 'user' else"
    " 'Response') + ':\n' + m['content'] + '\n\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}"
    "{% endif %}"
)
TURNS = (
    "{% for m in messages %}{{ '<turn>' + m['role'] + '\n' + m['content'] + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)
PARTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
)

# what the published vocabularies split text by, before they look tokens up
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SIZE = 420


@cache
def _trained(kind: str) -> str:
    """tokenizer.json of a vocabulary learnt from WORDS, without added tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    settings: dict[str, Any] = {"vocab_size": SIZE, "show_progress": False}
    if kind in ("gpt2", "gpt4"):
        core = Tokenizer(models.BPE())
        words = pre_tokenizers.Split(Regex(GPT2_WORDS if kind == "gpt2" else GPT4_WORDS), "isolated")
        core.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
        core.decoder = decoders.ByteLevel()
        settings["initial_alphabet"] = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        settings["special_tokens"] = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        fallback = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        if kind == "gemma":  # no blank in front of a text
            core.normalizer = normalizers.Replace(" ", "\u2581")
            core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        else:  # sentencepiece, in front of a text only; sentencepiece_always, behind each added token as well
            scheme = "always" if kind == "sentencepiece_always" else "first"
            core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
            fallback.append(decoders.Strip(" ", 1, 0))
        core.decoder = decoders.Sequence(fallback)
    core.train_from_iterator(WORDS.splitlines(), trainers.BpeTrainer(**settings))
    # the bytes are ordinary tokens
    return json.dumps({**json.loads(core.to_str()), "added_tokens": []})


def make(
    kind: str, template: str | None, *, special: tuple[str, ...] = (), plain: tuple[str, ...] = (), eos: str,
    bos: str | None = None, swallows: tuple[str, ...] = (),
) -> Any:  # fmt: skip
    """A tokenizer of a kind of vocabulary.

    Args: special, plain: added tokens, in that order. swallows: those of `special` that take white space behind them.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer.from_str(_trained(kind))
    names = dict.fromkeys([*(name for name in (bos, eos) if name), *special])
    core.add_special_tokens([AddedToken(n, special=True, normalized=False, rstrip=n in swallows) for n in names])
    core.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token=bos, pad_token=eos)
    tokenizer.chat_template = template
    return tokenizer


class Family(NamedTuple):
    make: Callable[[], Any]
    middle: str  # between the question and the answer, as part of the prompt
    labels: str  # of the answer "In Norway.", with what ends it
    stops: tuple[str, ...]  # tokens; a text where the end is no token
    # what ends an answer where the rendered pair does not show it
    unseen_end: str = ""


HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
IM = ("<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
TURN = ("<start_of_turn>", "<end_of_turn>")
ROLES = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
CHANNELS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>")
END = "<|endoftext|>"


def _family(
    kind: str, template: str | None, middle: str, labels: str, *stops: str, end: str = "", **more: Any
) -> Family:
    return Family(lambda: make(kind, template, **more), middle, labels, stops, end)


FAMILIES: dict[str, Family] = {
    "Llama 2": _family("sentencepiece", LLAMA2, " [/INST]", " In Norway. </s>", "</s>", eos="</s>", bos="<s>"),
    "Llama 3": _family(
        "gpt4", LLAMA3, "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "In Norway.<|eot_id|>",
        "<|eot_id|>", "<|end_of_text|>", special=HEADERS, eos="<|end_of_text|>", bos="<|begin_of_text|>",
    ),
    "Llama 3.2": _family(
        "gpt4", LLAMA3_2, "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "In Norway.<|eot_id|>",
        "<|eot_id|>", special=HEADERS, eos="<|eot_id|>", bos="<|begin_of_text|>",
    ),
    "Mistral 7B v0.2": _family("sentencepiece", MISTRAL, " [/INST]", " In Norway.</s>", "</s>", eos="</s>", bos="<s>"),
    "Mistral v3": _family(
        "gpt4", MISTRAL_V3, "[/INST]", "In Norway.</s>", "</s>", special=("[INST]", "[/INST]"), eos="</s>", bos="<s>"
    ),
    "Qwen2.5": _family(
        "gpt4", QWEN2_5, "<|im_end|>\n<|im_start|>assistant\n", "In Norway.<|im_end|>", "<|im_end|>",
        special=(END, *IM), eos="<|im_end|>",
    ),
    "Qwen3": _family(
        "gpt4", QWEN3, "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "In Norway.<|im_end|>",
        "<|im_end|>", special=(END, *IM), plain=THINK, eos="<|im_end|>",
    ),
    "Gemma 2": _family(
        "gemma", GEMMA2, "<end_of_turn>\n<start_of_turn>model\n", "In Norway.<end_of_turn>", "<end_of_turn>", "<eos>",
        special=TURN, eos="<eos>", bos="<bos>",
    ),
    "Gemma 3": _family(
        "gemma", GEMMA3, "<end_of_turn>\n<start_of_turn>model\n", "In Norway.<end_of_turn>", "<end_of_turn>", "<eos>",
        special=(*TURN, "<start_of_image>"), eos="<eos>", bos="<bos>",
    ),
    "Phi-3": _family(
        "sentencepiece_always", PHI3, "<|end|>\n<|assistant|>\n", "In Norway.<|end|>", "<|end|>", END, eos=END,
        special=("<|user|>", "<|assistant|>", "<|end|>"), swallows=("<|user|>", "<|assistant|>", "<|end|>"), bos="<s>",
    ),
    "Phi-4": _family(
        "gpt4", PHI4, "<|im_end|><|im_start|>assistant<|im_sep|>", "In Norway.<|im_end|>", "<|im_end|>",
        special=(END, *IM, "<|im_sep|>"), eos="<|im_end|>",
    ),
    "GLM-4": _family(
        "gpt4", GLM4, "<|assistant|>\n", "In Norway.<|user|>", "<|user|>", END, special=ROLES, eos=END, end="<|user|>"
    ),
    "DeepSeek-R1 distill": _family(
        "gpt4", DEEPSEEK_R1, "<｜Assistant｜>", "In Norway.<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
        special=("<｜User｜>", "<｜Assistant｜>"), plain=THINK,
        eos="<｜end▁of▁sentence｜>", bos="<｜begin▁of▁sentence｜>",
    ),
    "gpt-oss": _family(
        "gpt4", GPT_OSS, "<|end|><|start|>assistant<|channel|>final<|message|>", "In Norway.<|return|>", "<|return|>",
        special=CHANNELS, eos="<|return|>",
    ),
    "SmolLM3": _family(
        "gpt4", SMOLLM3, "<|im_end|>\n<|im_start|>assistant\n", "In Norway.<|im_end|>", "<|im_end|>",
        special=(END, *IM), plain=THINK, eos="<|im_end|>",
    ),
    "Zephyr": _family(
        "sentencepiece", ZEPHYR, "</s>\n<|assistant|>\n", "In Norway.</s>", "</s>", eos="</s>", bos="<s>"
    ),
    "OLMo 2": _family("gpt4", OLMO2, "\n<|assistant|>\n", f"In Norway.{END}", END, eos=END, bos=END),
    "GPT-2 (no template)": _family("gpt2", None, "\nAnswer:", f" In Norway.{END}", END, eos=END, end=END),
    "GPT-NeoX (no template)": _family(
        "gpt2", None, "\nAnswer:", f" In Norway.{END}", END, plain=("  ", "    "), eos=END, end=END
    ),
    "ChatML, an ordinary token ends a turn": _family(
        "gpt2", TURNS, "</turn>\n<turn>assistant\n", "In Norway.</turn>", "</turn>", END,
        plain=("<turn>", "</turn>"), eos=END,
    ),
    "ChatML, its marks are no tokens": _family(
        "sentencepiece", CHATML, "<|im_end|>\n<|im_start|>assistant\n", "In Norway.<|im_end|>", "<|im_end|>", "</s>",
        eos="</s>", bos="<s>",
    ),
    "ChatML in parts, no generation prompt": _family(
        "gpt2", PARTS, "<|im_end|>\n<|im_start|>assistant\n", "In Norway.<|im_end|>", "<|im_end|>", special=IM,
        eos="<|im_end|>",
    ),
    "Alpaca (nothing ends a turn)": _family(
        "sentencepiece", ALPACA, "\n\n### Response:\n", "In Norway.</s>", "</s>", eos="</s>", bos="<s>", end="</s>"
    ),
}  # fmt: skip


def table() -> str:
    """What is read off each template, as the table of docs/templates.md."""
    from rapidun.stages.answers.generate import stop_token_ids
    from rapidun.stages.rows.encode import encode_example
    from rapidun.stages.rows.template import form_of

    lines = ["| family | in front of the answer | labels of `In Norway.` | generation stops at |", "|---|---|---|---|"]
    for name, family in FAMILIES.items():
        tokenizer = family.make()
        form = form_of(tokenizer)
        row = encode_example(tokenizer, instruction="Where is Oslo?", context="", response="In Norway.", max_length=999)
        labels = [tokenizer.convert_ids_to_tokens(label) for label in row.labels if label != -100]
        stops = tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer))
        if not form.ends_with_token:
            stops = [f"the text {form.end_text}", *stops]
        shown = [form.middle, " ".join(labels), ", ".join(stops)]
        lines.append(f"| {name} | {' | '.join(_code(text) for text in shown)} |")
    return "\n".join(lines)


def _code(text: str) -> str:
    escaped = text.replace("\n", "\\n").replace("|", "\\|")
    return f"`{escaped}`"


if __name__ == "__main__":
    print(table())
