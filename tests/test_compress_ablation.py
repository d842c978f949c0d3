"""The models of MiniViT's ablation: what is shared, norms too (Fig. 2a, 4), and which transformations are made."""

import copy

import pytest
import timm
import torch
from conftest import assert_same
from multiplexed import blocks, count, each_kind, images, stirred, teacher
from timm.models import reparameterize_model
from timm.models.vision_transformer import ParallelScalingBlock
from torch import nn

from tinyvit_zoo.compress import multiplex
from tinyvit_zoo.hub import save_folder

PLAIN = dict(transform=False, share_norms=True)
ROWS = {
    'sharing all': PLAIN,
    'sharing': dict(transform=False),
    'of MSA': dict(mlp_transform=False),
    'of MLP': dict(transform=False, mlp_transform=True),
    'of both': dict(mlp_transform=True),
    'of both, norms shared': dict(mlp_transform=True, share_norms=True),
}
each_row = pytest.mark.parametrize('row', ROWS)


def own(model: nn.Module, first: int, second: int) -> set[str]:
    """Names of the parameters that the second of two blocks does not share with the first."""
    theirs = {id(p) for p in blocks(model)[first].parameters()}
    return {name for name, p in blocks(model)[second].named_parameters() if id(p) not in theirs}


# --- what is shared


@each_kind
def test_a_group_that_shares_its_norms_is_one_block_that_runs_several_times(kind):
    """Eq. 4: Z_{i+1} = f(Z_i; theta)."""
    student = stirred(multiplex(teacher(kind, init_values=0.1) if kind == 'vit' else teacher(kind), **PLAIN))
    assert own(student, 0, 1) == set()
    assert own(student, 1, 2)
    assert len(student.state_dict()) == len(list(student.parameters()))
    if kind == 'vit':
        x = torch.randn(2, 17, 48)
        first, second = student.blocks[:2]
        torch.testing.assert_close(second(first(x)), first(first(x)), rtol=0, atol=0)


@each_kind
def test_transformations_stay_apart_where_norms_are_shared(kind):
    student = multiplex(teacher(kind), mlp_transform=True, share_norms=True)
    assert {name.rpartition('.')[0] for name in own(student, 0, 1)} == {
        'attn.mix_logits', 'attn.mix_probs', 'mlp_conv.conv',
    }  # fmt: skip
    fitted = multiplex(teacher('vit'), mlp_transform=True, share_norms=True, init='first', calibration=[images()])
    assert blocks(fitted)[1].mlp_conv.conv.weight.any()
    assert blocks(fitted)[0].norm1.weight is blocks(fitted)[1].norm1.weight


def test_layers_that_keep_nothing_are_not_fitted():
    model = teacher('vit')
    assert_same(
        multiplex(model, **PLAIN, init='first', calibration=[images()]).state_dict(),
        multiplex(model, **PLAIN, init='first').state_dict(),
    )


@pytest.mark.parametrize(
    ('name', 'share_every', 'kwargs', 'parameters', 'printed'),
    [
        ('deit_small_patch16_224', 2, PLAIN, 11_403_880, 11),
        ('deit_small_patch16_224', 2, dict(transform=False), 11_413_096, 11),
        ('deit_small_patch16_224', 2, {}, 11_413_960, 11),
        # Head mixing 2 * 6^2 and a convolution of (7^2 + 1) * 384 for each of 12 layers.
        ('deit_small_patch16_224', 2, dict(mlp_transform=True), 11_413_096 + 12 * (72 + 19_200), None),
        ('swin_tiny_patch4_window7_224', 'stage', PLAIN, 11_755_741, 12),
        ('swin_tiny_patch4_window7_224', 'stage', dict(transform=False), 11_767_645, 12),
        ('swin_tiny_patch4_window7_224', 'stage', {}, 11_992_657, 12),
    ],
)
def test_parameters_are_those_that_table_1_prints(name, share_every, kwargs, parameters, printed):
    model = timm.create_model('multiplexed', base=name, share_every=share_every, device='meta', **kwargs)
    assert count(model) == parameters
    assert printed is None or round(parameters / 1e6) == printed


# --- the MLP transformation of a plain ViT


def test_the_mlp_of_a_vit_reads_its_patches_through_a_convolution():
    """Eq. 8 with C = I + a depthwise convolution over the 4 x 2 patches, written out; tokens without a place stay."""
    model = teacher('vit', img_size=(32, 16), reg_tokens=2)
    block = stirred(multiplex(model, mlp_transform=True, mlp_conv_kernel=3), 0.5).double().blocks[1]
    x = torch.randn(2, 3 + 8, 48, dtype=torch.float64)
    middle = x + block.attn(block.norm1(x))
    y = block.norm2(middle)
    kernel, bias = block.mlp_conv.conv.weight, block.mlp_conv.conv.bias
    expected = y.clone()
    for row in range(4):
        for col in range(2):
            total = y[:, 3 + 2 * row + col] + bias
            for i in range(max(0, row - 1), min(4, row + 2)):
                for j in range(max(0, col - 1), min(2, col + 2)):
                    total = total + kernel[:, 0, i - row + 1, j - col + 1] * y[:, 3 + 2 * i + j]
            expected[:, 3 + 2 * row + col] = total
    torch.testing.assert_close(block(x), middle + block.mlp(expected), rtol=1e-12, atol=1e-12)


def test_head_mixing_alone_leaves_the_mlp_to_timm_and_the_reverse():
    mixed, convolved = (multiplex(teacher('vit'), **ROWS[row]) for row in ('of MSA', 'of MLP'))
    assert not hasattr(mixed.blocks[0], 'mlp_conv')
    assert not any('mix' in name for name in convolved.state_dict())
    assert convolved.blocks[0].mlp_conv.conv.kernel_size == (7, 7)
    assert convolved.blocks[0].mlp_conv is not convolved.blocks[1].mlp_conv


@each_row
def test_every_row_begins_as_its_layers_and_gives_gradients_to_all_parts(row):
    # Pooled over the patches: a convolution in the last layer reaches no class token.
    model, x = teacher('vit', global_pool='avg').double(), images(dtype=torch.float64)
    torch.testing.assert_close(multiplex(model, 1, init='first', **ROWS[row])(x), model(x), rtol=0, atol=1e-10)
    student = stirred(multiplex(model, init='first', **ROWS[row]))
    student(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in student.parameters())


@pytest.mark.parametrize(
    ('kind', 'row'), [*(('vit', row) for row in ROWS), ('swin', 'sharing all'), ('swin', 'of both, norms shared')]
)
def test_every_row_is_made_again_from_its_folder_to_the_bit(kind, row, tmp_path):
    student = stirred(multiplex(teacher(kind), init='first', **ROWS[row]))
    again = timm.create_model(f'local-dir:{save_folder(student, tmp_path / "folder")}', pretrained=True).eval()
    assert_same(again.state_dict(), student.state_dict())
    x = images()
    torch.testing.assert_close(again(x), student(x), rtol=0, atol=0)
    assert (count(again), own(again, 0, 1)) == (count(student), own(student, 0, 1))


def test_the_grid_follows_a_new_size_of_the_image(tmp_path):
    student = stirred(multiplex(teacher('vit'), mlp_transform=True))
    folder = save_folder(student, tmp_path / 'small')
    student.set_input_size((64, 48))
    assert {block.mlp_conv.grid_size for block in student.blocks} == {(8, 6)}
    x = torch.randn(1, 3, 64, 48)
    wide = timm.create_model(f'local-dir:{folder}', pretrained=True, img_size=(64, 48)).eval()
    torch.testing.assert_close(wide(x), student(x))
    again = timm.create_model(f'local-dir:{save_folder(student, tmp_path / "large")}', pretrained=True).eval()
    torch.testing.assert_close(again(x), student(x), rtol=0, atol=0)


def test_deit_distilled_and_hybrids_keep_their_tokens_and_stems():
    for name in ('deit_tiny_distilled_patch16_224', 'vit_tiny_r_s16_p8_224', 'vit_small_patch14_reg4_dinov2'):
        model = timm.create_model(name, device='meta')
        student = multiplex(model, mlp_transform=True, init='first')
        assert student.blocks[0].mlp_conv.num_prefix_tokens == model.num_prefix_tokens
        student.set_input_size((224 + 56, 224))
        assert student.blocks[-1].mlp_conv.grid_size == student.patch_embed.grid_size
        assert student(torch.empty(1, 3, 280, 224, device='meta')).shape == (1, model.num_classes or model.embed_dim)


# --- interfaces of torch


@torch.no_grad()
@pytest.mark.parametrize('row', ['sharing all', 'of both, norms shared'])
def test_the_deploy_form_gives_the_same_and_shares_the_same(row):
    student, x = stirred(multiplex(teacher('swin'), init='first', **ROWS[row])), images()
    deployed = reparameterize_model(copy.deepcopy(student))
    torch.testing.assert_close(deployed(x), student(x))
    assert own(deployed, 0, 1) == own(student, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize('row', ['sharing all', 'of both'])
def test_a_vit_is_compiled_exported_scripted_and_traced(row):
    from timm.models._features_fx import create_feature_extractor

    torch._dynamo.reset()
    student, x = stirred(multiplex(teacher('vit'), **ROWS[row])), images()
    graph = create_feature_extractor(student, {'head': 'out'})
    torch.testing.assert_close(graph(x)['out'], student(x))
    torch.testing.assert_close(torch.jit.script(student)(x), student(x))
    torch.testing.assert_close(torch.compile(student, fullgraph=True, backend='aot_eager')(x), student(x))
    batch = torch.export.Dim('batch', min=1, max=64)
    exported = torch.export.export(student, (x,), dynamic_shapes=({0: batch},))
    five = images(5)
    torch.testing.assert_close(exported.module()(five), student(five))


# --- refusals


@pytest.mark.parametrize(
    ('name', 'built', 'kwargs', 'reason'),
    [
        ('deit_tiny_patch16_224', dict(dynamic_img_size=True), dict(mlp_transform=True), 'a grid of patches that stay'),
        ('deit_tiny_patch16_224', dict(patch_drop_rate=0.5), dict(mlp_transform=True), 'leave patch_drop_rate out'),
        ('vit_small_patch16_18x2_224', {}, dict(mlp_transform=True), 'ParallelThingsBlock has no place'),
    ],
)
def test_a_vit_without_a_steady_grid_is_refused(name, built, kwargs, reason):
    with pytest.raises(ValueError, match=reason):
        multiplex(timm.create_model(name, device='meta', **built), init='first', **kwargs)
    with pytest.raises(ValueError, match=reason):
        timm.create_model('multiplexed', base=name, device='meta', **built, **kwargs)


def test_norms_that_differ_or_lie_in_no_layer_are_refused():
    model = teacher('vit')
    model.blocks[1].norm1 = nn.BatchNorm1d(48)
    with pytest.raises(ValueError, match=r'blocks\.0 and blocks\.1 cannot share weights: norm1 is LayerNorm in one'):
        multiplex(model, **PLAIN)
    model = teacher('vit')
    for i in range(4):
        model.blocks[i] = ParallelScalingBlock(48, 3, qkv_bias=False)
    with pytest.raises(ValueError, match=r'blocks\.0 holds mlp_bias itself.*leave share_norms out'):
        multiplex(model, **PLAIN)
