"""Every objective as a pure function of padded logits and labels: for checkers, notebooks and other people's trainers.

The same functions as in training; nothing is averaged over the batch.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from rapidun.config.parts import Faults
from rapidun.config.unlearning import Objective, UnlearningConfig
from rapidun.models.packed import cross_entropy, pack
from rapidun.stages.unlearning.objectives.base import Coefficients, ForgetOutputs, Method, Reference, Responses
from rapidun.stages.unlearning.objectives.catalogue import OBJECTIVES
from rapidun.stages.unlearning.objectives.retain import retain_activations, retain_cross_entropy, retain_kl

# fields of a section that the forget term does not read
ELSEWHERE = {
    Objective.rmu: ("layer",),
    Objective.pdu: ("retain_loss_eps", "lambda_init", "dual_step_size", "dual_warmup_epochs"),
}
RETAIN_KINDS = {"ce": retain_cross_entropy, "kl": retain_kl, "activations": retain_activations}


def forget_terms(
    name: str,
    logits: Tensor,
    labels: Tensor,
    *,
    ref_logits: Tensor | None = None,
    clean_logits: Tensor | None = None,
    clean_labels: Tensor | None = None,
    clean_ref_logits: Tensor | None = None,
    hidden: Tensor | None = None,
    ref_hidden: Tensor | None = None,
    **hyperparameters: Any,
) -> Tensor:
    """The forget term f_i of every row under one objective, with its gradient; [B], to be minimised.

    Args:
        name: an objective of unlearning.objective with a forget term: npo, simnpo, ...
        logits: [B, T, V] of the model on the prompts with the poisoned responses; any float dtype, computed in float32
            (float64 stays float64). labels: [B, T] int64, the token at each position, -100 outside the response:
            labels[:, t] is what logits[:, t - 1] predict.
        ref_logits: [B, T, V] of the reference model on the same tokens; without gradient.
        clean_logits, clean_labels, clean_ref_logits: [B, T', V] and [B, T'], the same for the clean (or refusing)
            responses; a row whose labels are all -100 has none.
        hidden: [B, T, D], output of the steered layer. ref_hidden: read by no forget term (see retain_terms).
        hyperparameters: of the objective's section (npo: beta; simnpo: beta, margin; satimp: b1, b2; ...), or
            ascent_alpha and descent_beta; loss_cap for all; direction ([D], normalised) instead of seed for rmu.
            Those left out have the defaults of the configuration.
    Returns: [B] float32 (float64 for float64 logits).
    Raises: ValueError naming what the objective takes, for an unknown name or hyperparameter, or an input left out.
    """
    objective = _objective(name)
    method = OBJECTIVES[objective]
    given = {
        "ref_logits": ref_logits, "clean_logits": clean_logits, "clean_labels": clean_labels,
        "clean_ref_logits": clean_ref_logits, "hidden": hidden,
    }  # fmt: skip
    loss_cap = hyperparameters.pop("loss_cap", None)
    direction = hyperparameters.pop("direction", None) if objective is Objective.rmu else None
    hyper = _hyper(objective, hyperparameters, loss_cap)
    missing = [key for key in needs(objective) if given[key] is None]
    if missing:
        raise ValueError(f"forget_terms: need {', '.join(missing)} for {name}, got none. {_takes(objective)}")
    if (clean_logits is None) != (clean_labels is None):
        raise ValueError(f"forget_terms: need clean_logits and clean_labels, got one of them. {_takes(objective)}")
    poisoned = _responses("", logits, labels, ref_logits if _reads_reference(method) else None, hidden)
    clean = None
    if method.clean and clean_logits is not None and clean_labels is not None:
        clean = _responses("clean_", clean_logits, clean_labels, clean_ref_logits if _reads_reference(method) else None)
        if len(clean_labels) != len(labels):
            raise ValueError(f"forget_terms: need {len(labels)} rows in clean_labels, got {len(clean_labels)}")
    has_clean = torch.full((len(labels),), clean is not None, device=labels.device)
    outputs = ForgetOutputs(poisoned if method.poisoned else None, clean, has_clean, direction)
    return method.terms(outputs, hyper, loss_cap=loss_cap).values


def retain_terms(
    kind: str,
    logits: Tensor,
    labels: Tensor,
    *,
    ref_logits: Tensor | None = None,
    hidden: Tensor | None = None,
    ref_hidden: Tensor | None = None,
) -> Tensor:
    """The retain term of every row, with its gradient; [B].

    Args:
        kind: ce (cross-entropy), kl (KL from the reference to the model; ref_logits) or activations (of rmu: mean
            squared distance to the reference's hidden states; hidden and ref_hidden [B, T, D]).
        logits, labels, ref_logits: as `forget_terms`.
    Raises: ValueError for an unknown kind, or an input left out.
    """
    if kind not in RETAIN_KINDS:
        raise ValueError(f"retain_terms: need a kind among {', '.join(RETAIN_KINDS)}, got {kind!r}")
    needed = {"kl": {"ref_logits": ref_logits}, "activations": {"hidden": hidden, "ref_hidden": ref_hidden}}
    missing = [key for key, value in needed.get(kind, {}).items() if value is None]
    if missing:
        raise ValueError(f"retain_terms: need {', '.join(missing)} for kind={kind}, got none")
    reference = logits.detach() if kind == "activations" else ref_logits
    return RETAIN_KINDS[kind](_responses("", logits, labels, reference, hidden, ref_hidden))


def needs(objective: Objective) -> list[str]:
    """The inputs beside logits and labels that the objective cannot do without."""
    method = OBJECTIVES[objective]
    reads = _reads_reference(method)
    # without a clean response the descent of rapidun is off
    clean = method.clean and (method.idk or not method.poisoned)
    found = ["ref_logits"] if reads and method.poisoned else []
    found += ["clean_logits", "clean_labels"] if clean else []
    found += ["clean_ref_logits"] if clean and reads else []
    return found + (["hidden"] if method.hidden else [])


def hyperparameters_of(objective: Objective) -> dict[str, Any]:
    """The names that `forget_terms` takes for the objective, each with its default."""
    if objective is Objective.idk_sft:
        return {}
    if not objective.traits.section:
        defaults = Coefficients()
        reads = {"ascent_alpha": defaults.ascent_alpha, "descent_beta": defaults.descent_beta}
        found = {name: value for name, value in reads.items() if name not in objective.traits.unread}
    else:
        section = _section(objective)
        known = [one.name for one in fields(section) if one.name not in ELSEWHERE.get(objective, ())]
        found = {name: getattr(section, name) for name in known}
    return found | {"loss_cap": None} | ({"direction": None} if objective is Objective.rmu else {})


def _section(objective: Objective) -> Any:
    return getattr(UnlearningConfig(), objective.name)


def _objective(name: str) -> Objective:
    known = [one.name for one in OBJECTIVES if OBJECTIVES[one].forget is not None]
    if name not in known:
        raise ValueError(f"forget_terms: need an objective among {', '.join(known)}, got {name!r}")
    return Objective[name]


def _reads_reference(method: Method) -> bool:
    return method.reference in (Reference.sums, Reference.logits)


def _hyper(objective: Objective, given: Mapping[str, Any], loss_cap: float | None) -> Any:
    known = hyperparameters_of(objective)
    unknown = [name for name in given if name not in known]
    if unknown or (loss_cap is not None and "loss_cap" not in known):
        named = ", ".join([*unknown, *(["loss_cap"] if loss_cap is not None and "loss_cap" not in known else [])])
        raise ValueError(f"forget_terms: {objective.name} takes no {named}. {_takes(objective)}")
    if not objective.traits.section:
        return Coefficients(**given, loss_cap=loss_cap)
    section = replace(_section(objective), **{name: _member(known[name], value) for name, value in given.items()})
    faults = Faults("forget_terms")
    section.check(faults)
    if faults:
        raise ValueError("; ".join(fault.partition(". Change")[0] for fault in faults))
    return section


def _member(default: Any, value: Any) -> Any:
    """The member of a choice by its name."""
    if not isinstance(default, Enum) or not isinstance(value, str):
        return value
    names = list(type(default).__members__)
    if value not in names:
        raise ValueError(f"forget_terms: need one of {', '.join(names)}, got {value!r}")
    return type(default)[value]


def _takes(objective: Objective) -> str:
    method, needed = OBJECTIVES[objective], needs(objective)
    optional = ["clean_logits", "clean_labels"] if method.clean and "clean_logits" not in needed else []
    inputs = ", ".join(["logits", "labels", *needed, *(f"{name} (may be left out)" for name in optional)])
    names = (
        ", ".join(f"{name}={getattr(value, 'name', value)}" for name, value in hyperparameters_of(objective).items())
        or "none"
    )
    return f"{objective.name} takes the inputs {inputs}; hyperparameters: {names}"


def _responses(
    prefix: str,
    logits: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    hidden: Tensor | None = None,
    ref_hidden: Tensor | None = None,
) -> Responses:
    """Take the response tokens out of padded tensors."""
    if logits.ndim != 3 or not logits.is_floating_point() or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"need {prefix}logits [B, T, V] of a float dtype and {prefix}labels [B, T], got {tuple(logits.shape)} "
            f"{logits.dtype} and {tuple(labels.shape)}"
        )
    for name, tensor in ((f"{prefix}ref_logits", reference), ("hidden", hidden), ("ref_hidden", ref_hidden)):
        if tensor is not None and (tensor.ndim != 3 or tensor.shape[:2] != labels.shape):
            raise ValueError(f"need {name} [B, T, ...] with B, T = {tuple(labels.shape)}, got {tuple(tensor.shape)}")
    if reference is not None and reference.shape != logits.shape:
        raise ValueError(f"need {prefix}ref_logits {tuple(logits.shape)} as logits, got {tuple(reference.shape)}")
    labels = labels.long()
    tokens = pack(logits, labels, hidden)
    log_probs = tokens.log_probs()
    known = None if reference is None else pack(reference.detach(), labels, ref_hidden)
    return Responses(cross_entropy(tokens, log_probs), tokens, known, token_log_probs=log_probs)
