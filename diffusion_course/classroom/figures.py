"""Figures."""
from pathlib import Path


def loss_curve(losses: list[float], path: str | Path, smooth: int = 50) -> Path:
    """Draw losses, and their mean over `smooth` steps, into a picture file."""
    import numpy as np
    from matplotlib.figure import Figure

    losses = np.asarray(losses)
    figure = Figure(figsize=(6, 3.5), dpi=120, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.plot(np.arange(1, len(losses) + 1), losses, color="0.8", linewidth=0.8, label="each step")
    if len(losses) >= 2 * smooth:
        mean = np.convolve(losses, np.ones(smooth) / smooth, "valid")
        axes.plot(np.arange(smooth, len(losses) + 1), mean, color="C0", label=f"mean of {smooth} steps")
        axes.legend(frameon=False)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.spines[["top", "right"]].set_visible(False)
    path = Path(path)
    figure.savefig(path)
    return path
