"""The zoo browser in Chromium, and what its tests do with it.

Needs chromium and chromium-driver (Debian's packages), and onnxruntime-web, which npm fetches into `build/`.
"""

import base64
import functools
import http.server
import importlib.util
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from npm_package import npm_package
from PIL import Image

from tinyvit_zoo.browser import build_site
from tinyvit_zoo.browser.runtime import PACKAGE
from tinyvit_zoo.hub import save_folder

CHROMIUM, DRIVER = shutil.which('chromium') or shutil.which('google-chrome'), shutil.which('chromedriver')
MISSING = [
    *(name for name in ('selenium', 'onnxscript') if importlib.util.find_spec(name) is None),
    *([] if CHROMIUM and DRIVER else ['chromium or chromium-driver']),
]
in_a_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f'{" and ".join(MISSING)} is not installed'),
]
"""The `pytestmark` of tests that take the fixture `page`."""
QUIET = (
    '--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-default-apps',
    '--disable-domain-reliability', '--disable-client-side-phishing-detection',
    '--disable-features=OptimizationHints,MediaRouter,Translate,NetworkTimeServiceQuerying',
    '--js-flags=--liftoff-only',  # to optimize WebAssembly costs more than these small models take
)  # fmt: skip
# What Chromium asks whatever page it shows.
BROWSERS_OWN = ('google.com', 'googleapis.com', 'gstatic.com', 'gvt1.com', 'gvt2.com')
LABELS = [f'kind {i}' for i in range(12)]
DROP = """
const [files] = arguments;
const dataTransfer = new DataTransfer();
for (const [name, type, text] of files) {
  dataTransfer.items.add(new File([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], name, { type }));
}
for (const kind of ['dragenter', 'dragover', 'drop']) {
  document.querySelector('.drop').dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
}
"""


class Loopback(http.server.SimpleHTTPRequestHandler):
    """Serves the page with the types that browsers ask for.

    Attributes:
        instead: Path to what is served there instead; None for nothing.
        policy: Content security policy that the site adds.
    """

    instead: ClassVar[dict[str, bytes | None]] = {}
    policy: ClassVar[str] = ''
    extensions_map: ClassVar = {'': 'application/octet-stream', '.html': 'text/html', '.js': 'text/javascript',
                      '.mjs': 'text/javascript', '.css': 'text/css', '.json': 'application/json',
                      '.svg': 'image/svg+xml', '.png': 'image/png', '.wasm': 'application/wasm'}  # fmt: skip

    def do_GET(self) -> None:
        if self.path not in self.instead:
            super().do_GET()
        elif (content := self.instead[self.path]) is None:
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

    def end_headers(self) -> None:
        if self.policy:
            self.send_header('Content-Security-Policy', self.policy)
        super().end_headers()

    def log_message(self, *args: object) -> None: ...


@contextmanager
def failing(page, path: str = '', content: bytes | None = None, policy: str = '') -> Iterator[Callable[[], None]]:
    """A site one part of which is missing or another, or that has a policy; what the console says of it is dropped.

    Gives a function that mends the site.
    """

    def serve(instead: dict[str, bytes | None], policy: str) -> None:
        Loopback.instead, Loopback.policy = instead, policy
        page.driver.execute_cdp_cmd('Network.clearBrowserCache', {})

    page.driver.get('about:blank')
    serve({path: content} if path else {}, policy)
    try:
        yield lambda: serve({}, '')
    finally:
        serve({}, '')
        page.driver.get('about:blank')  # from here on nothing is said
        page.log()


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """A proxy that gets every request which is not for loopback, notes it, and refuses it."""

    hosts: ClassVar[list[str]] = []

    def refuse(self) -> None:
        self.hosts.append(re.sub(r'^\w+://', '', self.path).partition('/')[0].partition(':')[0])
        with suppress(ConnectionError):  # it may have given up by itself
            self.send_error(403)

    do_GET = do_POST = do_HEAD = do_CONNECT = refuse  # noqa: N815

    def log_message(self, *args: object) -> None: ...


def served(handler) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@contextmanager
def opened(folder: Path, model) -> Iterator[SimpleNamespace]:
    """A browser, and the site that is made in a folder with a model of 12 classes and two images; see `session`."""
    from selenium import webdriver

    name, _, version = PACKAGE.partition('@')
    runtime = npm_package(name, version)
    if runtime is None:
        pytest.skip(f'npm cannot fetch {PACKAGE}')
    demo = folder / 'demo'
    save_folder(model, demo / 'model', label_names=LABELS, tag='mine', data_config=dict(crop_pct=1.0))
    (demo / 'held_out').mkdir()
    for seed in range(2):
        noise(seed, 32, 32).save(demo / 'held_out' / f'{seed}.png')
    build_site(folder / 'site', runtime, demo_model=demo)
    site, proxy = served(functools.partial(Loopback, directory=folder / 'site')), served(Elsewhere)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        'about:blank',
        *QUIET,
        f'--proxy-server=http://127.0.0.1:{proxy.server_port}',
        f'--user-data-dir={folder / "profile"}',
    ):
        options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    options.add_experimental_option('prefs', {'download.default_directory': str(folder / 'saved')})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.set_script_timeout(120)
        driver.get('about:blank')
        Elsewhere.hosts.clear()  # what the browser itself wanted when it started
        yield session(driver, f'http://127.0.0.1:{site.server_port}/', folder)
    finally:
        driver.quit()
        site.shutdown()
        proxy.shutdown()


def session(driver, address: str, folder: Path) -> SimpleNamespace:
    """The driver, and what tests do with it; `folder` holds the site and, in `demo`, what it was made from."""

    def run(code: str, *arguments: object):
        return driver.execute_script(code, *arguments)

    def until(code: str, *arguments: object, seconds: float = 120):
        end = time.monotonic() + seconds
        while not (found := run(code, *arguments)):
            assert time.monotonic() < end, f'{code} did not become true'
            time.sleep(0.05)
        return found

    def open_at(query: str = '', width: int = 1280, height: int = 900, **media: str) -> None:
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
        features = [dict(name=f'prefers-{name.replace("_", "-")}', value=value) for name, value in media.items()]
        driver.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=features))
        driver.get(address + query)
        until('return document.documentElement.dataset.ready')

    def log() -> list[str]:
        """Errors of the console since the last call."""
        return [entry['message'] for entry in driver.get_log('browser') if entry['level'] == 'SEVERE']

    def names() -> list[str]:
        """Models in the order of the table."""
        return run("return [...document.querySelectorAll('#rows tbody tr')].map((row) => row.dataset.name)")

    return SimpleNamespace(
        driver=driver, address=address, folder=folder, run=run, until=until, open=open_at, log=log, names=names,
        click=lambda selector: run('document.querySelector(arguments[0]).click()', selector),
        text=lambda selector: run('return document.querySelector(arguments[0]).innerText', selector),
    )  # fmt: skip


def asked_elsewhere() -> list[str]:
    """Hosts beyond loopback that the page has asked since the browser was started."""
    return [host for host in Elsewhere.hosts if not host.endswith(BROWSERS_OWN)]


def data(page) -> dict:
    return json.loads((page.folder / 'site' / 'zoo.json').read_text())


def shown_best(page) -> list[tuple[str, float]]:
    page.until("return document.querySelector('.best') && document.querySelector('.busy').hidden")
    lines = page.text('.best').split('\n')
    return [(label, float(percent.rstrip(' %'))) for label, percent in zip(lines[::2], lines[1::2], strict=True)]


def choose(page, selector: str, value: str) -> None:
    page.run(
        "const box = document.querySelector(arguments[0]); box.value = arguments[1];"
        "box.dispatchEvent(new Event(box.type === 'search' ? 'input' : 'change', { bubbles: true }))",
        selector, value,
    )  # fmt: skip


def press(page, *keys: str) -> None:
    """Keys by selenium's names, such as 'TAB'."""
    from selenium.webdriver import ActionChains, Keys

    for key in keys:
        ActionChains(page.driver).send_keys(getattr(Keys, key)).perform()


def drop(page, *files: tuple[str, str, bytes]) -> None:
    """Files, each of name, type and content, are dropped where the page asks for them."""
    page.run(DROP, [[name, type, base64.b64encode(content).decode()] for name, type, content in files])


def noise(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, 'PNG')
    return file.getvalue()
