"""Run a lesson's notebook without a browser, in a kernel of its own, and keep what it shows."""
import ast
import base64
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..data.files import whole

WIDGET = "application/vnd.jupyter.widget-view+json"
USAGE = "__import__('time').process_time(), open('/proc/self/status').read()"
EMBEDDED = re.compile(r"data:(image/gif|video/mp4);base64,([A-Za-z0-9+/=\s]+)")


class LessonError(RuntimeError):
    """A lesson that did not run to its end; the message names the cell, the error and what was written."""


@dataclass(frozen=True)
class Run:
    """A lesson that ran: the executed notebook, the pictures taken from it, and what it cost."""

    notebook: Path
    figures: list[Path]
    minutes: float
    usage: dict[str, float]                                    # of the kernel; empty where it is unknown

    def __str__(self) -> str:
        usage = "; {processor:.1f} minutes of processor time, {memory:.1f} GB".format(**self.usage) \
            if self.usage else ""
        return (f"{self.notebook.stem} ran in {self.minutes:.1f} minutes{usage}\n"
                f"notebook  {self.notebook}\n"
                f"figures   {self.notebook.with_suffix('')} ({len(self.figures)})")


def run(path: str | Path, out: str | Path = "runs/lessons", preset: str | None = None,
        timeout: int | None = None) -> Run:
    """Execute a notebook in its own folder, as JupyterLab would; write the result and its pictures to out.

    timeout is in seconds per cell.  When a cell fails (LessonError) or Ctrl-C stops the run, the notebook up
    to there is written all the same.  Missing packages raise ImportError.
    """
    try:
        import ipykernel  # noqa: F401
        import nbclient  # noqa: F401
        import nbformat
    except ImportError as error:
        raise ImportError(f"lessons run in Jupyter ({error}); pip install 'diffusion-course[lab]'") from error
    path, out, began = Path(path), Path(out), time.monotonic()
    written = out / path.name
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such notebook; `diffusion-course lessons` says which are ready")
    if written.resolve() == path.resolve():
        raise ValueError(f"out={out} holds the lesson itself; choose another folder")
    environment = dict(os.environ)
    if preset is not None:
        from ..recipe import preset_name
        environment["DIFFUSION_COURSE_PRESET"] = preset_name(preset)
    out.mkdir(parents=True, exist_ok=True)
    nb = nbformat.read(path, as_version=4)
    try:
        usage = execute(nb, path, environment, timeout)
    except LessonError as error:
        raise LessonError(f"{error}; the notebook up to there is {written}") from error
    except KeyboardInterrupt:
        print(f"stopped; the notebook up to there is {written}", file=sys.stderr)
        raise
    finally:
        with whole(written) as part:
            nbformat.write(clean(nb), part)
        figures = write_figures(nb, written.with_suffix(""))
    return Run(written, figures, (time.monotonic() - began) / 60, usage)


def execute(nb, path: Path, environment: dict[str, str], timeout: int | None) -> dict[str, float]:
    """Fill in the outputs of nb, read from path, and return what the kernel used.

    A LessonError names the cell that failed.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    cells = [(index, cell) for index, cell in enumerate(nb.cells)
             if cell.cell_type == "code" and cell.source.strip()]
    for _, cell in cells:
        cell.update(outputs=[], execution_count=None)
    client = NotebookClient(nb, km=this_interpreter(), timeout=timeout, record_timing=False,
                            resources={"metadata": {"path": str(path.parent)}}, shutdown_kernel="immediate",
                            extra_arguments=["--log-level=ERROR"])
    with client.setup_kernel(cleanup_kc=True, env=environment), \
            tqdm(cells, path.stem, unit="cell", dynamic_ncols=True) as bar:
        for number, (index, cell) in enumerate(bar, 1):
            line = cell.source.strip().splitlines()[0]
            bar.set_postfix_str(line[:40])
            try:
                client.execute_cell(cell, index)
            except CellTimeoutError:
                why = f"it took longer than timeout={timeout} seconds"
            except DeadKernelError:
                why = "the kernel died (was there enough memory?)"
            except CellExecutionError as error:
                why = ": ".join([error.ename, *error.evalue.strip().splitlines()[-1:]])
            else:
                continue
            raise LessonError(f"{path.name} failed in cell [{number}], `{line}`: {why}")
        return used(client)


def used(client) -> dict[str, float]:
    """Minutes of processor time and the peak of memory in GB, as a kernel says; {} where it is no Linux."""
    from nbclient.util import run_sync

    reply = run_sync(client.kc.execute_interactive)("", silent=True, user_expressions={"usage": USAGE})
    answer = reply["content"]["user_expressions"]["usage"]
    if answer["status"] != "ok":
        return {}
    seconds, status = ast.literal_eval(answer["data"]["text/plain"])
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    return {"processor": seconds / 60, "memory": int(peak[1]) * 1024 / 1e9} if peak else {}


def this_interpreter():
    """A kernel manager whose python3 is this very Python, whatever kernels the user has installed."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    return AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))


def clean(nb):
    """Take out of a notebook what is not for keeping: widgets and overwritten progress; return it.

    Stored widget state makes GitHub refuse a notebook, and only a live kernel can show a widget.
    """
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = joined(output for output in cell.outputs if WIDGET not in output.get("data", {}))
    return nb


def joined(outputs) -> list:
    """Outputs with the pieces of each stream in one, up to the next picture, and as \\r overwrote them."""
    kept, streams = [], {}
    for output in outputs:
        if output.output_type != "stream":
            streams = {}
        elif output.name in streams:
            streams[output.name].text += output.text
            continue
        else:
            streams[output.name] = output
        kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    return kept


def pictures(nb) -> Iterator[tuple[str, bytes]]:
    """Every picture and animation among a notebook's outputs, in order: (png, gif or mp4, its bytes)."""
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                yield "png", base64.b64decode(data["image/png"])
            for kind, content in EMBEDDED.findall(data.get("text/html", "")):
                yield kind.partition("/")[2], base64.b64decode(content)


def write_figures(nb, folder: Path) -> list[Path]:
    """Write a notebook's pictures as 01.png, 02.gif, ... in place of those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if re.fullmatch(r"\d+\.(png|gif|mp4)", old.name):
            old.unlink()
    paths = []
    for number, (kind, content) in enumerate(pictures(nb), 1):
        paths.append(folder / f"{number:02}.{kind}")
        with whole(paths[-1]) as part:
            part.write_bytes(content)
    return paths
