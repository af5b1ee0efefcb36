"""What a stage says while it runs."""


class Tracker:
    """Takes what a stage has to say. This base class keeps warnings and drops the rest."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        """Record numbers; names carry no stage prefix, the tracker adds it."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Say how far the running stage is."""

    def warn(self, message: str) -> None:
        """Say once what the user may want to change."""
        if message not in self.warnings:
            self.warnings.append(message)
