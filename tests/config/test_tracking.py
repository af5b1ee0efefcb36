import pytest

from rapidun.base.errors import ConfigError
from rapidun.config.run import RunConfig
from rapidun.config.tracking import TrackerKind, TrackingConfig
from rapidun.pipeline.tracking.packages import MODULES, need_package


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"project": "a/b"}, "a project name without any of"),
        ({"project": " "}, "a project name without any of"),
        ({"project": "x" * 129}, "at most 128 letters"),
        ({"tags": ["ok", ""]}, "tags of 1 to 64 letters"),
    ],
)
def test_faults_are_named(setting: dict[str, object], message: str) -> None:
    [fault] = TrackingConfig(**setting).check()  # type: ignore[arg-type]
    assert message in fault
    assert fault.startswith("tracking: need ")
    assert fault in RunConfig(tracking=TrackingConfig(**setting)).check()  # type: ignore[arg-type]


def test_every_tracker_has_its_package() -> None:
    assert {"none", *MODULES} == {kind.name for kind in TrackerKind}


@pytest.mark.parametrize("kind", sorted(MODULES))
def test_a_missing_package_is_named_with_its_extra(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, kind, "no_such_package")
    with pytest.raises(ConfigError, match=rf"need the package {kind} .* pip install 'rapidun\[{kind}\]'"):
        need_package(kind)
