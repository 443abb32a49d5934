"""Run notebooks and store what they show: python notebooks/store.py [NAME.ipynb ...]

Progress bars, warnings and the names of temporary folders are left out: they belong to one machine and one run.
"""

import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
TEMPORARY = re.compile(r"/[\w./-]*/clip_itm_\w+")


def kept(output: dict) -> dict | None:
    """An output as it is stored, or None."""
    if output["output_type"] == "stream":
        if output["name"] == "stderr":
            return None
        output["text"] = TEMPORARY.sub("TEMPORARY", output["text"])
        return output
    data = output.get("data", {})
    if any(kind.startswith("application/vnd.jupyter.widget") for kind in data):
        return None
    for kind in ("text/plain", "text/html", "text/markdown"):
        if kind in data:
            data[kind] = TEMPORARY.sub("TEMPORARY", data[kind])
    return output


def store(path: Path) -> float:
    """Run a notebook and write it with its outputs; returns the seconds that it took."""
    notebook = nbformat.read(path, as_version=4)
    start = time.monotonic()
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(FOLDER)}}).execute()
    seconds = time.monotonic() - start
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in map(kept, cell.outputs) if output is not None]
            for output in cell.outputs:
                if "execution_count" in output:
                    output["execution_count"] = None
    notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec",)} | {"language_info": {"name": "python"}}
    nbformat.write(notebook, path)
    return seconds


if __name__ == "__main__":
    for path in [FOLDER / Path(name).name for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        print(f"{path.name}: {store(path):.0f} s", flush=True)
