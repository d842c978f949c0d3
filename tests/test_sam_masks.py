"""From what marks an object to its mask: the decoder beside transformers', sizes, prompts, images, and the command."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import refused
from PIL import Image
from sam_reference import mobile_sam

pytest.importorskip('transformers')

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.sam_images import fitted_size, pixels_of
from tinyvit_zoo.hub.sam import load_sam, sam_masks, sam_processor, save_sam
from tinyvit_zoo.segment_anything import Prompt, PromptedDecoder, Segmenter
from tinyvit_zoo.segment_anything.decoder import _fitted, chosen_mask
from tinyvit_zoo.segment_anything.prompts import prompt_arrays

SIDE = 128
SIZE = 73, 120  # of the image


@pytest.fixture(scope='module')
def sam():
    """MobileSAM's architecture with weights by rule, for small images."""
    return load_sam(mobile_sam(), img_size=SIDE)


@pytest.fixture(scope='module')
def precise():
    """The same in double precision."""
    return load_sam(mobile_sam(), img_size=SIDE).double()


@pytest.fixture(scope='module')
def folder(sam, tmp_path_factory):
    """The model as a folder."""
    return save_sam(sam, tmp_path_factory.mktemp('sam') / 'folder')


@pytest.fixture(scope='module')
def image() -> Image.Image:
    """An ellipse on noise."""
    pixels = np.random.default_rng(0).integers(0, 90, (*SIZE, 3), dtype=np.uint8)
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    pixels[((y - 30) / 20) ** 2 + ((x - 70) / 35) ** 2 < 1] += np.uint8([150, 60, 20])
    return Image.fromarray(pixels)


POINTS = Prompt(((70, 30),))
PROMPTS = {
    'a point': POINTS,
    'points': Prompt(((70, 30), (60, 25)), ((5, 5),)),
    'a box': Prompt(box=(35, 10, 105, 50)),
    'point and box': Prompt(((70, 30),), box=(35, 10, 105, 50)),
}


# --- the decoder


@pytest.mark.parametrize('with_mask', [False, True], ids=['', 'earlier mask'])
@pytest.mark.parametrize('name', PROMPTS)
def test_the_decoder_gives_the_masks_of_transformers(name, with_mask, precise):
    sam = precise
    torch.manual_seed(0)
    embeddings = torch.randn(1, 256, SIDE // 16, SIDE // 16, dtype=torch.float64)
    earlier = torch.randn(1, 1, SIDE // 4, SIDE // 4, dtype=torch.float64)
    prompt = PROMPTS[name]
    points, labels = (x.double() for x in prompt_arrays(prompt, SIZE, (SIDE, SIDE)))
    own = len(prompt.points) + len(prompt.others)
    theirs = dict(
        input_points=points[None, :, :own] if own else None,
        input_labels=labels[None, :, :own].long() if own else None,
        input_boxes=points[:, own:].reshape(1, 1, 4) if prompt.box else None,
        input_masks=earlier if with_mask else None,
    )
    with torch.no_grad():
        given = torch.tensor([float(with_mask)], dtype=torch.float64)
        size = torch.tensor(SIZE, dtype=torch.float64)
        masks, quality, low = PromptedDecoder(sam, all_masks=True)(embeddings, points, labels, earlier, given, size)
        for several, part in ((True, slice(1, 4)), (False, slice(0, 1))):
            expected = sam(image_embeddings=embeddings, multimask_output=several, **theirs)
            torch.testing.assert_close(low[:, part], expected.pred_masks[0], atol=1e-12, rtol=0)
            torch.testing.assert_close(quality[:, part], expected.iou_scores[0], atol=1e-12, rtol=0)
        (whole,) = sam_masks(low[None], [SIZE], [fitted_size(*SIZE, (SIDE, SIDE))], binarize=False)
    torch.testing.assert_close(masks, whole, atol=1e-7 * whole.abs().max().item(), rtol=0)
    one = PromptedDecoder(sam)(embeddings, points, labels, earlier, given, size)
    best = int(chosen_mask(quality, points.shape[1]))
    for found, all_of_them in zip(one, (masks, quality, low), strict=True):
        assert torch.equal(found[:, 0], all_of_them[:, best])


def test_few_points_choose_the_best_of_three_masks_and_several_the_first():
    quality = torch.tensor([[0.9, 0.1, 0.7, 0.3]])
    assert [int(chosen_mask(quality, points)) for points in (1, 2, 3, 9)] == [2, 2, 0, 0]


def test_sizes_are_those_of_the_released_code_and_the_decoder_computes_the_same():
    for longest in (1024, 768):
        draws = np.random.default_rng(0)
        for _ in range(300):
            height, width = draws.integers(1, 3000, 2).tolist()
            scale = longest / max(height, width)
            released = int(height * scale + 0.5), int(width * scale + 0.5)
            found = fitted_size(height, width, (longest, longest))
            assert found == tuple(max(1, side) for side in released)
            image = torch.tensor([height, width], dtype=torch.float64)
            assert _fitted(image, longest, longest).tolist() == list(found)
            assert _fitted(image, 512, longest).tolist() == list(fitted_size(height, width, (512, longest)))


def test_an_image_that_is_too_high_for_a_rectangle_is_made_smaller():
    assert fitted_size(400, 600, (512, 768)) == (512, 768)
    assert fitted_size(600, 600, (512, 768)) == (512, 512)
    assert fitted_size(1000, 500, (512, 768)) == (512, 256)
    assert fitted_size(1, 5000, (1024, 1024)) == (1, 1024)


# --- images and prompts


def test_pixels_are_those_of_transformers_processor(sam, image):
    expected = sam_processor(sam.config)(images=image, return_tensors='pt')['pixel_values']
    found = pixels_of(image, (SIDE, SIDE))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1.5 / 255 / 0.22  # a gray level: the two round on other occasions
    assert not found[0, :, 78:].any()


@pytest.mark.parametrize('rectangular', [False, True], ids=['square', 'rectangular'])
def test_a_mask_is_that_of_model_and_processor(rectangular, image):
    sam = load_sam(mobile_sam(), img_size=SIDE, rectangular=rectangular)
    found = Segmenter.of_model(sam)(image, POINTS)
    size = fitted_size(*SIZE, (SIDE, SIDE))
    x, y = POINTS.points[0]
    scaled = torch.tensor([[[[x * size[1] / SIZE[1], y * size[0] / SIZE[0]]]]])
    with torch.no_grad():
        pixels = pixels_of(image, size if rectangular else (SIDE, SIDE))
        out = sam(pixel_values=pixels, input_points=scaled, input_labels=torch.ones(1, 1, 1, dtype=torch.long))
    best = int(out.iou_scores[0, 0].argmax())
    (masks,) = sam_masks(out.pred_masks, [SIZE], [size])
    assert found.iou == pytest.approx(out.iou_scores[0, 0, best].item(), abs=1e-6)
    assert found.mask.shape == SIZE
    assert 0 < found.area < found.mask.size
    assert (found.mask != masks[0, best].numpy()).mean() < 1e-3


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_model_in_any_precision_gives_a_mask(dtype, sam, image):
    expected, found = (
        Segmenter.of_model(model)(image, PROMPTS['points']) for model in (sam, copy.deepcopy(sam).to(dtype))
    )
    assert (found.mask != expected.mask).mean() < 0.05
    assert found.iou == pytest.approx(expected.iou, abs=0.05)


def test_weights_that_compute_nan_are_refused(sam, image):
    broken = copy.deepcopy(sam)
    with torch.no_grad():
        broken.mask_decoder.iou_token.weight[0, 0] = torch.nan
    refused(lambda: Segmenter.of_model(broken)(image, POINTS), 'NaN', kind=EvaluationError)


@pytest.mark.parametrize(
    ('prompt', 'words'),
    [
        (Prompt(), ('--point', '--box')),
        (Prompt(others=((3, 3),)), ('--point', '--box')),
        (Prompt(((120, 3),)), ('120,3', '120 pixels wide and 73 high')),
        (Prompt(((3, 3),), ((3, -1),)), ('3,-1 is outside',)),
        (Prompt(((float('nan'), 3),)), ('nan,3 is outside',)),
        (Prompt(box=(5, 5, 5, 9)), ('5,5,5,9 is empty or outside',)),
        (Prompt(box=(5, 5, 121, 9)), ('5,5,121,9 is empty or outside',)),
    ],
    ids=str,
)
def test_a_prompt_that_marks_nothing_inside_is_refused(prompt, words):
    refused(lambda: prompt.check(*SIZE), *words, kind=EvaluationError)


# --- the command


def segment(cli, folder, path, output, *more):
    return cli('sam', 'segment', path, '--weights', folder, '--point', '70,30', '-o', output, *more)


def test_the_mask_has_the_size_of_the_image_and_json_says_what_it_is(cli, sam, folder, image, tmp_path):
    image.save(tmp_path / 'a.png')
    mask, drawn = tmp_path / 'mask.png', tmp_path / 'drawn.png'
    marks = ('--not', '3,4', '--box', '35,10,105,50', '--overlay', drawn, '--json')
    code, out, err = segment(cli, folder, tmp_path / 'a.png', mask, *marks)
    assert code == 0, err
    prompt = Prompt(((70, 30),), ((3, 4),), (35, 10, 105, 50))
    expected = Segmenter.of_model(sam)(image, prompt)
    pixels = np.array(Image.open(mask))
    assert np.array_equal(pixels, expected.mask * np.uint8(255))
    facts = json.loads(out)
    assert (facts['width'], facts['height'], facts['area']) == (120, 73, int(expected.mask.sum()))
    assert (facts['points'], facts['not_points'], facts['prompt_box']) == ([[70, 30]], [[3, 4]], [35, 10, 105, 50])
    x0, y0, x1, y1 = facts['box']
    assert expected.mask[y0:y1, x0:x1].sum() == facts['area']
    assert facts['iou'] == pytest.approx(expected.iou, abs=1e-5)
    assert (facts['mask'], facts['overlay']) == (str(mask), str(drawn))
    overlay, original = np.array(Image.open(drawn)), np.array(image)
    changed = (overlay != original).any(axis=-1)
    assert overlay.shape == original.shape
    assert changed[expected.mask].mean() > 0.95
    code, out, err = segment(cli, folder, tmp_path / 'a.png', mask)
    assert code == 0, err
    assert 'of the image' in out


def as_grey(image, path):
    image.convert('L').save(path)
    return image.convert('L').convert('RGB')


def with_transparency(image, path):
    image.putalpha(128)
    image.save(path)
    return image.convert('RGB')


def as_16_bits(image, path):
    grey = np.array(image.convert('L'))
    Image.fromarray(grey.astype(np.uint16) * 256).save(path)
    return Image.fromarray(grey).convert('RGB')


def turned(image, path):
    exif = Image.Exif()
    exif[274] = 6  # stored on its side
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    return image


@pytest.mark.parametrize('save', [as_grey, with_transparency, as_16_bits, turned], ids=lambda save: save.__name__)
def test_an_image_of_any_kind_gets_the_mask_of_what_is_displayed(save, cli, sam, folder, image, tmp_path):
    displayed = save(image.copy(), tmp_path / 'a.png')
    code, _, err = segment(cli, folder, tmp_path / 'a.png', tmp_path / 'mask.png')
    assert code == 0, err
    expected = Segmenter.of_model(sam)(displayed, POINTS).mask
    assert np.array_equal(np.array(Image.open(tmp_path / 'mask.png')) > 0, expected)


def test_an_image_of_one_row_gets_a_mask(cli, folder, tmp_path):
    Image.new('RGB', (5000, 1), 'white').save(tmp_path / 'a.png')
    for more in ((), ('--rectangular',)):
        words = ('--weights', folder, '--point', '70,0', '-o', tmp_path / 'm.png', *more)
        code, _, err = cli('sam', 'segment', tmp_path / 'a.png', *words)
        assert code == 0, err
        assert Image.open(tmp_path / 'm.png').size == (5000, 1)


def test_what_cannot_be_segmented_is_one_sentence_and_nothing_is_written(cli, folder, image, tmp_path):
    image.save(tmp_path / 'a.png')
    (tmp_path / 'text.png').write_text('no image')
    vit_b = {'image_encoder.pos_embed': torch.zeros(1, 64, 64, 8), 'image_encoder.blocks.0.norm1.weight': torch.ones(8)}
    torch.save(vit_b, tmp_path / 'sam_vit_b.pth')
    source, mask = tmp_path / 'a.png', tmp_path / 'mask.png'
    for words, code, part in (
        (('--weights', folder), 1, 'give a --point'),
        (('--weights', folder, '--point', '500,3'), 1, 'outside the image'),
        (('--weights', folder, '--point', '3;3'), 2, 'X,Y'),
        (('--weights', folder, '--box', '1,2,3'), 2, 'X0,Y0,X1,Y1'),
        (('--point', '3,3'), 2, '--onnx'),
        (('--weights', folder, '--onnx', folder, '--point', '3,3'), 2, '--onnx'),
        (('--onnx', folder, '--point', '3,3'), 1, 'sam export'),
        (('--onnx', tmp_path / 'none', '--point', '3,3'), 1, 'No folder'),
        (('--weights', tmp_path / 'none', '--point', '3,3'), 1, 'none'),
        (('--weights', tmp_path / 'sam_vit_b.pth', '--point', '3,3'), 1, 'sam_vit_b.pth'),
    ):
        found, out, err = cli('sam', 'segment', source, '-o', mask, *words)
        assert (found, out) == (code, '')
        assert part in err
        assert len(err.strip().splitlines()) == 1
    code, _, err = segment(cli, folder, tmp_path / 'text.png', mask)
    assert (code, 'text.png is not an image' in err) == (1, True)
    for output, more in ((source, ()), (mask, ('--overlay', source)), (mask, ('--overlay', mask))):
        code, _, err = segment(cli, folder, source, output, *more)
        assert (code, ' file' in err) == (2, True)
    assert np.array_equal(np.array(Image.open(source)), np.array(image))
    code, _, err = segment(cli, folder, source, tmp_path / 'mask.jpg')
    assert (code, '.png' in err) == (2, True)
    assert not mask.exists()
