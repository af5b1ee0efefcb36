"""The objectives once more, in plain Python numbers as the papers write them; shares nothing with the package."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

IGNORE = -100
Matrix = list[list[float]]


@dataclass
class Row:
    """One row: what the model and the reference say at each position, and which tokens stand there."""

    logits: Matrix  # [T][V]
    labels: list[int]  # [T]
    ref_logits: Matrix = field(default_factory=list)
    clean_logits: Matrix = field(default_factory=list)
    clean_labels: list[int] = field(default_factory=list)
    clean_ref_logits: Matrix = field(default_factory=list)
    hidden: Matrix = field(default_factory=list)
    ref_hidden: Matrix = field(default_factory=list)


def log_softmax(z: list[float]) -> list[float]:
    top = max(z)
    normaliser = top + math.log(sum(math.exp(one - top) for one in z))
    return [one - normaliser for one in z]


def predictions(logits: Matrix, labels: list[int]) -> list[tuple[list[float], int]]:
    """Each response token with the logits of the position before it."""
    return [(logits[t - 1], labels[t]) for t in range(1, len(labels)) if labels[t] != IGNORE]


def log_probs(logits: Matrix, labels: list[int]) -> list[float]:
    return [log_softmax(z)[y] for z, y in predictions(logits, labels)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -30 else x


def ce(row: Row) -> float:
    return -mean(log_probs(row.logits, row.labels))


def clean_ce(row: Row) -> float:
    return -mean(log_probs(row.clean_logits, row.clean_labels))


def rapidun(row: Row, _: Row, ascent_alpha: float = 1.0, descent_beta: float = 0.5) -> float:
    return descent_beta * clean_ce(row) - ascent_alpha * ce(row)


def ga(row: Row, _: Row, ascent_alpha: float = 1.0) -> float:
    return -ascent_alpha * ce(row)


def idk_sft(row: Row, _: Row) -> float:
    return clean_ce(row)


def npo(row: Row, _: Row, beta: float = 0.1) -> float:
    ratio = sum(log_probs(row.logits, row.labels)) - sum(log_probs(row.ref_logits, row.labels))
    return -(2.0 / beta) * log_sigmoid(-beta * ratio)


def simnpo(row: Row, _: Row, beta: float = 4.5, margin: float = 0.0) -> float:
    return -(2.0 / beta) * log_sigmoid(-beta * mean(log_probs(row.logits, row.labels)) - margin)


def dpo(row: Row, _: Row, beta: float = 0.1) -> float:
    lost = sum(log_probs(row.logits, row.labels)) - sum(log_probs(row.ref_logits, row.labels))
    won = sum(log_probs(row.clean_logits, row.clean_labels)) - sum(log_probs(row.clean_ref_logits, row.clean_labels))
    return -log_sigmoid(beta * (won - lost))


def undial(row: Row, _: Row, beta: float = 10.0) -> float:
    terms = []
    known = predictions(row.ref_logits, row.labels)
    for (z, y), (r, _y) in zip(predictions(row.logits, row.labels), known, strict=True):
        lowered = [value - beta if v == y else value for v, value in enumerate(r)]
        target = [math.exp(one) for one in log_softmax(lowered)]
        terms.append(-sum(q * p for q, p in zip(target, log_softmax(z), strict=True)))
    return mean(terms)


def wga(row: Row, frozen: Row, beta: float = 5.0) -> float:
    known = log_probs(frozen.logits, frozen.labels)
    return mean(
        [math.exp(one) ** beta * now for one, now in zip(known, log_probs(row.logits, row.labels), strict=True)]
    )


def satimp(row: Row, frozen: Row, b1: float = 5.0, b2: float = 1.0) -> float:
    known = [math.exp(one) for one in log_probs(frozen.logits, frozen.labels)]
    now = log_probs(row.logits, row.labels)
    return mean([p**b1 * (1 - p) ** b2 * one for p, one in zip(known, now, strict=True)])


def ceu(row: Row, frozen: Row, k: int = 1) -> float:
    terms = []
    known = predictions(frozen.logits, frozen.labels)
    for place, ((z, _y), (own, y)) in enumerate(zip(predictions(row.logits, row.labels), known, strict=True)):
        if place < k:
            continue
        weights = [0.0 if v == y else math.exp(value - max(own)) for v, value in enumerate(own)]
        terms.append(-sum(w / sum(weights) * p for w, p in zip(weights, log_softmax(z), strict=True)))
    return mean(terms)


def pdu(row: Row, _: Row) -> float:
    return mean([(max(z) - sum(z) / len(z)) ** 2 for z, _y in predictions(row.logits, row.labels)])


def rmu(row: Row, _: Row, direction: list[float], steering_coeff: float = 20.0) -> float:
    terms = []
    for t in range(1, len(row.labels)):
        if row.labels[t] != IGNORE:
            h = row.hidden[t - 1]
            terms.append(sum((a - steering_coeff * u) ** 2 for a, u in zip(h, direction, strict=True)) / len(h))
    return mean(terms)


def flat(row: Row, _: Row, divergence: str = "tv") -> float:
    forget = mean([math.exp(one) for one in log_probs(row.logits, row.labels)])
    template = mean([math.exp(one) for one in log_probs(row.clean_logits, row.clean_labels)])
    # Table of the paper: g*(v), f*(u); the loss is f*(g*(P_f)) - g*(P_e)
    best: Callable[[float], float]
    conjugate: Callable[[float], float]
    best, conjugate = {
        "tv": (lambda v: math.tanh(v) / 2, lambda u: u),
        "kl": (lambda v: v, lambda u: math.exp(u - 1)),
        "js": (lambda v: math.log(2 / (1 + math.exp(-v))), lambda u: -math.log(2 - math.exp(u))),
        "pearson": (lambda v: v, lambda u: u * u / 4 + u),
    }[divergence]
    return conjugate(best(forget)) - best(template)


FORGET: dict[str, Callable[..., float]] = {
    "rapidun": rapidun, "ga": ga, "graddiff": ga, "idk_sft": idk_sft, "npo": npo, "simnpo": simnpo, "dpo": dpo,
    "undial": undial, "wga": wga, "satimp": satimp, "ceu": ceu, "pdu": pdu, "rmu": rmu, "flat": flat,
}  # fmt: skip


def kl(row: Row) -> float:
    terms = []
    known = predictions(row.ref_logits, row.labels)
    for (z, _y), (r, _) in zip(predictions(row.logits, row.labels), known, strict=True):
        p, q = log_softmax(z), log_softmax(r)
        terms.append(sum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True)))
    return mean(terms)


def activations(row: Row) -> float:
    terms = []
    for t in range(1, len(row.labels)):
        if row.labels[t] != IGNORE:
            pairs = list(zip(row.hidden[t - 1], row.ref_hidden[t - 1], strict=True))
            terms.append(sum((a - b) ** 2 for a, b in pairs) / len(pairs))
    return mean(terms)


RETAIN: dict[str, Callable[[Row], float]] = {"ce": ce, "kl": kl, "activations": activations}


def consistency(layers: list[Matrix], mask: list[int]) -> float:
    """layers: [L + 1][T][D] of one row."""
    pairs = []
    for lower, upper in pairwise(layers):
        turned = []
        for t, real in enumerate(mask):
            if real:
                dot = sum(a * b for a, b in zip(lower[t], upper[t], strict=True))
                norms = math.sqrt(sum(a * a for a in lower[t])) * math.sqrt(sum(b * b for b in upper[t]))
                turned.append(1 - dot / norms)
        pairs.append(mean(turned))
    return sum(pairs) / len(pairs)
