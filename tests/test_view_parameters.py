"""Parameters of views: functions of seed, epoch, position and size alone, distributed as torchvision and timm draw."""

import dataclasses
import hashlib
import json
import math
import random
import statistics

import numpy as np
import pytest
import torch
from conftest import refused
from PIL import Image
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter

from tinyvit_zoo.common.counter_rng import child_key, uniform
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.exact_tables import at_quantiles, geometric, normal_quantiles
from tinyvit_zoo.common.seeding import generator_states, same_states
from tinyvit_zoo.data import rand_augment
from tinyvit_zoo.data.replay import Erasing, RandAugment, View, ViewSpec, draw_views, is_checked
from tinyvit_zoo.data.view_params import Stage

PUBLISHED = ViewSpec.from_timm(auto_augment='rand-m9-mstd0.5-inc1', re_prob=0.25, re_mode='pixel')
EVERYTHING = dataclasses.replace(PUBLISHED, color_jitter=(0.4, 0.4, 0.4, 0.1), erasing=Erasing(0.5, count=3))
ARRAYS = (
    'crops', 'flips', 'operations', 'magnitudes', 'negative', 'jitter', 'jitter_order', 'erased', 'noise_keys',
)  # fmt: skip
SIZES = [(375, 500), (500, 333), (1, 1), (1, 500), (500, 1), (17, 23), (4000, 3000), (2, 3)]
PINNED = 'baf2f164'


def sizes_of(count, sizes=SIZES):
    return np.array([sizes[i % len(sizes)] for i in range(count)])


def drawn(spec=PUBLISHED, count=64, seed=7, epoch=2, sizes=SIZES):
    return draw_views(spec, seed, epoch, range(count), sizes_of(count, sizes))


def assert_equal(one, two, names=ARRAYS):
    for name in names:
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


def assert_same_distribution(ours, theirs):
    """Two-sample Kolmogorov-Smirnov: a difference this large has a chance of 1 in 1000 if there is none."""
    values = np.sort(np.concatenate([ours, theirs]))
    of_ours, of_theirs = (np.searchsorted(np.sort(x), values, side='right') / len(x) for x in (ours, theirs))
    assert np.abs(of_ours - of_theirs).max() < 1.95 * math.sqrt(1 / len(ours) + 1 / len(theirs))


def test_parameters_do_not_depend_on_the_rest_of_the_batch():
    whole = drawn(EVERYTHING)
    for order in (range(63, -1, -1), [5], [9, 3, 9], range(1, 64, 2)):
        part = draw_views(EVERYTHING, 7, 2, order, sizes_of(64)[list(order)])
        assert list(part) == [whole[position] for position in order]


def test_epochs_can_differ_within_a_batch():
    mixed = draw_views(EVERYTHING, 7, np.array([0, 5, 0, 2]), [3, 3, 4, 3], [(40, 50)] * 4)
    for i, (epoch, position) in enumerate([(0, 3), (5, 3), (0, 4), (2, 3)]):
        assert mixed[i] == draw_views(EVERYTHING, 7, epoch, [position], [(40, 50)])[0]
    assert len(set(map(repr, mixed))) == 4


@pytest.mark.parametrize('change', [dict(seed=8), dict(epoch=3)])
def test_every_draw_depends_on_seed_and_epoch(change):
    one, two = drawn(EVERYTHING), drawn(EVERYTHING, **change)
    for name in ARRAYS:
        assert not np.array_equal(getattr(one, name), getattr(two, name)), name


def test_views_of_one_image_differ_between_positions():
    assert len(set(map(repr, drawn(sizes=[(375, 500)])))) == 64


def test_drawing_leaves_the_global_generators_alone():
    before = generator_states()
    drawn(EVERYTHING)
    assert same_states(before, generator_states())


@pytest.mark.parametrize(
    ('change', 'same'),
    [
        (dict(rand_augment=None), ('crops', 'flips', 'jitter', 'jitter_order', 'erased', 'noise_keys')),
        (dict(color_jitter=None), ('crops', 'flips', 'operations', 'magnitudes', 'negative', 'erased', 'noise_keys')),
        (dict(erasing=None), ('crops', 'flips', 'operations', 'magnitudes', 'negative', 'jitter', 'noise_keys')),
        (dict(hflip=0.0), ('crops', 'operations', 'magnitudes', 'negative', 'jitter', 'erased', 'noise_keys')),
        (dict(scale=(0.5, 1.0)), ('flips', 'operations', 'magnitudes', 'negative', 'jitter', 'erased', 'noise_keys')),
        (dict(size=(96, 96)), ('crops', 'flips', 'operations', 'magnitudes', 'negative', 'jitter', 'noise_keys')),
    ],
)
def test_no_operation_shifts_what_another_draws(change, same):
    assert_equal(drawn(EVERYTHING), drawn(dataclasses.replace(EVERYTHING, **change)), same)


def test_more_operations_and_rectangles_keep_the_first_ones():
    more = dataclasses.replace(EVERYTHING, rand_augment=RandAugment(layers=5))
    assert np.array_equal(drawn(more).operations[:, :2], drawn(EVERYTHING).operations)
    specs = (dataclasses.replace(PUBLISHED, erasing=Erasing(1.0, count=count)) for count in (1, 2))
    few, many = (draw_views(spec, 0, 0, range(400), [(9, 9)] * 400) for spec in specs)
    single = (many.erased[:, :, 2] > 0).sum(axis=1) == 1
    assert 100 < single.sum() < 300
    assert np.array_equal(few.erased[single, 0], many.erased[single, 0])


def test_parameters_of_a_fixed_set_of_views_are_those_of_every_version():
    digest = hashlib.sha256()
    for spec in (PUBLISHED, EVERYTHING):
        for name in ARRAYS:
            values = getattr(drawn(spec, 256), name)
            digest.update(values.astype(values.dtype.newbyteorder('<')).tobytes())
    assert digest.hexdigest()[:8] == PINNED


def test_a_view_is_a_record_that_json_keeps():
    views = list(drawn(EVERYTHING))
    assert [View.from_record(json.loads(json.dumps(view.record()))) for view in views] == views


@pytest.mark.parametrize(
    'damage',
    [
        lambda record: record.pop('crop'),
        lambda record: record.update(more=1),
        lambda record: record.update(crop=[1, 2, 3]),
        lambda record: record.update(operations=[['Blend', 0.5]]),
        lambda record: record.update(operations=[5]),
    ],
)
def test_a_damaged_record_is_refused(damage):
    record = drawn()[0].record()
    damage(record)
    refused(lambda: View.from_record(record), 'record of the view is damaged', kind=EvaluationError)


@pytest.mark.parametrize(
    ('positions', 'sizes'), [([0, 1], [(4, 4)]), ([0], [(0, 4)]), ([-1], [(4, 4)]), ([0], [(4, -4)])]
)
def test_positions_and_sizes_that_do_not_fit_are_refused(positions, sizes):
    refused(lambda: draw_views(PUBLISHED, 0, 0, positions, sizes), 'positions', 'sizes', kind=EvaluationError)


def test_one_view_in_256_is_checked_in_any_data_set():
    assert is_checked(np.arange(2560)).sum() == 10
    assert is_checked(0)


@pytest.mark.parametrize('size', SIZES)
def test_crops_lie_in_the_image(size):
    top, left, height, width = drawn(count=500, sizes=[size]).crops.T
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= size[0]
    assert (left + width).max() <= size[1]


@pytest.mark.parametrize('size', [(375, 500), (60, 500), (500, 100)])
def test_crops_have_the_distribution_of_timm(size):
    image, count = Image.new('L', size[::-1]), 2000
    random.seed(0)
    theirs = np.array(
        [RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(count)]
    )
    ours = draw_views(PUBLISHED, 0, 0, range(count), [size] * count).crops
    for column in range(4):
        assert_same_distribution(ours[:, column], theirs[:, column])
    assert_same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert_same_distribution(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2])


@pytest.mark.parametrize('size', [(1, 500), (500, 1), (3, 40), (40, 3), (5, 5)])
def test_what_fits_no_crop_gets_the_central_one_of_timm(size):
    spec = dataclasses.replace(PUBLISHED, scale=(0.999, 1.0))
    random.seed(0)
    theirs = RandomResizedCropAndInterpolation.get_params(Image.new('L', size[::-1]), spec.scale, spec.ratio)
    assert draw_views(spec, 0, 0, [0], [size])[0].crop == theirs


def test_erased_rectangles_have_the_distribution_of_timm():
    count, spec = 2000, dataclasses.replace(PUBLISHED, size=(64, 64), erasing=Erasing(1.0))
    random.seed(0)
    transform, theirs = RandomErasing(1.0, mode='const', device='cpu'), []
    for _ in range(count):
        rows, columns = torch.nonzero(transform(torch.ones(1, 64, 64))[0] == 0, as_tuple=True)
        theirs.append([rows.min(), columns.min(), rows.max() - rows.min() + 1, columns.max() - columns.min() + 1])
    ours = draw_views(spec, 0, 0, range(count), [(9, 9)] * count).erased[:, 0]
    for column in range(4):
        assert_same_distribution(ours[:, column], np.array(theirs)[:, column])


def test_as_many_views_are_erased_flipped_and_changed_as_the_settings_say():
    count = 4000
    spec = dataclasses.replace(EVERYTHING, hflip=0.3, erasing=Erasing(0.25, count=3))
    views = draw_views(spec, 0, 0, range(count), [(40, 50)] * count)
    boxes = (views.erased[:, :, 2] > 0).sum(axis=1)
    names = np.bincount(views.operations[views.operations >= 0])
    for found, share, of in [
        (views.flips.sum(), 0.3, count),
        ((boxes > 0).sum(), 0.25, count),
        ((boxes == 2).sum(), 0.25 / 3, count),
        (names.sum(), 0.5, 2 * count),
        (views.negative.sum(), 0.5, 2 * count),
        *((n, 1 / 15, names.sum()) for n in names),
        *(((views.jitter_order[:, 0] == k).sum(), 0.25, count) for k in range(4)),
    ]:
        assert abs(found - share * of) < 4 * math.sqrt(share * (1 - share) * of)
    assert len(names) == 15


@pytest.mark.parametrize('text', ['rand-m9-mstd0.5-inc1', 'rand-m5-mstd2', 'rand-m8-mstd101', 'rand-m15-mstd3-mmax20'])
def test_magnitudes_have_the_distribution_of_timm(text):
    settings, count = RandAugment.parse(text), 4000
    rng = random.Random(0)
    uniform = math.isinf(settings.magnitude_std)
    drawn_by = (lambda m, std: rng.uniform(0, m)) if uniform else rng.gauss
    theirs = [
        max(0, min(drawn_by(settings.magnitude, settings.magnitude_std), settings.magnitude_max)) for _ in range(count)
    ]
    spec = dataclasses.replace(PUBLISHED, rand_augment=settings)
    ours = draw_views(spec, 0, 0, range(count), [(9, 9)] * count).magnitudes[:, 0]
    assert_same_distribution(ours, np.array(theirs))


def test_color_jitter_has_the_distribution_of_torchvision():
    count, largest = 2000, (0.4, 1.5, 0.2, 0.1)
    transform = ColorJitter(*largest)
    torch.manual_seed(0)
    theirs = np.array(
        [
            transform.get_params(transform.brightness, transform.contrast, transform.saturation, transform.hue)[1:]
            for _ in range(count)
        ]
    )
    spec = dataclasses.replace(PUBLISHED, color_jitter=largest)
    ours = draw_views(spec, 0, 0, range(count), [(9, 9)] * count)
    for k in range(4):
        assert_same_distribution(ours.jitter[:, k], theirs[:, k])
    assert len({tuple(order) for order in ours.jitter_order.tolist()}) == 24


@pytest.mark.parametrize('name', rand_augment.OPERATIONS)
def test_arguments_of_operations_are_those_of_timm(name, monkeypatch):
    ours, theirs = rand_augment.OPERATIONS[name], auto_augment.LEVEL_TO_ARG[name]
    assert (ours is None) == (theirs is None)
    for negative in (False, True):
        monkeypatch.setattr(auto_augment.random, 'random', lambda negative=negative: 0.75 if negative else 0.25)
        for level in (0.0, 0.3, 4.9, 7.5, 9.123456789, 10.0, 17.0) if ours else ():
            assert theirs(level, dict(auto_augment._HPARAMS_DEFAULT)) == (ours(level, negative),)


def test_sets_of_operations_are_those_of_timm():
    assert list(rand_augment.PLAIN) == auto_augment._RAND_TRANSFORMS
    assert list(rand_augment.INCREASING) == auto_augment._RAND_INCREASING_TRANSFORMS
    assert list(rand_augment.THREE) == auto_augment._RAND_3A


@pytest.mark.parametrize(
    'text',
    ['rand', 'rand-m9', 'rand-m9-mstd0.5-inc1', 'rand-n3-p0.7-inc0', 'rand-mstd101-m4', 'rand-t3a', 'rand-m15-mmax20'],
)
def test_settings_in_the_form_of_timm_mean_the_same(text):
    ours, theirs = RandAugment.parse(text), auto_augment.rand_augment_transform(text)
    assert ours.layers == theirs.num_layers
    assert ours.operations == tuple(op.name for op in theirs.ops)
    op = theirs.ops[0]
    assert (ours.probability, ours.magnitude, ours.magnitude_std) == (op.prob, op.magnitude, op.magnitude_std)
    assert ours.magnitude_max == (op.magnitude_max or 10)


@pytest.mark.parametrize(
    'spec',
    [PUBLISHED, EVERYTHING, ViewSpec.from_timm(32), ViewSpec((8, 9), rand_augment=RandAugment(magnitude_std=math.inf))],
)
def test_settings_are_kept_by_json_with_their_hash(spec):
    again = ViewSpec.from_settings(json.loads(json.dumps(spec.settings(), allow_nan=False)))
    assert again == spec
    assert again.hash == spec.hash


def test_equal_settings_have_one_hash_and_others_another():
    one = ViewSpec((32, 32), scale=(0.08, 1), hflip=1, color_jitter=0.4)
    two = ViewSpec([32, 32], scale=[0.08, 1.0], hflip=1.0, color_jitter=[0.4, 0.4, 0.4])
    assert one == two
    assert one.hash == two.hash
    specs = [
        PUBLISHED,
        *(
            dataclasses.replace(PUBLISHED, **change)
            for change in (
                dict(size=(224, 192)),
                dict(scale=(0.1, 1)),
                dict(ratio=(0.5, 2)),
                dict(hflip=0),
                dict(rand_augment=None),
                dict(rand_augment=RandAugment(magnitude=8)),
                dict(color_jitter=(0.1, 0, 0)),
                dict(erasing=None),
                dict(erasing=Erasing(mode='rand')),
                dict(interpolation='bilinear'),
                dict(fill=(0, 0, 0)),
            )
        ),
    ]
    assert len({spec.hash for spec in specs}) == len(specs)


def test_color_jitter_is_left_out_beside_rand_augment_as_in_timm():
    assert ViewSpec.from_timm(32).color_jitter == (0.4, 0.4, 0.4, 0)
    assert ViewSpec.from_timm((3, 32, 48), auto_augment='rand-m9').color_jitter is None
    assert ViewSpec.from_timm((3, 32, 48), auto_augment='rand-m9').size == (32, 48)
    assert ViewSpec.from_timm(32, auto_augment='rand-m9', force_color_jitter=True).color_jitter
    assert ViewSpec.from_timm(32, auto_augment='rand-m9-t3a').color_jitter


@pytest.mark.parametrize(
    ('action', 'words'),
    [
        (lambda: ViewSpec((0, 32)), ['size', '(0, 32)']),
        (lambda: ViewSpec((32,)), ['size']),
        (lambda: ViewSpec((32, 32), scale=(0.5, 0.1)), ['scale', '0.5']),
        (lambda: ViewSpec((32, 32), scale=(0.5, 1.1)), ['scale', 'none above 1']),
        (lambda: ViewSpec((32, 32), ratio=(0, 1)), ['ratio']),
        (lambda: ViewSpec((32, 32), ratio=(1, math.inf)), ['ratio']),
        (lambda: ViewSpec((32, 32), hflip=1.5), ['flip', '1.5']),
        (lambda: ViewSpec((32, 32), hflip=math.nan), ['flip', 'nan']),
        (lambda: ViewSpec((32, 32), color_jitter=(0.1, 0.1)), ['color jitter']),
        (lambda: ViewSpec((32, 32), color_jitter=(0.1, 0.1, 0.1, 0.6)), ['color jitter', 'hue']),
        (lambda: ViewSpec((32, 32), interpolation='random'), ["'random'", 'bicubic']),
        (lambda: ViewSpec((32, 32), interpolation='lanczos', rand_augment=RandAugment()), ['lanczos', 'RandAugment']),
        (lambda: ViewSpec((32, 32), fill=(0, 0, 256)), ['256', 'color']),
        (lambda: Erasing(-0.1), ['erasing', '-0.1']),
        (lambda: Erasing(mode='noise'), ['noise', 'pixel, rand, const']),
        (lambda: Erasing(count=0), ['count']),
        (lambda: Erasing(area=(0.1, 1.2)), ['area']),
        (lambda: RandAugment(operations=('Blend',)), ['Blend', 'AutoContrast']),
        (lambda: RandAugment(operations=()), ['operations']),
        (lambda: RandAugment(layers=0), ['n = 0']),
        (lambda: RandAugment(magnitude=-1), ['magnitude', '-1']),
        (lambda: RandAugment.parse('v0'), ['v0', 'rand-']),
        (lambda: RandAugment.parse('augmix-m5'), ['augmix']),
        (lambda: RandAugment.parse('rand-m9-tweights'), ['weights', 'leave t out']),
        (lambda: RandAugment.parse('rand-m9-w0'), ["'w0'"]),
        (lambda: RandAugment.parse('rand-m9-inc'), ["'inc'"]),
        (lambda: ViewSpec.from_settings(PUBLISHED.settings() | dict(version=2)), ['version 2', 'version 1']),
        (lambda: ViewSpec.from_settings({}), ['version None']),
        (lambda: ViewSpec.from_settings(dict(version=1)), ['damaged', 'rand_augment']),
        (lambda: ViewSpec.from_settings(PUBLISHED.settings() | dict(blur=1)), ['damaged', 'blur']),
        (lambda: ViewSpec.from_settings(PUBLISHED.settings() | dict(erasing=[1])), ['damaged']),
        (lambda: ViewSpec.from_settings(PUBLISHED.settings() | dict(rand_augment=5)), ['damaged']),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(action, words):
    refused(action, *words, kind=EvaluationError)


def test_tables_are_exact_and_the_same_everywhere():
    normal, ratios = normal_quantiles(), geometric(3 / 4, 4 / 3)
    quantile = statistics.NormalDist().inv_cdf
    assert max(abs(normal[i] - quantile(i / 1024)) for i in range(1, 1024)) < 1e-14
    assert np.array_equal(normal, -normal[::-1])
    expected = np.exp(np.linspace(math.log(3 / 4), math.log(4 / 3), 1025))
    assert np.abs(ratios / expected - 1).max() < 1e-14
    assert (ratios[0], ratios[-1]) == (3 / 4, 4 / 3)
    for table, start in ((normal, 'f9559d2f'), (ratios, '007c983f')):
        assert hashlib.sha256(table.astype('<f8').tobytes()).hexdigest()[:8] == start


def test_noise_has_mean_0_and_variance_1():
    values = at_quantiles(normal_quantiles(), (np.arange(100_000) + 0.5) / 100_000)
    assert abs(values.mean()) < 1e-12
    assert abs(values.std() - 1) < 2e-3
    assert abs((values**4).mean() - 3) < 0.06


def test_the_keys_of_operations_are_those_of_seed_epoch_position_and_stage():
    views = draw_views(EVERYTHING, 7, 2, [11], [(40, 50)])
    assert views.noise_keys[0] == child_key(7, 2, 11, Stage.ERASE_NOISE)
    assert views.flips[0] == (uniform(child_key(7, 2, 11, Stage.FLIP), 1)[0] < 0.5)
