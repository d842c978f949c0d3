"""Special to the plain ViTs: TinyMIM's students and TinyMIM*, MAE-Lite's distilled form and its tables."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import assert_same, images_for, refused, small_of
from golden_rule import fill_by_rule
from plain_vit_reference import norm, tokens
from timm.models import VisionTransformer, beit, reparameterize_model
from timm.models._manipulate import reinit_non_persistent_buffers
from torch import nn

from tinyvit_zoo.compress import multiplex
from tinyvit_zoo.dense import DenseBackbone
from tinyvit_zoo.distill import FeatureTap
from tinyvit_zoo.layers import resize_beit_table
from tinyvit_zoo.models import MaeLiteDistilled, PlainVit

SIZE = (64, 32)
SMALL = dict(img_size=SIZE, embed_dim=48, depth=3, num_heads=3, num_classes=5)


def student(**kwargs) -> nn.Module:
    """Five blocks, of which four are trained."""
    return small_of('tinymim_student', **{'num_classes': 0, 'img_size': SIZE, **kwargs})


def star(**kwargs) -> nn.Module:
    return small_of('tinymim_star', **{'img_size': SIZE, **kwargs})


def distilled(**kwargs) -> MaeLiteDistilled:
    return fill_by_rule(MaeLiteDistilled(**{**SMALL, 'global_pool': 'avg', **kwargs})).eval()


def images(batch: int = 2, size: tuple[int, int] = SIZE) -> torch.Tensor:
    return torch.randn(batch, 3, *size)


def without_gradient(model: nn.Module) -> set[str]:
    model.train()
    y = model(images())
    sum(part.square().sum() for part in (y if isinstance(y, tuple) else (y,))).backward()
    return {key for key, p in model.named_parameters() if p.grad is None}


# --- a student


def test_a_students_tail_gets_no_gradient_by_default():
    """Its last block, and the norm behind it: to be frozen before DistributedDataParallel sees them."""
    last = {f'blocks.4.{name}' for name, _ in student().blocks[4].named_parameters()}
    assert without_gradient(student()) == last | {'norm.weight', 'norm.bias'}
    assert without_gradient(student(forward_depth=5)) == set()
    assert without_gradient(student(forward_depth=3)) == last | {'norm.weight', 'norm.bias'} | {
        key.replace('blocks.4.', 'blocks.3.') for key in last
    }


@torch.no_grad()
def test_a_students_features_do_not_depend_on_untrained_weights():
    model, x = student(), images()
    y = model(x)
    for key, p in model.named_parameters():
        if key.startswith(('blocks.4.', 'norm.')):
            p.fill_(float('nan'))
    assert torch.equal(model(x), y)
    assert torch.equal(model.forward_features(x), model.forward_intermediates(x)[0])


@torch.no_grad()
def test_a_students_intermediates_count_the_blocks_that_run():
    model, x = student(), images()
    after = tokens(model.state_dict(), x, [3, 3, 3, 3])
    last, maps = model.forward_intermediates(x, output_fmt='NLC', return_prefix_tokens=True)
    torch.testing.assert_close(last, after[-1], rtol=1e-4, atol=1e-4)
    for (patches, prefix), expected in zip(maps, after, strict=True):
        torch.testing.assert_close(torch.cat([prefix, patches], 1), expected, rtol=1e-4, atol=1e-4)
    (normed,) = model.get_intermediate_layers(x, 1, norm=True)
    torch.testing.assert_close(normed, norm(model.state_dict(), 'norm', after[-1])[:, 1:], rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError, match='out of range'):
        model.forward_intermediates(x, indices=[4])
    assert [info['module'] for info in model.feature_info] == [f'blocks.{i}' for i in range(4)]


@torch.no_grad()
def test_a_pruned_student_gives_the_same_maps():
    model, x = student(), images()
    expected = model.forward_intermediates(x, indices=[0, 2], intermediates_only=True)
    kept = model.prune_intermediate_layers([0, 2], prune_norm=True)
    assert len(model.blocks) == 3
    torch.testing.assert_close(
        model.forward_intermediates(x, indices=kept, intermediates_only=True), expected, rtol=0, atol=0
    )
    assert model(x).shape == (2, 9, 48)


@pytest.mark.parametrize('forward_depth', [0, 6])
def test_an_impossible_depth_is_refused(forward_depth):
    refused(lambda: student(forward_depth=forward_depth), '1 ... 5', str(forward_depth), kind=ValueError)


def test_a_student_drops_paths_at_one_rate_and_none_in_its_last_block():
    rates = [getattr(block.drop_path1, 'drop_prob', 0.0) for block in student(drop_path_rate=0.2).blocks]
    assert rates == [0.2, 0.2, 0.2, 0.2, 0.0]


@torch.no_grad()
def test_distillation_taps_of_a_student_end_with_its_last_trained_block():
    with FeatureTap(student()) as tap:
        _, features = tap(images())
    assert features.layers == (0, 1, 2, 3)


def test_blocks_of_a_student_cannot_all_share_their_weights():
    refused(lambda: multiplex(student(), 'stage'), 'num_heads', '3', '6', kind=ValueError)


# --- TinyMIM*


@torch.no_grad()
def test_the_distillation_token_is_the_second_and_has_the_second_position():
    model, x = star(), images()
    direction = torch.randn(48)
    moved = []
    for name, row in (('dist_token', 0), ('pos_embed', 1), ('cls_token', 0), ('pos_embed', 0)):
        other = copy.deepcopy(model)
        getattr(other, name)[0, row] += direction
        moved.append(other(x))
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(moved[2], moved[3], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(moved[0], moved[2], rtol=1e-2, atol=1e-2)


def test_both_prefix_rows_survive_a_resize():
    model = star()
    before = model.pos_embed.detach().clone()
    model.set_input_size((96, 48))
    assert torch.equal(model.pos_embed[:, :2], before[:, :2])
    assert model.pos_embed.shape == (1, 2 + 6 * 3, 48)


@pytest.mark.parametrize('make', [star, distilled])
@torch.no_grad()
def test_two_classifiers_are_averaged_or_returned_as_a_pair_in_distilled_training(make):
    model, x = make(), images()
    mean = model(x)
    model.set_distilled_training(True)
    assert torch.equal(model(x), mean)
    pair = model.train()(x)
    torch.testing.assert_close((pair[0] + pair[1]) / 2, mean, rtol=1e-5, atol=1e-5)
    assert not torch.equal(*pair)
    model.set_distilled_training(False)
    torch.testing.assert_close(model(x), mean, rtol=0, atol=0)


@pytest.mark.parametrize('make', [star, distilled])
def test_every_parameter_of_two_classifiers_learns(make):
    assert without_gradient(make()) == set()


@pytest.mark.parametrize('make', [star, distilled])
@torch.no_grad()
def test_two_classifiers_are_reset_together(make):
    model, x = make().double(), images().double()
    model.reset_classifier(7)
    assert {head.weight.dtype for head in model.get_classifier()} == {torch.float64}
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))
    refused(lambda: model.reset_classifier(3, 'token'), "'avg' or ''", "'token'", kind=ValueError)
    assert model.num_classes == 0


@pytest.mark.parametrize('make', [star, distilled])
@torch.no_grad()
def test_without_pooling_all_tokens_are_normalized_and_classified(make):
    """As timm's ViTs do it."""
    model, x = make(), images()
    model.reset_classifier(7, '')
    normed = model.fc_norm(model.forward_features(x))
    torch.testing.assert_close(model(x), model.head(normed), rtol=1e-5, atol=1e-5)
    model.reset_classifier(0, '')
    torch.testing.assert_close(model(x), normed, rtol=1e-5, atol=1e-5)


def test_tinymim_star_has_no_other_weights_without_pooling():
    assert star(global_pool='').state_dict().keys() == star().state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize('argument', [dict(reg_tokens=2), dict(pos_embed='none'), dict(fc_norm=False)], ids=str)
def test_what_tinymim_star_fixes_is_refused(argument):
    with pytest.raises(TypeError, match=next(iter(argument))):
        star(**argument)


@torch.no_grad()
def test_dropped_patches_leave_both_tokens_of_tinymim_star():
    model = star(patch_drop_rate=0.5).train()
    tokens, first, second = (
        model._embed(images(64)),
        *(
            t + p
            for t, p in zip((model.cls_token[0], model.dist_token[0]), model.pos_embed[0, :2].split(1), strict=True)
        ),
    )
    assert tokens.shape[1] == 2 + 4
    torch.testing.assert_close(tokens[:, :2], torch.cat([first, second]).expand(64, -1, -1))


def test_a_second_classifier_needs_the_class_token():
    refused(lambda: distilled(class_token=False), 'class token', kind=ValueError)


@pytest.mark.parametrize('make', [star, distilled])
def test_rescaled_initial_values_are_rescaled(make):
    plain, rescaled = (type(make())(**SMALL, global_pool='avg', fix_init=fix) for fix in (False, True))
    ratio = rescaled.blocks[2].attn.proj.weight.std() / plain.blocks[2].attn.proj.weight.std()
    assert ratio.item() == pytest.approx(6**-0.5, rel=0.15)


def test_the_expansion_of_tinymim_star_is_pruned_with_its_head():
    model, x = star(), images()
    expected = model.forward_intermediates(x, indices=[1], intermediates_only=True)
    model.prune_intermediate_layers([1])
    assert model.num_features == model.embed_dim == 48
    assert not any(key.startswith(('conv1x1', 'fc_norm', 'head')) for key in model.state_dict())
    torch.testing.assert_close(
        model.forward_intermediates(x, indices=[1], intermediates_only=True), expected, rtol=0, atol=0
    )
    assert model(x).shape == (2, 10, 48)


# --- arguments that timm's ViT also has


@pytest.mark.parametrize('make', [student, star])
@torch.no_grad()
def test_a_dictionary_of_features_holds_the_same_as_the_tuple(make):
    model, x = make(), images()
    final, pairs = model.forward_intermediates(x, return_prefix_tokens=True)
    found = model.forward_intermediates(x, return_prefix_tokens=True, output_dict=True)
    assert sorted(found) == ['image_features', 'image_intermediates', 'image_intermediates_prefix']
    assert torch.equal(found['image_features'], final)
    for i, pair in enumerate(pairs):
        assert torch.equal(found['image_intermediates'][i], pair[0])
        assert torch.equal(found['image_intermediates_prefix'][i], pair[1])
    alone = model.forward_intermediates(x, intermediates_only=True, output_dict=True)
    assert list(alone) == ['image_intermediates']


@pytest.mark.parametrize('make', [student, star])
@torch.no_grad()
def test_causal_attention_is_that_of_a_triangular_mask(make):
    model, x = make(), images()
    tokens = model.num_prefix_tokens + 8
    mask = torch.zeros(tokens, tokens).masked_fill(torch.ones(tokens, tokens).triu(1).bool(), float('-inf'))
    causal = model.forward_features(x, is_causal=True)
    torch.testing.assert_close(causal, model.forward_features(x, attn_mask=mask), rtol=1e-4, atol=1e-4)
    assert torch.equal(model.forward_intermediates(x, is_causal=True)[0], causal)
    assert torch.equal(model(x, is_causal=True), model.forward_head(causal))
    assert (causal - model.forward_features(x)).abs().max() > 1e-3


# --- MAE-Lite with two classifiers, which no tag has


@torch.no_grad()
def test_the_class_token_serves_as_distillation_token():
    model = distilled().double()
    state, x = model.state_dict(), images().double()
    last = tokens(state, x, [3] * 3)[-1]
    of_patches = norm(state, 'fc_norm', last[:, 1:].mean(dim=1)) @ state['head.weight'].T + state['head.bias']
    of_token = norm(state, 'dist_norm', last[:, 0]) @ state['head_dist.weight'].T + state['head_dist.bias']
    torch.testing.assert_close(model(x), (of_patches + of_token) / 2, rtol=0, atol=1e-10)


def test_a_dense_backbone_leaves_no_norm_of_the_distillation_token_behind():
    backbone = DenseBackbone(distilled())
    sum(level.sum() for level in backbone(images())).backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@torch.no_grad()
def test_the_distilled_form_can_be_scripted_copied_and_deployed():
    model, x = distilled(), images()
    for same in (torch.jit.script(model), torch.jit.trace(model, x), copy.deepcopy(model), reparameterize_model(model)):
        torch.testing.assert_close(same(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_the_distilled_form_can_be_exported_and_compiled():
    model, x = distilled(), images()
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('batch', max=64)},)).module()
    for batch in (1, 5):
        assert program(images(batch)).shape == (batch, 5)
    torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-4)


# --- relative-position tables


@pytest.mark.parametrize('args', [{}, dict(use_rel_pos_bias=False, use_shared_rel_pos_bias=True)], ids=str)
@pytest.mark.parametrize('fused', [True, False])
@torch.no_grad()
def test_a_called_projection_changes_no_bit_of_timms_attention(args, fused):
    model, x = small_of('mae_lite_rpe', img_size=SIZE, **args), images()
    for block in model.blocks:
        block.attn.fused_attn = fused
    theirs = copy.deepcopy(model)
    for block in theirs.blocks:
        block.attn.__class__ = beit.Attention
    assert torch.equal(model(x), theirs(x))
    with torch.enable_grad():
        assert torch.equal(model(x), theirs(x))


def test_an_adapter_around_the_projection_acts():
    """Each gets a gradient, and adds to queries, keys and values with their biases."""

    class Adapted(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.more = base, nn.Linear(base.in_features, base.out_features, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + self.more(x)

    model, x = small_of('mae_lite_rpe', img_size=SIZE), images()
    merged = copy.deepcopy(model)
    for block, other in zip(model.blocks, merged.blocks, strict=True):
        block.attn.qkv = Adapted(block.attn.qkv)
        other.attn.qkv.weight.data += block.attn.qkv.more.weight.data
    y = model(x)
    torch.testing.assert_close(y, merged(x), rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    assert all(block.attn.qkv.more.weight.grad.any() for block in model.blocks)


def test_tables_are_decayed_and_positions_are_not():
    model = small_of('mae_lite_rpe')
    assert model.no_weight_decay() == {'pos_embed', 'cls_token'}


@pytest.mark.parametrize('shared', [False, True])
@torch.no_grad()
def test_tables_follow_the_size_by_the_released_spline(shared):
    args = dict(use_rel_pos_bias=not shared, use_shared_rel_pos_bias=shared)
    model = small_of('mae_lite_rpe', img_size=SIZE, **args)
    copied = copy.deepcopy(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.set_input_size((96, 80))
    tables = [k for k in before if k.endswith('relative_position_bias_table')]
    assert len(tables) == (1 if shared else 4)
    for key in tables:
        assert torch.equal(model.state_dict()[key], resize_beit_table(before[key], (4, 2), (6, 5))), key
    assert_same(copied.state_dict(), before)
    made = small_of('mae_lite_rpe', img_size=(96, 80), **args)
    made.load_state_dict(model.state_dict())
    x = images(size=(96, 80))
    assert torch.equal(made(x), model(x))


@torch.no_grad()
def test_a_model_with_tables_can_be_resized_before_it_has_memory():
    """Buffers that no file holds are recomputed for the new grid."""
    expected = small_of('mae_lite_rpe', img_size=(96, 80))
    with torch.device('meta'):
        model = timm.create_model(
            'mae_lite_vit_tiny_rpe_patch16_224', img_size=SIZE, embed_dim=48, depth=4, num_heads=6, num_classes=11
        )
    model.set_input_size((96, 80))
    model.to_empty(device='cpu')
    reinit_non_persistent_buffers(model)
    model.load_state_dict(expected.state_dict())
    x = images(size=(96, 80))
    assert torch.equal(model.eval()(x), expected(x))


def test_queries_of_a_model_with_tables_are_tapped_with_their_biases():
    """They are parameters beside the projection, whose output a hook sees without them."""
    model, x = small_of('mae_lite_rpe', img_size=SIZE), images()
    attn, inputs = model.blocks[2].attn, []
    with attn.register_forward_pre_hook(lambda _, args: inputs.append(args[0])), FeatureTap(model) as tap:
        taken = tap(x)[1].qkv[2]
    expected = F.linear(inputs[0], attn.qkv.weight, torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])).chunk(3, -1)
    for name, actual, value in zip('qkv', taken, expected, strict=True):
        torch.testing.assert_close(actual, value, msg=name)
    assert attn.q_bias.abs().min() > 0
    with FeatureTap(model, qkv=False) as tap:
        assert len(tap(x)[1].hidden) == 4


# --- timm's own arguments


@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        dict(reg_tokens=4),
        dict(reg_tokens=2, no_embed_class=True),
        dict(class_token=False, global_pool='avg'),
        dict(class_token=False, global_pool='avg', reg_tokens=2),
        dict(pos_embed='none'),
        dict(class_token=False, global_pool='avg', pos_embed='none'),
        dict(global_pool='map'),
        dict(pre_norm=True, qk_norm=True, init_values=0.1),
        dict(qkv_bias=False, final_norm=False),
        dict(dynamic_img_size=True, dynamic_img_pad=True),
        dict(patch_drop_rate=0.5, drop_path_rate=0.5, proj_drop_rate=0.1),
    ],
    ids=str,
)
def test_a_plain_vit_equals_timms_at_its_own_size(kwargs):
    ours = fill_by_rule(PlainVit(**SMALL, **kwargs))
    theirs = VisionTransformer(**SMALL, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    x = images()
    for training in (False, True):
        outputs = []
        for model in (ours, theirs):
            torch.manual_seed(1)
            outputs.append(model.train(training)(x))
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kwargs', [{}, dict(reg_tokens=2, no_embed_class=True)], ids=str)
@torch.no_grad()
def test_images_of_any_size_give_the_output_of_a_model_of_that_size(kwargs):
    model = fill_by_rule(PlainVit(**SMALL, **kwargs, dynamic_img_size=True)).eval()
    x = images(size=(96, 80))
    y = model(x)
    model.set_input_size((96, 80))
    torch.testing.assert_close(model(x), y, rtol=1e-5, atol=1e-5)
    model.set_input_size((16, 16))
    assert model(images(1, (16, 16))).isfinite().all()


@torch.no_grad()
def test_smaller_patches_resize_the_positions_to_their_grid():
    model = fill_by_rule(PlainVit(**SMALL)).eval()
    model.set_input_size(patch_size=8)
    assert model.pos_embed.shape == (1, 1 + 8 * 4, 48)
    assert {info['reduction'] for info in model.feature_info} == {8}
    assert model(images_for(model)).isfinite().all()
