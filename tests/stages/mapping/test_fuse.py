import numpy as np

from rapidun.stages.mapping.fuse import fuse

AGGREGATED = {"ff": np.array([5.0]), "fr": np.array([2.0]), "rr": np.array([7.0, 1.0]), "rf": np.array([1.0, 4.0])}


def test_fuse_by_hand() -> None:
    """S_f = 5 - 2, S_r = 7 - 1, 1 - 4; with weights 2, 3, 4, 5: 10 - 6, 28 - 5, 4 - 20."""
    forget, retain = fuse(AGGREGATED)
    assert (forget.tolist(), retain.tolist()) == ([3.0], [6.0, -3.0])
    forget, retain = fuse(AGGREGATED, alpha=2, beta=3, gamma=4, delta=5)
    assert (forget.tolist(), retain.tolist()) == ([4.0], [23.0, -16.0])


def test_harmful_is_subtracted() -> None:
    """S_f = 5 - 2 - (0.5 * 5 + 2 * 2) = -3.5, S_r = 6 - (3 * 7 + 1 * 1) = -16, -3 - (3 * 1 + 1 * 4) = -10."""
    forget, retain = fuse(AGGREGATED, harmful=AGGREGATED, alpha_harm=0.5, beta_harm=2, gamma_harm=3, delta_harm=1)
    assert (forget.tolist(), retain.tolist()) == ([-3.5], [-16.0, -10.0])
