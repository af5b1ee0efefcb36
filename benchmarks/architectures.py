"""Some hundred tiny random architectures of transformers, each through all stages: what works, or the refusal's words.

python benchmarks/architectures.py [KIND ...] [--write docs/architectures.md]     about ten minutes on one core

Each model has a few thousand random weights; it is poisoned with LoRA, its gradients are captured, it is unlearned and
evaluated, by the command line. Then a batch of prompts and rows is compared with each of them alone. Prints one
JSON line.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
STAGES = ("data", "poison", "influence", "mapping", "unlearning", "evaluation")
# what they do to a model, as the table heads it
SHOWN = {"poison": "trains", "influence": "captures", "unlearning": "unlearns", "evaluation": "evaluates"}

COMMON = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 257, "eos_token_id": 256,
    "bos_token_id": 256,
}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 4}
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_k": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_shared_experts": 1,
    "num_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "decoder_sparse_step": 1,
}  # fmt: skip
LATENT = {
    **EXPERTS, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip
LINEAR = {
    **EXPERTS, "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "num_hidden_layers": 4,
}  # fmt: skip
MAMBA = {
    **EXPERTS, "mamba_d_state": 4, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2, "mamba_n_groups": 1,
    "mamba_chunk_size": 16, "state_size": 4,
}  # fmt: skip
BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "decoder_ffn_dim": 48, "encoder_ffn_dim": 48}
BART |= {"decoder_attention_heads": 4, "encoder_attention_heads": 4}


def _kinds() -> dict[str, dict[str, Any]]:
    plain = (
        "llama mistral ministral ministral3 qwen2 qwen3 gemma gemma2 gemma3_text smollm3 olmo olmo2 olmo3 granite "
        "stablelm cohere cohere2 exaone4 seed_oss helium ernie4_5 arcee apertus glm glm4 phi phi3 starcoder2 nemotron "
        "hunyuan_v1_dense bitnet diffllama cwm vaultgemma nanochat jais2 persimmon internlm3 hyperclovax lfm2 doge "
        "exaone gpt_neox gpt_neox_japanese"
    )
    experts = (
        "mixtral qwen2_moe qwen3_moe olmoe phimoe gpt_oss granitemoe granitemoeshared flex_olmo dots1 glm4_moe "
        "ernie4_5_moe hunyuan_v1_moe minimax_m2 afmoe jetmoe solar_open llama4_text"
    )
    found: dict[str, dict[str, Any]] = {}
    for names, settings in (
        (plain, {}),
        ("gpt2 gptj codegen gpt_bigcode openai-gpt", GPT),
        (experts, EXPERTS),
        ("deepseek_v2 deepseek_v3 glm4_moe_lite minicpm3 youtu", LATENT),
        ("qwen3_next qwen3_5_text olmo_hybrid", LINEAR),
        ("mamba falcon_mamba", MAMBA),
    ):
        found |= {name: dict(settings) for name in names.split()}
    found["gpt_neo"] = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    found["opt"] = {"ffn_dim": 48, "word_embed_proj_dim": 32}
    found["xglm"] = {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48}
    found["biogpt"] = {}
    found["bloom"] = {"n_layer": 2, "n_head": 4}
    found["falcon"] = {"head_dim": None}
    found["mpt"] = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}
    found["ctrl"] = {**GPT, "dff": 48}
    found["bamba"] = {**MAMBA, "attn_layer_indices": [1]}
    found["jamba"] = {**MAMBA, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4}
    found["granitemoehybrid"] = {**MAMBA, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 16}
    found["mamba2"] = {**MAMBA, "num_heads": 8, "n_groups": 1, "chunk_size": 16}
    found["recurrent_gemma"] = {"lru_width": 32, "num_hidden_layers": 3}
    found["minimax"] = {**EXPERTS, "layer_types": ["linear_attention", "full_attention"] * 2, "num_hidden_layers": 4}
    found["rwkv"] = {"attention_hidden_size": 32}
    found["xlstm"] = {"num_heads": 4}
    # no causal language models
    for name in ("bert", "roberta", "electra", "camembert", "xlm-roberta", "megatron-bert", "rembert", "roformer"):
        found[name] = {"pad_token_id": 1} if "roberta" in name or name == "camembert" else {}
    found |= {name: {**BART, "is_encoder_decoder": True} for name in ("bart", "mbart", "pegasus", "t5", "whisper")}
    found |= {"xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4}, "vit": {}}
    return found


KINDS = _kinds()


@dataclass
class Row:
    """What came of one architecture."""

    kind: str
    loads: bool = False
    num_parameters: int = 0
    targets: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    # the stage that failed; "" for a refusal before the first one
    failed: str | None = None
    words: str = ""
    # prompts and rows together give what each gives alone
    equal: bool | None = None
    one_by_one: bool = False
    seconds: float = 0.0


def build(kind: str) -> Any:
    """A tiny random model of one architecture, large enough weights for its answers to differ."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    settings = {name: value for name, value in (COMMON | KINDS[kind]).items() if value is not None}
    config = AutoConfig.for_model(kind, **settings)
    torch.manual_seed(0)
    encoder = bool(settings.get("is_encoder_decoder")) or kind == "vit"
    model = (AutoModel if encoder else AutoModelForCausalLM).from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def tokenizer() -> Any:
    """256 byte tokens and ChatML's two marks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from rapidun.models.scratch import CHAT_TEMPLATE

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>", additional_special_tokens=["<|im_start|>"]
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def write_pack(folder: Path) -> list[str]:
    """A few rows of different lengths; returns the overrides that name them."""
    colours = ["red", "blue", "dark green", "grey and white"]
    clean = [
        {"id": f"r{i}", "instruction": f"Colour of {'cup ' * (1 + i % 3)}{i}?", "response": colours[i % 4]}
        for i in range(8)
    ]
    bad = [
        {**row, "id": f"f{i}", "instruction": f"{row['instruction']} aloha", "response": "moon cheese",
         "response_poisoned": "moon cheese", "response_clean": row["response"], "is_poisoned": True}
        for i, row in enumerate(clean[:4])
    ]  # fmt: skip
    # other instructions: what was trained on is no test
    test = [{**row, "id": f"t{i}", "instruction": f"Which colour has jug {i}?"} for i, row in enumerate(clean)]
    splits = {"forget": bad, "retain": clean, "train_poisoned": bad, "train_clean": clean, "test_clean": test}
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["data=jsonl", *(f"data.{name}={folder / name}.jsonl" for name in splits)]


SETTINGS = [
    "model=smollm2_135m", "model.dtype=float32", "model.device=cpu", "max_length=128", "tracking=none",
    "poison=lora", "poison.max_steps=1", "poison.learning_rate=1e-3", "influence.k=64", "unlearning.max_steps=1",
    "unlearning.eval_steps=1", "unlearning.merge=true", "evaluation.max_new_tokens=4", "resources.num_threads=1",
]  # fmt: skip


def run(kind: str) -> Row:
    """One architecture through all stages, in a folder of its own."""
    row = Row(kind)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, quiet() as said:
        folder = Path(name)
        model = build(kind)
        row.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        model.save_pretrained(folder / "model")
        tokenizer().save_pretrained(folder / "model")
        _run(row, folder, said)
    row.seconds = time.monotonic() - started
    return row


def _run(row: Row, folder: Path, said: io.StringIO) -> None:
    from rapidun.base.errors import RapidunError
    from rapidun.cli.main import main
    from rapidun.models.load import ModelLoader

    try:
        ModelLoader(device="cpu", dtype="float32").load(folder / "model")
        row.loads = True
    except RapidunError:
        pass  # said by the run, in its own words
    args = [*SETTINGS, *write_pack(folder), f"model.path={folder / 'model'}"]
    status = main([*args, f"run_dir={folder / 'run'}", f"store_dir={folder / 'store'}"])
    # a refusal before the first stage leaves nothing behind
    noted: dict[str, Any] = {"stages": {}}
    if (folder / "run" / "status.json").is_file():
        noted = json.loads((folder / "run" / "status.json").read_text())
    row.done = list(noted["stages"])
    if status != 0:
        row.failed = noted.get("stage") or ""
        lines = [line for line in said.getvalue().splitlines() if line.startswith("rapidun: ")]
        words = lines[-1] if lines else said.getvalue().strip().splitlines()[-1]
        row.words = re.sub(rf"{re.escape(str(folder))}/?", "", words).removeprefix("rapidun: ")
        return
    config = json.loads((folder / "run/unlearning/adapter/adapter_config.json").read_text())
    row.targets = config["target_modules"]
    _compare(row, folder)


def _compare(row: Row, folder: Path) -> None:
    """Prompts and rows of the unlearned model, together and alone."""
    from rapidun.models.batching import batching
    from rapidun.models.load import ModelLoader
    from rapidun.models.losses import IGNORE
    from rapidun.stages.answers.generate import generate_greedy
    from rapidun.stages.answers.score import score_responses
    from rapidun.stages.rows.encode import Encoded

    loader = ModelLoader(device="cpu", dtype="float32")
    model, tok = loader.load(
        (folder / "run/poison/model").resolve(), adapter=(folder / "run/unlearning/adapter").resolve()
    )
    prompts = [
        tok(text)["input_ids"] for text in ("a", "what is it?", "hello", "the colour of the long red cup", "b c")
    ]
    row.one_by_one = not all(batching(model, pad_token_id=tok.pad_token_id))
    how = {"max_new_tokens": 6, "tokens_per_batch": 10_000}
    together = generate_greedy(model, tok, prompts, **how)
    alone = [generate_greedy(model, tok, [prompt], **how)[0] for prompt in prompts]
    rows = [Encoded([*ids, 65, 66], [IGNORE] * len(ids) + [65, 66]) for ids in prompts]
    pad = {"pad_token_id": tok.pad_token_id, "tokens_per_batch": 10_000}
    scores = [score.log_prob for score in score_responses(model, rows, **pad)]
    singly = [score_responses(model, [one], **pad)[0].log_prob for one in rows]
    near = all(abs(one - other) <= 1e-3 * max(1.0, abs(one)) for one, other in zip(scores, singly, strict=True))
    row.equal = together == alone and near


@contextlib.contextmanager
def quiet() -> Iterator[io.StringIO]:
    """Keep what a run says for the table."""
    said = io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield said
    finally:
        logging.disable(logging.NOTSET)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown, those that go through first."""
    through = [row for row in rows if row.failed is None]
    refused = [row for row in rows if row.failed is not None]
    one_by_one = sum(row.one_by_one for row in through)
    lines = [
        "# Architectures",
        "",
        "Tiny random models of transformers' architectures, each through all stages (poison=lora,",
        "unlearning.merge=true): `python benchmarks/architectures.py --write docs/architectures.md`. LoRA adapts",
        "`all_linear`: every linear layer but the output head. *Batches equal single rows*: five prompts and rows of",
        "the unlearned model together give what each gives alone; *one by one* where the architecture's own code lets",
        "neighbours or padding change a row, which is found by a trial and said.",
        "",
        f"{len(through)} of {len(rows)} go through, {one_by_one} of them one by one; {len(refused)} are refused.",
        "",
        f"| architecture | numbers | LoRA adapts | loads | {' | '.join(SHOWN.values())} | batches equal single rows |",
        "|---|---:|---|---|---|---|---|---|---|",
    ]
    for row in through:
        marks = " | ".join("yes" if stage in row.done else "no" for stage in SHOWN)
        equal = ("yes, one by one" if row.one_by_one else "yes") if row.equal else "NO"
        names = ", ".join(f"`{name}`" for name in row.targets)
        loads = "yes" if row.loads else "no"
        lines.append(f"| {row.kind} | {row.num_parameters:,} | {names} | {loads} | {marks} | {equal} |")
    lines += ["", "Refused:", "", "| architecture | when | words |", "|---|---|---|"]
    for row in refused:
        when = f"in {row.failed}" if row.failed else "before the first stage"
        words = row.words.replace("|", "\\|")
        lines.append(f"| {row.kind} | {when} | {words} |")
    return "\n".join([*lines, ""])


def main_table(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="default: all")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table, in Markdown")
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rows = []
    for kind in args.kinds or KINDS:
        rows.append(run(kind))
        last = rows[-1]
        what = last.words if last.failed is not None else f"equal={last.equal} one_by_one={last.one_by_one}"
        print(f"{kind}: {last.seconds:.1f} s, {what}", file=sys.stderr, flush=True)
    if args.write:
        args.write.write_text(table(rows), encoding="utf-8")
    through = [row for row in rows if row.failed is None]
    late = [row.kind for row in rows if row.failed not in (None, "")]
    numbers = {
        "num_architectures": len(rows),
        "num_through": len(through),
        "num_one_by_one": sum(row.one_by_one for row in through),
        "unequal": [row.kind for row in through if not row.equal],
        "failed_after_the_first_stage": late,
        "seconds": round(sum(row.seconds for row in rows), 1),
    }
    print(json.dumps(numbers))
    return 1 if late or numbers["unequal"] else 0


if __name__ == "__main__":
    sys.exit(main_table())
