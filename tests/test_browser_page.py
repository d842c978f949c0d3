"""The zoo browser in Chromium: what its page shows, that models run in it as in PyTorch, and that all can use it.

Needs chromium and chromium-driver (Debian's packages), and onnxruntime-web and axe-core, which npm fetches into
`build/`.
"""

import base64
import csv
import functools
import http.server
import io
import itertools
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import timm
import torch
from conftest import small_of
from npm_package import npm_package
from PIL import Image
from timm.data import create_transform

from tinyvit_zoo.browser import build_site
from tinyvit_zoo.browser.runtime import PACKAGE
from tinyvit_zoo.common.preprocessing import model_data_config
from tinyvit_zoo.export import export_model
from tinyvit_zoo.hub import save_folder

webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')
pytest.importorskip('onnxscript', reason='onnxscript is not installed')

CHROMIUM, DRIVER = shutil.which('chromium') or shutil.which('google-chrome'), shutil.which('chromedriver')
AXE = ('axe-core', '4.14.1')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason='chromium or chromium-driver is not installed'),
]
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
OTHER_ONNX = b'\x3a\x0a\x5a\x03\x0a\x01x\x62\x03\x0a\x01y'
"""A graph with an input and an output, and no metadata."""
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
RUN = """
const [models, images, done] = arguments;
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
(async () => {
  const { Trial } = await import('/js/trial/trial.js');
  const trial = new Trial(() => {});
  const found = [];
  for (const model of models) {
    trial.useModel(bytes(model).buffer, 'model.onnx');
    for (const image of images) {
      await trial.useImage(new Blob([bytes(image)]));
      const { seen, values } = await trial.run();
      found.push({ seen: [...seen.data], size: [seen.height, seen.width], values });
    }
  }
  trial.stop();
  done(found);
})().catch((error) => done({ error: error.message }));
"""


class Loopback(http.server.SimpleHTTPRequestHandler):
    """Serves the page with the types that browsers ask for."""

    extensions_map: ClassVar = {'': 'application/octet-stream', '.html': 'text/html', '.js': 'text/javascript',
                      '.mjs': 'text/javascript', '.css': 'text/css', '.json': 'application/json',
                      '.svg': 'image/svg+xml', '.png': 'image/png', '.wasm': 'application/wasm'}  # fmt: skip

    def log_message(self, *args: object) -> None: ...


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """A proxy that gets every request which is not for loopback, notes it, and refuses it."""

    hosts: ClassVar[list[str]] = []

    def refuse(self) -> None:
        self.hosts.append(re.sub(r'^\w+://', '', self.path).partition('/')[0].partition(':')[0])
        self.send_error(403)

    do_GET = do_POST = do_HEAD = do_CONNECT = refuse  # noqa: N815

    def log_message(self, *args: object) -> None: ...


def served(handler) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope='module')
def demo(tmp_path_factory) -> Path:
    """A folder like that of `demo`: a small model with weights by rule, and images."""
    folder = tmp_path_factory.mktemp('demo')
    model = small_of('tinyvit', img_size=32, num_classes=12)
    save_folder(model, folder / 'model', label_names=LABELS, tag='mine', data_config=dict(crop_pct=1.0))
    (folder / 'held_out').mkdir()
    for seed in range(2):
        noise(seed, 32, 32).save(folder / 'held_out' / f'{seed}.png')
    return folder


@pytest.fixture(scope='module')
def page(demo, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """One browser and one site for all tests, and what a test does with them."""
    name, _, version = PACKAGE.partition('@')
    runtime = npm_package(name, version)
    if runtime is None:
        pytest.skip(f'npm cannot fetch {PACKAGE}')
    folder = tmp_path_factory.mktemp('browser')
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
    logged: list[str] = []

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
        """Errors of the console so far."""
        logged.extend(entry['message'] for entry in driver.get_log('browser') if entry['level'] == 'SEVERE')
        return logged

    def names() -> list[str]:
        """Models in the order of the table."""
        return run("return [...document.querySelectorAll('#rows tbody tr')].map((row) => row.dataset.name)")

    return SimpleNamespace(
        driver=driver, address=address, folder=folder, run=run, until=until, open=open_at, log=log, names=names,
        click=lambda selector: run('document.querySelector(arguments[0]).click()', selector),
        text=lambda selector: run('return document.querySelector(arguments[0]).innerText', selector),
    )  # fmt: skip


def choose(page, selector: str, value: str) -> None:
    page.run(
        "const box = document.querySelector(arguments[0]); box.value = arguments[1];"
        "box.dispatchEvent(new Event(box.type === 'search' ? 'input' : 'change', { bubbles: true }))",
        selector, value,
    )  # fmt: skip


def press(page, *keys: str) -> None:
    for key in keys:
        webdriver.ActionChains(page.driver).send_keys(key).perform()


def noise(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, 'PNG')
    return base64.b64encode(file.getvalue()).decode()


# --- models


def test_filters_leave_what_they_say_and_the_address_keeps_them(page):
    page.open()
    everything = page.names()
    assert len(everything) == 70
    choose(page, '#filter-q', 'tinyvit 21m')
    page.click('#timm')
    assert len(page.names()) == 5
    assert page.text('.count').startswith('5 of 40')
    choose(page, '#filter-side', '384')
    assert page.names() == ['tinyvit_21m_384.dist_in22k_ft_in1k']
    choose(page, '#filter-q', 'nothing like it')
    assert page.names() == []
    assert 'No model' in page.text('#plot')
    page.click('.below button')
    page.click('#filters input[value=mini_swin]')
    choose(page, '#filter-upto', '25')
    assert page.names() == ['mini_swin_tiny_patch4_window7_224.distill_in1k']
    shown, address = page.names(), page.driver.current_url
    assert address.endswith('?timm=0&family=mini_swin&upto=25')
    page.open(address.rpartition('/')[2])
    assert page.names() == shown
    for select, value in {'task': 'features', 'license': 'none', 'method': 'CLIP'}.items():
        page.open(f'?timm=0&{select}={value}')
        assert 0 < len(page.names()) < 40


def test_a_heading_sorts_and_sorts_the_other_way(page):
    page.open('?timm=0')
    heading = '#rows thead th:nth-child(3) button'
    page.click(heading)
    params = {model['name']: model['params']['value'] for model in data(page)['models']}
    values = [params[name] for name in page.names()]
    assert values == sorted(values)
    page.click(heading)
    assert page.names()[0].startswith('clip_vit')
    assert page.run("return document.querySelector('[aria-sort]').ariaSort") == 'descending'
    page.open(page.driver.current_url.rpartition('/')[2])
    assert page.names()[0].startswith('clip_vit')
    choose(page, '#speed', page.run("return document.querySelectorAll('#speed option')[1].value"))
    page.click('#rows thead th:nth-child(8) button')
    cells = page.run("return [...document.querySelectorAll('#rows tbody tr td:nth-child(8)')].map(x => x.innerText)")
    measured = [float(cell) for cell in cells if re.search(r'\d', cell)]
    assert measured == sorted(measured)  # the fastest first
    assert len(measured) > 30
    assert not any(re.search(r'\d', cell) for cell in cells[len(measured) :])


def data(page) -> dict:
    return json.loads((page.folder / 'site' / 'zoo.json').read_text())


def test_the_plot_has_a_point_for_every_model_with_both_values_and_the_front_of_the_best(page):
    models = data(page)['models']
    page.open('?x=gmacs')
    known = [model for model in models if model['top1']]
    assert page.run("return document.querySelectorAll('.point').length") == len(known)
    best = {m['label'] or m['architecture'] for m in known if not any(
        o['gmacs']['value'] <= m['gmacs']['value'] and o['top1']['top1'] > m['top1']['top1'] for o in known
    )}  # fmt: skip
    labels = page.run("return [...document.querySelectorAll('.labels text')].map((label) => label.textContent)")
    assert len(labels) >= 3
    assert set(labels) <= best
    apart = page.run("""
        const front = document.querySelector('.front');
        const along = [...Array(400)].map((_, i) => front.getPointAtLength((i / 399) * front.getTotalLength()));
        const boxes = [...document.querySelectorAll('.labels text')].map((label) => label.getBBox());
        return boxes.every((box) => !along.some(
          ({ x, y }) => x > box.x && x < box.x + box.width && y > box.y + 2 && y < box.y + box.height - 2
        ));
    """)
    assert apart  # no label is struck through by the front
    page.open('?compare=' + ','.join(f'tinyvit_21m_{side}.dist_in22k_ft_in1k' for side in (512, 384, 224)))
    distances = page.run("""
        const between = (low, value, high) => Math.max(low - value, 0, value - high);
        const rings = [...document.querySelectorAll('.chosen .target')].map((ring) => ring.getBBox());
        const boxes = [...document.querySelectorAll('.labels text')].map((label) => label.getBBox());
        return boxes.flatMap((box) => rings.map((ring) => Math.hypot(
          between(box.x, ring.x + ring.width / 2, box.x + box.width),
          between(box.y, ring.y + ring.height / 2, box.y + box.height),
        ) - ring.width / 2));
    """)
    assert len(distances) >= 9
    assert min(distances) > -1.5  # nor drawn over the ring of what is chosen; a box is higher than its letters
    page.open('?x=ms&scale=linear')
    measured = [model for model in known if model['measured']]
    assert page.run("return document.querySelectorAll('.point').length") == len(measured)
    assert 'Milliseconds' in page.run("return document.querySelector('.grid .title').textContent")


def test_all_of_it_goes_by_keyboard(page):
    keys = webdriver.Keys
    page.open()
    press(page, keys.TAB)
    assert page.run('return document.activeElement.className') == 'skip'
    page.run('document.querySelector(\'.point[tabindex="0"]\').focus()')
    first = page.run('return document.activeElement.dataset.name')
    press(page, keys.ARROW_RIGHT, keys.ARROW_RIGHT, keys.ARROW_LEFT)
    second = page.run('return document.activeElement.dataset.name')
    assert second != first
    assert second in page.text('.tip')
    press(page, keys.ENTER)
    assert page.text('#details-title') == second
    assert page.run('return document.activeElement.id') == 'details'
    page.run("document.querySelector('#details .buttons button:last-child').focus()")
    press(page, keys.ENTER)  # Close
    assert page.run('return document.activeElement.dataset.name') == second
    page.open('?model=tinyvit_5m_224.in1k')
    page.run("document.querySelector('[role=tab]').focus()")
    press(page, keys.ARROW_RIGHT)
    assert page.run('return document.activeElement.ariaSelected') == 'true'
    assert 'transformers' in page.text('#program')
    page.run("document.querySelector('#rows tbody input').focus()")
    press(page, keys.SPACE)
    assert 'compare=' in page.driver.current_url


def test_up_to_four_models_are_compared(page):
    page.open('?timm=0')
    for i in range(1, 6):
        page.click(f'#rows tbody tr:nth-child({i}) input')
    chosen = page.names()[:4]
    assert page.run("return [...document.querySelectorAll('.compared .name')].map((name) => name.innerText)") == chosen
    assert not page.run("return document.querySelector('#rows tbody tr:nth-child(5) input').checked")
    assert page.text('#full').startswith('Four models are compared already')
    assert page.driver.current_url.endswith(f'&compare={",".join(chosen)}')
    widths = "return [...document.querySelectorAll('.compared thead th')].map((cell) => Math.round(cell.clientWidth))"
    assert len(set(page.run(widths))) == 1
    page.click('.compared .remove')
    assert page.run("return document.querySelectorAll('.compared thead th').length") == 3
    assert page.run("return document.querySelector('#full').hidden")


def test_an_address_that_says_nonsense_shows_what_is_usual(page):
    page.open()
    usual = page.names()
    page.open(
        '?x=__proto__&scale=a&sort=constructor&speed=b&task=c&license=d&method=e&side=f&upto=g&family=h&model=i'
        '&compare=j,k,l,m,tinyvit_5m_224.in1k,tinyvit_5m_224.in1k'
    )
    assert page.names() == usual
    assert page.run("return [...document.querySelectorAll('select')].every((select) => select.selectedIndex >= 0)")
    assert page.run("return document.querySelectorAll('.compared .name').length") == 1
    page.open('?q=.*%5B(')  # words, not a pattern
    assert page.names() == []
    page.open('/index.html')  # two slashes: another host where it is taken for an address
    page.click('#timm')
    assert page.driver.current_url.endswith('//index.html?timm=0')


def test_back_closes_a_model_that_was_opened(page):
    page.open('?q=tiny')
    shown = page.names()
    page.click('#rows tbody tr .name')
    assert not page.run("return document.querySelector('#details').hidden")
    page.driver.back()
    page.until("return document.querySelector('#details').hidden")
    assert page.names() == shown
    assert page.driver.current_url.endswith('?q=tiny')


def test_a_narrow_logarithmic_axis_has_ticks_too(page):
    code = """
    const [low, high, done] = arguments;
    import('/js/scales.js').then(({ logarithmic }) => done(logarithmic([low, high], [0, 100]).ticks));
    """
    ticks = [page.driver.execute_async_script(code, *ends) for ends in ((5, 400), (36, 118), (21.2, 21.2))]
    assert ticks == [[5, 10, 20, 50, 100, 200, 500], [30, 40, 50, 70, 100], [18, 20, 22, 24, 26]]


def test_a_program_is_copied_as_the_card_has_it(page):
    page.driver.execute_cdp_cmd('Browser.grantPermissions', dict(permissions=['clipboardReadWrite']))
    page.open('?model=mini_deit_tiny_patch16_224.distill_in1k')
    model = next(m for m in data(page)['models'] if m['name'].startswith('mini_deit_tiny'))
    for i, snippet in enumerate(model['snippets'], 1):
        page.click(f'[role=tab]:nth-child({i})')
        page.click('.copy')
        page.until("return document.querySelector('.copy').textContent === 'Copied'")
        copied = page.driver.execute_async_script('navigator.clipboard.readText().then(arguments[0])')
        assert copied == snippet['code']
    card = (Path(__file__).parent.parent / 'hub_configs' / model['name'] / 'README.md').read_text()
    assert model['snippets'][0]['code'] in card


def test_the_table_is_saved_as_it_stands(page):
    page.open('?family=tinyvit&timm=0&sort=params&up=1')
    page.click('#csv')
    file = page.folder / 'saved' / 'tinyvit_zoo.csv'
    end = time.monotonic() + 120
    while not file.is_file() and time.monotonic() < end:
        time.sleep(0.05)
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [row['model'] for row in rows] == page.names()
    models = {model['name']: model for model in data(page)['models']}
    for row in rows:
        top1 = models[row['model']]['top1']
        assert row['top1'] == (str(top1['top1']) if top1 else '')
        assert bool(row['ms']) == bool(row['speed_date']) == bool(row['speed_source'])


# --- an image


def torch_best(demo: Path, image: Image.Image) -> list[tuple[str, float]]:
    model = timm.create_model(f'local-dir:{demo / "model"}', pretrained=True).eval()
    batch = create_transform(**model_data_config(model), is_training=False)(image)[None]
    with torch.inference_mode():
        values, indices = model(batch)[0].softmax(dim=0).topk(5)
    return [(LABELS[i], 100 * value) for i, value in zip(indices.tolist(), values.tolist(), strict=True)]


def shown_best(page) -> list[tuple[str, float]]:
    page.until("return document.querySelector('.best') && document.querySelector('.busy').hidden")
    lines = page.text('.best').split('\n')
    return [(label, float(percent.rstrip(' %'))) for label, percent in zip(lines[::2], lines[1::2], strict=True)]


def test_an_image_is_classified_as_in_pytorch(page, demo):
    page.open()
    page.click('.samples button')
    expected = torch_best(demo, Image.open(demo / 'held_out' / '0.png'))
    assert shown_best(page) == [(label, pytest.approx(percent, abs=0.06)) for label, percent in expected]
    assert 'tinyvit_5m_224.mine, 12 classes, 32 × 32 pixels' in page.text('.model-line')
    image = noise(5, 57, 91)
    page.run(DROP, [['noise.png', 'image/png', png(image)]])
    assert shown_best(page) == [(label, pytest.approx(p, abs=0.06)) for label, p in torch_best(demo, image)]


def test_what_is_neither_image_nor_model_is_reported_in_a_sentence(page):
    page.open()
    for name, type, content, words in (
        ('notes.txt', 'text/plain', b'no model', 'notes.txt is neither an image nor an ONNX file.'),
        ('model.onnx', '', b'no model at all', 'This is not an ONNX file, or a damaged one.'),
        ('empty.onnx', '', b'', 'This is not an ONNX file, or a damaged one.'),
        ('photo.png', 'image/png', b'no image', 'The browser cannot decode this file'),
        ('other.onnx', '', OTHER_ONNX, 'This file does not say how images are prepared'),
    ):
        page.run(DROP, [[name, type, base64.b64encode(content).decode()]])
        page.until("return !document.querySelector('#trial .notice').hidden")
        assert page.text('#trial .notice').startswith(words), name
        page.click('.samples button')
        assert len(shown_best(page)) == 5, name  # it goes on


def test_a_model_that_the_runtime_refuses_is_not_met_again(page):
    import onnx

    model = onnx.load(page.folder / 'site' / 'trial' / 'model.onnx')
    model.graph.node[0].op_type = 'NoSuchOperator'
    page.open()
    image = ['noise.png', 'image/png', png(noise(1, 40, 40))]
    page.run(DROP, [['bad.onnx', '', base64.b64encode(model.SerializeToString()).decode()], image])
    page.until("return !document.querySelector('#trial .notice').hidden")
    assert page.text('#trial .notice').startswith('onnxruntime-web cannot read this file')
    page.click('.samples button')
    assert len(shown_best(page)) == 5


def test_of_two_images_chosen_at_once_the_last_is_shown(page, demo):
    page.open()
    page.run("for (const button of document.querySelectorAll('.samples button')) button.click()")
    expected = torch_best(demo, Image.open(demo / 'held_out' / '1.png'))
    assert shown_best(page) == [(label, pytest.approx(percent, abs=0.06)) for label, percent in expected]
    assert page.run("return document.querySelector('#trial .notice').hidden")


def test_a_run_is_stopped_and_the_next_one_works(page):
    page.open()
    page.run(
        "document.querySelector('.samples button').click();"
        "setTimeout(() => document.querySelector('.busy button').click(), 40)"
    )
    page.until("return document.querySelector('#trial .notice').innerText === 'Stopped.'")
    page.click('.samples button')
    assert len(shown_best(page)) == 5


@pytest.fixture(scope='module')
def rectangular(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """A model of another shape, crop and interpolation, and its file."""
    model = small_of('tinyvit', img_size=(48, 64))
    model.pretrained_cfg |= dict(crop_pct=0.9, interpolation='bilinear')
    path = tmp_path_factory.mktemp('rectangular') / 'model.onnx'
    export_model(model, path)
    return model, path


def test_pixels_are_those_of_pillow_and_logits_those_of_pytorch(page, rectangular, demo):
    square = timm.create_model(f'local-dir:{demo / "model"}', pretrained=True).eval()
    files = [(square, page.folder / 'site' / 'trial' / 'model.onnx'), rectangular]
    images = [noise(width, width, height) for width, height in ((150, 97), (41, 200), (1, 300))]
    given = [base64.b64encode(file.read_bytes()).decode() for _, file in files], [png(image) for image in images]
    found = page.driver.execute_async_script(RUN, *given)
    assert len(found) == 6, found
    for (model, image), one in zip(itertools.product([model for model, _ in files], images), found, strict=True):
        config = model_data_config(model)
        pixels = create_transform(**config, is_training=False, normalize=False)(image)
        assert np.array_equal(np.reshape(one['seen'], (*one['size'], 3)), pixels.permute(1, 2, 0)), image.size
        batch = create_transform(**config, is_training=False)(image)[None]
        with torch.inference_mode():
            logits = model(batch)[0]
        assert (torch.tensor(one['values']) - logits).abs().max() < 1e-4, image.size


SAYS = """
const [edits, done] = arguments;
const usual = {
  input_size: [3, 32, 32], mean: [0, 0, 0], std: [1, 1, 1], interpolation: 'bicubic',
  crop_pct: 0.9, crop_mode: 'center',
};
import('/js/trial/preprocess.js').then(({ readPreprocessing }) => done(edits.map((edit) => {
  try {
    readPreprocessing({ preprocessing: JSON.stringify(edit && { ...usual, ...edit }) });
    return '';
  } catch (error) {
    return error.message;
  }
})));
"""


def test_a_file_that_says_nonsense_of_itself_is_not_computed_with(page):
    damaged = (
        None, dict(crop_pct=0), dict(crop_pct=-1), dict(crop_pct='x'), dict(crop_pct=1e-6), dict(crop_pct=2),
        dict(input_size=[3]), dict(input_size=[3, 'a', None]), dict(input_size=[3, 2.5, 32]), dict(mean=[0.5]),
        dict(mean=['a', 1, 2]), dict(std=[0, 1, 1]), dict(std=None),
    )  # fmt: skip
    others = {
        'cannot resize by': dict(interpolation='constructor'),
        'cannot crop by': dict(crop_mode='border'),
        'takes 1 channel,': dict(input_size=[1, 32, 32], mean=[0], std=[1]),
        'too large for this page': dict(input_size=[3, 10**6, 10**6]),
    }
    said = page.driver.execute_async_script(SAYS, [{}, *damaged, *others.values()])
    assert said[0] == ''
    assert set(said[1 : 1 + len(damaged)]) == {'What this file says of itself is damaged: export it anew.'}
    assert [words in line for words, line in zip(others, said[1 + len(damaged) :], strict=True)] == [True] * len(others)


def test_text_of_a_file_or_of_the_data_is_never_html(page):
    import onnx

    words = '<img src="x" onerror="hacked = 1">'
    model = onnx.load(page.folder / 'site' / 'trial' / 'model.onnx')
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, metadata | dict(model=words, labels=json.dumps([words] * 12)))
    page.open()
    image = ['noise.png', 'image/png', png(noise(1, 40, 40))]
    page.run(DROP, [['mine.onnx', '', base64.b64encode(model.SerializeToString()).decode()], image])
    assert {label for label, _ in shown_best(page)} == {words}
    assert page.text('.model-line').startswith(f'Model: {words}, 12 classes')
    tags = page.driver.execute_async_script(
        "import('/js/dom.js').then(({ link }) => arguments[0]("
        "['javascript:hacked = 1', 'https://a.example'].map((address) => link(address, 'text').tagName)))"
    )
    assert tags == ['SPAN', 'A']
    assert page.run("return [document.querySelectorAll('img[src=x]').length, window.hacked ?? null]") == [0, None]


def test_from_a_model_of_ones_own_there_is_a_way_back_to_that_of_the_site(page, rectangular):
    page.open()
    assert page.run("return document.querySelector('.back').hidden")
    file = base64.b64encode(rectangular[1].read_bytes()).decode()
    page.run(DROP, [['mine.onnx', '', file], ['noise.png', 'image/png', png(noise(1, 40, 40))]])
    shown_best(page)
    assert '48 × 64 pixels' in page.text('.model-line')
    page.run("document.querySelector('.back').focus()")
    press(page, webdriver.Keys.ENTER)
    page.until("return document.querySelector('.model-line').innerText.includes('mine, 12 classes')")
    assert len(shown_best(page)) == 5  # of the image that was there
    assert page.run("return [document.querySelector('.back').hidden, document.activeElement.id]") == [True, 'file']


TWO = """
const [models, image, done] = arguments;
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
(async () => {
  const { Trial } = await import('/js/trial/trial.js');
  const trial = new Trial(() => {});
  await trial.useImage(new Blob([bytes(image)]));
  trial.useModel(bytes(models[0]).buffer, 'first');
  const first = trial.run();
  trial.useModel(bytes(models[1]).buffer, 'second');
  await first.catch(() => {});
  const { seen } = await trial.run();
  trial.stop();
  done([seen.height, seen.width]);
})().catch((error) => done(error.message));
"""


def test_a_model_that_is_given_while_another_is_made_ready_is_the_one_that_runs(page, rectangular):
    files = [page.folder / 'site' / 'trial' / 'model.onnx', rectangular[1]]
    models = [base64.b64encode(file.read_bytes()).decode() for file in files]
    assert page.driver.execute_async_script(TWO, models, png(noise(0, 40, 40))) == [48, 64]


PAIRS = """
const [given, done] = arguments;
import('/js/trial/sam.js').then(({ Sam }) => {
  const sam = new Sam({});
  const preprocessing = {
    input_size: [3, 64, 64], mean: [0, 0, 0], std: [1, 1, 1], interpolation: 'bilinear',
    crop_pct: 1, crop_mode: 'corner',
  };
  done(given.map((facts) => {
    const metadata = { segment_anything: JSON.stringify(facts), preprocessing: JSON.stringify(preprocessing) };
    try {
      sam.use(new ArrayBuffer(0), { metadata });
    } catch (error) {
      return error.message.split(':')[0];
    }
    return sam.isWhole;
  }));
});
"""


def test_the_pair_of_another_segment_anything_takes_the_place_of_the_first(page):
    part = {kind: dict(part=kind, img_size=[64, 64]) for kind in ('encoder', 'decoder')}
    first, second = ([facts | dict(weights=weights) for facts in part.values()] for weights in 'ab')
    given = [*first, *second, first[1], None, dict(part='__proto__'), first[0]]
    damaged = 'What this file says of itself is damaged'
    assert page.driver.execute_async_script(PAIRS, given) == [
        False, True, False, True, False, damaged, damaged, True,
    ]  # fmt: skip
    other = [first[0], second[1], second[0]]
    said = page.driver.execute_async_script(PAIRS, other)
    assert said == [False, 'The two files are of different models or sizes', True]


@pytest.fixture(scope='module')
def sam(tmp_path_factory) -> SimpleNamespace:
    """MobileSAM's architecture with weights by rule, for small images, and its two files."""
    pytest.importorskip('transformers')
    from sam_reference import mobile_sam

    from tinyvit_zoo.hub.sam import load_sam
    from tinyvit_zoo.segment_anything import Segmenter, export_sam

    folder = tmp_path_factory.mktemp('sam')
    model = load_sam(mobile_sam(), img_size=64)
    export_sam(model, folder / 'encoder.onnx', folder / 'decoder.onnx')
    return SimpleNamespace(folder=folder, segment=Segmenter.of_model(model))


def test_a_click_draws_the_mask_of_pytorch(page, sam):
    from tinyvit_zoo.segment_anything import Prompt

    image = noise(0, 90, 60)
    image.paste((230, 160, 40), (20, 10, 60, 45))
    image.save(sam.folder / 'image.png')
    page.open()
    given = page.driver.find_element('id', 'file')
    given.send_keys(str(sam.folder / 'encoder.onnx'))
    page.until("return document.querySelector('.model-line').innerText.includes('give its decoder')")
    given.send_keys('\n'.join(str(sam.folder / name) for name in ('decoder.onnx', 'image.png')))
    page.until("return document.querySelector('.marking')")
    rows, columns = np.mgrid[0:60, 0:90]
    marks = []
    for place, other in ((40, 25), False), ((5, 50), True):
        marks.append(tuple(page.run(CLICK, *place, other)))
        assert marks[-1] == pytest.approx(place, abs=1)
        page.until(SEGMENTED)
        area, drawn = mask_shown(page, image)
        segmented = sam.segment(image, Prompt((marks[0],), tuple(marks[1:])))
        assert 0.1 * drawn.size < segmented.area < 0.95 * drawn.size
        assert abs(area - segmented.area) <= 3
        marked = (np.hypot(columns - 40, rows - 25) < 5) | (np.hypot(columns - 5, rows - 50) < 5)
        assert ((drawn != segmented.mask) & ~marked).sum() <= 3
    page.run("document.querySelector('#not-this').checked = false; document.querySelector('.marking').focus()")
    before = page.text('.marked p[aria-live]')
    press(page, webdriver.Keys.ARROW_RIGHT, webdriver.Keys.ENTER)
    page.until("return document.querySelector('.marked p[aria-live]').innerText !== arguments[0]", before)
    assert page.run("return document.querySelector('#trial .notice').hidden")


CLICK = """
const [x, y, other] = arguments;
document.querySelector('#not-this').checked = other;
const canvas = document.querySelector('.marking');
const box = canvas.getBoundingClientRect();
// The browser cuts coordinates of clicks to whole pixels of the screen: what is left of them is returned.
const left = Math.trunc(box.left + x / canvas.width * box.width);
const top = Math.trunc(box.top + y / canvas.height * box.height);
canvas.dispatchEvent(new MouseEvent('click', { clientX: left, clientY: top }));
return [(left - box.left) / box.width * canvas.width, (top - box.top) / box.height * canvas.height];
"""
SEGMENTED = (
    "return document.querySelector('.busy').hidden"
    " && document.querySelector('.marked p[aria-live]').innerText.startsWith('Mask')"
)


def mask_shown(page, image: Image.Image) -> tuple[int, np.ndarray]:
    """Pixels of the mask in words, and where the image is drawn in the color of the mask."""
    words = page.text('.marked p[aria-live]')
    drawn = page.run(
        "const canvas = document.querySelector('.marking');"
        "return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
    )
    pixels = np.reshape(drawn, (image.height, image.width, 4))[..., :3]
    colored = (np.asarray(image, dtype=float) + np.array([30, 144, 255])) / 2
    return int(words.split()[2]), np.abs(pixels - colored).max(axis=2) <= 1


# --- for everybody


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_axe_finds_nothing_serious(page, scheme):
    axe = npm_package(*AXE)
    if axe is None:
        pytest.skip('npm cannot fetch axe-core')
    page.open(
        '?q=tiny&model=tinyvit_5m_224.dist_in22k_ft_in1k&compare=tinyvit_5m_224.in1k,tinyvit_11m_224.in1k',
        color_scheme=scheme,
    )
    page.click('.samples button')
    shown_best(page)
    page.run((axe / 'axe.min.js').read_text() + '; window.axe = axe')
    found = page.driver.execute_async_script('axe.run().then(arguments[0])')
    assert len(found['passes']) > 20
    serious = [
        (finding['id'], [node['html'][:200] for node in finding['nodes']])
        for finding in found['violations']
        if finding['impact'] in ('serious', 'critical')
    ]
    assert serious == []


def test_it_fits_320_pixels_and_moves_nothing_where_that_is_asked(page):
    page.open('?model=tinyvit_5m_224.in1k&compare=tinyvit_5m_224.in1k', width=320, height=640, reduced_motion='reduce')
    assert page.run('return document.documentElement.scrollWidth - document.documentElement.clientWidth') == 0
    assert page.run('return getComputedStyle(document.documentElement).scrollBehavior') == 'auto'
    last = "return document.querySelector('.explore').lastElementChild.className"
    assert page.run(last) == ''  # the filters follow the plot, in what is seen and for the tabulator key
    captions = (
        "return [...document.querySelectorAll('caption span')].map((words) => words.getBoundingClientRect().right)"
    )
    assert len(page.run(captions)) == 2
    assert max(page.run(captions)) < 320  # read without scrolling a table
    page.open(height=640)
    assert page.run(last) == 'stage'
    assert page.run('return getComputedStyle(document.documentElement).scrollBehavior') == 'smooth'


def test_nothing_is_asked_beyond_loopback_and_the_console_stays_empty(page):
    page.open('?x=ms&model=tinyvit_5m_224.in1k')
    page.click('.samples button')
    shown_best(page)
    assert page.log() == []
    assert [host for host in Elsewhere.hosts if not host.endswith(BROWSERS_OWN)] == []
    page.driver.execute_async_script("new Image().src = 'http://elsewhere.invalid/'; setTimeout(arguments[0], 200)")
    end = time.monotonic() + 60
    while not page.log() and time.monotonic() < end:
        time.sleep(0.05)
    assert page.log()[-1].count('Content Security Policy') == 1  # what would have been asked is not even tried
    assert [host for host in Elsewhere.hosts if not host.endswith(BROWSERS_OWN)] == []
