"""What a stage says while it runs."""


class Tracker:
    """Takes what a stage has to say. This base class keeps warnings and drops the rest."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        """Record numbers; names carry no stage prefix, the tracker adds it."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Say how far the running stage is."""

    def note(self, message: str) -> None:
        """Say what the stage decided, where there is nothing to change."""

    def warn(self, message: str) -> None:
        """Say once what the user may want to change."""
        if message not in self.warnings:
            self.warnings.append(message)


class Listener(Tracker):
    """Passes everything on, and remembers the warnings of one stage: they are kept with what it made."""

    def __init__(self, other: Tracker) -> None:
        super().__init__()
        self.other = other

    def log(self, metrics: dict[str, float], *, step: int | None = None) -> None:
        self.other.log(metrics, step=step)

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.other.progress(done, total, note)

    def note(self, message: str) -> None:
        self.other.note(message)

    def warn(self, message: str) -> None:
        super().warn(message)
        self.other.warn(message)
