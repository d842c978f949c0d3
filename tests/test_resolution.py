"""One resolution, one layout, of every family: at creation, on load, in `set_input_size`, and in a saved folder."""

import copy
from itertools import product

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import ARCHITECTURES, SMALL_OF, assert_same, for_each, images_for, load, rest_is_full, size_of
from timm.data import resolve_model_data_config
from timm.models._hub import save_for_hf

from tinyvit_zoo.hub.folder import save_folder

# By family: the ending of the parameters that depend on the image size.
SIZED = {
    'tinyvit': 'attention_biases',
    'mini_deit': 'pos_embed',
    'mini_swin': 'relative_position_bias_table',
    **dict.fromkeys(('tinymim', 'tinymim_student', 'tinymim_star'), 'pos_embed'),
    'mae_lite_rpe': ('pos_embed', 'relative_position_bias_table'),
    'clip_vit': 'pos_embed',
}
# Kinds whose position embedding has one row per patch: as many patches in another shape look the same in a bare file.
TOKENS = [family for family, ending in SIZED.items() if 'pos_embed' in ending]
SIZES = [64, (128, 96)]


def sized(model: torch.nn.Module, family: str) -> dict[str, torch.Tensor]:
    """Parameters that depend on the image size."""
    return {k: p for k, p in model.named_parameters() if k.endswith(SIZED[family])}


def grid_of(model: torch.nn.Module, key: str) -> tuple[int, int]:
    """Cells (rows, columns) that such a parameter has entries for."""
    if key == 'pos_embed':
        return model.patch_embed.grid_size
    h, w = model.window_sizes[int(key.split('.')[1])]
    return (h, w) if key.endswith('attention_biases') else (2 * h - 1, 2 * w - 1)


def as_maps(value: torch.Tensor, grid: tuple[int, int], key: str) -> torch.Tensor:
    """The parameter as (1, maps, rows, columns)."""
    value = value.detach()
    if key == 'pos_embed':  # rows of class and distillation token come before the patches
        value = value[0, value.shape[1] - grid[0] * grid[1] :].T
    elif key.endswith('relative_position_bias_table'):
        value = value.T
    return value.reshape(1, -1, *grid)


@pytest.fixture
def file_at_224(any_small, tmp_path):
    torch.save(any_small().state_dict(), tmp_path / 'at_224.pth')
    return tmp_path / 'at_224.pth'


@pytest.fixture
def loaded(family, file_at_224):
    """Loads the file of the 224 model into a small model."""
    name, arguments = SMALL_OF[family]
    return lambda **kwargs: load(name, file_at_224, **{**arguments, **kwargs})


# --- set_input_size


def test_set_input_size_without_arguments_does_nothing(any_small):
    model = any_small(img_size=96)
    before = copy.deepcopy(model.state_dict())
    parameters = [id(p) for p in model.parameters()]
    model.set_input_size()
    assert_same(model.state_dict(), before)
    assert [id(p) for p in model.parameters()] == parameters
    assert size_of(model) == (96, 96)


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_set_input_size_equals_creation_at_that_size(size, any_small, loaded):
    resized, created = any_small(), loaded(img_size=size)
    resized.set_input_size(size)
    assert_same(resized.state_dict(), created.state_dict())
    x = images_for(resized)
    torch.testing.assert_close(resized(x), created(x), rtol=0, atol=0)


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_a_size_changes_only_its_parameters_each_interpolated_on_its_grid(size, family, any_small):
    model, source = any_small(), any_small()
    before = source.state_dict()
    model.set_input_size(size)
    assert sized(model, family)
    for key, value in model.state_dict().items():
        if key not in sized(model, family):
            torch.testing.assert_close(value, before[key], rtol=0, atol=0)
            continue
        assert value.shape != before[key].shape
        if family == 'mae_lite_rpe' and key != 'pos_embed':
            continue  # not on an even grid, see `test_beit_table.py`
        old, new = grid_of(source, key), grid_of(model, key)
        expected = F.interpolate(as_maps(before[key], old, key), size=new, mode='bicubic', align_corners=False)
        torch.testing.assert_close(as_maps(value, new, key), expected, rtol=0, atol=0)


def test_enlarging_and_returning_gives_nearly_the_same(family, any_small):
    model, before = any_small(), copy.deepcopy(sized(any_small(), family))
    model.set_input_size(448)
    model.set_input_size(224)
    assert before
    for key, value in sized(model, family).items():
        if family == 'mae_lite_rpe' and key != 'pos_embed':
            continue  # far offsets are stretched, and random numbers do not survive it
        a, b = value.detach().flatten(), before[key].detach().flatten()
        assert value.shape == before[key].shape
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.9, key


def test_frozen_parameters_stay_frozen_and_trained_ones_trained(family, any_small):
    model = any_small()
    frozen = next(iter(sized(model, family)))
    model.get_parameter(frozen).requires_grad_(False)
    model.set_input_size(96)
    wanted = {k: p.requires_grad for k, p in model.named_parameters()}
    assert not wanted.pop(frozen)
    assert all(wanted.values())


def test_resized_parameters_can_be_trained(family, any_small):
    model = any_small()
    model.set_input_size(96)
    model(images_for(model)).sum().backward()
    assert sized(model, family)
    for key, parameter in sized(model, family).items():
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_dtype_is_kept(dtype, any_small):
    model = any_small().to(dtype)
    model.set_input_size(96)
    assert {t.dtype for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()} == {dtype}
    assert model(images_for(model, dtype=dtype)).dtype == dtype


def test_mode_and_device_are_kept(family, any_small):
    model = any_small().train()
    model.set_input_size(96)
    assert all(m.training for m in model.modules())
    meta = timm.create_model(SMALL_OF[family][0], device='meta')
    meta.set_input_size(112)
    assert {t.device.type for t in [*meta.parameters(), *meta.buffers()]} == {'meta'}


def test_a_resized_model_is_independent_of_its_copy(any_small):
    model = any_small()
    before = copy.deepcopy(model.state_dict())
    twin = copy.deepcopy(model)
    twin.set_input_size(96)
    assert_same(model.state_dict(), before)
    assert size_of(model) == (224, 224)
    assert size_of(twin) == (96, 96)


@pytest.mark.parametrize('size', [(224, 224, 3), (224,)], ids=str)
def test_an_impossible_size_is_refused(size, any_small):
    with pytest.raises(ValueError, match='img_size must be'):
        any_small(img_size=size)


# --- checkpoints of other sizes


SAVED_AT = [(112, 448), (448, 112), (128, 288), 384, 96]
WAYS = ['file', 'hub-folder', 'file-with-input-size']
# Where tokens are rows, as many patches in another shape are the hard case: every way meets that.
IN_TURN = [(SAVED_AT[0], way) for way in WAYS] + [(size, WAYS[i % len(WAYS)]) for i, size in enumerate(SAVED_AT)]


@pytest.mark.parametrize(('size', 'way'), rest_is_full(product(SAVED_AT, WAYS), IN_TURN), ids=str)
def test_a_checkpoint_reloads_unchanged_at_the_size_it_was_saved_at(size, way, family, any_small, tmp_path):
    if family in TOKENS and way == 'file' and size in ((112, 448), (448, 112)):
        size = (112, 432)  # as many patches as 224 x 224 has: a file alone does not show whether it was resized
    saved = any_small(img_size=size)
    name, arguments = SMALL_OF[family]
    if way == 'hub-folder':
        save_for_hf(saved, tmp_path / 'hub', safe_serialization=True)
        reloaded = timm.create_model(f'local-dir:{tmp_path / "hub"}', pretrained=True).eval()
    else:
        torch.save(saved.state_dict(), tmp_path / 'saved.pth')
        overlay = dict(file=str(tmp_path / 'saved.pth'))
        if way == 'file-with-input-size':
            overlay['input_size'] = (3, *size_of(saved))
            reloaded = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
        else:
            reloaded = load(name, overlay['file'], img_size=size, **arguments)
    assert size_of(reloaded) == size_of(saved)
    assert_same(reloaded.state_dict(), saved.state_dict())


@pytest.mark.parametrize(
    ('family', 'key'), [('tinyvit', 'stages.2.blocks.0.attn.attention_biases'), ('mini_deit', 'pos_embed')]
)
def test_equal_counts_of_entries_do_not_hide_a_resize(key, any_small, loaded):
    """14x14 and 7x28 both have 196 entries: they must still be resized for (112, 448)."""
    old, model = any_small().state_dict()[key], loaded(img_size=(112, 448))
    new = model.state_dict()[key]
    assert new.shape == old.shape
    expected = F.interpolate(as_maps(old, (14, 14), key), size=(7, 28), mode='bicubic')
    torch.testing.assert_close(as_maps(new, (7, 28), key), expected, rtol=0, atol=0)


def test_a_folder_saved_non_square_is_resized_from_its_real_grid(any_small, tmp_path):
    saved = any_small(img_size=(112, 448))
    save_for_hf(saved, tmp_path, safe_serialization=True)
    moved = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, img_size=224)
    expected = copy.deepcopy(saved)
    expected.set_input_size(224)
    assert_same(moved.state_dict(), expected.state_dict())


# --- timm and the Hub follow the size


def input_size(model: torch.nn.Module, **kwargs) -> tuple[int, ...]:
    return tuple(resolve_model_data_config(model, **kwargs)['input_size'])


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_the_data_config_follows_the_real_size(size, any_small, loaded):
    pair = size if isinstance(size, tuple) else (size, size)
    resized = any_small()
    resized.set_input_size(size)
    for model in (any_small(img_size=size), loaded(img_size=size), resized):
        assert size_of(model) == pair
        assert input_size(model) == input_size(model, use_test_size=True) == (3, *pair)
        assert model.default_cfg is model.pretrained_cfg
        if model.pretrained_cfg['pool_size']:
            features = model.forward_intermediates(images_for(model), intermediates_only=True)[-1]
            assert model.pretrained_cfg['pool_size'] == tuple(features.shape[-2:])
    resized.set_input_size(224)
    assert input_size(resized) == (3, 224, 224)
    assert input_size(any_small()) == (3, 224, 224)  # the registry itself was not touched


@pytest.mark.parametrize('channels', [1, 2, 4, 6])
def test_the_data_config_follows_the_channels(channels, any_small, loaded, tmp_path):
    """One mean and deviation each, as timm converts the first layer: summed for one channel, else repeated in turn."""
    three = resolve_model_data_config(any_small())
    expected = {
        key: [three[key][i % 3] for i in range(channels)] if channels > 1 else [pytest.approx(sum(three[key]) / 3)]
        for key in ('mean', 'std')
    }
    made = any_small(in_chans=channels, img_size=64)
    made.set_input_size(96)
    save_folder(made, tmp_path / 'page')
    page = timm.create_model(f'local-dir:{tmp_path / "page"}', pretrained=True)
    assert_same(page.state_dict(), made.state_dict())
    for model in (made, loaded(in_chans=channels, img_size=96), page):
        config = resolve_model_data_config(model)
        assert list(config['input_size']) == [channels, 96, 96]
        assert {key: list(config[key]) for key in expected} == expected
    again = resolve_model_data_config(timm.create_model(f'local-dir:{tmp_path / "page"}', in_chans=3))
    assert (again['input_size'][0], len(again['mean'])) == (3, 3)


@for_each('name', ARCHITECTURES)
def test_the_data_config_of_a_tag_is_its_own_size(name):
    size = int(name.rsplit('_', 1)[1])
    assert input_size(timm.create_model(name, device='meta')) == (3, size, size)


@pytest.mark.parametrize('safe', [True, False])
@pytest.mark.parametrize('size', SIZES, ids=str)
@torch.no_grad()
def test_a_resized_model_survives_a_hub_folder(size, safe, any_small, tmp_path):
    model = any_small(in_chans=4, drop_path_rate=0.1)
    model.set_input_size(size)
    save_for_hf(model, tmp_path, safe_serialization=safe)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert input_size(again) == (4, *size_of(model))
    assert again.num_classes == 11
    assert_same(again.state_dict(), model.state_dict())
    x = images_for(model)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_a_pruned_model_can_be_resized(any_small):
    model = any_small()
    model.prune_intermediate_layers([2])
    expected = any_small(img_size=96)
    expected.prune_intermediate_layers([2])
    model.set_input_size(96)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}
    assert model.forward_features(images_for(model)).shape == expected.forward_features(images_for(model)).shape
