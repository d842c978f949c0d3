"""D-MAE: the released losses and gradients under given noise; student and teacher see the same patches."""

import math

import pytest
import timm
import torch
from conftest import refused
from golden_rule import fill_by_rule, golden, noise, rule_value
from torch import nn

from tinyvit_zoo.models import PlainVit
from tinyvit_zoo.pretrain import DMae, MaskedAutoencoder, mae_lite_tiny

SINGLE = 5e-6  # the reference is single precision
ENCODER = dict(img_size=(32, 48), patch_size=16, depth=3, num_classes=0)


def build(**kwargs) -> DMae:
    """A student with 2 heads and a teacher with 4 on 2 x 3 patches, float64."""
    student = MaskedAutoencoder(
        img_size=(32, 48), embed_dim=16, depth=3, num_heads=2, decoder_embed_dim=8, decoder_num_heads=2
    )
    teacher = PlainVit(**ENCODER, embed_dim=32, num_heads=4)
    model = DMae(student, teacher, **{'attention_blocks': (3,), **kwargs}).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 48, dtype=torch.float64)


# the released code


@pytest.mark.parametrize(
    ('name', 'hidden_layers'), [('maelite_distill_tiny', ()), ('maelite_distill_tiny_attn_hidden', (0, 12))]
)
def test_losses_and_gradients_are_the_released_ones(name, hidden_layers):
    official = golden(name)
    teacher = PlainVit(embed_dim=768, depth=12, num_heads=12, num_classes=0, norm_layer='layernorm')
    model = DMae(fill_by_rule(mae_lite_tiny()), fill_by_rule(teacher), hidden_layers=hidden_layers)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if '_adapter.' in key:  # by their released names
                parameter.copy_(torch.from_numpy(rule_value(key, tuple(parameter.shape))))
    output = model.train()(noise(224, 224), noise=torch.from_numpy(official['noise']))
    output.loss.backward()
    assert output.attention.item() == pytest.approx(official['attn'].item(), abs=SINGLE)
    assert output.hidden.item() == pytest.approx(official.get('hidden', 0.0), abs=SINGLE)
    assert output.loss.item() == pytest.approx(official['total'].item(), abs=SINGLE)
    assert output.loss.item() == pytest.approx((output.mae + output.attention + output.hidden).item(), abs=SINGLE)
    adapter = model.attn_adapter['adapter11'].weight
    torch.testing.assert_close(adapter.grad, torch.from_numpy(official['adapter_grad']), rtol=0, atol=SINGLE)
    parameters = dict(model.model.named_parameters())
    for key, norm in official.items():
        if key.startswith('gradnorm/'):
            assert parameters[key.removeprefix('gradnorm/')].grad.norm().item() == pytest.approx(norm, rel=1e-5), key


def test_the_names_are_the_released_ones():
    names = build(hidden_layers=(0, 3)).state_dict()
    assert {name.partition('.')[0] for name in names} == {'model', 'tch_model', 'attn_adapter', 'hidden_adapter'}
    adapters = {name: tuple(tensor.shape) for name, tensor in names.items() if 'adapter' in name}
    assert adapters == {
        'attn_adapter.adapter2.weight': (4, 2, 1, 1),
        'hidden_adapter.adapter0.weight': (32, 16),
        'hidden_adapter.adapter3.weight': (32, 16),
    }


# against its definition


def plain_attention(vit: nn.Module, x: torch.Tensor, ids_keep: torch.Tensor, block: int) -> list[torch.Tensor]:
    """Scaled products of queries and keys, image by image and head by head, on visible patches and class token."""
    maps = []
    for image, visible in zip(x, ids_keep, strict=True):
        patches = vit.patch_embed(image[None])[0] + vit.pos_embed[0, 1:]
        tokens = torch.cat([vit.cls_token[0] + vit.pos_embed[0, :1], patches[visible]])[None]
        for i in range(block - 1):
            tokens = vit.blocks[i](tokens)
        attn = vit.blocks[block - 1].attn
        q, k, _ = attn.qkv(vit.blocks[block - 1].norm1(tokens))[0].chunk(3, dim=-1)
        d = q.shape[-1] // attn.num_heads
        parts = [slice(h * d, (h + 1) * d) for h in range(attn.num_heads)]
        maps.append(torch.stack([q[:, p] @ k[:, p].mT / math.sqrt(d) for p in parts]))
    return maps


@torch.no_grad()
def test_attention_logits_of_the_same_visible_patches_are_compared_through_the_head_map():
    model, x = build(attention_blocks=(1, 3), attention_weight=0.25).eval(), images()
    output = model(x, mask_ratio=0.5)
    ids_keep = output.ids_shuffle[:, :3]
    expected = 0.0
    for block in (1, 3):
        head_map = model.attn_adapter[f'adapter{block - 1}'].weight[:, :, 0, 0]
        student = plain_attention(model.model, x, ids_keep, block)
        teacher = plain_attention(model.tch_model, x, ids_keep, block)
        pairs = zip(student, teacher, strict=True)
        errors = [(torch.einsum('gh,hnm->gnm', head_map, s) - t) ** 2 for s, t in pairs]
        expected += torch.stack(errors).mean().item()
    assert output.attention.item() == pytest.approx(expected, abs=1e-8)
    assert output.hidden == 0
    assert output.loss.item() == pytest.approx((output.mae + 0.25 * output.attention).item(), abs=1e-12)


@torch.no_grad()
def test_the_students_own_loss_is_that_of_the_student_alone():
    model, x = build().eval(), images()
    output = model(x)
    alone = model.model(x, ids_shuffle=output.ids_shuffle)
    assert output.mae.item() == pytest.approx(alone.loss.item(), abs=1e-12)


@torch.no_grad()
def test_hidden_layers_are_first_norms_and_at_the_end_the_final_norm():
    model, x = build(attention_blocks=(), hidden_layers=(1, 3), hidden_weight=2.0).eval(), images()
    output = model(x)
    expected = 0.0
    for layer in (1, 3):
        taken = []
        for vit in (model.model, model.tch_model):
            module = vit.norm if layer == 3 else vit.blocks[layer].norm1
            handle = module.register_forward_hook(lambda m, args, out, taken=taken: taken.append(out))
            tokens = torch.cat([vit.cls_token.expand(2, -1, -1), vit.patch_embed(x)], 1) + vit.pos_embed
            order = 1 + output.ids_shuffle[:, :1]
            patches = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))
            vit.norm(vit.blocks(torch.cat([tokens[:, :1], patches], 1)))
            handle.remove()
        student, teacher = taken
        adapter = model.hidden_adapter[f'adapter{layer}'].weight
        expected += ((student @ adapter.T - teacher) ** 2).mean().item()
    assert output.hidden.item() == pytest.approx(expected, abs=1e-8)
    assert output.loss.item() == pytest.approx((output.mae + 2 * output.hidden).item(), abs=1e-12)


# as a module


def test_the_teacher_is_frozen_and_stays_in_evaluation_mode():
    model = build(hidden_layers=(0, 3))
    assert model.train() is model
    assert not any(m.training for m in model.tch_model.modules())
    assert all(m.training for m in model.model.modules())
    names = {name.partition('.')[0] for name, p in build(hidden_layers=(3,)).named_parameters() if p.requires_grad}
    assert names == {'model', 'attn_adapter', 'hidden_adapter'}
    model(images()).loss.backward()
    assert all(p.grad is None for p in model.tch_model.parameters())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def test_the_teacher_runs_no_further_than_its_target_needs():
    model, x = build().eval(), images()
    for module in (model.tch_model.blocks[2].mlp, model.tch_model.blocks[2].attn.proj, model.tch_model.norm):
        module.forward = lambda *args: pytest.fail('computed')
    assert model(x).loss.isfinite()


@torch.no_grad()
def test_timms_own_mae_encoder_is_a_teacher():
    teacher = timm.create_model('vit_base_patch16_224.mae', depth=3, img_size=(32, 48))
    model = DMae(build().model, teacher.double(), attention_blocks=(3,)).double()
    assert model(images()).loss.isfinite()


def test_the_head_maps_are_called():
    """As an adapter around one needs it."""
    model, heard = build(), []
    adapter = model.attn_adapter['adapter2']
    adapter.register_forward_hook(lambda *_: heard.append('adapter2'))
    x, noise = images(), torch.rand(2, 6)
    before = model(x, noise=noise)
    assert heard == ['adapter2']
    adapter.register_forward_hook(lambda module, args, out: 2 * out)
    assert model(x, noise=noise).attention != before.attention


def test_half_precision_gives_a_loss_in_single():
    model = build(hidden_layers=(3,)).float()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        output = model(images().float())
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert model.attn_adapter['adapter2'].weight.grad.isfinite().all()


# refusals


@pytest.mark.parametrize(
    ('changed', 'word'),
    [
        (dict(depth=2), 'the teacher 2'),
        (dict(img_size=32), '(2, 2)'),
        (dict(class_token=False, global_pool='avg'), 'prefix'),
        (dict(qk_norm=True), 'normalizes'),
    ],
)
def test_a_teacher_that_cannot_be_compared_is_refused(changed, word):
    teacher = PlainVit(**{**ENCODER, 'embed_dim': 32, 'num_heads': 4, **changed})
    refused(lambda: DMae(build().model, teacher, attention_blocks=(2,)), word, kind=ValueError)


def test_nonexistent_blocks_are_refused():
    refused(lambda: build(attention_blocks=(0,)), 'from 1 to 3', kind=ValueError)
    refused(lambda: build(hidden_layers=(4,)), 'from 0 to 3', kind=ValueError)
