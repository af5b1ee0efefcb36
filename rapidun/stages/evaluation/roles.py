"""The models that attacks, privacy measures and benchmarks are run on, and the names that each has in result.json."""

from rapidun.report.metrics import ROLES
from rapidun.stages.context import Context

from rapidun.stages.recipe import ADAPTER, POISONED, RETRAINED, UNLEARNED  # isort: skip
from rapidun.stages.recipe import Evaluated, Model


def models_of(ctx: Context) -> dict[str, Evaluated]:
    """Each model by the role that it has in this run; that there is no retrained one is said once."""
    return ctx.once("evaluated models by role", lambda: _find(ctx))


def _find(ctx: Context) -> dict[str, Evaluated]:
    found = {"unlearned": ctx.get(UNLEARNED)}
    retrained = retrained_of(ctx)
    if retrained is not None:
        found["retrain"] = Evaluated(retrained, None)
    elif not ctx.cfg.unlearning.objective.traits.retrains:
        ctx.tracker.warn(
            "evaluation: attacks and privacy measures have no retrained model beside them, and what that gives away is "
            "no failure of unlearning. Pass poison.retrain=true to have it"
        )
    found["poisoned"] = Evaluated(ctx.get(POISONED), ctx.get(ADAPTER))
    assert set(found) <= set(ROLES)
    return found


def retrained_of(ctx: Context) -> Model | None:
    """The model that was trained from the same start on clean rows only, with poison.retrain=true."""
    if not ctx.cfg.poison.retrain:
        return None
    recipe = ctx.get(RETRAINED)
    return Model(recipe.fingerprint, ctx.path(recipe) / "model", recipe)
