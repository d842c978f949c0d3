"""Evaluation crops as published: `evaluate --protocol`, from the record of each release."""

import json

import fake_datasets as fake
import pytest
import timm
import torch
from conftest import for_each, refused, small_of
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torchvision import transforms

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.downstream.imagenet import PROTOCOLS, protocol_overrides
from tinyvit_zoo.hub import save_folder
from tinyvit_zoo.releases import all_releases, get_release

RELEASES = [release.name for release in all_releases()]
IN_TIMM = [name for name in RELEASES if name.startswith('tinyvit')]
WIDE = Image.new('RGB', (600, 400))  # every published crop of it depends on the sides that it is resized to


def steps(name: str, protocol: str) -> list:
    """timm's transform of a release by a protocol, made from its configuration alone."""
    config = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    return create_transform(**{**config, **protocol_overrides(name, protocol)}, is_training=False).transforms


def by_hand(name: str, protocol: str) -> tuple[int, int, int]:
    """Side of the input, and width and height that WIDE is resized to, by the released code and by timm's."""
    side = next(int(part) for part in name.replace('.', '_').split('_') if part in ('224', '384', '512'))
    if name.startswith('tinyvit'):
        if side == 512 or (side, protocol) == (384, 'paper'):
            return side, side, side  # TEST.CROP False: squashed to the square
        short = dict(paper=256, timm=235)[protocol] if side == 224 else side  # 235 = floor(224 / 0.95)
    else:
        short = 256 * side // 224  # 438 at 384 pixels
    return side, 3 * short // 2, short


@for_each('name', RELEASES)
def test_the_crop_of_every_release_is_the_one_that_its_authors_published(name):
    assert_transform(name, 'paper')


@for_each('name', IN_TIMM)
def test_the_crop_of_every_release_that_timm_has_is_timm_s(name):
    assert_transform(name, 'timm')


def assert_transform(name: str, protocol: str) -> None:
    resize, crop, to_tensor, normalize = steps(name, protocol)
    side, *resized = by_hand(name, protocol)
    assert list(resize(WIDE).size) == resized
    assert isinstance(crop, transforms.CenterCrop)
    assert crop(resize(WIDE)).size == (side, side)
    assert resize.interpolation is transforms.InterpolationMode.BICUBIC
    release = get_release(name)
    assert torch.allclose(torch.as_tensor(normalize.mean).float(), torch.tensor(release.mean))
    assert torch.allclose(torch.as_tensor(normalize.std).float(), torch.tensor(release.std))
    assert type(to_tensor).__name__ == 'MaybeToTensor'


def test_published_accuracies_are_on_record_with_their_protocol():
    """Of TinyViT-21M the two differ by 0.3 points."""
    release = get_release('tinyvit_21m_224.dist_in22k_ft_in1k')
    assert [release.find_protocol(name).result().top1 for name in PROTOCOLS] == [84.8, 85.088]
    squashed = get_release('tinyvit_21m_512')
    assert squashed.find_protocol('timm') is squashed.find_protocol('paper')


def test_what_has_no_such_protocol_is_one_sentence():
    refused(lambda: protocol_overrides('resnet18', 'paper'), 'not a release of this package', kind=EvaluationError)
    refused(
        lambda: protocol_overrides('mini_swin_tiny_patch4_window7_224', 'timm'),
        "mini_swin_tiny_patch4_window7_224.distill_in1k has no protocol 'timm' on record: take --protocol paper.",
        kind=EvaluationError,
    )


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Two images of two classes of ImageNet-1k."""
    root = tmp_path_factory.mktemp('images')
    for wnid in ImageNetInfo('imagenet-1k').label_names()[:2]:
        fake.image(root / wnid / 'one.png', size=(60, 40))
    return root


def test_the_command_evaluates_by_the_protocol_and_records_it(cli, images, tmp_path):
    line = ('evaluate', 'tinyvit_5m_224.in1k', '--random', '-d', images, '--split', 'all', '--device', 'cpu')
    found = {}
    for protocol in (*PROTOCOLS, None):
        out = tmp_path / str(protocol)
        code, _, err = cli(*line, *(['--protocol', protocol] if protocol else []), '-o', out)
        assert code == 0, err
        results = json.loads((out / 'results.json').read_text())
        assert results['protocol'] == protocol
        found[protocol] = results['preprocessing']
    assert {protocol: config['crop_pct'] for protocol, config in found.items()} == {
        'paper': 0.875, 'timm': 0.95, None: 0.95
    }  # fmt: skip
    assert {config['crop_mode'] for config in found.values()} == {'center'}


def test_a_model_that_was_trained_from_a_release_has_its_protocol_at_its_own_size(cli, tmp_path):
    folder = save_folder(small_of('tinyvit', img_size=64, num_classes=10), tmp_path / 'model')
    out = tmp_path / 'out'
    code, _, err = cli('evaluate', folder, '-d', 'digits', '--protocol', 'paper', '-o', out)
    assert code == 0, err
    config = json.loads((out / 'results.json').read_text())['preprocessing']
    assert (config['input_size'], config['crop_pct']) == ([3, 64, 64], 0.875)


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        (('--crop-pct', '0.9'), 'both set the crop'),
        (('--img-size', '256'), '--protocol is of the size that a release is for'),
    ],
    ids=['crop', 'size'],
)
def test_options_that_contradict_a_protocol_are_refused(cli, images, more, words):
    code, out, err = cli('evaluate', 'tinyvit_5m_224', '--random', '-d', images, '--protocol', 'paper', *more)
    assert code == 2
    assert words in ' '.join(err.split())
    assert out == ''


def test_stored_crops_are_not_cropped_again_by_a_protocol(cli, images):
    line = ('evaluate', 'tinyvit_5m_224', '--random', '-d', 'imagenet-c', '--root', images, '--protocol', 'paper')
    code, _, err = cli(*line)
    assert code == 2
    assert 'leave --protocol out' in ' '.join(err.replace('│', ' ').split())
