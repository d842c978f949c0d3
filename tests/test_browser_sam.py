"""Objects are marked in the zoo browser by the two files of a Segment Anything model."""

from types import SimpleNamespace

import numpy as np
import pytest
from browser_page import in_a_browser, noise, press
from PIL import Image

pytestmark = in_a_browser

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
    press(page, 'ARROW_RIGHT', 'ENTER')
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
