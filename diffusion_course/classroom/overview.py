"""The map of the course, as a picture."""
import textwrap

from .curriculum import LESSONS, TRACKS, ready
from .figures import Picture, rendered, styled


def course_map() -> Picture:
    """One row per track: a dot per lesson, filled if it is ready, its name, and what it needs."""
    with styled(10.5, 7.4) as fig:
        axes = fig.subplots()
        for row, track in enumerate(TRACKS):
            own, colour = [lesson for lesson in LESSONS if lesson.track == track], f"C{row}"
            axes.plot([0, len(own) - 1], [-row, -row], color=colour, alpha=0.35, zorder=1)
            axes.text(-0.55, -row, textwrap.fill(track, 14), ha="right", va="center", color=colour,
                      weight="bold")
            for x, lesson in enumerate(own):
                fill, ink = (colour, "white") if ready(lesson) else ("white", colour)
                axes.scatter(x, -row, s=330, color=fill, edgecolors=colour, zorder=2)
                axes.text(x, -row - 0.01, lesson.number, ha="center", va="center", color=ink, zorder=3)
                needs = f"\nafter {', '.join(map(str, lesson.needs))}" if lesson.needs else ""
                axes.text(x, -row - 0.26, textwrap.fill(lesson.name, 15) + needs, ha="center", va="top",
                          fontsize=7)
        axes.set(xticks=[], yticks=[], xlim=(-2.1, 9.5), ylim=(-len(TRACKS) + 0.2, 0.4))
        axes.spines[:].set_visible(False)
        return rendered(fig, f"A map of the {len(LESSONS)} lessons in {len(TRACKS)} rows, one per track: "
                             f"{', '.join(TRACKS)}. The table below says the same in words.")
