"""Every objective as a pure function of padded logits and labels: for checkers, notebooks and other people's trainers.

The same functions as in training; nothing is averaged over the batch.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from rapidun.config.parts import Faults
from rapidun.config.unlearning import Objective, UnlearningConfig
from rapidun.models.losses import IGNORE, response_mask
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
            (float64 stays float64). -inf bans a token: it has probability 0 and, with 0 log 0 = 0, no part in any sum
            over the vocabulary; a banned response token makes its row what p -> 0 does (-inf for ga, 0 for npo).
        labels: [B, T] of a whole type, the token at each position, -100 outside the response: labels[:, t] is what
            logits[:, t - 1] predict; nothing predicts labels[:, 0].
        ref_logits: [B, T, V] of the reference model on the same tokens; without gradient.
        clean_logits, clean_labels, clean_ref_logits: [B, T', V] and [B, T'], the same for the clean (or refusing)
            responses; a row whose labels are all -100 has none.
        hidden: [B, T, D], output of the steered layer. ref_hidden: read by no forget term (see retain_terms).
        hyperparameters: of the objective's section (npo: beta; simnpo: beta, margin; satimp: b1, b2; ...), or
            ascent_alpha and descent_beta; loss_cap for all; direction ([D], normalised) instead of seed for rmu.
            Those left out have the defaults of the configuration.
    Inputs that the objective does not read may be given and are not looked at.
    Returns: [B] float32 (float64 for float64 logits, or hidden states of rmu).
    Raises: ValueError naming what the objective takes, for an unknown name or hyperparameter, an input left out or of
        another shape, a label outside the vocabulary, a logit of +inf where a response token is predicted.
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
    reads_clean = method.clean and not (clean_logits is None and clean_labels is None)
    missing = [key for key in needs(objective) if given[key] is None]
    if missing:
        raise ValueError(f"forget_terms: need {', '.join(missing)} for {name}, got none. {_takes(objective)}")
    if reads_clean and (clean_logits is None or clean_labels is None):
        raise ValueError(f"forget_terms: need clean_logits and clean_labels, got one of them. {_takes(objective)}")
    reads_reference = _reads_reference(method)
    poisoned = clean = None
    if method.poisoned:
        poisoned = _responses(
            "", logits, labels, ref_logits if reads_reference else None, hidden if method.hidden else None
        )
    if reads_clean:
        assert clean_logits is not None and clean_labels is not None
        clean = _responses("clean_", clean_logits, clean_labels, clean_ref_logits if reads_reference else None)
        if len(clean_labels) != len(labels):
            raise ValueError(f"forget_terms: need {len(labels)} rows in clean_labels, got {len(clean_labels)}")
    has_clean = torch.full(
        (len(labels),), clean is not None, device=None if clean is None else clean.cross_entropy.device
    )
    if direction is not None:
        assert hidden is not None
        direction = _direction(direction, hidden.shape[2])
    outputs = ForgetOutputs(poisoned, clean, has_clean, direction)
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
    # only what the kind reads is looked at
    if kind == "activations":
        return retain_activations(_responses("", logits, labels, logits, hidden, ref_hidden))
    return RETAIN_KINDS[kind](_responses("", logits, labels, ref_logits if kind == "kl" else None))


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
        without = " It has no forget term: it draws no forget rows." if name in Objective.__members__ else ""
        raise ValueError(f"forget_terms: need an objective among {', '.join(known)}, got {name!r}.{without}")
    return Objective[name]


def _reads_reference(method: Method) -> bool:
    return method.reference in (Reference.sums, Reference.logits)


def _hyper(objective: Objective, given: Mapping[str, Any], loss_cap: float | None) -> Any:
    known = hyperparameters_of(objective)
    unknown = [name for name in given if name not in known]
    if unknown or (loss_cap is not None and "loss_cap" not in known):
        named = ", ".join([*unknown, *(["loss_cap"] if loss_cap is not None and "loss_cap" not in known else [])])
        raise ValueError(f"forget_terms: {objective.name} takes no {named}. {_takes(objective)}")
    values = {name: _value(name, known[name], value) for name, value in given.items()}
    cap = None if loss_cap is None else _value("loss_cap", 1.0, loss_cap)
    if cap is not None and not cap > 0:
        raise ValueError(f"forget_terms: need loss_cap > 0 or None, got {loss_cap}")
    if not objective.traits.section:
        wrong = [f"{name}={value}" for name, value in values.items() if not 0 <= value < math.inf]
        if wrong:
            raise ValueError(f"forget_terms: need finite coefficients >= 0, got {', '.join(wrong)}")
        return Coefficients(**values, loss_cap=cap)
    section = replace(_section(objective), **values)
    faults = Faults("forget_terms")
    section.check(faults)
    if faults:
        raise ValueError("; ".join(fault.partition(". Change")[0] for fault in faults))
    return section


def _value(name: str, default: Any, value: Any) -> Any:
    """A hyperparameter in the type of its default: a number (numpy's, or a tensor of one, too), or a choice's member.

    Raises: ValueError for anything else.
    """
    if isinstance(default, Enum):
        names = list(type(default).__members__)
        if not isinstance(value, type(default)) and value not in names:
            raise ValueError(f"forget_terms: need one of {', '.join(names)}, got {value!r}")
        return type(default)[value] if isinstance(value, str) else value
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    whole = isinstance(default, int)
    if math.isnan(number) or (whole and not number.is_integer()):
        raise ValueError(f"forget_terms: need {name} as a {'whole ' if whole else ''}number, got {value!r}")
    return int(number) if whole else number


def _direction(given: Any, num_dims: int) -> Tensor:
    """rmu's direction as a tensor. Raises: ValueError for one that has no length, or another number of entries."""
    direction = torch.as_tensor(given).detach().double()
    if direction.shape != (num_dims,) or not 0 < direction.norm() < math.inf:
        raise ValueError(
            f"forget_terms: need a direction [D] of D = {num_dims} finite entries, not all 0, got "
            f"{tuple(direction.shape)} of length {direction.norm().item():g}"
        )
    return direction


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
    """Take the response tokens out of padded tensors.

    Raises: ValueError for shapes, types and values that no model and no tokenizer gives.
    """
    given = {f"{prefix}logits": logits, f"{prefix}labels": labels, f"{prefix}ref_logits": reference}
    for name, one in (given | {"hidden": hidden, "ref_hidden": ref_hidden}).items():
        if one is not None and not isinstance(one, Tensor):
            raise ValueError(f"need {name} as a torch.Tensor, got {type(one).__name__}")
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
    _need_labels(prefix, labels, vocab_size=logits.shape[2])
    labels = labels.long()
    tokens = pack(logits, labels, hidden)
    known = None if reference is None else pack(reference.detach(), labels, ref_hidden)
    for name, packed in (("logits", tokens), ("ref_logits", known)):
        infinite = [] if packed is None else packed.rows[(packed.logits == torch.inf).any(dim=1)].unique().tolist()
        if infinite:
            raise ValueError(
                f"need {prefix}{name} below +inf where a response token is predicted, got +inf in rows {infinite}"
            )
    log_probs = tokens.log_probs()
    return Responses(cross_entropy(tokens, log_probs), tokens, known, token_log_probs=log_probs)


def _need_labels(prefix: str, labels: Tensor, *, vocab_size: int) -> None:
    """Raises: ValueError for labels that are no token numbers."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"need {prefix}labels of a whole type, token numbers or {IGNORE}, got {labels.dtype}")
    if not labels.shape[1]:
        raise ValueError(f"need {prefix}labels [B, T] with T >= 1, got {tuple(labels.shape)}")
    wrong = response_mask(labels) & ((labels < 0) | (labels >= vocab_size))
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"need {prefix}labels of 0 to {vocab_size - 1} (V - 1), or {IGNORE} outside the response, got "
            f"{int(labels[row, column])} in row {row} at position {column}"
        )
