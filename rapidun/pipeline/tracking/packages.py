"""Whether the package that a tracker needs is there, asked before any model loads."""

import importlib
import inspect
import os
from pathlib import Path

from rapidun.base.errors import ConfigError

# tracker -> what is imported for it
MODULES = {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard", "trackio": "trackio"}
# older releases start a web server with every run, and their `init` takes no group
TRACKIO_NEEDS = ("group", "resume", "auto_log_cpu")


def need_package(kind: str, *, folder: str | None = None) -> None:
    """Import what a tracker needs.

    Args: folder: where Trackio keeps its database; it looks at the environment once, when it is imported.
    Raises: ConfigError that names the extra to install; where this process has Trackio in another folder already.
    """
    if kind == "trackio" and folder is not None:
        os.environ["TRACKIO_DIR"] = str(Path(folder).expanduser().resolve())
    try:
        module = importlib.import_module(MODULES[kind])
    except Exception as error:  # a broken installation raises OSError and others as well
        why = str(error).split("\n")[0]
        raise ConfigError(
            f"tracking: need the package {kind} for tracking={kind}, got none that can be imported ({why}). "
            f"pip install 'rapidun[{kind}]', or pass tracking=none"
        ) from None
    if kind == "trackio" and folder is not None:
        used = Path(importlib.import_module("trackio.utils").TRACKIO_DIR).resolve()
        if used != Path(folder).expanduser().resolve():
            raise ConfigError(
                f"tracking: need tracking.dir={used}, where this process keeps Trackio's database since its first run, "
                f"got {folder}. Pass that, or start another process"
            )
    if kind == "trackio" and not set(TRACKIO_NEEDS) <= inspect.signature(module.init).parameters.keys():
        raise ConfigError(
            f"tracking: need a newer trackio for tracking=trackio, got {module.__version__}. "
            "pip install --upgrade 'rapidun[trackio]', or pass tracking=none"
        )
