"""A real JupyterLab and a real Chromium to open it in, without a screen."""
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

SWITCHES = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb")
LARGE, NARROW = (1400, 1000), (640, 1000)


def chromium(profile: Path) -> webdriver.Chrome:
    """A new Chromium with an empty profile, and a console that can be read."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for switch in (*SWITCHES, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    return webdriver.Chrome(options, service)


def wait(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """What the condition gives as soon as it gives something; a TimeoutError says what did not come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(StaleElementReferenceException):         # it was redrawn meanwhile
            if found := condition():
                return found
        time.sleep(0.1)
    raise TimeoutError(f"waited {seconds:g} seconds for {what}")


def settings(folder: Path) -> None:
    """What a learner has clicked away long ago: the question whether to be told the news."""
    path = folder / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"fetchNews": "false"}')


class Server:
    """JupyterLab on a folder, with settings and a cache of its own; `url` is its address."""

    def __init__(self, folder: Path, home: Path, **environment: str):
        own = {name: str(home / name.lower()) for name in (
            "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR", "XDG_CACHE_HOME")}
        self.folder, self.log = folder, home / "server.log"
        settings(Path(own["JUPYTERLAB_SETTINGS_DIR"]))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0",
                 "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True",
                 f"--ServerApp.root_dir={folder}"],
                env=os.environ | own | environment, stdout=log, stderr=log)
        try:
            self.url = wait(self.address, f"JupyterLab; {self.log} says why")
        except BaseException:
            self.close()
            raise

    def address(self) -> str | None:
        if self.process.poll() is not None:
            raise RuntimeError(f"JupyterLab ended:\n{self.log.read_text()}")
        found = re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/lab", self.log.read_text())
        return found and f"http://127.0.0.1:{found[1]}"

    def close(self) -> None:
        """End JupyterLab, and with it its kernels."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Notebook:
    """A notebook open in the browser: run it, scroll it, touch it, look at it."""

    def __init__(self, driver: webdriver.Chrome, url: str, name: str):
        self.driver = driver
        driver.get(f"{url}/lab/tree/{name}?reset")
        wait(self.ready, f"{name} to open with a kernel")

    def js(self, code: str, *args: Any) -> Any:
        """Run JavaScript in which `panel` is the notebook's tab and `cells` are the widgets of its cells."""
        return self.driver.execute_script(
            "const panel = window.jupyterapp?.shell.currentWidget, cells = panel?.content?.widgets;" + code,
            *args)

    def ready(self) -> bool:
        return self.js("return !!cells && panel.sessionContext.isReady && "
                       "panel.sessionContext.session?.kernel?.status === 'idle'")

    def command(self, name: str, **arguments: Any) -> None:
        """A command of JupyterLab, as its menus give it."""
        self.js("window.jupyterapp.commands.execute(arguments[0], arguments[1])", name, arguments)

    def sources(self) -> list[str]:
        return self.js("return cells.map(cell => cell.model.sharedModel.getSource())")

    def find(self, text: str) -> int:
        """The number of the first code cell with that text."""
        kinds = self.js("return cells.map(cell => cell.model.type)")
        return next(n for n, source in enumerate(self.sources()) if text in source and kinds[n] == "code")

    def run_all(self, seconds: float = 300) -> None:
        """Run, Run All Cells; return when the last cell is done."""
        self.command("notebook:run-all-cells")
        wait(self.done, "the notebook to run to its end", seconds)

    def done(self) -> bool:
        """Whether every code cell has run; an AssertionError tells of one that failed."""
        errors = self.js("return cells.flatMap(cell => cell.model.outputs?.toJSON() ?? [])"
                         ".filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)")
        assert not errors, errors
        return self.js("return cells.every(c => c.model.type !== 'code' || c.model.executionCount !== null)"
                       " && panel.sessionContext.session.kernel.status === 'idle'")

    def outputs(self, number: int) -> list[dict[str, Any]]:
        return self.js("return cells[arguments[0]].model.outputs?.toJSON() ?? []", number)

    def cell(self, number: int):
        """The element of a cell, scrolled into view."""
        self.js("panel.content.activeCellIndex = arguments[0];"
                "return panel.content.scrollToItem(arguments[0], 'start')", number)
        wait(lambda: self.js("return cells[arguments[0]].inViewport", number), f"cell {number} to be seen")
        time.sleep(0.3)
        return self.js("return cells[arguments[0]].node", number)

    def inside(self, number: int, selector: str) -> list:
        """The elements of a cell that match, as soon as there are any."""
        return wait(lambda: self.cell(number).find_elements(By.CSS_SELECTOR, selector),
                    f"{selector} in cell {number}")

    def answer(self, number: int, source: str) -> None:
        """Put a source into a cell and press Shift+Enter there."""
        editor = self.cell(number).find_element(By.CSS_SELECTOR, ".cm-content")
        self.js("cells[arguments[0]].model.sharedModel.setSource(arguments[1])", number, source)
        editor.click()
        before = self.js("return cells[arguments[0]].model.executionCount", number)
        ActionChains(self.driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
        wait(lambda: self.js("return cells[arguments[0]].model.executionCount", number) not in (None, before)
             and self.ready(), f"cell {number} to run")

    def close(self) -> None:
        """Shut the notebook and its kernel down, unsaved."""
        self.js("panel.sessionContext.shutdown()")
        wait(lambda: self.js("return !panel?.sessionContext.session"), "the kernel to end")

    def theme(self, name: str) -> None:
        self.command("apputils:change-theme", theme=f"JupyterLab {name}")
        wait(lambda: self.js("return document.body.dataset.jpThemeName") == f"JupyterLab {name}", name)

    def size(self, width: int, height: int) -> None:
        self.driver.set_window_size(width, height)
        time.sleep(0.5)

    def shoot(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(path))
        return path
