"""The views of TinyViT's stored seeds: every draw, every parameter and every pixel of the authors' code."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import refused
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.replay import Erasing, RandAugment
from tinyvit_zoo.data.view_apply import on_grid
from tinyvit_zoo.soft_labels.official_views import Draws, draw_official_view, official_spec, official_tensor

GOLDEN = Path(__file__).parent / 'golden'
REFERENCE = json.loads((GOLDEN / 'tinyvit_aug_replay.json').read_text())
CASES = {f'{case["norm"]}_{case["seed"]}': case for case in REFERENCE['train_transform']}
NORMS = dict(default=(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), clip=(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
SIZE = 150, 200


def image():
    """The golden's 'image_rule'."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    return Image.fromarray(np.stack([x * 255 // 199, y * 255 // 149, (3 * x + 5 * y) % 256], axis=-1).astype(np.uint8))


def drawn(case):
    spec = official_spec(mean=NORMS[case['norm']][0])
    return spec, draw_official_view(case['seed'], SIZE, spec)


@pytest.mark.parametrize('case', REFERENCE['primitives'], ids=lambda case: str(case['seed']))
def test_draws_are_those_of_the_authors_generator(case):
    draws, values = Draws(case['seed']), case['values']
    assert [draws.share(), draws.uniform(-2, 5), draws.integer(0, 9), draws.integer(3, 3)] == values[:4]
    assert draws.normal(9, 0.5) == values[4]
    assert draws.choice(range(15), 2) == values[5]
    draws.generator.beta(0.8, 0.8), draws.generator.random(3)  # of mixing, which no published store has
    assert [draws.integer(0, 223), *(draws.integer(-100, 99) for _ in range(4))] == [values[8], *values[9]]


@pytest.mark.parametrize('name', CASES)
def test_every_draw_and_parameter_is_that_of_the_authors_transform(name):
    case = CASES[name]
    spec, official = drawn(case)
    assert [[kind, value] for kind, value in official.draws] == [[draw[0], draw[-1]] for draw in case['draws']]
    crop, *events = case['events']
    assert official.view.crop == tuple(crop[1])
    erased = [event[1][1:] for event in events if event[0] == 'erase_patch_chw']
    assert [list(box[2:]) for box in official.view.erased] == erased
    assert len(official.noise_seeds) == len(erased)
    done = [event for event in events if event[0] != 'erase_patch_chw' and event[1] != 'skipped']
    assert [[name, [] if argument is None else [argument]] for name, argument in official.view.operations] == [
        event[:2] for event in done
    ]
    assert all(event[2]['fillcolor'] == list(spec.fill) for event in done)


@pytest.mark.parametrize('name', CASES)
def test_every_pixel_is_that_of_the_authors_transform(name):
    case = CASES[name]
    spec, official = drawn(case)
    tensor = official_tensor(image(), official, spec, *NORMS[case['norm']]).numpy()
    expected = np.load(GOLDEN / 'tinyvit_aug_replay.npz')[name]
    np.testing.assert_array_equal(tensor[:, ::16, ::16], expected)
    assert hashlib.sha256(tensor.tobytes()).hexdigest() == case['sha256']
    np.testing.assert_allclose(tensor.mean(axis=(1, 2)), case['mean'], rtol=0, atol=1e-5)


def test_teacher_and_student_of_different_size_see_the_same_parts():
    spec = official_spec()
    student = official_spec((96, 64), mean=OPENAI_CLIP_MEAN)
    one, two = (draw_official_view(1, SIZE, each) for each in (spec, student))
    assert one == two
    tensor = official_tensor(image(), two, student, *NORMS['clip'])
    assert tensor.shape == (3, 96, 64)
    top, left, height, width = on_grid(one.view.erased[0], (224, 224), (96, 64))
    part = tensor[:, top : top + height, left : left + width]
    assert abs(part.std() - 1) < 0.05
    assert spec.fill != student.fill


@pytest.mark.parametrize('size', [(1, 1), (1, 500), (500, 1), (40, 3)])
def test_narrow_images_get_the_central_crop(size):
    spec = official_spec(scale=(0.999, 1.0))
    crops = {draw_official_view(seed, size, spec).view.crop for seed in range(20)}
    top, left, height, width = crops.pop()
    assert not crops
    assert (height, width) == {(1, 1): (1, 1), (1, 500): (1, 1), (500, 1): (1, 1), (40, 3): (4, 3)}[size]
    assert (top, left) == ((size[0] - height) // 2, (size[1] - width) // 2)


def test_steps_that_the_transform_lacks_draw_nothing():
    whole = draw_official_view(7, SIZE, official_spec())
    spec = official_spec(hflip=0, rand_augment=None, erasing=None)
    crop_alone = draw_official_view(7, SIZE, spec)
    assert crop_alone.draws == whole.draws[: len(crop_alone.draws)]
    assert (crop_alone.view.flip, crop_alone.view.operations, crop_alone.view.erased) == (False, (), ())
    assert draw_official_view(7, SIZE, dataclasses.replace(spec, erasing=Erasing(0))) == crop_alone


def test_several_rectangles_and_even_magnitudes_are_drawn_too():
    spec = official_spec(
        erasing=Erasing(1.0, 'rand', count=3), rand_augment=RandAugment(probability=1.0, magnitude_std=math.inf)
    )
    views = [draw_official_view(seed, SIZE, spec) for seed in range(30)]
    assert {len(official.view.erased) for official in views} == {1, 2, 3}
    for official in views:
        assert len(official.noise_seeds) == len(official.view.erased)
        assert len(official.view.operations) == 2
    tensor = official_tensor(image(), views[0], spec)
    box = views[0].view.erased[-1]
    assert len(tensor[0, box[0] : box[0] + box[2], box[1] : box[1] + box[3]].unique()) == 1


def test_color_jitter_is_refused():
    refused(lambda: draw_official_view(0, SIZE, official_spec(color_jitter=0.4)), 'color jitter', kind=EvaluationError)
