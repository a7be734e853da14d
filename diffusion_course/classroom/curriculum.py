"""The course as one table: every lesson, the paper it rebuilds, and the lessons it builds on."""
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.download import repository_data

TRACKS = ("Foundations", "Text to image", "First video models", "From image models to video",
          "Control and editing", "Video transformers", "Few steps", "Long video and no training", "Toolbox")


@dataclass(frozen=True)
class Lesson:
    """One notebook; `needs` are the lessons that it builds on directly, so theirs are needed too."""

    number: int
    slug: str
    title: str                                 # of the paper, after the name by which the world knows it
    authors: str
    year: int | None
    arxiv: str | None                          # of the first paper that is on arXiv
    track: str
    needs: tuple[int, ...] = ()
    also: tuple[str, ...] = ()                 # arXiv ids of the lesson's other papers

    @property
    def name(self) -> str:
        """The title up to its first colon or comma: DDPM, Video LDM."""
        return re.split("[:,]", self.title)[0]

    @property
    def file(self) -> str:
        """01_ddpm.ipynb, toolbox_metrics.ipynb"""
        return f"{'toolbox' if self.track == TOOLBOX else f'{self.number:02}'}_{self.slug}.ipynb"


READY = {0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 15, 23, 39, 48, 49, 50}  # lessons whose notebook is in lessons/

FIRST, IMAGE, VIDEO, INFLATE, EDIT, TOKENS, FAST, LONG, TOOLBOX = TRACKS
LESSONS = (
    Lesson(0, "start_here", "Start here: what diffusion is, and how a lesson works", "", None, None, FIRST),
    Lesson(1, "ddpm", "DDPM: Denoising Diffusion Probabilistic Models, and Improved DDPM",
           "Ho et al.; Nichol & Dhariwal", 2020, "2006.11239", FIRST, (0,), ("2102.09672",)),
    Lesson(2, "ddim_guidance", "DDIM, classifier guidance and classifier-free guidance",
           "Song et al.; Dhariwal & Nichol; Ho & Salimans", 2020, "2010.02502", FIRST, (1,),
           ("2105.05233", "2207.12598")),
    Lesson(3, "score_sde", "Score SDE: Score-Based Generative Modeling through Stochastic Differential "
           "Equations", "Song et al.", 2020, "2011.13456", FIRST, (2,)),
    Lesson(4, "latent_diffusion", "Latent diffusion: High-Resolution Image Synthesis with Latent Diffusion "
           "Models", "Rombach et al.", 2021, "2112.10752", IMAGE, (2,)),
    Lesson(5, "imagen", "Imagen: Photorealistic Text-to-Image Diffusion Models with Deep Language "
           "Understanding", "Saharia et al.", 2022, "2205.11487", IMAGE, (4,)),
    Lesson(6, "edm", "EDM: Elucidating the Design Space of Diffusion-Based Generative Models",
           "Karras et al.", 2022, "2206.00364", FIRST, (3,)),
    Lesson(7, "rectified_flow", "Rectified Flow: Flow Straight and Fast, Learning to Generate and Transfer "
           "Data with Rectified Flow", "Liu et al.", 2022, "2209.03003", FIRST, (3,)),
    Lesson(8, "dit", "DiT: Scalable Diffusion Models with Transformers", "Peebles & Xie", 2022, "2212.09748",
           FIRST, (2,)),
    Lesson(9, "consistency_models", "Consistency Models, and Improved Techniques for Training Them",
           "Song et al.; Song & Dhariwal", 2023, "2303.01469", FAST, (6,), ("2310.14189",)),
    Lesson(10, "pixart_alpha", "PixArt-alpha: Fast Training of Diffusion Transformer for Photorealistic "
           "Text-to-Image Synthesis", "Chen et al.", 2023, "2310.00426", IMAGE, (4, 8)),
    Lesson(11, "sd3", "Stable Diffusion 3: Scaling Rectified Flow Transformers for High-Resolution Image "
           "Synthesis", "Esser et al.", 2024, "2403.03206", IMAGE, (4, 7, 8)),
    Lesson(12, "flux", "FLUX.1: Announcing Black Forest Labs, a release without a paper", "Black Forest Labs",
           2024, None, IMAGE, (11,)),
    Lesson(13, "video_diffusion_models", "Video Diffusion Models", "Ho et al.", 2022, "2204.03458", VIDEO,
           (2,)),
    Lesson(14, "cogvideo", "CogVideo: Large-scale Pretraining for Text-to-Video Generation via Transformers",
           "Hong et al.", 2022, "2205.15868", TOKENS, (4,)),
    Lesson(15, "flexible_diffusion", "FDM: Flexible Diffusion Modeling of Long Videos", "Harvey et al.", 2022,
           "2205.11495", LONG, (13,)),
    Lesson(16, "make_a_video", "Make-A-Video: Text-to-Video Generation without Text-Video Data",
           "Singer et al.", 2022, "2209.14792", VIDEO, (5, 13)),
    Lesson(17, "imagen_video", "Imagen Video: High Definition Video Generation with Diffusion Models",
           "Ho et al.", 2022, "2210.02303", VIDEO, (16,)),
    Lesson(18, "phenaki", "Phenaki: Variable Length Video Generation from Open Domain Textual Descriptions",
           "Villegas et al.", 2022, "2210.02399", TOKENS, (8, 14)),
    Lesson(19, "tune_a_video", "Tune-A-Video: One-Shot Tuning of Image Diffusion Models for Text-to-Video "
           "Generation", "Wu et al.", 2022, "2212.11565", EDIT, (16,)),
    Lesson(20, "gen1", "Gen-1: Structure and Content-Guided Video Synthesis with Diffusion Models",
           "Esser et al.", 2023, "2302.03011", EDIT, (16,)),
    Lesson(21, "text2video_zero", "Text2Video-Zero: Text-to-Image Diffusion Models are Zero-Shot Video "
           "Generators", "Khachatryan et al.", 2023, "2303.13439", LONG, (19,)),
    Lesson(22, "vidm", "VIDM: Video Implicit Diffusion Models", "Mei & Patel", 2022, "2212.00235", VIDEO,
           (2,)),
    Lesson(23, "video_ldm", "Video LDM: Align your Latents, High-Resolution Video Synthesis with Latent "
           "Diffusion Models", "Blattmann et al.", 2023, "2304.08818", INFLATE, (15, 16)),
    Lesson(24, "animatediff", "AnimateDiff: Animate Your Personalized Text-to-Image Diffusion Models without "
           "Specific Tuning", "Guo et al.", 2023, "2307.04725", INFLATE, (23,)),
    Lesson(25, "modelscope_t2v", "ModelScopeT2V: ModelScope Text-to-Video Technical Report", "Wang et al.",
           2023, "2308.06571", INFLATE, (23,)),
    Lesson(26, "show_1", "Show-1: Marrying Pixel and Latent Diffusion Models for Text-to-Video Generation",
           "Zhang et al.", 2023, "2309.15818", INFLATE, (25,)),
    Lesson(27, "lavie", "LaVie: High-Quality Video Generation with Cascaded Latent Diffusion Models",
           "Wang et al.", 2023, "2309.15103", INFLATE, (25,)),
    Lesson(28, "videocrafter1", "VideoCrafter1: Open Diffusion Models for High-Quality Video Generation",
           "Chen et al.", 2023, "2310.19512", INFLATE, (25,)),
    Lesson(29, "emu_video", "Emu Video: Factorizing Text-to-Video Generation by Explicit Image Conditioning",
           "Girdhar et al.", 2023, "2311.10709", INFLATE, (25,)),
    Lesson(30, "decouple_content_motion", "Content and motion: Decouple Content and Motion for "
           "Conditional Image-to-Video Generation", "Shen et al.", 2023, "2311.14294", EDIT, (29,)),
    Lesson(31, "stable_video_diffusion", "Stable Video Diffusion: Scaling Latent Video Diffusion Models to "
           "Large Datasets", "Blattmann et al.", 2023, "2311.15127", INFLATE, (6, 24, 25)),
    Lesson(32, "videobooth", "VideoBooth: Diffusion-based Video Generation with Image Prompts",
           "Jiang et al.", 2023, "2312.00777", EDIT, (27,)),
    Lesson(33, "livephoto", "LivePhoto: Real Image Animation with Text-guided Motion Control", "Chen et al.",
           2023, "2312.02928", EDIT, (24, 29)),
    Lesson(34, "higen", "HiGen: Hierarchical Spatio-temporal Decoupling for Text-to-Video Generation",
           "Qing et al.", 2023, "2312.04483", EDIT, (29,)),
    Lesson(35, "animatezero", "AnimateZero: Video Diffusion Models are Zero-Shot Image Animators",
           "Yu et al.", 2023, "2312.03793", LONG, (24,)),
    Lesson(36, "walt", "W.A.L.T: Photorealistic Video Generation with Diffusion Models", "Gupta et al.", 2023,
           "2312.06662", TOKENS, (8, 29)),
    Lesson(37, "videolcm", "VideoLCM: Video Latent Consistency Model", "Wang et al.", 2023, "2312.09109",
           FAST, (9, 25)),
    Lesson(38, "gentron", "GenTron: Diffusion Transformers for Image and Video Generation", "Chen et al.",
           2023, "2312.04557", TOKENS, (10, 13)),
    Lesson(39, "latte", "Latte: Latent Diffusion Transformer for Video Generation", "Ma et al.", 2024,
           "2401.03048", TOKENS, (4, 8)),
    Lesson(40, "videocrafter2", "VideoCrafter2: Overcoming Data Limitations for High-Quality Video Diffusion "
           "Models", "Chen et al.", 2024, "2401.09047", INFLATE, (24, 28)),
    Lesson(41, "lumiere", "Lumiere: A Space-Time Diffusion Model for Video Generation", "Bar-Tal et al.",
           2024, "2401.12945", INFLATE, (17, 25)),
    Lesson(42, "animatelcm", "AnimateLCM: Accelerating the Animation of Personalized Diffusion Models and "
           "Adapters with Decoupled Consistency Learning", "Wang et al.", 2024, "2402.00769", FAST, (24, 37)),
    Lesson(43, "video_lavit", "Video-LaVIT: Unified Video-Language Pre-training with Decoupled Visual-"
           "Motional Tokenization", "Jin et al.", 2024, "2402.03161", TOKENS, (14, 30, 31)),
    Lesson(44, "snap_video", "Snap Video: Scaled Spatiotemporal Transformers for Text-to-Video Synthesis",
           "Menapace et al.", 2024, "2402.14797", TOKENS, (8, 29, 31)),
    Lesson(45, "sora", "Sora: Video generation models as world simulators, and a review of it",
           "Brooks et al.; Liu et al.", 2024, "2402.17177", TOKENS, (36, 39)),
    Lesson(46, "ti2v_zero", "TI2V-Zero: Zero-Shot Image Conditioning for Text-to-Video Diffusion Models",
           "Ni et al.", 2024, "2404.16306", LONG, (25,)),
    Lesson(47, "vidu", "Vidu: a Highly Consistent, Dynamic and Skilled Text-to-Video Generator with "
           "Diffusion Models", "Bao et al.", 2024, "2405.04233", TOKENS, (45,)),
    Lesson(48, "fifo_diffusion", "FIFO-Diffusion: Generating Infinite Videos from Text without Training",
           "Kim et al.", 2024, "2405.11473", LONG, (13,)),
    Lesson(49, "metrics", "Metrics: FID, KID and FVD, and how far to trust them",
           "Heusel et al.; Binkowski et al.; Unterthiner et al.; Chong & Forsyth", 2017, "1706.08500",
           TOOLBOX, (1, 50), ("1801.01401", "1812.01717", "1911.07023")),
    Lesson(50, "moving_mnist", "Moving MNIST: Unsupervised Learning of Video Representations using LSTMs",
           "Srivastava et al.", 2015, "1502.04681", TOOLBOX, (0,)),
)


def find(what: str | int) -> Lesson:
    """The lesson of that number ("1", "01"), slug or notebook path; else a ValueError names what there is."""
    name = Path(str(what)).name.removesuffix(".ipynb")
    for lesson in LESSONS:
        if name in (lesson.slug, lesson.file.removesuffix(".ipynb")) or \
                re.fullmatch(r"\d+", name) and int(name) == lesson.number:
            return lesson
    raise ValueError(f"there is no lesson {what!r}; there are 0 to {LESSONS[-1].number}, by number or name: "
                     + ", ".join(lesson.slug for lesson in LESSONS))


def notebook(lesson: Lesson) -> Path:
    """Where the clone keeps the lesson's notebook, whether it is written yet or not."""
    return (repository_data() or Path("data")).parent / "lessons" / lesson.file


def ready(lesson: Lesson) -> bool:
    """Whether the lesson is finished; so it is known outside a clone, too."""
    return lesson.number in READY


def facts(lesson: Lesson) -> dict[str, Any]:
    """What a program may want to know of a lesson."""
    return asdict(lesson) | {"ready": ready(lesson), "notebook": str(notebook(lesson))}


def text_table() -> str:
    """The course for a terminal: a line for each lesson."""
    rows = [("", "lesson", "needs", "track", "paper")]
    rows += [(f"{lesson.number:02}", "ready" if ready(lesson) else "planned", numbers(lesson.needs),
              lesson.track, lesson.name + (f" ({lesson.year})" if lesson.year else ""))
             for lesson in LESSONS]
    return "\n".join("{:2}  {:7}  {:10}  {:26}  {}".format(*row) for row in rows)


def markdown_table(folder: str = "lessons/") -> str:
    """The course as a table; folder leads from the page it is on (the README) to the notebooks."""
    rows = ["| | paper | track | needs | lesson |", "|---|---|---|---|---|"]
    for lesson in LESSONS:
        links = [lesson.title] if lesson.arxiv is None else [arxiv_link(lesson.title, lesson.arxiv)]
        links += [arxiv_link(f"arXiv {number}", number) for number in lesson.also]
        status = f"[notebook]({folder}{lesson.file})" if ready(lesson) else "planned"
        rows.append(f"| {lesson.number:02} | {', '.join(links)} | {lesson.track} | {numbers(lesson.needs)} "
                    f"| {status} |")
    return "\n".join(rows)


def arxiv_link(text: str, number: str) -> str:
    return f"[{text}](https://arxiv.org/abs/{number})"


def numbers(lessons: tuple[int, ...]) -> str:
    return ", ".join(f"{number:02}" for number in lessons)
