"""Transforms: timm's images for timm's random numbers, and a black one where Pillow 13 refuses."""

import pickle
import random
from copy import deepcopy

import numpy as np
import PIL
import pytest
import timm.data
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, RandomApply

from tinyvit_zoo.data.augment import create_transform, mend_posterize

PILLOW_REFUSES = int(PIL.__version__.split('.')[0]) >= 13
POLICIES = ['rand-m9-mstd0.5-inc1', 'rand-m15-mmax20-inc1', 'v0', 'original', '3a', 'augmix-m5-w4-d2']


@pytest.fixture
def image():
    return noise('RGB')


def noise(mode):
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, channels), dtype=np.uint8).squeeze())


def drawn(transform, image, seed):
    """The image of a seed and the next numbers of the three generators; None if Pillow refused."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        result = transform(image)
    except ValueError:
        return None
    return result.tolist(), random.random(), np.random.rand(), torch.rand(1).item()


def black_op(name='Posterize'):
    """An operation of timm that asks for 0 bits or fewer."""
    op = auto_augment.AugmentOp(name, prob=1.0, magnitude=0 if name == 'Posterize' else 20, hparams={})
    op.magnitude_max = 20
    return op


@pytest.mark.parametrize('policy', POLICIES)
def test_the_same_seeds_give_the_images_of_timm(policy, image):
    options = dict(
        input_size=16, is_training=True, auto_augment=policy, interpolation='bicubic', re_prob=0.25, re_mode='pixel'
    )
    ours, theirs = create_transform(**options), timm.data.create_transform(**options)
    refused = 0
    for seed in range(400):
        mine, plain = drawn(ours, image, seed), drawn(theirs, image, seed)
        assert mine is not None
        refused += plain is None
        assert plain in (mine, None)
    assert refused < 60
    if policy in ('v0', 'rand-m15-mmax20-inc1'):  # which ask often
        assert (refused > 0) == PILLOW_REFUSES


def test_timm_still_needs_the_fix(image):
    """Fails when timm's own posterize accepts 0 bits: then `tinyvit_zoo.data.augment` can be removed."""
    if PILLOW_REFUSES:
        with pytest.raises(ValueError, match='bits'):
            auto_augment.NAME_TO_OP['Posterize'](image, 0)
    else:
        assert auto_augment.NAME_TO_OP['Posterize'](image, 0) == mend_posterize(black_op())(image)


@pytest.mark.parametrize('name', ['Posterize', 'PosterizeIncreasing'])
@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_zero_bits_give_a_black_image_of_the_same_mode(name, mode):
    image = noise(mode)
    image.info['dpi'] = (72, 72)
    result = mend_posterize(black_op(name))(image)
    assert (result.mode, result.size, result.info) == (mode, image.size, image.info)
    # Pillow <= 12: every value & ~(2 ** (8 - bits) - 1), which leaves nothing of 8 bits.
    assert result == image.point([i & ~(2**8 - 1) for i in range(256)] * len(image.getbands()))
    assert result.getextrema() in ((0, 0), ((0, 0),) * 3)


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'CMYK', 'I', 'F'])
def test_modes_that_pillow_never_posterized_are_refused_alike_for_any_bits(mode):
    image = Image.new(mode, (4, 4))
    said = []
    for bits in (0, 4):
        with pytest.raises(OSError, match='not supported for mode') as e:
            mend_posterize(black_op()).aug_fn(image, bits)
        said.append(str(e.value))
    assert said[0] == said[1]


@pytest.mark.parametrize('bits', [1, 4, 7, 8, 9])
def test_more_bits_are_left_to_timm(bits, image):
    result = mend_posterize(black_op()).aug_fn(image, bits, fillcolor=0)
    assert result == (image if bits >= 8 else ImageOps.posterize(image, bits))


def test_other_transforms_are_unchanged(image):
    table = dict(auto_augment.NAME_TO_OP)
    theirs = timm.data.create_transform(16, is_training=True, auto_augment='v0')
    before = repr(vars(theirs.transforms[2].policy[0][0])['aug_fn'])
    create_transform(16, is_training=True, auto_augment='v0')
    assert auto_augment.NAME_TO_OP == table
    assert auto_augment.AugmentOp('Posterize').aug_fn is auto_augment.posterize
    assert repr(theirs.transforms[2].policy[0][0].aug_fn) == before
    if PILLOW_REFUSES:
        with pytest.raises(ValueError, match='bits'):
            black_op()(image)


def test_every_nesting_is_fixed_and_a_second_call_changes_nothing(image):
    holders = [
        lambda op: op,
        lambda op: [op],
        lambda op: Compose([op]),
        lambda op: Compose([RandomApply([op], p=1.0)]),
        lambda op: auto_augment.RandAugment([op]),
        lambda op: auto_augment.AutoAugment([[op]]),
        lambda op: Compose([auto_augment.AugMixAugment([op], width=1, depth=1)]),
        lambda op: (Compose([]), Compose([auto_augment.AutoAugment([[op]])])),
    ]
    for hold in holders:
        op = black_op()
        transform = hold(op)
        assert mend_posterize(transform) is transform
        assert op(image).getextrema() == ((0, 0),) * 3
        mended = op.aug_fn
        mend_posterize(transform)
        assert op.aug_fn is mended


def test_separate_transforms_are_fixed(image):
    first, middle, last = create_transform(16, is_training=True, auto_augment='v0', separate=True)
    ops = [op for policy in middle.transforms[0].policy for op in policy if op.name.startswith('Posterize')]
    assert ops
    assert all(op.aug_fn(image, 0).getextrema() == ((0, 0),) * 3 for op in ops)
    assert first.transforms
    assert last.transforms


def test_code_with_its_own_posterize_keeps_it(image):
    """TinyViT's training code has a copy of timm's operations, with generators of its own."""

    def posterize(img, bits_to_keep, **_):
        return ImageOps.posterize(ImageOps.invert(img), bits_to_keep)

    op = black_op()
    op.aug_fn = posterize
    mend_posterize(op)
    assert op.aug_fn(image, 3) == ImageOps.posterize(ImageOps.invert(image), 3)
    assert op(image).getextrema() == ((0, 0),) * 3


def test_transforms_without_a_posterize_are_unchanged(image):
    plain = create_transform(16)
    assert torch.equal(plain(image), timm.data.create_transform(16)(image))
    for transform in (None, Compose([]), torch.nn.Identity(), lambda image: image):
        assert mend_posterize(transform) is transform


class Images(torch.utils.data.Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return any(self.transform(noise('RGB')).tobytes())


def test_spawned_workers_have_the_fixed_transform():
    transform = mend_posterize(Compose([black_op()]))
    assert pickle.loads(pickle.dumps(transform))(noise('RGB')).getextrema() == ((0, 0),) * 3
    assert deepcopy(transform)(noise('RGB')).getextrema() == ((0, 0),) * 3
    loader = DataLoader(Images(transform), batch_size=None, num_workers=1, multiprocessing_context='spawn')
    assert list(loader) == [False] * 4
