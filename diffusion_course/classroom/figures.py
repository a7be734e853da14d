"""Pictures for notebooks.  Every one has alt text and an opaque background, so it reads in any theme."""
import base64
import html
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import media
from ..data.files import whole

STYLE = {"figure.facecolor": "white", "savefig.facecolor": "white", "axes.facecolor": "white",
         "text.color": "black", "axes.spines.top": False, "axes.spines.right": False, "font.size": 10,
         "axes.titlesize": 10, "legend.frameon": False, "lines.linewidth": 1.6, "image.cmap": "gray",
         "image.interpolation": "nearest", "figure.dpi": 110, "figure.constrained_layout.use": True}
FORMATS = {"png": "image/png", "gif": "image/gif", "mp4": "video/mp4"}


@dataclass(frozen=True)
class Picture:
    """An encoded image or animation that a notebook shows; `alt` says in words what there is to see."""

    content: bytes = field(repr=False)
    alt: str
    format: str = "png"                                        # png, gif or mp4
    zoom: float = 1                                            # of each pixel, sharply

    def __post_init__(self):
        if not self.alt.strip():
            raise ValueError("alt is empty; say in a sentence what the picture shows")

    @property
    def html(self) -> str:
        source = f"data:{FORMATS[self.format]};base64,{base64.b64encode(self.content).decode()}"
        sharp = "; image-rendering: pixelated" if self.zoom > 1 else ""
        width = f' width="{round(self.zoom * self.width)}"' if self.format != "mp4" else ""
        say = f'alt="{html.escape(self.alt)}"{width} style="max-width: 100%; background: white{sharp}"'
        if self.format == "mp4":
            return f'<video controls loop muted autoplay playsinline {say.replace("alt=", "aria-label=")} ' \
                   f'src="{source}"></video>'
        return f'<img {say} src="{source}">'

    @property
    def width(self) -> int:
        from PIL import Image
        return Image.open(io.BytesIO(self.content)).width

    def _repr_mimebundle_(self, include=None, exclude=None):
        data, metadata = {"text/html": self.html, "text/plain": self.alt}, {}
        if self.format == "png":                               # for what shows no HTML
            data["image/png"] = base64.b64encode(self.content).decode()
            metadata["image/png"] = {"alt": self.alt}
        return data, metadata

    def save(self, path: str | Path) -> Path:
        """Write the picture to a file of its format."""
        path = Path(path)
        if path.suffix != f".{self.format}":
            raise ValueError(f"{path}: this picture is a {self.format}; the name must end in .{self.format}")
        with whole(path) as part:
            part.write_bytes(self.content)
        return path


def show(*pictures: Picture) -> None:
    """Display pictures below the cell."""
    from IPython.display import display
    display(*pictures)


def png(pixels: np.ndarray, alt: str, zoom: float = 1) -> Picture:
    """uint8 [H, W, 3] as a picture."""
    from PIL import Image

    out = io.BytesIO()
    image = Image.fromarray(pixels)
    if len(colours := image.getcolors(256) or []):             # a palette halves the size and loses nothing
        image = image.quantize(len(colours), dither=Image.Dither.NONE)
    image.save(out, "png", optimize=True)
    return Picture(out.getvalue(), alt, zoom=zoom)


def rendered(fig, alt: str) -> Picture:
    """A matplotlib figure as a picture of at most 256 colours."""
    from PIL import Image

    pixels, out = rasterized(fig), io.BytesIO()
    Image.fromarray(pixels).quantize(256, dither=Image.Dither.NONE).save(out, "png", optimize=True)
    return Picture(out.getvalue(), alt)


def rasterized(fig) -> np.ndarray:
    """A matplotlib figure as uint8 [H, W, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@contextmanager
def styled(width: float, height: float, **style) -> Iterator:
    """An empty figure of that many inches in the style of the course."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | style):
        yield Figure(figsize=(width, height))


@contextmanager
def figure(alt: str, rows: int = 1, columns: int = 1, width: float = 7.0, height: float = 2.6,
           **options) -> Iterator:
    """`with figure("alt text") as axes:` draw with matplotlib; at the end of the block it is shown.

    width and height are inches, height that of one row; further options are those of `Figure.subplots`.
    """
    with styled(width, height * rows) as fig:
        yield fig.subplots(rows, columns, **options)
        show(rendered(fig, alt))


def grid(x: Tensor, alt: str, columns: int | None = None, zoom: float = 2) -> Picture:
    """Images [N, C, H, W] in [-1, 1], every pixel zoom times as large."""
    if x.ndim != 4:
        raise ValueError(f"expected images [N, C, H, W], got shape {tuple(x.shape)}; animate() shows videos")
    return png(media.grid(x, columns), alt, zoom)


def filmstrip(rows: dict[str, Tensor], alt: str, titles: Iterable[str] = (), size: float = 0.72) -> Picture:
    """Rows of images, {label: [K, C, H, W]}, with a title above each column; size is inches per image.

    A video [C, F, H, W] becomes a row by `video.transpose(0, 1)`.
    """
    for label, images in rows.items():
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
            raise ValueError(f"{label} of shape {tuple(images.shape)} must be images [K, 1 or 3, H, W]; a "
                             "video [C, F, H, W] becomes them by video.transpose(0, 1)")
    lengths = {label: len(images) for label, images in rows.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"every row needs as many images as the others, got {lengths}")
    from matplotlib.textpath import TextPath

    columns, titles = next(iter(lengths.values())), list(titles)
    widths = [TextPath((0, 0), label.strip() or ".", size=10).get_extents().width for label in rows]
    margin = max(widths) / 72 + 0.25
    with styled(size * columns + margin, size * len(rows) + (0.3 if titles else 0.05)) as fig:
        fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        axes = fig.subplots(len(rows), columns, squeeze=False)
        for (label, images), line in zip(rows.items(), axes):
            for image, ax in zip(images, line):
                ax.imshow(pixels_of(image), vmin=0, vmax=1)
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
            line[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for title, ax in zip(titles, axes[0]):
            ax.set_title(title, fontsize=9)
        return rendered(fig, alt)


def pixels_of(image: Tensor) -> np.ndarray:
    """[C, H, W] in [-1, 1] -> [H, W] or [H, W, 3] in [0, 1]."""
    image = (image.detach().float().cpu().clamp(-1, 1) + 1) / 2
    return (image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy()


def compare(panels: dict[str, Tensor], alt: str, columns: int | None = None, size: float = 2.4) -> Picture:
    """Grids of images side by side under their titles, {title: [N, C, H, W]}; size is inches per grid."""
    with styled(size * len(panels), size + 0.3) as fig:
        for (title, images), ax in zip(panels.items(), fig.subplots(1, len(panels), squeeze=False)[0]):
            if images.ndim != 4:
                raise ValueError(f"{title} of shape {tuple(images.shape)} must be images [N, C, H, W]")
            ax.imshow(media.grid(images, columns))
            ax.set_title(title)
            ax.axis("off")
        return rendered(fig, alt)


def schedules(named: dict, alt: str, points: int = 200) -> Picture:
    """alpha(t)^2 and log-SNR of schedules, {name: Schedule}, against time."""
    with styled(7.0, 2.6) as fig:
        left, right = fig.subplots(1, 2)
        for name, schedule in named.items():
            place = torch.linspace(0, 1, points + 1)[1:]
            alpha, sigma = schedule(place * schedule.t_max)
            left.plot(place, alpha**2, label=name)
            right.plot(place, 2 * (alpha.log() - sigma.log()))
        left.set(xlabel="t / t_max", title=r"signal left, $\alpha^2$", ylim=(0, 1.02))
        right.set(xlabel="t / t_max", title=r"$\log\, \alpha^2 / \sigma^2$ (log-SNR)")
        left.legend()
        return rendered(fig, alt)


def draw_losses(axes, losses: np.ndarray, smooth: int = 50, before: int = 0) -> None:
    """Losses of the steps after the first `before`, and their mean over `smooth` steps."""
    steps = before + np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color="0.8", linewidth=0.8, label="each step")
    if len(losses) >= 2 * smooth:
        mean = np.convolve(losses, np.ones(smooth) / smooth, "valid")
        axes.plot(steps[smooth - 1:], mean, color="C0", label=f"mean of {smooth} steps")
        axes.legend()
    axes.set(xlabel="step", ylabel="loss", yscale="log")


def loss_curve(losses: list[float], path: str | Path, smooth: int = 50) -> Path:
    """Draw losses, and their mean over `smooth` steps, into a picture file."""
    with styled(6, 3.5) as fig:
        draw_losses(fig.subplots(), np.asarray(losses), smooth)
        with whole(path) as part:
            fig.savefig(part)
        return Path(path)
