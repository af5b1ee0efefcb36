# %% [markdown]
# # rapidun in a notebook
#
# Everything that the command line does, from Python. This notebook is made by `python docs/notebooks/build.py`, which
# also runs it; it needs no GPU, no account and no model hub. On two cores it takes about two minutes.

# %%
import rapidun

settings = ["tracking=none", "resources.num_threads=1"]
rapidun.__version__

# %% [markdown]
# ## A configuration
# `compose` checks settings without running anything. They are given as on the command line, as Python values, or both.

# %%
cfg = rapidun.compose([*settings, "mapping=uniform"], seed=1, unlearning={"learning_rate": 1e-3})
cfg.unlearning.objective, cfg.unlearning.learning_rate, cfg.seed

# %% [markdown]
# What is wrong is one error with every fault, before any model is loaded.

# %%
try:
    rapidun.run("seed=1")
except rapidun.ConfigError as error:
    print(error)

# %%
try:
    rapidun.run(settings, mapping={"tau_q": 0.5}, unlearning="npoo")
except rapidun.ConfigError as error:
    print(*error.faults, sep="\n")

# %% [markdown]
# ## A run
# Poison the built-in pack's model, unlearn with equal weights, measure before and after. A second call reuses every
# stage.

# %%
result = rapidun.run(settings, mapping="uniform", run_dir="outputs/runs/quickstart")

# %%
result

# %% [markdown]
# Every number of the run is in `metrics`, named as in `result.json`.

# %%
{name: result.metrics[name] for name in ("before.asr_seen", "asr_seen", "exact_match_clean", "exact_match_recovered")}

# %% [markdown]
# ## A sweep
# What `rapidun -m` does; a tuple or a range is swept over. What the store has already (here the poisoned model) is not
# made again, nor is a cell that is done.

# %%
found = rapidun.sweep([*settings, "sweep.name=quickstart"], mapping="uniform", unlearning=("rapidun", "npo"))

# %%
found

# %%
found.to_frame()[["unlearning", "seed", "state", "asr_seen", "exact_match_clean"]]

# %%
{criterion: [group.label for group in groups] for criterion, groups in found.best.items()}

# %% [markdown]
# ## Back again later
# `load` reads a run folder or a sweep folder.

# %%
again = rapidun.load("outputs/runs/quickstart")
again.weights["forget"][:3], again.settings["mapping"]["method"]

# %% [markdown]
# The adapter loads by itself, with what everybody has.

# %%
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = "outputs/runs/quickstart/unlearning/adapter"
model, tokenizer = AutoPeftModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
model.num_parameters(), len(tokenizer)
