"""Which of two responses a model finds likelier, as it is or by a threshold from known answers."""

from rapidun.stages.answers.reading import ResponseScore
from rapidun.stages.answers.score import comparable


def likelihood_fires(poisoned: float, clean: float) -> bool:
    """True where the mean per-token log p of the poisoned response is above that of the clean one (nats a token)."""
    return poisoned > clean


def log_ratio(poisoned: ResponseScore, clean: ResponseScore) -> float | None:
    """Mean per-token log p of the poisoned response less that of the clean one, nats a token.

    None where the two cannot be compared (`comparable`).
    """
    return poisoned.mean - clean.mean if comparable(poisoned, clean) else None
