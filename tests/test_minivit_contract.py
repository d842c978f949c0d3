"""Special to Mini-DeiT and Mini-Swin: shared weights, stateless repeats, quirks and their flags."""

import copy
import io

import pytest
import timm
import torch
from conftest import ARCHITECTURES, SMALL_OF, assert_same, images_for, load, refused, size_of, small_of
from golden_rule import constant, official_state_dict
from timm.models._input import get_model_input_config
from timm.optim import param_groups_layer_decay
from torch import nn

from tinyvit_zoo.checkpoints import MINI_DEIT_KEYS
from tinyvit_zoo.hub.folder import save_folder
from tinyvit_zoo.layers import HeadMix, RelativeKeys

MINIS = ['mini_deit', 'mini_swin']
SIZE = (96, 64)
DEIT, SWIN = 'mini_deit_tiny_patch16_224', 'mini_swin_tiny_patch4_window7_224'

each_mini = pytest.mark.parametrize('family', MINIS)


def layers_of(model: nn.Module) -> int:
    """Logical layers."""
    return sum(block.repeats for block in blocks_of(model))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, 'repeats')]


# --- weights are shared


@pytest.mark.parametrize('name', ['mini_deit_tiny_patch16_224', SWIN])
def test_shared_weights_count_once_everywhere(name):
    """In the parameters, in the bytes of a file, in the state of an optimizer."""
    model = timm.create_model(name)
    count = sum(p.numel() for p in model.parameters())
    assert len({p.data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
    assert sum(v.numel() for v in model.state_dict().values()) == count
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    assert 4 * count < len(file.getvalue()) < 4 * count + 200_000
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for moment in ('exp_avg', 'exp_avg_sq'):
        assert sum(state[moment].numel() for state in optimizer.state.values()) == count


@pytest.mark.parametrize(
    ('name', 'repeats', 'parameters'),
    [
        ('mini_deit_base_patch16_224', 12, 8_674_408),  # the paper's 9M: one stored layer
        ('mini_deit_base_patch16_224', 6, 15_759_208),
        ('mini_deit_base_patch16_224', 3, 29_928_808),
        ('mini_deit_base_patch16_224', 2, 44_098_408),  # 44M, released
        (SWIN, 2, 15_551_677),  # 16M in the paper's Table 2
        (SWIN, (2, 2, 3, 2), 13_776_721),
        (SWIN, (2, 2, 6, 2), 12_001_765),  # 12M, released
    ],
)
def test_any_number_of_layers_can_share_their_weights(name, repeats, parameters):
    model = timm.create_model(name, repeats=repeats, device='meta')
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert layers_of(model) == 12


@pytest.mark.parametrize('repeats', [1, 2, 4])
@each_mini
@torch.no_grad()
def test_sharing_equals_equal_weights(family, repeats):
    """A shared block computes what blocks with copies of its weights, each run once, compute."""
    depths = {'mini_deit': dict(depth=4), 'mini_swin': dict(depths=(4, 4, 4, 4))}[family]
    shared = small_of(family, img_size=SIZE, repeats=repeats, **depths).double()
    plain = small_of(family, img_size=SIZE, repeats=1, **depths).double()
    weights = shared.state_dict()
    for key in plain.state_dict():
        source = key
        if '.blocks.' in f'.{key}':
            stem, _, rest = key.rpartition('blocks.')
            layer, _, rest = rest.partition('.')
            block, repeat = divmod(int(layer), repeats)
            source = f'{stem}blocks.{block}.{rest.replace(".0.", f".{repeat}.")}'  # the only number left in a name
        plain.state_dict()[key].copy_(weights[source])
    x = images_for(shared, dtype=torch.float64)
    torch.testing.assert_close(shared(x), plain(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize('repeats', [0, 3, 5, (2, 2)], ids=str)
@each_mini
def test_layers_that_cannot_be_grouped_are_refused(family, repeats):
    if family == 'mini_deit' and not isinstance(repeats, int):
        repeats = 7
    with pytest.raises(ValueError, match='repeats must divide the depth'):
        small_of(family, repeats=repeats)


@each_mini
def test_layer_decay_gives_each_shared_block_one_rate(family):
    model = small_of(family)
    groups = param_groups_layer_decay(model, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5)
    rates = {id(p): group['lr_scale'] for group in groups for p in group['params']}
    assert len(rates) == len(list(model.parameters()))
    of_blocks = [{rates[id(p)] for p in block.parameters()} for block in blocks_of(model)]
    assert all(len(found) == 1 for found in of_blocks)
    ordered = [found.pop() for found in of_blocks]
    assert ordered == sorted(ordered)
    assert ordered[0] < ordered[-1] <= 1.0


@each_mini
def test_no_weight_decay_is_that_of_the_released_recipe(family):
    model = small_of(family)
    ending = {'mini_deit': 'pos_embed', 'mini_swin': 'relative_position_bias_table'}[family]
    assert model.no_weight_decay() == {k for k, _ in model.named_parameters() if k.endswith(ending)}


# --- stateless repeats


def attributes(model: nn.Module) -> dict[str, dict]:
    """All attributes of the modules except the weights."""
    return {name: {k: v for k, v in vars(m).items() if not k.startswith('_')} for name, m in model.named_modules()}


@pytest.mark.parametrize('training', [False, True])
@each_mini
def test_a_forward_leaves_no_trace_in_the_modules(family, training):
    model = small_of(family, img_size=SIZE, drop_path_rate=0.1).train(training)
    before = copy.deepcopy(attributes(model))
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    model(images_for(model)).sum().backward()
    with torch.no_grad():
        model(images_for(model))
    after = attributes(model)
    assert after.keys() == before.keys()
    for name, values in after.items():
        assert values == before[name], name
    assert_same(dict(model.named_buffers()), buffers)


@each_mini
def test_repeats_may_run_in_any_order(family):
    """The output of a block depends on the requested repeat, not on earlier calls."""
    model = small_of(family, img_size=SIZE)
    block = blocks_of(model)[0]
    if family == 'mini_deit':
        x, rest = torch.randn(2, 24, 48), (model.rpe_index,)
    else:
        x, rest = torch.randn(2, 24, 16, 16), ((0, 0), None)
    with torch.no_grad():
        first, second = block(x, 0, *rest), block(x, 1, *rest)
        for _ in range(2):
            torch.testing.assert_close(block(x, 1, *rest), second, rtol=0, atol=0)
            torch.testing.assert_close(block(x, 0, *rest), first, rtol=0, atol=0)
    assert (first - second).abs().max() > 0.1


@pytest.mark.parametrize('repeat', [2, -1])
@each_mini
def test_a_repeat_that_does_not_exist_is_refused(family, repeat):
    norms = blocks_of(small_of(family))[0].norm1
    with pytest.raises(IndexError, match='no such repeat'):
        norms(torch.zeros(1, 1, norms[0].weight.numel()), repeat)


@each_mini
@torch.no_grad()
def test_large_batches_change_nothing(family):
    """In plain inference large batches are processed in parts; gradients and hooks see them whole."""
    model = small_of(family, img_size=SIZE).double()
    x = images_for(model, batch=71, dtype=torch.float64)
    with torch.enable_grad():
        expected = model(x).detach()
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat([model(part) for part in x.split(7)]), expected, rtol=0, atol=1e-12)
    assert model(x[:0]).shape == (0, 11)


@each_mini
@torch.no_grad()
def test_a_hook_sees_every_layer_once_and_whole(family):
    model = small_of(family, img_size=SIZE)
    calls = []
    for block in blocks_of(model):
        block.register_forward_hook(lambda module, args, out: calls.append((out.shape[0], args[1])))
    model(images_for(model, batch=71))
    assert len(calls) == layers_of(model)
    assert {batch for batch, _ in calls} == {71}
    assert [repeat for _, repeat in calls] == [r for block in blocks_of(model) for r in range(block.repeats)]


@pytest.mark.slow
@pytest.mark.parametrize('kwargs', [{}, dict(dynamic_img_size=True)], ids=str)
@each_mini
@torch.no_grad()
def test_it_is_one_graph(family, kwargs):
    model = small_of(family, img_size=SIZE, **kwargs)
    torch._dynamo.reset()
    fast = torch.compile(model, fullgraph=True, backend='eager', dynamic=False)
    for size in [SIZE, (64, 128)] if kwargs else [SIZE]:
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


# --- quirks


@pytest.mark.parametrize(
    ('family', 'flag'),
    [('mini_deit', 'rpe_scaled_q'), ('mini_swin', 'mask_unshifted'), ('mini_swin', 'replace_residual')],
)
@torch.no_grad()
def test_every_quirk_of_released_weights_can_be_switched_off(family, flag):
    """Both forms are checked against a model spelled out in `test_minivit_golden.py`; here: no weight depends on it."""
    quirky, plain = small_of(family), small_of(family, **{flag: False})
    assert_same(plain.state_dict(), quirky.state_dict())
    x = images_for(quirky)
    assert (quirky(x) - plain(x)).abs().max() > 1e-3


@torch.no_grad()
def test_masking_unshifted_layers_has_no_effect_in_a_stage_of_one_window():
    whole = {'window_size': ((24, 16), (12, 8), (6, 4), (3, 2)), 'img_size': SIZE}
    quirky, plain = (small_of('mini_swin', mask_unshifted=flag, **whole) for flag in (True, False))
    x = images_for(quirky)
    torch.testing.assert_close(quirky(x), plain(x), rtol=0, atol=0)


def test_norms_have_the_eps_of_their_family():
    for family, eps in (('mini_deit', 1e-6), ('mini_swin', 1e-5)):
        assert {m.eps for m in small_of(family).modules() if isinstance(m, nn.LayerNorm)} == {eps}


# --- buffers that released files store with the weights


@pytest.fixture
def released() -> dict[str, torch.Tensor]:
    return official_state_dict('mini_swin_tiny')


def load_swin(state_dict: dict[str, torch.Tensor], **kwargs) -> nn.Module:
    return timm.create_model(SWIN, pretrained=True, pretrained_cfg_overlay=dict(state_dict=state_dict), **kwargs)


INDEX, MASK = 'layers.3.blocks.0.attn.relative_position_index', 'layers.1.blocks.0.attn_mask'


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=7), dict(features_only=True)], ids=str)
@pytest.mark.parametrize('key', [INDEX, MASK])
def test_a_stored_buffer_that_disagrees_with_the_model_is_refused(key, kwargs, released):
    released[key].view(-1)[17] += 1
    refused(lambda: load_swin(released, **kwargs), key, 'does not hold what the released code computes')


def test_buffers_for_other_windows_are_ignored(released):
    expected = load_swin(released, img_size=384)
    released[MASK].fill_(3)
    released[INDEX].fill_(3)
    assert_same(load_swin(released, img_size=384).state_dict(), expected.state_dict())
    refused(lambda: load_swin(released), 'does not hold')


@pytest.mark.parametrize('img_size', [224, (448, 112), (112, 448), 448])
def test_a_sound_mask_is_never_refused(released, img_size):
    assert load_swin(released, img_size=img_size, window_size=7).window_sizes == ((7, 7),) * 4


@pytest.mark.parametrize('change', [lambda mask: mask[:3], lambda mask: mask.repeat(2, 1, 1), lambda mask: mask.T])
def test_a_mask_of_no_arrangement_of_windows_is_refused(released, change):
    released[MASK] = change(released[MASK])
    refused(lambda: load_swin(released), MASK)


def test_where_one_axis_has_a_single_window_none_is_shifted():
    """As in the released code; timm's Swin would still shift the other axis."""
    model = timm.create_model(SWIN, img_size=(224, 448), window_size=7)
    assert [stage.shift for stage in model.stages] == [(3, 3), (3, 3), (3, 3), (0, 0)]
    assert model.stages[3].attn_mask is None


@each_mini
def test_training_mode_draws_once_for_the_whole_batch(family):
    """Re-entrant checkpointing runs a block without gradients first, and again with them: the same must be dropped."""
    model = small_of(family, drop_path_rate=0.5, img_size=224).train()
    x = torch.randn(12, 3, 224, 224)
    outputs = []
    for grad in (True, False):
        torch.manual_seed(0)
        with torch.set_grad_enabled(grad):
            outputs.append(model(x).detach())
    torch.testing.assert_close(*outputs)


def test_plain_weights_are_taken_where_the_released_training_code_keeps_both(tmp_path):
    """It evaluates the plain weights of Mini-DeiT, and publishes their accuracy."""
    official = MINI_DEIT_KEYS.to_official(timm.create_model(DEIT).state_dict())
    averaged = {k: torch.zeros_like(v) for k, v in official.items()}
    torch.save({'model': official, 'model_ema': averaged, 'epoch': 299}, tmp_path / 'file.pth')
    model = load(DEIT, tmp_path / 'file.pth')
    torch.testing.assert_close(model.head.weight, official['head.weight'], rtol=0, atol=0)


def test_features_of_shared_layers_come_by_the_getter_only():
    with pytest.raises(ValueError, match='getter'):
        timm.create_model(DEIT, features_only=True, feature_cls='hook')


def test_weights_assigned_to_a_model_without_memory_work_at_once():
    expected = timm.create_model(DEIT).eval()
    model = timm.create_model(DEIT, device='meta').eval()
    model.load_state_dict(expected.state_dict(), assign=True)
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(model(x), expected(x), rtol=0, atol=0)


def test_files_without_buffers_load_too(released):
    bare = {k: v for k, v in released.items() if not k.endswith(('attn_mask', 'relative_position_index'))}
    assert len(released) - len(bare) == 4 + 3
    assert_same(load_swin(bare).state_dict(), load_swin(released).state_dict())


@pytest.mark.parametrize(('size', 'window'), [(224, 7), (384, 12), (96, 3)])
def test_masks_follow_the_size_as_in_the_released_code(size, window):
    created, resized = timm.create_model(SWIN, img_size=size), timm.create_model(SWIN)
    resized.set_input_size(size)
    for model in (created, resized):
        assert model.window_sizes == ((window, window),) * 4
        for stage, windows in zip(model.stages, (8, 4, 2), strict=False):
            expected = constant('attn_mask', (windows**2, window**2, window**2))
            torch.testing.assert_close(stage.attn_mask, torch.from_numpy(expected), rtol=0, atol=0)
        assert model.stages[3].attn_mask is None


def test_a_smaller_model_names_the_weights_that_it_cannot_hold(released):
    arguments = dict(depths=(2, 2), num_heads=(3, 6), repeats=2)
    refused(lambda: load_swin(released, num_classes=7, **arguments), 'layers.2.blocks.0')


# --- sizes


@pytest.mark.parametrize(
    ('img_size', 'windows'),
    [
        (224, ((7, 7), (7, 7), (7, 7), (7, 7))),
        (384, ((12, 12), (12, 12), (12, 12), (12, 12))),
        ((256, 320), ((8, 10), (8, 10), (8, 10), (8, 10))),
        ((112, 448), ((4, 14), (4, 14), (4, 14), (4, 14))),
        (200, ((7, 7), (7, 7), (7, 7), (7, 7))),
        (32, ((1, 1), (1, 1), (1, 1), (1, 1))),
    ],
    ids=str,
)
@torch.no_grad()
def test_windows_of_mini_swin_keep_their_number_per_side(img_size, windows):
    resized = small_of('mini_swin')
    resized.set_input_size(img_size)
    for model in (small_of('mini_swin', img_size=img_size), resized):
        assert model.window_sizes == windows
        for (h, w), stage in zip(windows, model.stages, strict=True):
            for block in stage.blocks:
                assert block.attn.window_size == (h, w)
                assert len(block.attn.relative_position_bias_table) == (2 * h - 1) * (2 * w - 1)
        assert model(images_for(model, batch=1)).isfinite().all()


@pytest.mark.parametrize(
    ('spec', 'windows'),
    [
        (8, ((8, 8),) * 4),
        ((8, 10), ((8, 10),) * 4),
        ((7, 6, 14, 5), ((7, 7), (6, 6), (14, 14), (5, 5))),
        ([(4, 14), 7, [7, 14], 3], ((4, 14), (7, 7), (7, 14), (3, 3))),
    ],
    ids=str,
)
@torch.no_grad()
def test_windows_of_mini_swin_can_be_given_in_every_form(spec, windows):
    resized = small_of('mini_swin', img_size=SIZE)
    resized.set_input_size(window_size=spec)
    for model in (small_of('mini_swin', img_size=SIZE, window_size=spec), resized):
        assert model.window_sizes == windows
        assert model(images_for(model)).isfinite().all()


@pytest.mark.parametrize('spec', [0, -7, 7.5, (7, 14, 7), (7, 14, 7, 7, 7), (7, 0, 7, 7), (7, 'x', 7, 7), ()], ids=str)
def test_windows_that_cannot_work_are_refused_and_change_nothing(spec):
    with pytest.raises(ValueError, match='window'):
        small_of('mini_swin', window_size=spec)
    model = small_of('mini_swin')
    before, arguments, cfg = copy.deepcopy(model.state_dict()), dict(model._model_args), dict(model.pretrained_cfg)
    with pytest.raises(ValueError, match='window'):
        model.set_input_size(384, window_size=spec)
    assert_same(model.state_dict(), before)
    assert (model.img_size, model._model_args, model.pretrained_cfg) == ((224, 224), arguments, cfg)
    assert size_of(model) == (224, 224)


@pytest.mark.parametrize('size', [31, (224, 8), 0, -224], ids=str)
@each_mini
def test_a_size_that_cannot_work_is_refused_and_changes_nothing(family, size):
    with pytest.raises(ValueError, match='size'):
        small_of(family, img_size=size)
    model = small_of(family)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match='size'):
        model.set_input_size(size)
    assert_same(model.state_dict(), before)
    assert size_of(model) == (224, 224)
    assert model(images_for(model)).shape == (2, 11)


@each_mini
def test_images_of_another_size_are_refused_with_advice(family):
    model = small_of(family, img_size=SIZE)
    for size in [(64, 96), (96, 96), (97, 64)]:
        with pytest.raises(AssertionError, match=r'96 x 64 .*set_input_size.*dynamic_img_size'):
            model(torch.zeros(1, 3, *size))


@each_mini
def test_a_model_says_whether_its_size_is_fixed(family):
    for dynamic in (False, True):
        model = small_of(family, dynamic_img_size=dynamic)
        assert get_model_input_config(model)['fixed_input_size'] is not dynamic


@pytest.mark.parametrize(
    ('family', 'fixed'),
    [
        ('mini_deit', {}),
        # Windows keep their size; they shift where the model is laid out with several of them.
        ('mini_swin', dict(window_size=2)),
    ],
)
@torch.no_grad()
def test_a_dynamic_model_accepts_every_size_and_equals_a_resized_one(family, fixed):
    start = (128, 96)
    dynamic = small_of(family, img_size=start, dynamic_img_size=True, **fixed)
    for size in [start, (96, 128), (160, 128), (96, 192)]:
        resized = small_of(family, img_size=start, **fixed)
        resized.set_input_size(size, **fixed)
        x = torch.randn(2, 3, *size)
        torch.testing.assert_close(dynamic(x), resized(x), rtol=1e-5, atol=1e-6)
        for a, b in zip(dynamic.forward_intermediates(x)[1], resized.forward_intermediates(x)[1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_timms_names_for_any_size_mean_the_same():
    x = torch.randn(1, 3, 100, 90)
    swin = small_of('mini_swin', strict_img_size=False)
    assert torch.equal(swin(x), small_of('mini_swin', dynamic_img_size=True)(x))
    deit = small_of('mini_deit', dynamic_img_size=True, dynamic_img_pad=True)
    padded = nn.functional.pad(x, (0, 6, 0, 12))
    torch.testing.assert_close(deit(x), deit(padded))
    with pytest.raises(AssertionError):
        small_of('mini_deit', dynamic_img_size=True)(x)


@torch.no_grad()
def test_windows_shrink_to_their_map_where_timm_would_shrink_them():
    args = dict(img_size=128, window_size=7)
    assert small_of('mini_swin', **args).window_sizes == ((7, 7),) * 4
    model = small_of('mini_swin', **args, always_partition=False)
    theirs = timm.create_model('swin_tiny_patch4_window7_224', **args, device='meta')
    assert [layer.blocks[0].window_size for layer in theirs.layers] == list(model.window_sizes)
    model.set_input_size(window_size=9, always_partition=True)
    assert model.window_sizes == ((9, 9),) * 4
    model.set_input_size(always_partition=False)
    assert model.window_sizes == ((9, 9), (9, 9), (8, 8), (4, 4))
    assert model(torch.randn(1, 3, 128, 128)).isfinite().all()


@torch.no_grad()
def test_windows_can_be_given_as_parts_of_the_grid():
    model = small_of('mini_swin')
    model.set_input_size((128, 256), window_ratio=8)
    theirs = timm.create_model('swin_tiny_patch4_window7_224', device='meta')
    theirs.set_input_size((128, 256), window_ratio=8)
    assert model.window_sizes == ((4, 8),) * 4
    assert model.window_sizes == tuple(layer.blocks[0].attn.window_size for layer in theirs.layers)
    assert model(torch.randn(1, 3, 128, 256)).isfinite().all()
    for bad in (0, (8, 8)):
        with pytest.raises((ValueError, AssertionError)):
            model.set_input_size(window_ratio=bad)
    assert model.window_sizes == ((4, 8),) * 4


def test_a_saved_model_keeps_how_its_windows_were_given(tmp_path):
    model = small_of('mini_swin', img_size=128, window_size=7, always_partition=False)
    save_folder(model, tmp_path / 'page')
    again = timm.create_model(f'local-dir:{tmp_path / "page"}', pretrained=True)
    assert again.window_sizes == model.window_sizes
    assert_same(again.state_dict(), model.state_dict())
    larger = timm.create_model(f'local-dir:{tmp_path / "page"}', pretrained=True, img_size=256)
    assert larger.window_sizes == ((7, 7),) * 4  # the map of the last stage now holds them


@torch.no_grad()
def test_a_dynamic_mini_swin_accepts_any_number_of_pixels():
    model = small_of('mini_swin', dynamic_img_size=True)
    for size in [(33, 47), (64, 200), (201, 199), (225, 223)]:
        assert model(torch.randn(2, 3, *size)).isfinite().all()


def test_a_dynamic_mini_deit_needs_whole_patches():
    model = small_of('mini_deit', dynamic_img_size=True)
    with pytest.raises(AssertionError):
        model(torch.zeros(1, 3, 100, 100))


@pytest.mark.slow
@each_mini
@torch.no_grad()
def test_one_exported_program_of_a_dynamic_model_accepts_many_sizes(family):
    model = small_of(family, img_size=SIZE, dynamic_img_size=True)
    step = {'mini_deit': 16, 'mini_swin': 32}[family]
    height, width = (step * torch.export.Dim(name, min=2, max=16) for name in ('rows', 'columns'))
    dynamic = dict(x={0: torch.export.Dim('batch', max=64), 2: height, 3: width})
    program = torch.export.export(model, (torch.randn(2, 3, 160, 128),), dynamic_shapes=dynamic).module()
    for size in [(160, 128), (64, 96), (256, 64), (224, 224)]:
        x = torch.randn(3, 3, *size)
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


# --- features and pruning


@pytest.mark.parametrize('last', range(8))
@torch.no_grad()
def test_mini_deit_can_end_within_a_shared_block(last):
    model = small_of('mini_deit', img_size=SIZE, depth=8, repeats=4)
    x = images_for(model)
    _, layers = model.forward_intermediates(x, output_fmt='NLC')
    before = sum(p.numel() for p in model.parameters())
    assert model.prune_intermediate_layers([last], prune_norm=True) == [last]
    torch.testing.assert_close(model.forward_features(x), layers[last], rtol=0, atol=0)
    assert layers_of(model) == len(model.feature_info) == last + 1
    assert len(model.blocks) == last // 4 + 1
    assert sum(p.numel() for p in model.parameters()) < before
    with torch.enable_grad():
        model.train()(x).square().sum().backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []
    again, (only,) = model.forward_intermediates(x, [last], output_fmt='NLC')
    torch.testing.assert_close(only, layers[last], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(again, only)


@torch.no_grad()
def test_mini_swin_ends_after_a_stage():
    for last in range(4):
        model = small_of('mini_swin', img_size=SIZE)
        x = images_for(model)
        _, stages = model.forward_intermediates(x)
        model.prune_intermediate_layers([last], prune_norm=True)
        torch.testing.assert_close(model.forward_features(x).permute(0, 3, 1, 2), stages[last], rtol=0, atol=0)


@torch.no_grad()
def test_mini_deit_returns_tokens_as_timms_vit():
    model = small_of('mini_deit', img_size=SIZE)
    x = images_for(model)
    final, layers = model.forward_intermediates(x, norm=True, output_fmt='NLC')
    torch.testing.assert_close(layers[-1], final, rtol=0, atol=0)
    maps = model.get_intermediate_layers(x, n=2, reshape=True, norm=True)
    for tokens, features in zip(layers[-2:], maps, strict=True):
        torch.testing.assert_close(tokens.transpose(1, 2).reshape(2, 48, 6, 4), features, rtol=0, atol=0)
    torch.testing.assert_close(model.forward_head(final, pre_logits=True), final.mean(1))
    assert model.num_prefix_tokens == 0
    for pool in ('token', 'max', 'avgmax'):
        with pytest.raises(ValueError, match='no class token'):
            model.reset_classifier(3, pool)


# --- initial values and recipes


def test_initial_values_are_the_released_ones():
    """Head mixing is initialized near zero, not as the identity, as released."""
    for family, arguments in (('mini_deit', dict(embed_dim=192)), ('mini_swin', dict(embed_dim=64))):
        name, small = SMALL_OF[family]
        model = timm.create_model(name, **{**small, **arguments})
        seen = set()
        for key, module in model.named_modules():
            seen.add(type(module))
            if isinstance(module, nn.Linear):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.1), key
                assert module.bias is None or module.bias.abs().max() == 0, key
            elif isinstance(module, nn.LayerNorm):
                assert (module.weight.min(), module.weight.max(), module.bias.abs().max()) == (1, 1, 0), key
            elif isinstance(module, nn.Conv2d):
                bound = module.weight[0].numel() ** -0.5  # PyTorch's own: uniform
                assert module.weight.abs().max() <= bound, key
                assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.15), key
            elif isinstance(module, RelativeKeys):
                assert module.table.abs().max() == 0, key
            elif isinstance(module, HeadMix):
                assert module.weight.abs().max() < 0.1, key
                assert module.bias is None or module.bias.abs().max() == 0, key
        assert {nn.Linear, nn.LayerNorm, nn.Conv2d, HeadMix} < seen
        mixes = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, HeadMix)])
        assert mixes.std().item() == pytest.approx(0.02, rel=0.3)
        drawn = {'mini_deit': 'pos_embed', 'mini_swin': 'stages.1.blocks.0.attn.relative_position_bias_table'}[family]
        assert model.get_parameter(drawn).std().item() == pytest.approx(0.02, rel=0.1)


MINI_ARCHITECTURES = [name for name in ARCHITECTURES if name.startswith('mini')]


def rates_of(model: nn.Module) -> list[float]:
    """Stochastic depth of every logical layer."""
    return [getattr(drop, 'drop_prob', 0.0) for block in blocks_of(model) for drop in block.drop_path]


@pytest.mark.parametrize('name', MINI_ARCHITECTURES)
def test_drop_path_rises_linearly_over_the_logical_layers(name):
    rates = rates_of(timm.create_model(name, drop_path_rate=0.22, device='meta'))
    assert len(rates) == (24 if 'swin' in name and 'tiny' not in name else 12)
    assert rates == pytest.approx([0.22 * i / (len(rates) - 1) for i in range(len(rates))])


@pytest.mark.parametrize('name', MINI_ARCHITECTURES)
def test_default_drop_path_is_the_released_one(name):
    released = {'mini_deit_base': 0.1, 'mini_swin_small': 0.1, 'mini_swin_base': 0.2}
    rate = next((r for start, r in released.items() if name.startswith(start)), 0.0)
    assert rates_of(timm.create_model(name, device='meta'))[-1] == pytest.approx(rate)
