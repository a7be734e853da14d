"""Grading with nbgrader: its submissions, our checks, and between them a process that is locked up.

nbgrader would run a submission in a kernel of its own, where it could do anything.  `configure` puts two
steps in place of that: one finds the cells again and restores the checks, the other runs the code elsewhere
(submission.py) and judges here what it returns.
"""
import tempfile
from pathlib import Path

import nbformat
from nbgrader.api import Gradebook
from nbgrader.preprocessors import Execute, NbGraderPreprocessor, OverwriteCells
from traitlets import Integer

from .assignment import identity, mark, name_of
from .submission import Submission

VERDICT = {True: "correct", False: "wrong", None: "not solved yet"}


class Recognise(NbGraderPreprocessor):
    """Give every marked cell its metadata, and put back the cells that are missing.

    Marks are the first lines of cells.  Where two claim to be the same cell, the last one is it.
    """

    def preprocess(self, nb, resources):
        facts = resources["nbgrader"]
        with Gradebook(facts["db_url"]) as gradebook:
            given = gradebook.find_notebook(facts["notebook"], facts["assignment"])
            sources = {cell.name: cell for cell in given.source_cells}
            points = {cell.name: cell.max_score for cell in given.grade_cells}
            places = {}
            for n, cell in enumerate(nb.cells):
                found = mark(cell.source)
                name = name_of(*found) if found else cell.metadata.get("nbgrader", {}).get("grade_id")
                if name in sources and (found or name not in places):
                    places[name] = n
            for name in sources.keys() - places.keys():
                make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
                places[name] = len(nb.cells)
                nb.cells.append(make[sources[name].cell_type](sources[name].source))
            names = {n: name for name, n in places.items()}
            for n, cell in enumerate(nb.cells):
                if n not in names:
                    cell.metadata.pop("nbgrader", None)
                elif found := mark(sources[names[n]].source):
                    cell.metadata["nbgrader"] = identity(*found, points.get(names[n]))
        return nb, resources


class Judge(NbGraderPreprocessor):
    """Run the submission in a jail, and write under every check what came of it."""

    seconds = Integer(60, help="What a cell, and the check of a function, may take.").tag(config=True)

    def preprocess(self, nb, resources):
        checks = {n: mark(cell.source)[1] for n, cell in enumerate(nb.cells)           # ours, not look-alikes
                  if "nbgrader" in cell.metadata and (mark(cell.source) or ("",))[0] == "check"}
        code = [cell for n, cell in enumerate(nb.cells) if cell.cell_type == "code" and n not in checks]
        with tempfile.TemporaryDirectory() as scratch:
            submission = Submission([cell.source for cell in code], Path(scratch), self.seconds)
            try:
                submission.started()
                for n, cell in enumerate(code):
                    cell.outputs = [failure(submission.errors[n])] if n in submission.errors else []
                for n, key in checks.items():
                    right, text = submission.verdict(key)
                    said = f"{key}: {VERDICT[right]}. {text}"
                    self.log.info(said)
                    nb.cells[n].outputs = [nbformat.v4.new_output("stream", text=f"{said}\n") if right else
                                           failure(said)]
            finally:
                submission.close()
        return nb, resources


def failure(text: str):
    return nbformat.v4.new_output("error", ename="NotSolved", evalue=text, traceback=text.splitlines())


def configure(config) -> None:
    """nbgrader's settings: its own steps, but ours where a submission would be trusted or run.

    zip_collect takes files named STUDENT_lesson-02.ipynb, in a zip file or not.
    """
    from nbgrader.converters import Autograde

    clean, grade = (Autograde.class_traits()[name].default() for name in
                    ("sanitize_preprocessors", "autograde_preprocessors"))
    at = clean.index(OverwriteCells)
    config.Autograde.sanitize_preprocessors = [*clean[:at], Recognise, *clean[at:]]
    config.Autograde.autograde_preprocessors = [Judge if step is Execute else step for step in grade]
    config.FileNameCollectorPlugin.named_regexp = r"(.*/)?(?P<student_id>[^/]+)_(?P<file_id>lesson-\d\d)"
