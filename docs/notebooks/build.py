"""`python docs/notebooks/build.py`: make quickstart.ipynb of quickstart.py, and run it.

quickstart.py is the source: `# %%` begins a cell of code, `# %% [markdown]` one of text. Needs nbclient and ipykernel
(`pip install 'rapidun[dev]'`).
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat

HERE = Path(__file__).parent
SOURCE, NOTEBOOK = HERE / "quickstart.py", HERE / "quickstart.ipynb"
CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def notebook(source: Path = SOURCE) -> Any:
    """The notebook of a source file, not run."""
    cells, parts = [], CELL.split(source.read_text(encoding="utf-8"))
    for number, (kind, text) in enumerate(zip(parts[1::2], parts[2::2], strict=True)):
        if kind:
            lines = [re.sub(r"^# ?", "", line) for line in text.strip().split("\n")]
            made = nbformat.v4.new_markdown_cell("\n".join(lines))
        else:
            made = nbformat.v4.new_code_cell(text.strip())
        # random otherwise: the same source, the same file
        made["id"] = f"cell-{number}"
        cells.append(made)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def run(made: Any, *, folder: Path, seconds: int = 1800) -> Any:
    """Run it in a folder, where its outputs/ are left.

    Raises: nbclient.exceptions.CellExecutionError with the cell and its traceback.
    """
    # what the tests that only read need not have
    from nbclient import NotebookClient

    resources = {"metadata": {"path": str(folder)}}
    # what libraries warn of names files of this machine
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return NotebookClient(made, timeout=seconds, resources=resources).execute(env=environment)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = run(notebook(), folder=Path(folder))
    for cell in made.cells:
        # when it was run is no part of it
        cell["metadata"].pop("execution", None)
    made["metadata"] = {"kernelspec": made["metadata"]["kernelspec"]}
    nbformat.write(made, NOTEBOOK)
    print(NOTEBOOK)


if __name__ == "__main__":
    main()
