"""An image is tried in the zoo browser: pixels as Pillow's, logits as PyTorch's, and a sentence for what is neither."""

import base64
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from browser_page import LABELS, drop, failing, in_a_browser, noise, png, press, shown_best
from conftest import small_of
from PIL import Image
from timm.data import create_transform

from tinyvit_zoo.common.preprocessing import model_data_config
from tinyvit_zoo.export import export_model

pytestmark = in_a_browser

OTHER_ONNX = b'\x3a\x0a\x5a\x03\x0a\x01x\x62\x03\x0a\x01y'
"""A graph with an input and an output, and no metadata."""
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
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


def site_model(page) -> torch.nn.Module:
    return timm.create_model(f'local-dir:{page.folder / "demo" / "model"}', pretrained=True).eval()


def text(content: bytes) -> str:
    """For a script of the page, which takes no bytes."""
    return base64.b64encode(content).decode()


def torch_best(page, image: Image.Image) -> list[tuple[str, float]]:
    model = site_model(page)
    batch = create_transform(**model_data_config(model), is_training=False)(image)[None]
    with torch.inference_mode():
        values, indices = model(batch)[0].softmax(dim=0).topk(5)
    return [(LABELS[i], 100 * value) for i, value in zip(indices.tolist(), values.tolist(), strict=True)]


def test_an_image_is_classified_as_in_pytorch(page):
    page.open()
    page.click('.samples button')
    expected = torch_best(page, Image.open(page.folder / 'demo' / 'held_out' / '0.png'))
    assert shown_best(page) == [(label, pytest.approx(percent, abs=0.06)) for label, percent in expected]
    assert 'tinyvit_5m_224.mine, 12 classes, 32 × 32 pixels' in page.text('.model-line')
    image = noise(5, 57, 91)
    drop(page, ('noise.png', 'image/png', png(image)))
    assert shown_best(page) == [(label, pytest.approx(p, abs=0.06)) for label, p in torch_best(page, image)]
    image.save(page.folder / 'moving.gif', save_all=True, append_images=[noise(6, 57, 91)])
    drop(page, ('moving.gif', 'image/gif', (page.folder / 'moving.gif').read_bytes()))
    first = torch_best(page, Image.open(page.folder / 'moving.gif').convert('RGB'))
    assert shown_best(page) == [(label, pytest.approx(p, abs=0.06)) for label, p in first]


def test_what_is_neither_image_nor_model_is_reported_in_a_sentence(page):
    page.open()
    for name, type, content, words in (
        ('notes.txt', 'text/plain', b'no model', 'notes.txt is neither an image nor an ONNX file.'),
        ('model.onnx', '', b'no model at all', 'This is not an ONNX file, or a damaged one.'),
        ('empty.onnx', '', b'', 'This is not an ONNX file, or a damaged one.'),
        ('photo.png', 'image/png', b'no image', 'The browser cannot decode this file'),
        ('half.png', 'image/png', png(noise(1, 40, 40))[:900], 'The browser cannot decode this file'),
        ('drawing.svg', 'image/svg+xml', SVG, 'The browser cannot decode this file'),
        ('other.onnx', '', OTHER_ONNX, 'This file does not say how images are prepared'),
    ):
        drop(page, (name, type, content))
        page.until("return !document.querySelector('#trial .notice').hidden")
        assert page.text('#trial .notice').startswith(words), name
        page.click('.samples button')
        assert len(shown_best(page)) == 5, name  # it goes on


def test_a_model_that_the_runtime_refuses_is_not_met_again(page):
    import onnx

    model = onnx.load(page.folder / 'site' / 'trial' / 'model.onnx')
    model.graph.node[0].op_type = 'NoSuchOperator'
    page.open()
    image = 'noise.png', 'image/png', png(noise(1, 40, 40))
    drop(page, ('bad.onnx', '', model.SerializeToString()), image)
    page.until("return !document.querySelector('#trial .notice').hidden")
    assert page.text('#trial .notice').startswith('onnxruntime-web cannot read this file')
    page.click('.samples button')
    assert len(shown_best(page)) == 5


def test_of_two_images_chosen_at_once_the_last_is_shown(page):
    page.open()
    page.run("for (const button of document.querySelectorAll('.samples button')) button.click()")
    expected = torch_best(page, Image.open(page.folder / 'demo' / 'held_out' / '1.png'))
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


def test_a_runtime_that_does_not_start_is_said_and_tried_anew(page):
    file = (page.folder / 'site' / 'trial' / 'model.onnx').read_bytes()
    for fault, words in (
        (dict(path='/js/trial/worker.js'), 'A part of this page cannot be fetched'),
        (dict(path='/runtime/ort-wasm-simd-threaded.wasm'), 'A part of onnxruntime-web cannot be fetched'),
        (dict(path='/runtime/ort-wasm-simd-threaded.mjs'), 'onnxruntime-web does not start here'),
        (dict(policy="script-src 'self'"), 'WebAssembly, which onnxruntime-web needs, is not allowed here'),
    ):
        with failing(page, **fault) as mend:
            page.open()
            drop(page, ('mine.onnx', '', file), ('noise.png', 'image/png', png(noise(1, 40, 40))))
            page.until("return !document.querySelector('#trial .notice').hidden")
            assert page.text('#trial .notice').startswith(words)
            mend()
            page.click('.samples button')
            assert len(shown_best(page)) == 5, words
            if 'worker' not in fault.get('path', ''):  # of the page itself nothing is read before there is a worker
                assert page.text('.model-line').startswith('Model: tinyvit_5m_224.mine, 12 classes')
                assert not page.run("return document.querySelector('.back').hidden")  # still one's own file


def test_a_folder_is_no_file(page):
    page.open(reduced_motion='reduce')
    page.run("document.querySelector('.drop').scrollIntoView({ block: 'center' })")
    x, y = page.run("const { x, y } = document.querySelector('.drop').getBoundingClientRect(); return [x + 9, y + 9]")
    for name in ('photos', 'photos.onnx'):
        folder = page.folder / name
        folder.mkdir()
        dragged = dict(items=[], files=[str(folder)], dragOperationsMask=1)
        for kind in ('dragEnter', 'dragOver', 'drop'):  # by the browser: a script cannot make a folder
            page.driver.execute_cdp_cmd('Input.dispatchDragEvent', dict(type=kind, x=x, y=y, data=dragged))
        page.until(
            "return document.querySelector('.busy').hidden && document.querySelector('#trial .notice').innerText"
            " === arguments[0]",
            f'{name} cannot be read: give files, not folders.',
        )  # fmt: skip
        assert page.text('.result') == ''


@pytest.fixture(scope='module')
def rectangular(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """A model of another shape, crop and interpolation, and its file."""
    model = small_of('tinyvit', img_size=(48, 64))
    model.pretrained_cfg |= dict(crop_pct=0.9, interpolation='bilinear')
    path = tmp_path_factory.mktemp('rectangular') / 'model.onnx'
    export_model(model, path)
    return model, path


def test_pixels_are_those_of_pillow_and_logits_those_of_pytorch(page, rectangular):
    files = [(site_model(page), page.folder / 'site' / 'trial' / 'model.onnx'), rectangular]
    images = [noise(width, width, height) for width, height in ((150, 97), (41, 200), (1, 300))]
    given = [text(file.read_bytes()) for _, file in files], [text(png(image)) for image in images]
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


def test_a_single_logit_is_a_probability_of_its_own(page):
    found = page.driver.execute_async_script(
        "import('/js/trial/trial.js').then(({ best }) => arguments[0]([best([-1], ['cat']), best([0, 0], ['a', 'b'])]))"
    )
    assert [[(one['label'], one['probability']) for one in answer] for answer in found] == [
        [('cat', pytest.approx(1 / (1 + np.e)))], [('a', 0.5), ('b', 0.5)],
    ]  # fmt: skip


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
    image = 'noise.png', 'image/png', png(noise(1, 40, 40))
    drop(page, ('mine.onnx', '', model.SerializeToString()), image)
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
    drop(page, ('mine.onnx', '', rectangular[1].read_bytes()), ('noise.png', 'image/png', png(noise(1, 40, 40))))
    shown_best(page)
    assert '48 × 64 pixels' in page.text('.model-line')
    page.run("document.querySelector('.back').focus()")
    press(page, 'ENTER')
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
    models = [text(file.read_bytes()) for file in files]
    assert page.driver.execute_async_script(TWO, models, text(png(noise(0, 40, 40)))) == [48, 64]
