"""How long the paper presets take on GPUs, and how much memory: an estimate, nothing of it measured on a GPU.

    python benchmarks/paper_time.py [--gpu h100] [--utilisation 0.4] [--json]

Floating point operations a token, from F0 = 4 (P + H), P the linear weights of the body and H those of the head: a
forward pass and the gradient with respect to the inputs (docs/influence.md, "What it costs"):

    forward 0.5 F0 (scoring, prompts)     LoRA step 1.0 F0     influence 1.1 F0, measured for `sketch` on SmolLM2

    training, influence, scoring:   seconds = tokens x share x F0 / (peak x utilisation)
    generating:                     seconds = steps x max(bytes of the weights / (bandwidth x 0.6), STEP)

A step of generating gives a token to all rows of a batch. Attention's own products are left out: at 256 tokens 2 % of
the rest. STEP, 25 ms, is what launching the kernels of 32 layers from Python takes at least: an assumption, and most of
the time. Rows, epochs and batches are the preset's (published sizes of the Dolly pack); TOKENS a row 160, as the 160
published rows have (25,475 with SmolLM2's tokenizer); answers at their longest (max_new_tokens). Loading the weights is
taken at 1 GB/s, once a stage. Left out: what is measured while unlearning goes on, the detectors that read answers
again, writing the poisoned model.

Memory: weights in bfloat16, of an adapter 16 bytes a number (float32, gradient, two moments), activations that a
backward pass keeps (18 hidden + 6 intermediate numbers a token and layer, 2 bytes), logits in float32 three times; of
generating keys and values instead. Nothing for fragmentation.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
from rapidun.config.compose import compose_config

TOKENS = 160
STEP = 0.025
READ = 1e9
# dense bfloat16 FLOP/s, bytes/s of memory, bytes: the makers' data sheets
GPUS = {
    "a100": (312e12, 2.0e12, 80e9),
    "h100": (989e12, 3.35e12, 80e9),
    "h200": (989e12, 4.8e12, 141e9),
}
# published rows of a split (METHOD of the paper); what is made here: data.num_triggered for the splits that it lacks
ROWS = {
    "train_poisoned": 799, "train_clean": 7192, "forget": 40, "retain": 120, "val_clean": 420, "test_clean": 3000,
    "test_seen_trig": 3000, "test_ood_trig": 4500,
}  # fmt: skip
# Alpaca: the sizes are not published here; the Dolly pack's stand in
PRESETS = ("paper_llama3_8b_dolly", "paper_mistral_7b_dolly", "paper_alpaca_howdy")


class Shape(NamedTuple):
    """Sizes of a Llama-architecture model (its config.json)."""

    hidden: int
    intermediate: int
    layers: int
    key_values: int  # numbers of a layer's keys, as many of its values
    vocabulary: int

    @property
    def body(self) -> int:
        attention = 2 * self.hidden * (self.hidden + self.key_values)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        return self.hidden * self.vocabulary

    @property
    def nbytes(self) -> int:
        """In bfloat16; input embedding and head apart."""
        return 2 * (self.body + 2 * self.head)

    @property
    def floor(self) -> int:
        """F0, FLOP a token."""
        return 4 * (self.body + self.head)

    def adapter(self, r: int) -> int:
        """Numbers of LoRA factors on the seven linear layers of each block."""
        sides = 2 * (self.hidden + self.hidden) + 2 * (self.hidden + self.key_values)
        return self.layers * r * (sides + 3 * (self.hidden + self.intermediate))

    def kept(self, tokens: int) -> int:
        """Bytes that the backward pass of so many tokens needs."""
        numbers = self.layers * (18 * self.hidden + 6 * self.intermediate)
        return tokens * (2 * numbers + 3 * 4 * self.vocabulary)


SHAPES = {
    "llama3_8b_instruct": Shape(4096, 14336, 32, 1024, 128256),
    "mistral_7b_instruct": Shape(4096, 14336, 32, 1024, 32768),
}


class Stage(NamedTuple):
    name: str
    tokens: int  # through the model, forward or both ways
    seconds: float
    gigabytes: float


def estimate(preset: str, *, gpu: str, utilisation: float) -> list[Stage]:
    """Seconds and memory of each stage on one GPU."""
    cfg = compose_config([f"+experiment={preset}", "data.dir=PACK"])
    peak, bandwidth, _ = GPUS[gpu]
    shape = SHAPES[cfg.model.name]
    load = shape.nbytes / READ
    flops = peak * utilisation
    adapter = 16 * shape.adapter(cfg.unlearning.lora.r)

    def passes(tokens: float, share: float) -> float:
        return tokens * share * shape.floor / flops

    poison, unlearning, evaluation = cfg.poison, cfg.unlearning, cfg.evaluation
    assert poison.num_train_epochs and poison.per_device_train_batch_size and unlearning.num_train_epochs
    train = int((ROWS["train_poisoned"] + ROWS["train_clean"]) * TOKENS * poison.num_train_epochs)
    batch = poison.per_device_train_batch_size * cfg.max_length
    stages = [
        Stage("poison", train, load + passes(train, 1.0), (shape.nbytes + adapter + shape.kept(batch)) / 1e9),
    ]
    rows = (ROWS["forget"] + ROWS["retain"]) * TOKENS
    # the head runs at labelled positions; kept numbers of a row are few beside the model
    kept = shape.kept(cfg.influence.tokens_per_batch)
    stages.append(Stage("influence", rows, load + passes(rows, 1.1), (shape.nbytes + kept) / 1e9))
    # a forget row is read with its poisoned and with its clean answer
    step_rows = unlearning.forget_per_step * (2 + unlearning.mix_ratio)
    tokens = int(ROWS["forget"] / unlearning.forget_per_step * unlearning.num_train_epochs * step_rows * TOKENS)
    seconds = load + passes(tokens, 1.0)
    stages.append(Stage("unlearning", tokens, seconds, (shape.nbytes + adapter + shape.kept(step_rows * 256)) / 1e9))
    unseen = cfg.data.num_triggered
    prompts = sum(ROWS[name] for name in ("test_clean", "test_seen_trig", "test_ood_trig")) + unseen
    # each prompt with the answer that is generated, and with both responses
    scored = prompts * 2 * TOKENS
    # docs/method.md, section 6: tokens_per_batch, or as many as keep keys and values in the memory of those logits
    logits = 4 * shape.vocabulary * evaluation.tokens_per_batch
    a_token = 2 * 2 * shape.layers * shape.key_values
    together = max(evaluation.tokens_per_batch, logits // a_token)
    steps = prompts / max(1, together // (TOKENS + evaluation.max_new_tokens)) * evaluation.max_new_tokens
    generated = steps * max(shape.nbytes / (bandwidth * 0.6), STEP)
    cache = a_token * together
    stages.append(
        Stage(
            "evaluation, before and after",
            2 * scored,
            2 * (load + passes(scored, 0.5) + generated),
            (shape.nbytes + cache + logits) / 1e9,
        )
    )
    return stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=GPUS, default="h100")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak that training reaches")
    parser.add_argument("--json", action="store_true", help="one JSON line in place of the table")
    options = parser.parse_args()
    if not 0 < options.utilisation <= 1:
        parser.error("need 0 < --utilisation <= 1")
    found: dict[str, Any] = {}
    for preset in PRESETS:
        stages = estimate(preset, gpu=options.gpu, utilisation=options.utilisation)
        found[preset] = {stage.name: [round(stage.seconds), round(stage.gigabytes)] for stage in stages}
        total = sum(stage.seconds for stage in stages)
        # a sweep over `seed`: poison, then influence beside the evaluation before, then a cell on each GPU
        poison, influence, unlearning, evaluation = (stage.seconds for stage in stages)
        sweep = poison + max(influence, evaluation / 2) + unlearning + evaluation / 2
        found[preset]["one run, minutes"] = round(total / 60)
        found[preset]["8 cells on 8 GPUs, minutes"] = round(sweep / 60)
    if options.json:
        print(json.dumps({"benchmark": "paper_time", "gpu": options.gpu, "utilisation": options.utilisation, **found}))
        return
    print(f"ESTIMATE, one {options.gpu} at {options.utilisation:.0%} of its peak; minutes (GB of memory)\n")
    names = [name for name in next(iter(found.values())) if "minutes" not in name]
    print("| preset | " + " | ".join(names) + " | one run | 8 cells on 8 GPUs |")
    print("|---|" + "---|" * (len(names) + 2))
    for preset, parts in found.items():
        cells = [f"{parts[name][0] / 60:.1f} ({parts[name][1]})" for name in names]
        hours = [str(parts[key]) for key in ("one run, minutes", "8 cells on 8 GPUs, minutes")]
        print(f"| `{preset}` | " + " | ".join([*cells, *hours]) + " |")


if __name__ == "__main__":
    main()
