"""A slider for the knob that a lesson is about."""
from collections.abc import Callable


def explore(draw: Callable, **knobs) -> None:
    """Sliders and menus that call draw(**values) and show what it returns.

    A knob is (lowest, highest) or (lowest, highest, step) for a slider, a list for a menu, or an ipywidgets
    widget.  The picture follows when the mouse is released.  Without ipywidgets it is drawn once.
    """
    try:
        from ipywidgets import Widget, interactive
    except ImportError:
        from IPython.display import display
        display(draw(**{name: knob[0] for name, knob in knobs.items()}))
        print("pip install ipywidgets, and this picture gets its sliders")
        return
    from IPython.display import display

    panel = interactive(draw, {"auto_display": True}, **knobs)     # else a returned picture is not shown
    for child in panel.children:
        if isinstance(child, Widget) and hasattr(child, "continuous_update"):
            child.continuous_update = False
    display(panel)
