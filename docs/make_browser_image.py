"""Make docs/images/browser.png again: the zoo browser in headless Chromium, `python docs/make_browser_image.py`.

Takes about half a minute. Needs the command `chromium`, `chromium-browser` or `google-chrome`.
"""

import functools
import http.server
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from command_images import run, write_small
from PIL import Image

TARGET = Path(__file__).resolve().parent / 'images' / 'browser.png'
NAMES = ('chromium', 'chromium-browser', 'google-chrome')
WIDTH, HEIGHT = 1200, 1000
MOST_BYTES = 150_000
VIEW = '?compare=tinyvit_5m_224.in1k,mini_swin_tiny_patch4_window7_224.distill_in1k'
FLAGS = ('--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--hide-scrollbars')


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and logs nothing."""

    def log_message(self, *args: object) -> None: ...


def photograph(chromium: str, site: Path, image: Path) -> None:
    """Write what Chromium shows of a page in a folder."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{server.server_port}/{VIEW}'
    size = (f'--window-size={WIDTH},{HEIGHT}', '--virtual-time-budget=10000', f'--screenshot={image}')
    subprocess.run([chromium, *FLAGS, *size, address], check=True, capture_output=True, timeout=300)
    server.shutdown()


def main() -> None:
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        sys.exit(f'This image needs a browser: none of {", ".join(NAMES)} is installed.')
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run('tinyvit-zoo browser build -o site', folder)
        photograph(chromium, folder / 'site', folder / 'shown.png')
        image = Image.open(folder / 'shown.png').convert('RGB')
    write_small(image, TARGET, width=WIDTH, colors=128, most_bytes=MOST_BYTES)


if __name__ == '__main__':
    main()
