"""One flat file per paper, named as the world names it.  Each offers recipe(...) and PRESETS."""
import ast
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """The papers there are, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def module(name: str) -> ModuleType:
    """The paper file of that name; only files of this folder are ever imported."""
    if name not in names():
        raise ValueError(f"there is no paper {name!r}; there are: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def citation(name: str) -> str:
    """The first paragraph of the paper file's docstring: title, authors, year, arXiv number."""
    source = (Path(__path__[0]) / f"{name}.py").read_text()
    return " ".join(ast.get_docstring(ast.parse(source)).split("\n\n")[0].split())
