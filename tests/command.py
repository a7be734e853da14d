"""A command of the command line, run in this process."""
import io
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import pytest

from diffusion_course import cli
from diffusion_course.data import mnist


class Result(NamedTuple):
    code: int
    out: str
    err: str


def call(*args) -> Result:
    """Run a command in this process."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    mnist.SAID.clear()                                         # by a process of its own
    sys.argv = ["diffusion-course", *map(str, args)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        sys.argv = argv
    return Result(stop.value.code, out.getvalue(), err.getvalue())


def done(*args) -> str:
    result = call(*args)
    assert result.code == 0, result.err
    return result.out


def fails(*args, code: int) -> str:
    """The one line that says what is wrong."""
    result = call(*args)
    assert result.code == code, result
    assert "Traceback" not in result.err
    line, = re.findall("error: .*", result.err, re.IGNORECASE)
    return line
