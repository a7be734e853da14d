"""What SECURITY.md promises, and a count of the cases in which the tests held the package to it."""
import os
import re
import traceback
from collections import Counter
from pathlib import Path

import hypothesis

import diffusion_course
from diffusion_course.recipe import OutOfMemory
from diffusion_course.training.trainer import NonFiniteLoss

PACKAGE = str(Path(diffusion_course.__file__).parent)
KINDS = {"fault": "faults", "bad_input": "cases of bad input", "hostile": "hostile files and programs"}
CASES: Counter = Counter()                                     # in this process
DONE: Counter = Counter()                                      # in all, of tests that passed
SKIPPED: Counter = Counter()
many = hypothesis.settings(max_examples=int(os.environ.get("DIFFUSION_COURSE_EXAMPLES", "20")), deadline=None,
                           derandomize=True, database=None,
                           suppress_health_check=list(hypothesis.HealthCheck))


def promised_but_not_done() -> dict[str, int]:
    """The numbers of the table in SECURITY.md that are larger than what was counted."""
    page = (Path(__file__).parents[1] / "SECURITY.md").read_text()
    promised = {kind: int(re.search(rf"\| ([\d,]+) \| `pytest -m {kind} tests`", page)[1].replace(",", ""))
                for kind in KINDS}
    return {kind: number for kind, number in promised.items() if number > DONE[kind] + SKIPPED[kind]}


def judged(call, *names: str, where: str = PACKAGE):
    """The result of call(), or None if it fails with one clear error: ours, and about one of the names.

    Anything else is raised: another kind of error, one from inside a library, one that names nothing.
    """
    CASES["bad_input"] += 1
    try:
        return call()
    except (ValueError, OSError, IndexError, NonFiniteLoss, OutOfMemory) as error:
        text, last = str(error), traceback.extract_tb(error.__traceback__)[-1]
        ours = last.filename.startswith(where) and "raise " in (last.line or "")
        assert ours, f"not raised by us, but in {last.filename}:{last.lineno}: {text}"
        assert any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names), (
            f"the message names none of {names}: {text}")
        assert len(text) < 2000, f"a message of {len(text)} characters: {text[:300]}"
