"""The leaderboard as a picture: what quality a model has for the computing that it took."""
from matplotlib.ticker import LogLocator, NullFormatter

from ..evaluation.leaderboard import Row
from .figures import Picture, rendered, styled


def quality_against_compute(rows: list[Row]) -> Picture:
    """A panel for each data set: the Frechet distance of every model against its training compute."""
    if not rows:
        raise ValueError("the leaderboard is empty; `diffusion-course evaluate` fills it")
    boards: dict[str, list[Row]] = {}
    for row in rows:
        boards.setdefault(f"{row['data']}, {' x '.join(map(str, row['shape'][1:]))}, n = {row['n']}",
                          []).append(row)
    with styled(4.6 * len(boards), 3.2) as fig:
        for axes, (title, own) in zip(fig.subplots(1, len(boards), squeeze=False)[0], boards.items()):
            floor = [row["metrics"]["frechet"]["real"] for row in own]
            axes.axhspan(0, max(floor), color="0.9", label="real digits against real digits")
            for n, row in enumerate(own):
                metric, compute = row["metrics"]["frechet"], row["training"]["flops"] / 1e15
                steps = " ".join(str(value).removesuffix("_step") for _, value in
                                 sorted(row["sampling"].items()))
                axes.errorbar(compute, metric["value"], metric.get("spread"), fmt="osD^v<>ph"[n % 9],
                              color=f"C{n % 10}", capsize=3, label=f"{row['model']}, {steps}")
            axes.set(xscale="log", xlabel="training compute in PFLOP", ylabel="Frechet distance (0 is best)",
                     title=title)
            compute = [row["training"]["flops"] / 1e15 for row in own]
            axes.set(ylim=(0, None), xlim=(min(compute) / 2, max(compute) * 2))
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.legend(fontsize=8)
        best = min(rows, key=lambda row: row["metrics"]["frechet"]["value"])
        return rendered(fig, f"Frechet distance of {len(rows)} models against their training compute; the "
                             f"least, {best['metrics']['frechet']['value']:.2g}, has {best['model']}.")
