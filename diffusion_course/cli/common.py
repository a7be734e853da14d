"""What the commands have in common."""
import json
from collections.abc import Iterable
from typing import Annotated, Any, Optional

import typer

PLAIN = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False}
# of what trains
Precision = Annotated[Optional[str], typer.Option(help="no, fp16, bf16; default: by device.")]
Compiled = Annotated[bool, typer.Option("--compile", help="Faster steps after a minute of torch.compile.")]
Cpu = Annotated[bool, typer.Option("--cpu", help="Do not use a GPU.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def say(facts: list[dict[str, Any]], as_json: bool, lines: Iterable[str]) -> None:
    """Print facts as JSON, or the lines that tell them to a reader."""
    print(json.dumps(facts, indent=2) if as_json else "\n".join(lines))


def given(**options) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}
