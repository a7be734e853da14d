"""The lessons as a site, made by Sphinx (`make site`): the notebooks as they are stored, nothing is run."""
from pathlib import Path

from diffusion_course.classroom.curriculum import LESSONS, TRACKS
from diffusion_course.data.download import REF, REPOSITORY

GITHUB = f"https://github.com/{REPOSITORY}"
HERE = Path(__file__).parent

project = html_title = "diffusion_course"
extensions = ["myst_nb", "sphinx-mathjax-offline"]     # formulas need no network
nitpicky = True                                         # whatever leads nowhere is a warning

nb_execution_mode = "off"
nb_render_markdown_format = "myst"                      # of outputs: one is a table
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4                                # (#recap) leads to ## Recap

linkcheck_anchors_ignore_for_url = [GITHUB]             # they are made by a script there

html_theme = "sphinx_book_theme"
html_static_path = html_css_files = ["site.css"]
html_use_index = False                                  # of Python objects; there are none
html_context = {"default_mode": "auto"}                 # light or dark, as the reader's system is
html_theme_options = {
    "repository_url": GITHUB,
    "repository_branch": REF,
    "path_to_docs": "lessons",
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "use_repository_button": True,
    "use_source_button": True,
    "navbar_persistent": [],                            # would be a second search field
    "footer_content_items": [],
}


def contents() -> str:
    """A table of contents for each track that has notebooks here, and one for instructors."""
    parts = {track: [f"{lesson.number:02} · {lesson.name} <{lesson.file}>" for lesson in LESSONS
                     if lesson.track == track and (HERE / lesson.file).exists()] for track in TRACKS}
    parts["Teaching"] = ["For instructors <INSTRUCTORS.md>"]
    return "\n".join("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""])
                     for caption, pages in parts.items() if pages)


def prepare(app, page: str, source: list[str]) -> None:
    """The table of contents is put into the index; links to files outside of lessons/ lead to GitHub."""
    source[0] = source[0].replace("<!-- contents -->", contents())
    source[0] = source[0].replace("](../", f"]({GITHUB}/blob/{REF}/")


def setup(app) -> None:
    app.connect("source-read", prepare)
