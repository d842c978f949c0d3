"""TinyViT with a last map of stride 16: sizes, weights, pages and features follow."""

import timm
import torch
from conftest import FEATURE_CLASSES, assert_same, load, refused
from timm.models import reparameterize_model

from tinyvit_zoo.hub.folder import save_folder
from tinyvit_zoo.info import profile_model
from tinyvit_zoo.layers import stage_grids


def by_hand(small, **kwargs) -> torch.nn.Module:
    """The same model, by the definition: at stride 32, but with a last merging that keeps the map."""
    model = small(**kwargs)
    model.stages[-1].downsample.conv2.conv.stride = (1, 1)
    return model


@torch.no_grad()
def test_the_last_map_keeps_the_size_of_the_one_before(small):
    model, reference = small(output_stride=16), by_hand(small)
    assert_same(model.state_dict(), reference.state_dict())
    assert model.window_sizes == reference.window_sizes
    for size in ((224, 224), (33, 47), (64, 96)):
        x = torch.randn(2, 3, *size)
        maps = model.forward_intermediates(x, intermediates_only=True)
        assert [tuple(y.shape[-2:]) for y in maps] == list(stage_grids(size, output_stride=16))
        assert [-(-size[0] // info['reduction']) for info in model.feature_info] == [y.shape[-2] for y in maps]
        assert torch.equal(model(x), reference(x))


@torch.no_grad()
def test_every_feature_wrapper_returns_the_larger_map(small):
    x = torch.randn(1, 3, 64, 96)
    for kind in FEATURE_CLASSES['tinyvit']:
        features = small(output_stride=16, features_only=True, feature_cls=kind)
        assert features.feature_info.reduction() == [4, 8, 16, 16]
        maps = features(x)
        maps = list(maps.values()) if isinstance(maps, dict) else maps
        assert [tuple(y.shape[1:]) for y in maps] == [(16, 16, 24), (32, 8, 12), (32, 4, 6), (64, 4, 6)]


@torch.no_grad()
def test_released_weights_load_unchanged(official_file):
    file = official_file('tiny_vit_5m_224')
    model = load('tinyvit_5m_224', file, output_stride=16, features_only=True)
    assert model(torch.randn(1, 3, 64, 64))[-1].shape == (1, 320, 4, 4)
    whole = load('tinyvit_5m_224', file, output_stride=16)
    assert_same(whole.state_dict(), load('tinyvit_5m_224', file).state_dict())


def test_a_new_size_and_a_saved_page_keep_it(small, tmp_path):
    model = small(output_stride=16)
    assert model.pretrained_cfg['pool_size'] == (14, 14)
    model.set_input_size((64, 96))
    assert model.pretrained_cfg['pool_size'] == (4, 6)
    save_folder(model, tmp_path / 'page')
    page = timm.create_model(f'local-dir:{tmp_path / "page"}', pretrained=True).eval()
    assert (page.output_stride, tuple(page.pretrained_cfg['pool_size'])) == (16, (4, 6))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(page(x), model(x))
    coarse = timm.create_model(f'local-dir:{tmp_path / "page"}', output_stride=32)
    assert tuple(coarse.pretrained_cfg['pool_size']) == (2, 3)
    refused(lambda: save_folder(model, tmp_path / 'timms', for_timm=True), 'tinyvit-zoo only', kind=ValueError)
    at_224 = small(output_stride=16)
    refused(lambda: save_folder(at_224, tmp_path / 'timms', for_timm=True), 'stride 32', kind=ValueError)


def test_costs_follow(small):
    model = small(output_stride=16, img_size=64)
    profile, reference = profile_model(model), profile_model(by_hand(small, img_size=64))
    assert (profile.params, profile.macs) == (reference.params, reference.macs)
    assert profile.macs > profile_model(small(img_size=64)).macs


@torch.no_grad()
def test_the_deploy_form_is_the_same_function(small):
    model, x = small(output_stride=16).double(), torch.randn(3, 3, 70, 90, dtype=torch.float64)
    torch.testing.assert_close(reparameterize_model(model)(x), model(x), rtol=0, atol=1e-10)


def test_fewer_stages_have_the_stride_that_is_left(small):
    model = small(output_stride=16)
    model.prune_intermediate_layers([2])
    model.set_input_size(96)
    assert model.pretrained_cfg['pool_size'] == (6, 6)
    assert model(torch.randn(1, 3, 96, 96)).shape[-2:] == (6, 6)


def test_other_strides_are_refused_in_one_sentence(small):
    for stride in (8, 64, 0, 'a'):
        refused(lambda s=stride: small(output_stride=s), 'output_stride must be 32 or 16', kind=ValueError)
