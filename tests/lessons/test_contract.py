"""What every lesson promises: its parts in order, outputs of a real run, pictures that everybody can see.

`faults` finds what a notebook lacks; the second half of this file breaks a good one, a rule at a time.
"""
import base64
import io
import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from PIL import Image

from diffusion_course import exercises
from diffusion_course.classroom import costs, curriculum
from diffusion_course.classroom.runner import EMBEDDED, WIDGET
from diffusion_course.data.download import REF, REPOSITORY

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "lessons").glob("*.ipynb"))
COLAB = f"https://colab.research.google.com/github/{REPOSITORY}/blob/{REF}/lessons/"
GITHUB = f"https://github.com/{REPOSITORY}/blob/{REF}/"
BEGINNING = "What is wrong so far"
END = ("Train", "Play", "Measure", "What we left out", "Exercises", "Recap")
ROWS = {"needs": "needs", "builds": "builds", "exercises": "exercises", "minutes": "minutes|computing time"}
EMOJI = re.compile("[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f\u20e3]")
LINK = re.compile(r"(!?)\[[^\]]*\]\(<?([^)\s>]+)>?[^)]*\)|(?:href|src)=[\"']([^\"']+)[\"']")


# ---- the rules, each (notebook, its path) -> what is wrong

def title_cell(nb, path):
    title, lesson = nb.cells[0], curriculum.find(path.name)
    if title.cell_type != "markdown" or not title.source.startswith("# "):
        yield "the first cell is not a title"
    for number in (lesson.arxiv, *lesson.also):
        if number and f"](https://arxiv.org/abs/{number})" not in title.source:
            yield f"the title cell has no link to the paper arXiv {number}"
    if not re.search(r"^[A-Z][^|#]*\w\.$", title.source, re.MULTILINE):
        yield "the title cell makes no promise: a sentence under the title"
    if f"]({COLAB}{path.name})" not in title.source:
        yield f"the title cell has no Colab badge that opens {COLAB}{path.name}"
    for name, label in ROWS.items():
        row = re.search(rf"^\| *\**({label})\b[^|]*\|([^|]*\w[^|]*)\|", title.source, re.I | re.M)
        if not row:
            yield f"the title cell's table has no row {name!r}"
        elif name == "needs" and needed(row[2]) != set(lesson.needs):
            yield f"the row of needs says {sorted(needed(row[2]))}, the curriculum {sorted(lesson.needs)}"
        elif name == "minutes" and costs.summary(lesson) not in row[2]:
            yield f"the row of minutes does not say what was measured: {costs.summary(lesson)}"


def needed(text: str) -> set[int]:
    """The lessons that a row of the table names."""
    text = re.sub(r"\]\([^)]*\)", "", text)                    # the words of a link, without its target
    return {int(number) for number in re.findall(r"(?<![\d.])\d\d(?![\d.])", text)}


def setup_cell(nb, path):
    source = "".join(cell.source for cell in code_cells(nb)[:1])
    if "start(" not in source:
        yield "the first code cell does not set up: it has no start("
    elif len(source.splitlines()) > 10:
        yield "the setup cell has more than ten lines"


def arc(nb, path):
    if curriculum.find(path.name).number == 0:
        return
    found = [re.sub(r"^[\d.]+ ", "", text) for level, text in headings(nb) if level == 2]
    place = 0
    for part in (BEGINNING, *END):
        here = next((n for n in range(place, len(found)) if re.match(rf"{part}\b", found[n])), None)
        if here is None:
            yield f"there is no heading '## {part}' in its place"
        elif part == END[0] and here == place and found[place - 1].startswith(BEGINNING):
            yield f"there is no idea between '## {BEGINNING}' and '## {part}'"
        place = place if here is None else here + 1


def execution(nb, path):
    counts = []
    for number, cell in enumerate(code_cells(nb), 1):
        if not cell.source.strip():
            yield f"code cell {number} is empty"
        counts.append(cell.execution_count)
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"code cell {number} ended in an error: {output.ename}"
            elif output.get("name") == "stderr" and "Traceback" in output.text:
                yield f"code cell {number} printed a traceback"
            elif WIDGET in output.get("data", {}):
                yield f"code cell {number} keeps a widget, which only a live kernel can show"
    if counts != list(range(1, len(counts) + 1)):
        yield f"the cells were not run from top to bottom: {counts}"


def metadata(nb, path):
    if "widgets" in nb.metadata:
        yield "metadata.widgets: GitHub cannot render the notebook"
    if nb.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"
    try:
        nbformat.validate(nb)
    except nbformat.ValidationError as error:
        yield f"not a valid notebook: {error.message}"
    if path.stat().st_size >= 3e6:
        yield f"the file has {path.stat().st_size / 1e6:.1f} MB; 3 are allowed"


def pictures(nb, path):
    stills = 0
    for number, output in outputs(nb):
        data, html = output.get("data", {}), output.get("data", {}).get("text/html", "")
        for tag in re.findall(r"<(?:img|video)\b[^>]*>", html):
            if not re.search(r"(alt|aria-label)=[\"'][^\"']*\w", tag):
                yield f"code cell {number} shows a picture without alt text"
        if "image/png" in data:
            stills += 1
            if not output.metadata.get("image/png", {}).get("alt", "").strip():
                yield f"code cell {number} has an image/png without alt in its metadata"
            if not opaque(base64.b64decode(data["image/png"])):
                yield f"code cell {number} has a picture that is not opaque"
        for kind, content in EMBEDDED.findall(html):
            if (size := len(base64.b64decode(content))) > 500_000:
                yield f"code cell {number} has a {kind} of {size / 1000:.0f} kB; 500 are allowed"
    if stills < 4:
        yield f"there are {stills} pictures (image/png); at least 4 are asked for"


def opaque(png: bytes) -> bool:
    return Image.open(io.BytesIO(png)).convert("RGBA").getextrema()[3] == (255, 255)


def twins(nb, path):
    """Where a slider cannot be moved, its section has a picture, or words that lead to one."""
    sections = [[]]
    for cell in nb.cells:
        if cell.cell_type == "markdown" and re.search("^## ", cell.source, re.MULTILINE):
            sections.append([])
        sections[-1].append(cell)
    for section in sections:
        source = "\n".join(["", *(cell.source for cell in section)])
        still = any("image/png" in output.get("data", {})
                    for cell in section for output in cell.get("outputs", ()))
        if "\nexplore(" in source and not still and "ithout a kernel" not in source:
            yield f"a slider has no picture beside it for those without a kernel: {section[0].source[:60]}"


def practice(nb, path):
    code = "\n".join(cell.source for cell in code_cells(nb))
    number = f"{curriculum.find(path.name).number:02}"
    if not re.search(r"\bsame\(", code):
        yield "nothing is compared with the package: there is no same("
    for exercise in exercises.of_lesson(number) if number in exercises.lessons() else ():
        if f'check("{exercise.key}"' not in code:
            yield f'exercise {exercise.key} is not asked: there is no check("{exercise.key}"'


def code_style(nb, path):
    for number, cell in enumerate(code_cells(nb), 1):
        lines = cell.source.splitlines()
        if (longest := max(map(len, lines), default=0)) > 100:
            yield f"code cell {number} has a line of {longest} columns; 100 are allowed"
        if (count := sum(map(bool, map(str.strip, lines)))) > 30:
            yield f"code cell {number} has {count} lines; 30 are allowed"


def prose_style(nb, path):
    for number, cell in enumerate(nb.cells):
        if unfinished := re.search(r"@[A-Z0-9_]+@|\bTODO\b|\bFIXME\b", cell.source):
            yield f"cell {number} is not finished: {unfinished[0]}"
        if EMOJI.search(cell.source):
            yield f"cell {number} has an emoji: {EMOJI.search(cell.source)[0]}"
        if cell.cell_type == "markdown" and "!" in prose(cell.source).replace("![", "["):
            yield f"cell {number} has an exclamation mark"


def prose(source: str) -> str:
    """Markdown without its code, its mathematics and its comments."""
    for pattern in (r"```.*?```", r"~~~.*?~~~", r"<!--.*?-->", r"\$\$.*?\$\$", r"`[^`\n]*`", r"\$[^$\n]+\$"):
        source = re.sub(pattern, " ", source, flags=re.DOTALL)
    return source


def links(nb, path):
    anchors = {anchor(text) for _, text in headings(nb)}
    texts = [cell.source for cell in nb.cells if cell.cell_type == "markdown"]
    texts += [output["data"]["text/markdown"] for _, output in outputs(nb)
              if "text/markdown" in output.get("data", {})]
    for _, inline, html in LINK.findall("\n".join(prose(text) for text in texts)):
        target = unquote(inline or html)
        for address, folder in ((COLAB, "lessons/"), (GITHUB, "")):
            if target.startswith(address):
                target = str(ROOT / folder / target.removeprefix(address))
        if target.startswith("#"):
            if anchor(target[1:]) not in anchors:
                yield f"the link {target} leads to no heading"
        elif not re.match(r"[a-z]+:", target) and not (path.parent / target.partition("#")[0]).exists():
            yield f"the link {target} leads nowhere"


def anchor(text: str) -> str:
    """A heading as Jupyter and GitHub put it into a link, case and punctuation apart."""
    return re.sub(r"[^\w-]", "", text.strip().replace(" ", "-")).lower()


def code_cells(nb) -> list:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def headings(nb) -> list[tuple[int, str]]:
    """(level, text) of every heading."""
    text = "\n".join(re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
                     for cell in nb.cells if cell.cell_type == "markdown")
    return [(len(marks), title.strip()) for marks, title in re.findall(r"^(#+) (.+)$", text, re.MULTILINE)]


def outputs(nb):
    """(number of the code cell, output) of every output."""
    for number, cell in enumerate(code_cells(nb), 1):
        for output in cell.outputs:
            yield number, output


RULES = (title_cell, setup_cell, arc, execution, metadata, pictures, twins, practice, code_style, prose_style,
         links)


def faults(path: Path) -> list[str]:
    """What keeps a notebook from being a lesson."""
    nb = nbformat.read(path, as_version=4)
    return [f"{rule.__name__}: {fault}" for rule in RULES for fault in rule(nb, path)]


# ---- the lessons

def test_there_are_lessons():
    assert NOTEBOOKS
    assert {path.name for path in NOTEBOOKS} <= {lesson.file for lesson in curriculum.LESSONS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_lesson_keeps_its_promises(path):
    found = faults(path)
    assert not found, "\n".join(found)


def test_setup_is_the_same_everywhere():
    setups = {path.stem: code_cells(nbformat.read(path, as_version=4))[0].source for path in NOTEBOOKS}
    assert len(set(setups.values())) <= 1, setups


PAGES = [ROOT / page for page in ("README.md", "SECURITY.md", "data/README.md", "lessons/INSTRUCTORS.md",
                                  "lessons/index.md")]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_page_leads_somewhere_and_says_what_it_shows(path):
    assert not page_faults(path.read_text(), path)


def page_faults(text: str, path: Path) -> list[str]:
    """Links that lead nowhere, and pictures without a description, of a page in Markdown."""
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    mute = re.findall(r"!\[\s*\]\([^)]*\)|<img(?![^>]*alt=[\"'][^\"']*\w)[^>]*>", prose(text))
    return [*links(page, path), *(f"no description: {picture}" for picture in mute)]


@pytest.mark.parametrize("text, fault", [
    ("[lost](none.md)", "the link none.md leads nowhere"), ("[lost](#none)", "the link #none leads to no"),
    ("![](data/checkpoints/ddpm.gif)", "no description"), ('<img src="none.gif" alt="a">', "leads nowhere"),
    ('<img src="data/checkpoints/ddpm.gif">', "no description"), ("![a digit](none.png)", "leads nowhere")])
def test_faults_of_a_page_are_found(text, fault):
    assert any(fault in found for found in page_faults(text, ROOT / "README.md"))


# ---- a notebook that keeps every rule, and what breaks each of them

TITLE = f"""# 01 · DDPM

Build [DDPM](https://arxiv.org/abs/2006.11239) and [its sequel](https://arxiv.org/abs/2102.09672) yourself.

[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({COLAB}01_ddpm.ipynb)

| | |
|---|---|
| **Needs** | nothing but [00](01_ddpm.ipynb) |
| **Builds** | a model of digits |
| **Exercises** | 3 |
| **Computing time** | {costs.summary(curriculum.find(1))} |
"""


def picture(colour=(255, 255, 255)) -> str:
    out = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", (4, 4), colour).save(out, "png")
    return base64.b64encode(out.getvalue()).decode()


def shown(**data):
    return nbformat.v4.new_output("display_data", data={name.replace("_", "/"): content
                                                        for name, content in data.items()},
                                  metadata={"image/png": {"alt": "a white square"}})


@pytest.fixture
def lesson(tmp_path):
    """A notebook without faults, and a function that says what is wrong with it now."""
    def code(source, *outputs):
        count = len(code_cells(nb)) + 1
        return nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=count)

    nb = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    text = nbformat.v4.new_markdown_cell
    nb.cells.append(text(TITLE))
    nb.cells.append(code("device = start()"))
    nb.cells += [text("## What is wrong so far\nNothing; `x != y`, $n!$ and [the end](#recap)."),
                 text("## 1. The idea\n```python\n# no heading!\n```")]
    nb.cells.append(code("same(mine, theirs)", *[shown(image_png=picture())] * 4))
    nb.cells.append(code("movie()", shown(text_html='<img alt="moving" src="data:image/gif;base64,R0lG">')))
    nb.cells.append(code("\n".join(f'check("{asked.key}", mine)' for asked in exercises.of_lesson("01"))))
    nb.cells += [text(f"## {part}\nAs promised.") for part in END]

    def wrong():
        path = tmp_path / "01_ddpm.ipynb"
        nbformat.write(nb, path)
        return faults(path)

    return nb, wrong


def replace(cell, old, new):
    def breaks(nb):
        assert old in nb.cells[cell].source
        nb.cells[cell].source = nb.cells[cell].source.replace(old, new)
    return breaks


def put(cell, **changes):
    return lambda nb: nb.cells[cell].update(changes)


def show(cell, *outputs):
    return lambda nb: nb.cells[cell].outputs.extend(outputs)


def test_a_good_notebook_has_no_faults(lesson):
    assert not lesson[1]()


@pytest.mark.parametrize("breaks, fault", [
    (replace(0, "# 01", "01"), "title_cell: the first cell is not a title"),
    (replace(0, "2102.09672", "2102.09673"), "title_cell: the title cell has no link to the paper"),
    (replace(0, "Build", "- build"), "title_cell: the title cell makes no promise"),
    (replace(0, "](https://colab.research.google.com/github/", "](https://colab.research.google.com/other/"),
     "title_cell: the title cell has no Colab badge"),
    (replace(0, "| **Builds**", "| **Makes**"), "title_cell: the title cell's table has no row 'builds'"),
    (replace(0, costs.summary(curriculum.find(1)), " "), "title_cell: the title cell's table has no row"),
    (replace(0, "laptop: ", "laptop: 1"), "title_cell: the row of minutes does not say what was measured"),
    (replace(0, "[00](", "[02]("), "title_cell: the row of needs says [2], the curriculum [0]"),
    (replace(1, "start()", "begin()"), "setup_cell: the first code cell does not set up"),
    (replace(1, "start()", "start()" + "\n0" * 10), "setup_cell: the setup cell has more than ten lines"),
    (replace(2, "so far", "today"), "arc: there is no heading '## What is wrong so far'"),
    (replace(3, "## 1. The idea", "### The idea"), "arc: there is no idea between"),
    (replace(-2, "## Ex", "# Ex"), "arc: there is no heading '## Exercises' in its place"),
    (lambda nb: nb.cells.insert(-6, nb.cells.pop(-5)), "arc: there is no heading '## Play' in its place"),
    (put(4, execution_count=None), "execution: the cells were not run from top to bottom: [1, None, "),
    (put(4, execution_count=7), "execution: the cells were not run from top to bottom"),
    (put(5, source=" "), "execution: code cell 3 is empty"),
    (show(5, nbformat.v4.new_output("error", ename="ValueError")),
     "execution: code cell 3 ended in an error: ValueError"),
    (show(5, nbformat.v4.new_output("stream", name="stderr", text="Traceback (most recent call last)")),
     "execution: code cell 3 printed a traceback"),
    (show(5, nbformat.v4.new_output("display_data", data={WIDGET: {}})),
     "execution: code cell 3 keeps a widget"),
    (lambda nb: nb.metadata.update(widgets={}), "metadata: metadata.widgets"),
    (lambda nb: nb.metadata.kernelspec.update(name="conda"), "metadata: the kernel is not python3"),
    (put(5, cell_type="poem"), "metadata: not a valid notebook"),
    (show(5, nbformat.v4.new_output("stream", text="x" * 3_000_000)), "metadata: the file has 3.0 MB"),
    (show(5, shown(text_html='<img src="x.gif" alt="">')), "pictures: code cell 3 shows a picture"),
    (show(5, shown(text_html='<video src="x.mp4">')), "pictures: code cell 3 shows a picture without alt"),
    (show(5, nbformat.v4.new_output("display_data", data={"image/png": picture()})),
     "pictures: code cell 3 has an image/png without alt"),
    (show(5, shown(image_png=picture((0, 0, 0, 128)))), "pictures: code cell 3 has a picture that is not"),
    (show(5, shown(text_html='<img alt="long" src="data:image/gif;base64,' + "A" * 700_000 + '">')),
     "pictures: code cell 3 has a image/gif of 525 kB"),
    (put(4, outputs=[shown(image_png=picture())] * 3), "pictures: there are 3 pictures"),
    (lambda nb: nb.cells.append(nbformat.v4.new_code_cell("explore(draw)")), "twins: a slider has no pic"),
    (replace(4, "same(", "alike("), "practice: nothing is compared with the package"),
    (replace(6, 'check("1.2"', 'check("1.22"'), "practice: exercise 1.2 is not asked"),
    (replace(5, "movie()", f"movie({'9' * 94})"), "code_style: code cell 3 has a line of 101 columns"),
    (replace(5, "movie()", "movie()" + "\n\n0" * 30), "code_style: code cell 3 has 31 lines"),
    (replace(-1, "promised.", "promised \U0001f680."), "prose_style: cell 12 has an emoji"),
    (replace(-1, "promised.", "promised!"), "prose_style: cell 12 has an exclamation mark"),
    (replace(-1, "promised.", "@RESULT@."), "prose_style: cell 12 is not finished: @RESULT@"),
    (replace(2, "(#recap)", "(#no-such)"), "links: the link #no-such leads to no heading"),
    (replace(2, "(#recap)", "(99_none.ipynb)"), "links: the link 99_none.ipynb leads nowhere"),
    (replace(2, "(#recap)", f"({COLAB}99_none.ipynb)"), "99_none.ipynb leads nowhere"),
    (replace(2, "(#recap)", f"({GITHUB}diffusion_course/none.py)"), "none.py leads nowhere"),
    (show(5, shown(text_markdown="[all](lessons/01_ddpm.ipynb)")), "links: the link lessons/01_ddpm.ipynb"),
])
def test_every_rule_is_seen_to_fail(lesson, breaks, fault):
    nb, wrong = lesson
    breaks(nb)
    assert any(fault in found for found in wrong()), wrong()
