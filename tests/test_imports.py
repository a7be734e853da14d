"""Imports point down the house of design.md, whether they are written relative or absolute."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "diffusion_course"
PACKAGE = ROOT.name
MAY_IMPORT = {  # a part may import itself and these
    "layers": set(),
    "diffusion": set(),
    "networks": {"layers"},
    "recipe": {"diffusion"},
    "papers": {"recipe", "networks", "layers", "diffusion"},
    "data": set(),
    "evaluation": {"recipe", "data", "diffusion", "networks", "layers", "training"},
    "training": {"recipe", "papers", "data", "diffusion", PACKAGE},
    "classroom": {"recipe", "papers", "data", "diffusion", "training", "evaluation", "networks", "layers",
                  PACKAGE},
    "exercises": {"classroom", "recipe", "papers", "data", "diffusion", "networks", "layers", "training",
                  "evaluation"},
    "instructor": {"classroom", "exercises", "data", PACKAGE},
    "cli": {"recipe", "papers", "data", "diffusion", "training", "evaluation", "classroom", "exercises",
            "instructor", PACKAGE},
    "__main__": {"cli"},
    "__init__": set(),
}


def part(module: tuple[str, ...]) -> str:
    """Which room of the house a module of the package is in; the package itself is PACKAGE."""
    return module[1] if len(module) > 1 else PACKAGE


def imported(path: Path, source: str):
    """Every module of this package that a file imports, as a tuple of names, with the line."""
    here = (PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(here[:len(here) - node.level]) if node.level else []
            base += (node.module or "").split(".") if node.module else []
            # "from . import samplers" and "from diffusion_course import cli" name modules, not attributes
            found = [[*base, alias.name] for alias in node.names] if len(base) <= 1 else [base]
        else:
            continue
        for module in found:
            if module[0] == PACKAGE:
                name = tuple(module)
                if len(name) == 2 and not ((ROOT / name[1]).is_dir() or (ROOT / f"{name[1]}.py").exists()):
                    name = name[:1]                            # an attribute of the package, like __version__
                yield name, node.lineno


def faults(path: Path, source: str) -> list[str]:
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return [f"{path.name}:{line}: {here} must not import {part(module)}"
            for module, line in imported(path, source) if part(module) not in MAY_IMPORT[here] | {here}]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    assert not faults(path, path.read_text())


@pytest.mark.parametrize("line", [
    "from ..papers import ddpm", "from .. import papers", "import diffusion_course.cli",
    "from diffusion_course.networks.unet import UNet", "from diffusion_course import cli",
    "def f():\n    from ..training import trainer"])
def test_an_import_that_points_up_is_found(line):
    assert faults(ROOT / "diffusion" / "samplers.py", line)


@pytest.mark.parametrize("module, limit", [
    ("diffusion_course", {"torch"}), ("diffusion_course.papers.ddpm", set()),
    ("diffusion_course.data.mnist", set())])
def test_importing_loads_no_heavy_package(module, limit):
    heavy = {"matplotlib", "sklearn", "accelerate", "ipywidgets", "imageio", "typer", "diffusers"} | limit
    code = f"import sys, {module}; print([m for m in {sorted(heavy)} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
