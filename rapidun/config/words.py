"""What other projects call our settings: a wrong key that is one of their words is answered with ours.

open-unlearning: Hydra groups `trainer`, `model`, `data`, `eval`, hyperparameters under trainer.args and
trainer.method_args. RapidUn and RapidIn: the published pipeline configuration. TRL, peft, transformers: arguments.
"""

from typing import NamedTuple

RAPIDUN, OPEN_UNLEARNING, HF = "RapidUn's", "open-unlearning's", "transformers'"
RAPIDIN, PEFT = "RapidIn's", "peft's"
BOTH = "RapidUn's and open-unlearning's"


class Word(NamedTuple):
    """Our keys (or groups) for it, the likeliest first; whose word it is; `note`: what is done otherwise here."""

    keys: tuple[str, ...]
    whose: str
    note: str = ""


_LEARNING_RATE = ("unlearning.learning_rate", "poison.learning_rate")
_ROWS = ("unlearning.forget_per_step", "poison.per_device_train_batch_size")
_ROWS_NOTE = "a step of unlearning holds so many forget rows and unlearning.mix_ratio times as many retain rows"
_ACCUMULATION = ("unlearning.gradient_accumulation_steps", "poison.gradient_accumulation_steps")
_EPOCHS = ("unlearning.num_train_epochs", "poison.num_train_epochs")
_WARMUP = ("unlearning.warmup_ratio", "poison.warmup_ratio")
_SHARE = "a share of the steps"
_ADAPTER = ("model.adapter", "unlearning.adapter")
_ADAPTER_NOTE = "the first is part of the model to start from, the second is trained on"
_DTYPE_NOTE = "bfloat16, float16, float32 or auto"
_BETAS = (
    "mapping.beta", "unlearning.descent_beta", "unlearning.npo.beta", "unlearning.simnpo.beta", "unlearning.dpo.beta",
    "unlearning.undial.beta", "unlearning.wga.beta",
)  # fmt: skip

WORDS: dict[str, Word] = {
    # --- the model
    "base_model": Word(("model.path",), RAPIDUN),
    "model_path": Word(("model.path",), RAPIDIN),
    "model_name": Word(("model.path",), HF),
    "model_name_or_path": Word(("model.path",), HF),
    "pretrained_model_name_or_path": Word(("model.path",), OPEN_UNLEARNING),
    "tokenizer_args": Word(("model.path",), OPEN_UNLEARNING, "the tokenizer is the model's own"),
    "model_args": Word(("model",), OPEN_UNLEARNING),
    "attn_implementation": Word(("model.attention",), OPEN_UNLEARNING),
    "torch_dtype": Word(("model.dtype",), OPEN_UNLEARNING),
    "bf16": Word(("model.dtype",), RAPIDUN, _DTYPE_NOTE),
    "fp16": Word(("model.dtype",), RAPIDUN, _DTYPE_NOTE),
    "load_in_4bit": Word(("model.quantisation",), RAPIDIN, "none, 8bit or 4bit"),
    "load_in_8bit": Word(("model.quantisation",), HF, "none, 8bit or 4bit"),
    "quantization": Word(("model.quantisation",), HF, "none, 8bit or 4bit"),
    "max_len": Word(("max_length",), RAPIDUN),
    "max_seq_length": Word(("max_length",), HF),
    "lora_path": Word(_ADAPTER, RAPIDIN, _ADAPTER_NOTE),
    "adapter_path": Word(_ADAPTER, HF, _ADAPTER_NOTE),
    "adapter_name_or_path": Word(_ADAPTER, HF, _ADAPTER_NOTE),
    "adapter_model": Word(_ADAPTER, HF, _ADAPTER_NOTE),
    "adapter_dir": Word(_ADAPTER, HF, _ADAPTER_NOTE),
    "base_model_adapter": Word(_ADAPTER, HF, _ADAPTER_NOTE),
    "peft_path": Word(_ADAPTER, PEFT, _ADAPTER_NOTE),
    "peft_model": Word(_ADAPTER, PEFT, _ADAPTER_NOTE),
    "peft_model_id": Word(_ADAPTER, PEFT, _ADAPTER_NOTE),
    "lora_model": Word(_ADAPTER, PEFT, _ADAPTER_NOTE),
    "lora_weights": Word(_ADAPTER, PEFT, _ADAPTER_NOTE),
    "lora_adapter": Word(_ADAPTER, PEFT, _ADAPTER_NOTE),
    "merge_adapter": Word(("model.adapter_as", "unlearning.merge"), PEFT, "merged or apart; true or false"),
    "merge_and_unload": Word(("model.adapter_as", "unlearning.merge"), PEFT, "merged or apart; true or false"),
    # --- the data
    "packs_dir": Word(("data.dir",), RAPIDUN, "with data=pack"),
    "forget_path": Word(("data.forget",), RAPIDUN, "with data=jsonl"),
    "retain_path": Word(("data.retain",), RAPIDUN, "with data=jsonl"),
    "train_data_path": Word(("data.train_clean", "data.train_poisoned"), RAPIDIN, "with data=jsonl"),
    "forget_split": Word(("data.forget",), OPEN_UNLEARNING, "a file, with data=jsonl; data=pack data.dir=DIR"),
    "retain_split": Word(("data.retain",), OPEN_UNLEARNING, "a file, with data=jsonl; data=pack data.dir=DIR"),
    "holdout_split": Word(("data.test_clean",), OPEN_UNLEARNING, "a file, with data=jsonl"),
    "forget_label_field": Word((), RAPIDUN, "a row to forget has response_poisoned where there is one, else response"),
    # --- influence
    "rapidgrad_k": Word(("influence.k",), RAPIDUN),
    "RapidGrad_K": Word(("influence.k",), RAPIDIN),
    "shuffle_lambda": Word(("influence.num_shuffles",), RAPIDIN, "with influence=rapidgrad"),
    "infl_method": Word(("influence",), RAPIDIN),
    "proj_dim": Word(("influence.k",), "TRAK's"),
    # --- mapping
    "map_topk": Word(("mapping.top_k",), RAPIDUN),
    "wmin_f": Word(("mapping.forget.w_min",), RAPIDUN),
    "wmax_f": Word(("mapping.forget.w_max",), RAPIDUN),
    "wmin_r": Word(("mapping.retain.w_min",), RAPIDUN),
    "wmax_r": Word(("mapping.retain.w_max",), RAPIDUN),
    "weighting_mode": Word(("mapping",), RAPIDUN),
    "rapidin_forget_weights": Word(("mapping.forget.path",), RAPIDUN, "with mapping=file"),
    "rapidin_retain_weights": Word(("mapping.retain.path",), RAPIDUN, "with mapping=file"),
    "out_forget": Word((), RAPIDUN, "weights are written to RUN_DIR/mapping; those made elsewhere: mapping=file"),
    "out_retain": Word((), RAPIDUN, "weights are written to RUN_DIR/mapping; those made elsewhere: mapping=file"),
    "tau": Word(("mapping.tau_f", "mapping.tau_r"), RAPIDUN),
    # --- unlearning: one word, several meanings
    "alpha": Word(("mapping.alpha", "unlearning.ascent_alpha", "unlearning.retain_coeff"), BOTH),
    "beta": Word(_BETAS, BOTH),
    "gamma": Word(
        ("mapping.gamma", "unlearning.ascent_alpha", "unlearning.forget_coeff", "unlearning.simnpo.margin"),
        BOTH,
    ),
    "delta": Word(("mapping.delta", "unlearning.simnpo.margin"), BOTH),
    "trainer": Word(("unlearning",), OPEN_UNLEARNING, "unlearning=npo, say"),
    "method_args": Word(("unlearning",), OPEN_UNLEARNING),
    "retain_loss_type": Word(("unlearning.retain_loss",), OPEN_UNLEARNING, "ce or kl"),
    # --- training
    "lr": Word(_LEARNING_RATE, RAPIDUN),
    "epochs": Word(_EPOCHS, RAPIDUN),
    "num_epochs": Word(_EPOCHS, OPEN_UNLEARNING),
    "bsz": Word(_ROWS, RAPIDUN, _ROWS_NOTE),
    "batch_size": Word(_ROWS, OPEN_UNLEARNING, _ROWS_NOTE),
    "per_device_batch_size": Word(_ROWS, OPEN_UNLEARNING, _ROWS_NOTE),
    "per_device_train_batch_size": Word(_ROWS, HF, _ROWS_NOTE),
    "per_device_eval_batch_size": Word(("evaluation.tokens_per_batch",), HF, "tokens, not rows"),
    "grad_accum": Word(_ACCUMULATION, RAPIDUN),
    "gradient_accumulation": Word(_ACCUMULATION, OPEN_UNLEARNING),
    "clip_grad": Word(("unlearning.max_grad_norm", "poison.max_grad_norm"), RAPIDUN),
    "optim": Word(("unlearning.optimizer", "poison.optimizer"), HF),
    "warmup_steps": Word(_WARMUP, HF, _SHARE),
    "warmup_epochs": Word(_WARMUP, OPEN_UNLEARNING, _SHARE),
    "weight_warmup_steps": Word(("unlearning.weight_warmup_ratio",), RAPIDUN, _SHARE),
    "lr_scheduler": Word(("unlearning.lr_scheduler_type", "poison.lr_scheduler_type"), HF),
    "eval_every": Word(("unlearning.eval_steps",), RAPIDUN),
    "save_every": Word(("unlearning.save_steps",), RAPIDUN),
    "lora_new": Word(("unlearning.adapter",), RAPIDUN, "null is a new adapter"),
    "lora_r": Word(("unlearning.lora.r", "poison.lora.r"), RAPIDUN),
    "lora_rank": Word(("unlearning.lora.r", "poison.lora.r"), HF),
    "lora_alpha": Word(("unlearning.lora.lora_alpha", "poison.lora.lora_alpha"), RAPIDUN),
    "lora_dropout": Word(("unlearning.lora.lora_dropout", "poison.lora.lora_dropout"), RAPIDUN),
    "lora_target": Word(("unlearning.lora.target_modules", "poison.lora.target_modules"), RAPIDUN),
    "adapter_out": Word((), RAPIDUN, "the adapter is written to RUN_DIR/unlearning/adapter"),
    # --- the run
    "output_dir": Word(("run_dir",), RAPIDUN),
    "outdir": Word(("run_dir",), RAPIDIN),
    "task_name": Word(("name",), OPEN_UNLEARNING),
    "eval": Word(("evaluation",), OPEN_UNLEARNING),
    "report_to": Word(("tracking",), HF),
    "deterministic": Word((), RAPIDUN, "every run is: draws are seeded and do not depend on the device"),
    "time_log_json": Word((), RAPIDUN, "seconds and peak memory of each stage are in RUN_DIR/status.json"),
}  # fmt: skip

# names of open-unlearning's trainers that are not ours in capitals
CHOICES = {"gradascent": "ga", "graddiff": "graddiff", "ce-u": "ceu", "grad_ascent": "ga", "grad_diff": "graddiff"}
