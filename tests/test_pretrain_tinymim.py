"""TinyMIM's student and teacher: the released relations, losses and gradients; head counts; no unused computation."""

import json
import math

import pytest
import timm
import torch
from conftest import refused
from golden_rule import GOLDEN, fill_by_rule, golden, manifest, noise, ramp
from timm.layers import DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tinyvit_zoo.distill import relation_distillation_loss, relation_logits
from tinyvit_zoo.pretrain import RelationEncoder, tinymim_student, tinymim_teacher

SINGLE = 5e-6  # the reference is single precision
SMALL = dict(img_size=(48, 80), patch_size=16, embed_dim=24, depth=4, num_heads=3, num_classes=0)

slow = pytest.mark.slow
OFFICIAL = [
    pytest.param(f'{kind}_{size}', build, size, marks=slow if size in ('base', 'large') else (), id=f'{kind}-{size}')
    for kind, build, sizes in (
        ('student', tinymim_student, ('tiny', 'small', 'base')),
        ('teacher', tinymim_teacher, ('small', 'base', 'large')),
    )
    for size in sizes
]


def filled(build, size: str, **kwargs) -> RelationEncoder:
    """With the weights of the reference outputs, in evaluation mode, float32."""
    encoder = build(size, **kwargs).eval()
    fill_by_rule(encoder.vit)
    return encoder


def small(seed: int = 0, **kwargs) -> VisionTransformer:
    """A small timm ViT on rectangular images, in float64."""
    torch.manual_seed(seed)
    vit = VisionTransformer(**{**SMALL, **kwargs}).double().eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 48, 80, dtype=torch.float64)


# the released code


@pytest.mark.parametrize(('name', 'build', 'size'), OFFICIAL)
def test_the_names_and_shapes_are_the_released_ones(name, build, size):
    vit = build(size, device='meta').vit
    expected = {key: shape for key, (shape, _) in manifest(f'tinymim_{name}').items()}
    assert {key: tuple(tensor.shape) for key, tensor in vit.state_dict().items()} == expected


@pytest.mark.parametrize(('name', 'build', 'size'), OFFICIAL)
@torch.no_grad()
def test_the_relations_are_the_released_ones(name, build, size):
    official = golden(f'tinymim_{name}')
    q, k, v = filled(build, size)(noise(224, 224))
    for kind, logits in (('qk', relation_logits(q, k)), ('vv', relation_logits(v, v))):
        relation = logits.double().softmax(-1)
        entropy = -(relation * relation.log()).sum(-1).mean()
        stats = torch.stack([relation.mean(), relation.std(), relation.max(), entropy])
        assert tuple(relation.shape) == tuple(official['shape'])
        rows = torch.from_numpy(official[f'{kind}_rows']).double()
        torch.testing.assert_close(relation[:, :, official['rows']], rows, rtol=0, atol=SINGLE)
        stored = torch.from_numpy(official[f'{kind}_stats']).double()
        torch.testing.assert_close(stats, stored, rtol=1e-6, atol=SINGLE)


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [('tiny', 'base'), pytest.param('small', 'base', marks=slow), pytest.param('base', 'large', marks=slow)],
)
def test_loss_and_gradients_of_a_pair_are_the_released_ones(student, teacher):
    official = json.loads((GOLDEN / 'tinymim_relation_loss_e2e.json').read_text())[f'{student}<-{teacher}']
    student, teacher = filled(tinymim_student, student), filled(tinymim_teacher, teacher)
    loss = relation_distillation_loss(student(noise(224, 224)), teacher(noise(224, 224)))
    loss.total.backward()
    assert loss.qk.item() == pytest.approx(official['qk_loss'], abs=SINGLE)
    assert loss.vv.item() == pytest.approx(official['vv_loss'], abs=SINGLE)
    parameters = dict(student.vit.named_parameters())
    for name, norm in official['grad_norm'].items():
        assert parameters[name].grad.norm().item() == pytest.approx(norm, rel=1e-5), name
    assert [name for name, p in parameters.items() if p.grad is None] == official['params_without_grad']


def test_the_papers_own_pair_works_with_the_heads_that_the_teacher_was_trained_with():
    official = json.loads((GOLDEN / 'tinymim_relation_loss_e2e.json').read_text())['tiny<-small']
    assert '6' in official['error']  # the released code fails
    student = filled(tinymim_student, 'tiny', img_size=64)
    without, repaired = (
        filled(tinymim_teacher, 'small', img_size=64, last_heads=last_heads) for last_heads in (None, 12)
    )
    with torch.no_grad():
        features = student(noise(64, 64))
        refused(lambda: relation_distillation_loss(features, without(noise(64, 64))), 'last_heads', kind=ValueError)
        target = repaired(noise(64, 64))
        loss = relation_distillation_loss(features, target)
        # The same blocks ran before; the last projection is read in twelve heads, as TinyMIM-S itself reads it.
        as_student = filled(tinymim_student, 'small', img_size=64)(noise(64, 64))
    assert loss.total.isfinite()
    torch.testing.assert_close(target.v, as_student.v, rtol=0, atol=SINGLE)


# any plain ViT


def plain_relations(vit: VisionTransformer, x: torch.Tensor, block: int, heads: int) -> dict[str, torch.Tensor]:
    """Paper Eq. 2-4 written out, from timm's own features of the block before."""
    before = vit.forward_intermediates(
        x, indices=[block - 2], return_prefix_tokens=True, output_fmt='NLC', intermediates_only=True
    )
    patches, prefix = before[0]
    tokens = vit.blocks[block - 1].norm1(torch.cat([prefix, patches], 1))
    weight, bias = vit.blocks[block - 1].attn.qkv.weight, vit.blocks[block - 1].attn.qkv.bias
    width = weight.shape[1]
    q, k, v = (tokens @ weight[i * width : (i + 1) * width].T + bias[i * width : (i + 1) * width] for i in range(3))
    d = width // heads
    relations = {'qk': [], 'vv': []}
    for m in range(heads):
        part = slice(m * d, (m + 1) * d)
        relations['qk'].append((q[..., part] @ k[..., part].mT / math.sqrt(d)).softmax(-1))
        relations['vv'].append((v[..., part] @ v[..., part].mT / math.sqrt(d)).softmax(-1))
    return {name: torch.stack(value, 1) for name, value in relations.items()}


@pytest.mark.parametrize(('block', 'heads'), [(2, None), (3, 8), (4, 2)])
@torch.no_grad()
def test_any_block_of_any_plain_vit_gives_the_papers_relations(block, heads):
    vit, x = small(), images()
    q, k, v = RelationEncoder(vit, block, heads)(x)
    expected = plain_relations(vit, x, block, heads or 3)
    torch.testing.assert_close(relation_logits(q, k).softmax(-1), expected['qk'], rtol=0, atol=1e-8)
    torch.testing.assert_close(relation_logits(v, v).softmax(-1), expected['vv'], rtol=0, atol=1e-8)


@torch.no_grad()
def test_nothing_after_the_projection_is_computed():
    vit, x = small(), images()
    expected = RelationEncoder(vit, 3)(x)
    last = vit.blocks[2]
    for module in (last.attn.proj, last.norm2, last.mlp, vit.blocks[3], vit.norm):
        module.forward = lambda *args: pytest.fail('computed')
    for actual, tensor in zip(RelationEncoder(vit, 3)(x), expected, strict=True):
        assert torch.equal(actual, tensor)


def test_checkpointing_changes_no_gradient():
    x, teacher = images(), RelationEncoder(small(seed=1), 4, frozen=True)
    gradients = []
    for enable in (False, True):
        vit = small()
        vit.set_grad_checkpointing(enable)
        relation_distillation_loss(RelationEncoder(vit, 4)(x), teacher(x)).total.backward()
        gradients.append(vit.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_a_teacher_is_frozen_and_stays_in_evaluation_mode():
    teacher = tinymim_teacher('small', img_size=32, depth=2, block=2)
    teacher.train()
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    assert not any(tensor.requires_grad for tensor in teacher(x))


def test_a_student_in_training_mode_skips_branches_and_its_last_block_does_not():
    blocks = tinymim_student('tiny', device='meta').train().vit.blocks
    rates = [[getattr(drop, 'drop_prob', 0.0) for drop in (b.drop_path1, b.drop_path2)] for b in blocks]
    assert rates == [[0.1, 0.1]] * 11 + [[0.0, 0.0]]
    assert all(m.training for m in blocks.modules())


@pytest.mark.parametrize(('size', 'heads', 'last'), [('tiny', 6, 12), ('small', 6, 12), ('base', 12, 16)])
def test_a_student_has_the_released_heads(size, heads, last):
    student = tinymim_student(size, device='meta')
    assert [b.attn.num_heads for b in student.vit.blocks] == [heads] * 11 + [last]
    assert (student.heads, student.block) == (last, 12)


@pytest.mark.parametrize(('size', 'heads', 'block'), [('small', 6, 12), ('base', 12, 12), ('large', 16, 18)])
def test_a_teacher_has_the_released_heads_and_target_block(size, heads, block):
    teacher = tinymim_teacher(size, device='meta')
    assert {b.attn.num_heads for b in teacher.vit.blocks} == {heads}
    assert (teacher.heads, teacher.block) == (heads, block)


def test_a_student_is_initialized_as_released():
    vit = tinymim_student('tiny', img_size=(64, 96)).vit
    table = vit.pos_embed.detach()
    vit_again = timm.create_model('tinymim_vit_tiny_student_patch16_224', img_size=(64, 96))
    assert not vit.pos_embed.requires_grad
    assert table[0, 0].abs().max() == 0
    assert table.shape == vit_again.pos_embed.shape
    # First half of the channels: column, the same in every row; second half: row.
    grid = table[0, 1:].view(4, 6, 192)
    assert torch.equal(grid[0, :, :96], grid[3, :, :96])
    assert torch.equal(grid[:, 0, 96:], grid[:, 5, 96:])
    torch.testing.assert_close(grid[2, 3, 0], torch.tensor(math.sin(3)))
    torch.testing.assert_close(grid[2, 3, 96], torch.tensor(math.sin(2)))
    for linear, bound in (
        (vit.blocks[3].attn.qkv.weight, math.sqrt(6 / (192 + 3 * 192))),  # three matrices as one
        (vit.blocks[3].mlp.fc1.weight, math.sqrt(6 / (192 + 768))),
        (vit.patch_embed.proj.weight, math.sqrt(6 / (192 + 768))),  # as a matrix of its pixels
    ):
        assert linear.abs().max() <= bound
        assert linear.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not any(m.bias.any() for m in vit.blocks.modules() if isinstance(m, nn.Linear))
    assert vit.cls_token.std().item() == pytest.approx(0.02, rel=0.3)


def test_student_and_teacher_see_rectangular_images_alike():
    student = tinymim_student('tiny', img_size=(64, 96), last_heads=6).eval()
    teacher = tinymim_teacher('small', img_size=(64, 96))
    loss = relation_distillation_loss(student(ramp(64, 96)), teacher(ramp(64, 96)))
    assert loss.total.isfinite()


@torch.no_grad()
def test_a_teacher_drops_paths_in_training_mode_if_asked():
    """Table 13; everything else of it stays in evaluation mode."""
    x = torch.randn(8, 3, 32, 48)
    still = tinymim_teacher('small', img_size=(32, 48)).train()
    assert torch.equal(still(x).q, still(x).q)
    teacher = tinymim_teacher('small', img_size=(32, 48), drop_path_rate=0.1).train()
    assert not torch.equal(teacher(x).q, teacher(x).q)
    rates = [m.drop_prob for m in teacher.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.1)
    assert {type(m).__name__ for m in teacher.modules() if m.training} == {'DropPath'}
    teacher.eval()
    assert torch.equal(teacher(x).q, teacher(x).q)
    given = RelationEncoder(small(drop_path_rate=0.5), 2, frozen=True).train()  # unless asked
    assert not any(m.training for m in given.modules())


# refusals


@pytest.mark.parametrize(
    ('build', 'argument'),
    [
        (tinymim_student, dict(num_classes=10)),
        (tinymim_student, dict(patch_drop_rate=0.5)),
        (tinymim_student, dict(weight_init='jax')),
        (tinymim_student, dict(forward_depth=12)),
        (tinymim_teacher, dict(drop_rate=0.1)),
        (tinymim_teacher, dict(proj_drop_rate=0.1)),
        (tinymim_teacher, dict(global_pool='avg')),
    ],
    ids=lambda value: getattr(value, '__name__', str(value)),
)
def test_arguments_without_effect_are_refused(build, argument):
    refused(lambda: build('small', device='meta', **argument), next(iter(argument)), 'no effect', kind=TypeError)


@pytest.mark.parametrize('block', [0, 5])
def test_a_nonexistent_block_is_refused(block):
    refused(lambda: RelationEncoder(small(), block), '4', str(block), kind=ValueError)
    refused(lambda: tinymim_teacher('small', block, depth=4), '4', str(block), kind=ValueError)


def test_heads_that_do_not_divide_the_width_are_refused():
    refused(lambda: RelationEncoder(small(), 2, heads=5), '5', '24', kind=ValueError)


def test_a_vit_that_normalizes_queries_is_refused():
    refused(lambda: RelationEncoder(small(qk_norm=True), 2), 'normalizes', kind=ValueError)
