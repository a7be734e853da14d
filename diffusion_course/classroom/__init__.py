"""What a notebook needs: `from diffusion_course.classroom import figure, same, check, ...`"""
import importlib

HOMES = {
    "animations": ("animate", "denoising", "movie"),
    "figures": ("compare", "figure", "filmstrip", "grid", "schedules", "show"),
    "lesson": ("preset", "same", "start"),
    "models": ("load_or_train", "results"),
    "overview": ("course_map",),
    "panel": ("watch",),
    "widgets": ("explore",),
}
__all__ = sorted(name for names in HOMES.values() for name in names)


def __getattr__(name: str):
    """Import a tool when it is first asked for, so that the command line waits for none of them."""
    for home, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
