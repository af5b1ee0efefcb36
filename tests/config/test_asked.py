"""What was typed and nothing reads: refused, said, or read after all."""

import pytest

from rapidun.base.errors import ConfigError
from rapidun.config.asked import TRACKERS, typed
from rapidun.config.cells import compose_sweep
from rapidun.config.compose import Run, compose_run
from rapidun.config.overrides import parse
from rapidun.config.run import STAGES
from rapidun.config.tracking import TrackingConfig
from rapidun.config.unlearning import Objective, UnlearningConfig
from rapidun.stages.data.stage import SPLITS

JSONL = ["data=jsonl", "data.forget=f.jsonl", "data.retain=r.jsonl"]
SMOL = ["model=smollm2_135m", "model.path=DIR"]

REFUSED = [
    (["data.forget=f.jsonl", "data.retain=r.jsonl"], ["data.forget, data.retain", "builtin", "data=jsonl"]),
    (["data.test_clean=t.jsonl"], ["data.test_clean", "data=jsonl"]),
    (["data.train_poisoned=t.jsonl", "stages=[mapping]"], ["data.train_poisoned", "own rows would be used"]),
    (["data.dir=DIR"], ["data.dir", "data=pack"]),
    ([*JSONL, "data.builtin.num_train_clean=2000"], ["data.builtin.num_train_clean", "data=builtin"]),
    (["data=dolly_triggers", "data.dir=DIR", "data.builtin.num_test=10"], ["data.builtin.num_test"]),
    (["data=pack", "data.dir=DIR", "data.builtin.payload=entity"], ["data.builtin.payload", "data=builtin"]),
    (["data.families={}"], ["data.families={}", "~data.families.A_surface"]),
    (["data.families={}", "data.families.Z.seen=[zap]"], ["data.families={}", "~data.families.C_semantic"]),
    (["data.unseen_families={}"], ["~data.unseen_families.D_command"]),
    (["model.path=DIR"], ["model=hf", "model=tiny"]),
    (["model.path=org/name", "poison=none", "stages=[influence]"], ["model=hf"]),
    ([*SMOL, "model.scratch.hidden_size=64"], ["model.scratch.hidden_size", "model.path=DIR"]),
    (["model.revision=main"], ["model.revision", "from scratch"]),
    (["model=smollm2_135m", "model.path=x.gguf", "model.revision=main"], ["model.revision", "x.gguf"]),
    (
        ["mapping.forget=f.jsonl", "mapping.retain=r.jsonl"],
        ["mapping.forget.path, mapping.retain.path", "mapping=file"],
    ),
    (["mapping=uniform", "mapping.retain.path=r.jsonl"], ["mapping.retain.path", "mapping=file"]),
    (["mapping.forget={w_min: 0.5, path: f.jsonl}"], ["mapping.forget.path", "mapping=file"]),
    ([*SMOL, "poison=none", "poison.retrain=true"], ["poison.method=none", "yardstick"]),
    (
        [*SMOL, "poison=none", "unlearning.token_weights=likelihood_ratio"],
        ["poison.method=none", "model before poisoning", "token_weights=influence"],
    ),
    (["unlearning=idk_sft", "unlearning.token_weights=influence"], ["token_weights=none", "objective=idk_sft"]),
    (["unlearning.weights_act=sampling", "unlearning.weight_warmup_ratio=0.5"], ["weight_warmup_ratio=0"]),
    (["unlearning.momentum=0.9"], ["momentum=0", "optimizer=adamw"]),
    (["poison.optimizer=sgd", "poison.momentum=1.5"], ["momentum < 1"]),
    (["unlearning.eval_asr=-1"], ["eval_asr >= 0"]),
    (["unlearning.num_eval_prompts=0"], ["num_eval_prompts >= 1"]),
    ([*SMOL, "poison=none", "unlearning=retrain"], ["poison.method=none", "unlearning.objective=retrain"]),
]

WARNED = [
    (["influence=exact", "influence.k=4096"], ["influence.k", "influence.method=exact"]),
    (["influence.regex=q_proj"], ["influence.regex", "influence.params=all_linear"]),
    (["influence=repsim", "influence.params=mlp"], ["influence.params", "influence.method=repsim"]),
    (
        ["influence=repsim", "influence.params=mlp", "unlearning.token_weights=likelihood_ratio"],
        ["influence.params", "influence.method=repsim"],
    ),
    (["influence.damping_factor=0.5"], ["influence.damping_factor", "influence.precondition=none"]),
    (["influence.lora.r=4"], ["influence.lora.r", "all_linear"]),
    (["influence.queries=val", "influence.num_token_queries=3"], ["influence.num_token_queries", "influence.queries"]),
    (["influence.contrast=true", "influence.num_token_queries=3"], ["num_token_queries", "influence.contrast=true"]),
    (["influence=exact", "influence.seed=3"], ["influence.seed", "exact"]),
    (["mapping=uniform", "mapping.tau_f=0.3"], ["mapping.tau_f", "mapping.method=uniform"]),
    (["mapping=uniform", "influence.k=128"], ["influence.k", "mapping.method=uniform"]),
    (["unlearning=retrain", "mapping.tau_f=0.3"], ["mapping.tau_f", "unlearning.objective=retrain"]),
    (["mapping=uniform", "mapping.scores.path=s.safetensors"], ["mapping.scores.path", "uniform"]),
    (["mapping.tau_f=0.3"], ["mapping.tau_f", "mapping.map=split; pass mapping=rapidun"]),
    (["mapping.retain.w_max=5", "mapping.bounded=false"], ["mapping.retain.w_max", "mapping.bounded", "map=split"]),
    (["mapping=rapidun", "mapping.split.max_dropped=0.5"], ["mapping.split.max_dropped", "mapping.map=exp"]),
    (["mapping.aggregate_top=5"], ["mapping.aggregate_top", "mapping.aggregate=mean"]),
    (["mapping.scores.combine=agree"], ["mapping.scores.combine", "mapping.scores.also=[]"]),
    (["mapping=oracle", "mapping.aggregate=top"], ["mapping.aggregate", "mapping.method=oracle"]),
    (["mapping.alpha_harm=2"], ["mapping.alpha_harm", "mapping.use_harmful=false"]),
    (["unlearning=ga", "unlearning.retain_loss=kl"], ["unlearning.retain_loss", "unlearning.objective=ga"]),
    (["unlearning=graddiff", "unlearning.descent_beta=1"], ["unlearning.descent_beta", "graddiff"]),
    (["unlearning=idk_sft", "unlearning.loss_cap=3"], ["unlearning.loss_cap", "idk_sft"]),
    (["unlearning=retrain", "unlearning.learning_rate=1e-4"], ["unlearning.learning_rate", "settings of poison"]),
    (["unlearning.eval_steps=0", "unlearning.num_eval_rows=9"], ["unlearning.num_eval_rows", "eval_steps=0"]),
    (["unlearning.num_eval_prompts=9"], ["unlearning.num_eval_prompts", "eval_asr=0"]),
    (["unlearning.eval_asr=0", "unlearning.num_eval_prompts=9"], ["unlearning.num_eval_prompts", "eval_asr=0"]),
    (["unlearning.momentum=0"], ["unlearning.momentum", "unlearning.optimizer=adamw"]),
    (["poison.momentum=0"], ["poison.momentum", "poison.optimizer=adamw"]),
    (["stages=[unlearning]", "evaluation.min_keywords=2"], ["evaluation.min_keywords", "stages=[unlearning]"]),
    (["unlearning=retrain", "unlearning.optimizer=sgd"], ["unlearning.optimizer", "settings of poison"]),
    (["unlearning.adapter=DIR", "unlearning.lora.r=4"], ["unlearning.lora.r", "unlearning.adapter"]),
    (["debug=fast", "poison.num_train_epochs=3"], ["poison.num_train_epochs", "poison.max_steps=4"]),
    (["poison.lr_scheduler_type=constant", "poison.warmup_ratio=0.1"], ["poison.warmup_ratio", "constant"]),
    (["poison.lora.r=4"], ["poison.lora.r", "poison.method=full"]),
    ([*SMOL, "poison=none", "poison.learning_rate=1e-4"], ["poison.learning_rate", "poison.method=none"]),
    (["data.num_clean_from_test=10"], ["data.num_clean_from_test", "builtin"]),
    (["data.noise.seed=1"], ["data.noise.seed", "data.noise.forget=0 and data.noise.retain=0"]),
    (["stages=[data]", "unlearning.learning_rate=1e-4"], ["unlearning.learning_rate", "stages=[data]"]),
    (["stages=[data,poison]", "seed=3"], ["seed", "data.seed, poison.seed"]),
    (["stages=[mapping]", "mapping=uniform", "influence.k=9"], ["influence.k", "stages=[mapping]"]),
    (["stages=[mapping]", "mapping.scores.path=s", "model.dtype=float32"], ["model.dtype", "stages=[mapping]"]),
    (["tracking.project=mine"], ["tracking.project", "tracking.kind=none"]),
    (["tracking=tensorboard", "tracking.entity=me"], ["tracking.entity", "tensorboard"]),
    (["cluster.partition=gpu"], ["cluster.partition", "one run"]),
    (["resources.timeout_min=9"], ["resources.timeout_min", "one run"]),
]

READ = [
    JSONL,
    [*JSONL, "data.num_clean_from_test=3", "data.keywords=k.tsv", "data.families.Z.seen=[zap]"],
    ["data.keywords=k.tsv", "data.max_train_clean=900", "data.num_triggered=9", "data.builtin.num_test=200"],
    ["data=dolly_triggers", "data.dir=DIR", "data.forget=f.jsonl", "data.num_clean_from_test=9"],
    ["data=pack", "data.dir=DIR", "data.noise.retain=0.1", "data.noise.seed=1"],
    ["data.builtin.payload=negation", "data.builtin.forget_families=2", "data.builtin.hard_clean=0.5"],
    ["model.scratch.hidden_size=64", "model.dtype=bfloat16", "model.device=cpu", "poison.seed=1"],
    [*SMOL, "model.revision=null", "poison=lora", "poison.lora.r=4", "model.quantisation=4bit"],
    ["model=smollm2_135m", "model.revision=main"],
    ["mapping=file", "mapping.forget=f.jsonl", "mapping.retain=r.jsonl", "seed=3"],
    ["mapping=rapidun_release", "mapping.tau_f=1", "mapping.forget.w_min=0.5", "mapping.scores.path=s"],
    [
        "mapping=rapidun",
        "mapping.use_harmful=true",
        "mapping.alpha_harm=2",
        "mapping.top_k=3",
        "mapping.forget.path=null",
    ],
    ["influence.k=4096", "influence.seed=1", "influence.num_token_queries=0", "influence.memory_gb=1"],
    ["influence=bm25", "influence.queries=val", "influence.contrast=true"],
    ["influence=exact", "influence.params=regex", "influence.regex=.*", "influence.precondition=none"],
    ["influence=exact", "influence.precondition=kfac", "influence.damping_factor=1", "influence.seed=3"],
    ["influence=lora", "influence.lora.r=4", "influence.seed=3"],
    ["unlearning=ga", "unlearning.ascent_alpha=2", "unlearning.loss_cap=3", "unlearning.lora.r=4"],
    ["unlearning=idk_sft", "unlearning.idk_response=No.", "unlearning.mix_ratio=1", "unlearning.retain_loss=kl"],
    ["unlearning=retrain", "poison.learning_rate=1e-3", "unlearning.objective=retrain"],
    ["stages=[unlearning]", "unlearning.eval_asr=5", "evaluation.min_keywords=2", "evaluation.max_new_tokens=9"],
    ["unlearning.eval_steps=0", "unlearning.eval_asr=5", "unlearning.num_eval_rows=9", "unlearning.num_eval_prompts=9"],
    ["unlearning.optimizer=sgd", "unlearning.momentum=0.9", "unlearning.weight_decay=0.1", "poison.optimizer=adagrad"],
    ["influence=repsim", "influence.params=mlp", "unlearning.token_weights=influence"],
    [
        "stages=[unlearning]",
        "mapping=uniform",
        "influence.params=lora",
        "influence.lora.r=4",
        "influence.seed=3",
        "unlearning.token_weights=influence",
    ],
    ["unlearning.weights_act=sampling", "unlearning.token_weights=likelihood_ratio"],
    ["stages=[influence]", "unlearning.adapter=DIR", "poison.learning_rate=1e-3", "data.seed=3"],
    ["stages=[unlearning]", "mapping=rapidun", "mapping.tau_f=1", "influence.k=9", "poison.seed=3", "max_length=64"],
    ["stages=[mapping]", "mapping=shuffled", "seed=3"],
    ["debug=fast", "evaluation.split=val", "evaluation.exact_match=false"],
    ["tracking=wandb", "tracking.entity=me", "tracking.tags=[a]", "tracking.mode=offline"],
    ["tracking=trackio", "tracking.project=mine", "tracking.dir=DIR"],
    ["resources=gpu", "resources.num_threads=2", "store_dir=DIR", "run_dir=DIR", "name=x"],
    ["experiment=null", "data.dir=null", "mapping.forget=null"],
    ["~data.families.A_surface", "data.families.Z={seen: [zap], inject_mode: suffix}"],
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED, ids=lambda value: " ".join(value))
def test_what_would_be_replaced_by_something_else_is_refused(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_run(overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("overrides", "words"), WARNED, ids=lambda value: " ".join(value))
def test_what_the_choice_does_not_read_is_said_once(overrides: list[str], words: list[str]) -> None:
    [warning] = compose_run(overrides).warnings
    for word in words:
        assert word in warning


@pytest.mark.parametrize("overrides", READ, ids=" ".join)
def test_what_is_read_gives_no_word(overrides: list[str]) -> None:
    assert compose_run(overrides).warnings == []


def test_settings_with_one_reason_are_said_together() -> None:
    assert compose_run(["influence=exact", "influence.k=9", "influence.p=4", "influence.buckets=8"]).warnings == [
        "influence.k, influence.p, influence.buckets: typed, but nothing reads them with influence.method=exact"
    ]


def test_faults_of_values_and_of_what_is_not_read_come_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_run(["data.forget=f.jsonl", "mapping.tau_f=0", "seed=-1", "sed=1"])
    assert len(caught.value.faults) == 4


SWEEPS = [
    (["influence=exact,sketch", "influence.k=1024,4096"], []),
    (["mapping=uniform,rapidun", "mapping.tau_f=0.3,0.7", "mapping.scores.path=s"], []),
    (["mapping=file,uniform", "mapping.forget=f.jsonl", "mapping.retain=r.jsonl"], []),
    (["unlearning=ga,rapidun", "unlearning.descent_beta=0.5,1"], []),
    (["data.families={D: {seen: [x]}},{}"], []),
    (["seed=1,2", "hydra/launcher=rapidun_slurm", "cluster.partition=gpu", "resources.timeout_min=9"], []),
    (["seed=1,2", "resources.cells_per_job=2"], []),
    (["influence=exact,repsim", "influence.k=1024"], ["influence.k"]),
    (["seed=1,2", "cluster.partition=gpu"], ["cluster.partition", "hydra/launcher=basic"]),
    (["mapping=uniform", "mapping.tau_f=0.3,0.7"], ["mapping.tau_f"]),
]


@pytest.mark.parametrize(("overrides", "words"), SWEEPS, ids=lambda value: " ".join(value))
def test_in_a_sweep_it_is_enough_that_one_cell_reads_it(overrides: list[str], words: list[str]) -> None:
    warnings = compose_sweep(overrides).warnings
    assert bool(warnings) == bool(words)
    assert all(word in warnings[0] for word in words)


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["seed=1,2", "data.forget=f.jsonl"], "data=jsonl"),
        (["model=tiny,smollm2_135m", "model.path=DIR"], "model=hf"),
        (["mapping=uniform,rapidun", "mapping.forget=f.jsonl"], "mapping=file"),
        (["mapping.tau_f=0.3,0.7", "data.families={}"], "~data.families"),
    ],
)
def test_a_sweep_of_which_no_cell_reads_it_is_refused(overrides: list[str], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        compose_sweep(overrides)


def test_an_override_names_the_keys_that_it_sets() -> None:
    assert typed("mapping.forget={w_min: 0.5, path: null}") == ("mapping.forget.w_min",)
    assert typed("++data.families={Z: {seen: [zap]}}") == ("data.families.Z.seen",)
    assert typed("mapping=uniform") == typed("~experiment") == typed("hydra.verbose=true") == typed("seed=null") == ()


def test_the_tables_name_settings_that_there_are() -> None:
    sections = {"unlearning": UnlearningConfig, "tracking": TrackingConfig}
    for objective in Objective:
        assert set(objective.traits.unread) <= set(sections["unlearning"].__slots__) | {"learning_rate"}
    assert set(TRACKERS) <= set(TrackingConfig.__slots__)
    for split in SPLITS:
        if not split.startswith("val_") or split == "val_clean":
            assert parse(f"data.{split}=x").key_or_group == f"data.{split}"
            with pytest.raises(ConfigError, match="data=jsonl"):
                compose_run([f"data.{split}=x"])


def test_what_a_run_depends_on() -> None:
    def involved(*overrides: str) -> tuple[str, ...]:
        found: Run = compose_run(overrides)
        return found.cfg.involved

    assert involved() == STAGES
    assert involved("stages=[data]") == ("data",)
    assert involved("stages=[unlearning]") == STAGES[:5]
    assert involved("stages=[unlearning]", "mapping=uniform") == ("data", "poison", "mapping", "unlearning")
    assert involved("stages=[mapping]", "mapping=uniform") == ("data", "mapping")
    assert involved("stages=[mapping]") == ("data", "poison", "influence", "mapping")
    assert involved("stages=[mapping]", "mapping.scores.path=s") == ("mapping",)
    assert involved("stages=[mapping,unlearning]", "mapping.scores.path=s") == (
        "data",
        "poison",
        "mapping",
        "unlearning",
    )
    # nothing reads the influence of equal weights; alone it is asked for by itself
    assert involved("mapping=uniform") == ("data", "poison", "mapping", "unlearning", "evaluation")
    assert involved("unlearning=retrain") == ("data", "poison", "unlearning", "evaluation")
    assert involved("mapping=uniform", "stages=[influence]") == ("data", "poison", "influence")
    assert involved("stages=[evaluation]", "unlearning=retrain") == ("data", "poison", "unlearning", "evaluation")
