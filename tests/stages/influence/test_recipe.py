"""What the scores depend on, method by method."""

from types import SimpleNamespace

from rapidun.config.influence import (
    OWN_SETTINGS,
    InfluenceConfig,
    InfluenceMethod,
    LossReduction,
    ParameterSet,
    Pooling,
    Precondition,
)
from rapidun.config.parts import LORA_TARGETS, LoraSettings
from rapidun.config.plain import plain
from rapidun.config.run import RunConfig
from rapidun.stages.influence.recipe import STAGE
from rapidun.stages.recipe import ADAPTER, DATA, POISONED, SCORES, Model


def _inputs(**settings):
    """The inputs of the fingerprint, over a model and a pack that are not there."""
    products = {POISONED: Model("m", None), ADAPTER: None, DATA: None}
    ctx = SimpleNamespace(
        cfg=RunConfig(influence=InfluenceConfig(**settings)),
        get=products.get,
        split=lambda name: name,
        counts={"val_seen_trig": 3, "val_clean": 3},
        file_hash=lambda path: path.read_text(),
        numerics={"dtype": "float32"},
        once=lambda name, make: make(),
    )
    return STAGE.provides[SCORES](ctx).inputs


def test_fingerprints_of_earlier_results_stay():
    """What `exact` and `sketch` depend on, written out: a new method's settings are none of theirs."""
    common = {"score": "cosine", "params": "all_linear", "loss": "mean", "num_token_queries": 8}
    assert _inputs(method=InfluenceMethod.exact)["settings"] == {"method": "exact", **common}
    sketch = {"method": "sketch", **common, "k": 65536, "seed": 42}
    assert _inputs(method=InfluenceMethod.sketch)["settings"] == sketch
    lora = _inputs(method=InfluenceMethod.exact, params=ParameterSet.lora)["settings"]
    assert lora == {
        "method": "exact",
        **common,
        "params": "lora",
        "seed": 42,
        "lora": plain(LoraSettings()) | {"target_modules": LORA_TARGETS},
    }


def test_only_what_matters_to_a_method_is_in_its_fingerprint():
    """Change every setting in turn: the inputs change exactly for the methods that read it."""
    changes = {
        "k": 4096, "buckets": 512, "p": 8, "q": 8, "pad_multiple": 65536, "num_shuffles": 3, "layer": 1,
        "pooling": Pooling.last, "seed": 7, "tokens_per_batch": 9, "memory_gb": 1.0, "regex": "x",
        "lora": LoraSettings(r=3), "params": ParameterSet.mlp, "loss": LossReduction.sum, "damping_factor": 0.5,
    }  # fmt: skip
    always = {"params", "loss"}
    for method in InfluenceMethod:
        found = {
            name for name, value in changes.items() if _inputs(method=method, **{name: value}) != _inputs(method=method)
        }
        expected = set(OWN_SETTINGS[method]) | always
        if method is InfluenceMethod.repsim:
            expected -= {"params"}
        if method is InfluenceMethod.bm25:
            expected = set()
        assert found == expected, method
    assert "seed" in _inputs(method=InfluenceMethod.exact, params=ParameterSet.lora)["settings"]
    kfac = {"method": InfluenceMethod.exact, "precondition": Precondition.kfac}
    assert _inputs(**kfac) != _inputs(method=InfluenceMethod.exact)
    for other in ({"damping_factor": 0.5}, {"seed": 7}, {"precondition": Precondition.ekfac}):
        assert _inputs(**kfac | other) != _inputs(**kfac)
    assert set(_inputs(method=InfluenceMethod.bm25)) == {"forget", "retain", "settings", "words"}
    assert {"model", "adapter", "dtype"} < set(_inputs(method=InfluenceMethod.repsim))


def test_queries_are_known_by_their_content(tmp_path):
    """As they are by default they leave fingerprints alone; a file counts by its content, wherever it stands."""
    for method in InfluenceMethod:
        plain_inputs = _inputs(method=method)
        assert plain_inputs == _inputs(method=method, queries="forget_retain", contrast=False)
        assert not {"queries", "contrast"} & (set(plain_inputs) | set(plain_inputs["settings"]))
        val = _inputs(method=method, queries="val")
        assert val["queries"] == {"forget": "val_seen_trig", "retain": "val_clean"}
        assert "queries" not in val["settings"]
        assert _inputs(method=method, contrast=True)["settings"]["contrast"] is True
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / name).write_text(text)
    a, b, c = (_inputs(queries=str(tmp_path / name)) for name in "abc")
    assert a == b != c
    assert "num_token_queries" not in a["settings"]
