"""TinyMIM's study: every target, relation and input against its formula, values and gradients in float64."""

import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from golden_rule import fill_by_rule, noise
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tinyvit_zoo.distill import HeadQKV, class_token_loss, relation_distillation_loss, relation_losses
from tinyvit_zoo.distill.relation import Relation
from tinyvit_zoo.pretrain import (
    TARGETS,
    MaskedAutoencoder,
    RelationEncoder,
    TinyMim,
    tinymim_student,
    tinymim_teacher,
)

SIZE = dict(img_size=32, patch_size=8, num_heads=2)
FEATURES = [target for target in TARGETS if target != 'relation']


def vit(width: int, depth: int, seed: int) -> VisionTransformer:
    torch.manual_seed(seed)
    model = VisionTransformer(**SIZE, embed_dim=width, depth=depth, num_classes=0).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def autoencoder(seed: int = 0) -> MaskedAutoencoder:
    torch.manual_seed(seed)
    return MaskedAutoencoder(**SIZE, embed_dim=8, depth=2, decoder_embed_dim=8, decoder_num_heads=2).double().eval()


def pair(student=None, block: int = 2, **kwargs) -> TinyMim:
    student = RelationEncoder(student or vit(8, 2, seed=0), 2, 2)
    torch.manual_seed(2)
    return TinyMim(student, RelationEncoder(vit(12, 3, seed=1), block, frozen=True), **kwargs).double()


def images(seed: int = 3) -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seen_tokens(model: VisionTransformer, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
    patches = model.patch_embed.proj(x).flatten(2).mT + model.pos_embed[:, 1:]
    if keep is not None:
        patches = torch.stack([patch[ids] for patch, ids in zip(patches, keep, strict=True)])
    first = (model.cls_token + model.pos_embed[:, :1]).expand(len(x), -1, -1)
    return torch.cat([first, patches], 1)


def teacher_target(model: VisionTransformer, x: torch.Tensor, target: str, keep=None) -> torch.Tensor:
    """Eq. 2, 3 and 7 at the second block."""
    tokens = model.blocks[0](seen_tokens(model, x, keep))
    block = model.blocks[1]
    if target == 'qkv':
        parts = block.attn.qkv(block.norm1(tokens)).chunk(3, -1)
        return torch.cat([F.layer_norm(part, part.shape[-1:]) for part in parts], -1)
    added = block.attn(block.norm1(tokens))
    after = tokens + added
    ffn = block.mlp(block.norm2(after))
    if target == 'cls':
        return model.norm(after + ffn)[:, 0]
    both = after + ffn
    features = dict(attention=added, attention_residual=after, ffn=ffn, ffn_residual=both, output=both)
    return F.layer_norm(features[target], (12,))


def same_gradients(module: nn.Module, loss: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal values, and equal gradients of all parameters that are trained."""
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    parameters = [p for p in module.parameters() if p.requires_grad]
    for one, two in zip(
        *(torch.autograd.grad(x, parameters, allow_unused=True) for x in (loss, expected)), strict=True
    ):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('target', FEATURES)
def test_a_feature_is_learned_as_its_formula_says(target):
    ours, x, jittered = pair(target=target), images(), images(4)
    model = ours.student.encoder.vit
    output = model.norm(model.blocks(seen_tokens(model, jittered)))
    with torch.no_grad():
        wanted = teacher_target(ours.teacher.encoder.vit, x, target)
    if target == 'cls':
        p, t = ours.student.map(output[:, 0]).softmax(-1), wanted.softmax(-1)
        expected = (t * (t / p).log()).sum(-1).mean()
    else:
        distance = (ours.student.map(output) - wanted).abs()
        expected = torch.where(distance <= 2, distance.square() / 4, distance - 1).mean()
    same_gradients(ours.student, ours(jittered, x)['loss'], expected)


def relation(part: HeadQKV, name: str) -> torch.Tensor:
    rows, columns = (getattr(part, side) for side in name)
    return rows @ columns.mT / rows.shape[-1] ** 0.5


@pytest.mark.parametrize('softmax', [True, False])
@pytest.mark.parametrize('relations', [('qk', 'vv'), ('qq', 'kk', 'vv'), ('kv',)], ids='-'.join)
def test_relations_are_learned_as_their_formula_says(relations, softmax):
    ours, x = pair(relations=relations, softmax=softmax), images()
    student, teacher = ours.student.encoder(x), ours.teacher.encoder(x)
    parts = {}
    for name in relations:
        p, t = relation(student, name), relation(teacher, name)
        distance = (p - t).abs()
        kl = (t.softmax(-1) * (t.softmax(-1) / p.softmax(-1)).log()).sum(-1).mean()
        parts[name] = kl if softmax else torch.where(distance <= 2, distance.square() / 4, distance - 1).mean()
    losses = ours(x, x)
    same_gradients(ours.student, losses['loss'], torch.stack(list(parts.values())).sum())
    for name in relations if len(relations) > 1 else ():
        torch.testing.assert_close(losses[name], parts[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('target', ['relation', 'ffn', 'cls'])
@pytest.mark.parametrize('reconstruct', [False, True], ids=['masked', 'integrated'])
def test_masked_input_and_reconstruction_are_maes(target, reconstruct):
    student = autoencoder()
    ours, x, jittered = pair(student, target=target, mask_ratio=0.75, reconstruct=reconstruct), images(), images(4)
    random = torch.rand(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    keep = random.argsort(1)[:, :4]
    with torch.no_grad():
        if target == 'relation':
            taught = ours.teacher.encoder(x, keep)
        else:
            taught = teacher_target(ours.teacher.encoder.vit, x, target, keep)
    before = student.blocks[0](seen_tokens(student, jittered, keep))
    output = student.norm(student.blocks[1](before))
    if target == 'relation':
        qkv = (
            student.blocks[1].attn.qkv(student.blocks[1].norm1(before)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        )
        expected = relation_distillation_loss(HeadQKV(*qkv), taught).total
    elif target == 'cls':
        expected = class_token_loss(ours.student.map(output[:, 0]), taught)
    else:
        expected = F.smooth_l1_loss(ours.student.map(output), taught, beta=2.0)
    if reconstruct:
        expected = expected + student(jittered, 0.75, noise=random).loss
    losses = ours(jittered, x, random)
    same_gradients(ours.student, losses['loss'], expected)
    assert ('reconstruction' in losses) == reconstruct


def test_the_default_is_the_released_loss():
    student, teacher = tinymim_student('tiny', img_size=32).eval(), tinymim_teacher('small', img_size=32, last_heads=12)
    for model in (student, teacher):
        fill_by_rule(model.vit)
    x = noise(32, 32)
    losses = TinyMim(student, teacher)(x, x)
    released = relation_distillation_loss(student(x), teacher(x))
    assert losses['loss'].item() == pytest.approx(released.total.item(), rel=1e-6)
    assert (losses['qk'], losses['vv']) == (released.qk, released.vv)


@pytest.mark.parametrize('target', TARGETS)
def test_the_teacher_stops_at_its_block(target):
    ours, ran = pair(target=target), []
    for number, block in enumerate(ours.teacher.encoder.vit.blocks, 1):
        block.attn.qkv.register_forward_hook(lambda *_, number=number: ran.append(number))
    ours(images(), images())
    assert ran == [1, 2]
    assert not any(p.requires_grad for p in ours.teacher.parameters())


@pytest.mark.parametrize(
    'settings',
    [*(dict(target=target) for target in TARGETS), dict(mask_ratio=0.5), dict(mask_ratio=0.5, reconstruct=True)],
    ids=lambda settings: '-'.join(map(str, settings.values())),
)
def test_the_parameters_that_no_loss_reaches_are_named(settings):
    ours = pair(autoencoder(), **settings)
    ours(images(), images())['loss'].backward()
    without = {name for name, p in ours.student.named_parameters() if p.requires_grad and p.grad is None}
    fixed = {name for name, p in ours.student.named_parameters() if not p.requires_grad}
    assert without == set(ours.student.unreached_parameters()) - fixed
    assert bool(without) != bool(settings.get('reconstruct'))


def test_the_unreached_parameters_of_a_released_student_are_the_released_ones():
    """DistributedDataParallel stops in its second step where they are not frozen."""
    student = tinymim_student('tiny', img_size=32)
    student(noise(32, 32)).q.sum().backward()
    names = set(student.unreached_parameters())
    assert names == {f'vit.{n}' for n, p in student.vit.named_parameters() if p.requires_grad and p.grad is None}
    assert {'vit.norm.weight', 'vit.blocks.11.mlp.fc1.weight', 'vit.blocks.11.attn.proj.bias'} <= names


def test_pairs_that_do_not_match_are_refused():
    student = RelationEncoder(vit(8, 2, seed=0), 2)
    teacher = RelationEncoder(vit(12, 3, seed=1), 2, frozen=True)
    larger = VisionTransformer(img_size=48, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=0)
    for words, build in {
        'target must be one of': lambda: TinyMim(student, teacher, target='logits'),
        'head by head': lambda: TinyMim(student, RelationEncoder(vit(12, 3, seed=1), 2, 3, frozen=True)),
        'one image size': lambda: TinyMim(student, RelationEncoder(larger, 2, frozen=True), target='ffn'),
        'hidden patches': lambda: TinyMim(student, teacher, reconstruct=True),
        'MaskedAutoencoder': lambda: TinyMim(student, teacher, reconstruct=True, mask_ratio=0.5),
        'qq, kk, vv, qk': lambda: TinyMim(student, teacher, relations=('qq', 'xx')),
        'mask_ratio must be': lambda: TinyMim(student, teacher, mask_ratio=1.0),
    }.items():
        refused(build, words, kind=ValueError)


@pytest.mark.parametrize('relations', [(), ('qk', 'qk'), ('kq',)], ids=['none', 'twice', 'unknown'])
def test_relations_that_are_none_are_refused(relations):
    heads = HeadQKV(*torch.randn(3, 1, 2, 4, 3))
    refused(lambda: relation_losses(heads, heads, relations), 'qq, kk, vv, qk', kind=ValueError)


@pytest.mark.parametrize('name', Relation.__args__)
def test_a_relation_of_equal_heads_costs_nothing(name):
    heads = HeadQKV(*torch.randn(3, 1, 2, 4, 3))
    for softmax in (True, False):
        assert relation_losses(heads, heads, (name,), softmax)[name].item() == pytest.approx(0, abs=1e-6)
