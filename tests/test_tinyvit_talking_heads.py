"""TinyViT with talking heads and shared blocks in its last stage (TinyViT Supplement C; no released weights).

The other graphs and parts of TinyViT are those of every family, see `test_contract.py`.
"""

import copy

import pytest
import timm
import torch
from conftest import assert_same, refused
from golden_rule import fill_by_rule
from timm.models import reparameterize_model
from timm.optim import create_optimizer_v2
from torch import nn

from tinyvit_zoo.build import load_model
from tinyvit_zoo.checkpoints import WeightsNotFoundError
from tinyvit_zoo.common.errors import ModelError
from tinyvit_zoo.export import export_model
from tinyvit_zoo.hub.folder import save_folder
from tinyvit_zoo.layers.bias_table import expand_abs_bias

NAME = 'tinyvit_21m_talking_heads_224'
SMALL = dict(
    embed_dims=(16, 32, 32, 64), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 3), num_classes=11, img_size=64,
)  # fmt: skip


def variant(**kwargs) -> nn.Module:
    """A small one with three blocks in the last stage, far from its initial values, in eval mode."""
    return fill_by_rule(timm.create_model(NAME, **{**SMALL, **kwargs}))


def images(count: int = 2, size: int = 64, **kwargs) -> torch.Tensor:
    return torch.randn(count, 3, size, size, **kwargs)


# --- what it is


def test_it_has_the_parameters_of_tinyvit_21m_without_one_block_but_what_each_block_keeps():
    whole, ours = (
        sum(p.numel() for p in timm.create_model(name, device='meta').parameters())
        for name in ('tinyvit_21m_224', NAME)
    )
    dim, heads = 576, 18
    matrices = 4 * dim**2 + 4 * dim + 8 * dim**2 + 5 * dim  # qkv and proj, fc1 and fc2, with their biases
    assert ours == whole - matrices + 2 * 2 * heads**2 == 17_213_368


def test_blocks_of_the_last_stage_share_their_matrices_and_nothing_else():
    model = variant()
    first, second, third = model.stages[3].blocks
    shared = {'attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'}
    theirs = dict(second.named_parameters())
    same = {name.rpartition('.')[0] for name, p in first.named_parameters() if p is theirs[name]}
    assert same == shared
    assert third.mlp.fc1 is first.mlp.fc1
    assert [hasattr(b.attn, 'proj_l') for stage in model.stages[1:] for b in stage.blocks] == [False] * 2 + [True] * 3
    kept = {name.rpartition('.')[0] for name in model.state_dict() if name.startswith('stages.3.blocks.2')}
    assert {f'stages.3.blocks.2.{name}' for name in ('attn', 'attn.norm', 'attn.proj_l', 'local_conv.conv')} <= kept
    assert kept & {f'stages.3.blocks.2.{name}' for name in shared} == set()


def test_heads_talk_before_and_after_softmax():
    """Written out head by head in float64; the biases are those of the table, before the mixing."""
    attn = variant().double().stages[3].blocks[1].attn
    nn.init.normal_(attn.proj_l.weight)
    nn.init.normal_(attn.proj_w.weight)
    x = torch.randn(3, 4, 64, dtype=torch.float64)
    q, k, v = attn.qkv(attn.norm(x)).view(3, 4, 2, 3, 32).unbind(3)  # (B, N, heads, d)
    bias = expand_abs_bias(attn.attention_biases, attn.row_offsets, attn.col_offsets, False)
    logits = [q[:, :, h] @ k[:, :, h].transpose(1, 2) / 32**0.5 + bias[h] for h in range(2)]
    before, after = attn.proj_l.weight, attn.proj_w.weight
    maps = [(before[g, 0] * logits[0] + before[g, 1] * logits[1]).softmax(-1) for g in range(2)]
    heads = [(after[g, 0] * maps[0] + after[g, 1] * maps[1]) @ v[:, :, g] for g in range(2)]
    torch.testing.assert_close(attn(x), attn.proj(torch.cat(heads, dim=-1)), rtol=1e-12, atol=1e-12)


def test_it_begins_as_a_tinyvit_whose_last_blocks_are_alike():
    model = timm.create_model(NAME, **SMALL).double().eval()
    plain = timm.create_model('tinyvit_21m_224', **SMALL).double().eval()
    state = model.state_dict()
    for name, value in plain.state_dict().items():
        first = name.replace('blocks.1', 'blocks.0').replace('blocks.2', 'blocks.0')
        value.copy_(state[name] if name in state else state[first])
    x = images(dtype=torch.float64)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-12)
    model = fill_by_rule(model.float())
    model.init_weights()
    assert torch.equal(model.stages[3].blocks[2].attn.proj_l.weight, torch.eye(2))


# --- training


def test_a_shared_weight_gets_the_gradients_of_all_blocks_that_use_it():
    model = variant(drop_path_rate=0.0).double().train()
    apart = timm.create_model(NAME, **SMALL, drop_path_rate=0.0, share_blocks=False).double().train()
    values = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, p in apart.named_parameters():
            p.copy_(values[name])
    x = images(4, dtype=torch.float64)
    for each in (model, apart):
        each(x).square().mean().backward()
    expected = {}
    for name, p in apart.named_parameters():
        expected[values[name]] = expected.get(values[name], 0) + p.grad
    assert expected.keys() == set(model.parameters())
    for p in model.parameters():
        torch.testing.assert_close(p.grad, expected[p], rtol=1e-8, atol=1e-12)


def test_an_optimizer_with_layer_decay_has_every_parameter_once():
    model = variant().train()
    optimizer = create_optimizer_v2(model, opt='adamw', lr=1e-3, weight_decay=0.05, layer_decay=0.8)
    listed = [p for group in optimizer.param_groups for p in group['params']]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))
    before = {name: p.clone() for name, p in model.named_parameters()}
    model(images()).sum().backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {f'stages.3.blocks.{i}.attn.proj_{place}.weight' for i in range(3) for place in 'lw'} <= moved
    assert model.stages[3].blocks[0].mlp.fc1.weight is model.stages[3].blocks[2].mlp.fc1.weight


# --- files and forms


def test_it_is_made_again_from_its_folder_and_resized(tmp_path):
    model = variant()
    folder = save_folder(model, tmp_path / 'folder')
    x = images()
    again = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert_same(again.state_dict(), model.state_dict())
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    from_file = load_model(NAME, folder / 'model.safetensors', **{k: v for k, v in SMALL.items() if k != 'num_classes'})
    torch.testing.assert_close(from_file(x), model(x), rtol=0, atol=0)
    wide = timm.create_model(f'local-dir:{folder}', pretrained=True, img_size=128).eval()
    model.set_input_size(128)
    assert list(model.state_dict()) == list(again.state_dict())
    torch.testing.assert_close(wide(images(1, 128)).shape, model(images(1, 128)).shape)
    assert_same(wide.state_dict(), model.state_dict())


def test_features_hold_a_shared_weight_once(tmp_path):
    folder = save_folder(variant(), tmp_path / 'folder')
    features = timm.create_model(f'local-dir:{folder}', pretrained=True, features_only=True).eval()
    x, whole = images(), timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    torch.testing.assert_close(features(x)[-1], whole.forward_features(x), rtol=0, atol=0)
    every = dict(features.named_parameters(remove_duplicate=False))
    assert set(features.state_dict()) & set(every) == set(dict(features.named_parameters()))


@torch.no_grad()
def test_the_deploy_form_gives_the_same():
    model, x = variant(), images(size=96)
    torch.testing.assert_close(reparameterize_model(copy.deepcopy(model))(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_it_is_compiled_exported_and_scripted():
    torch._dynamo.reset()
    model, x = variant(), images()
    torch.testing.assert_close(torch.jit.script(model)(x), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend='aot_eager')(x), model(x))
    batch = torch.export.Dim('batch', min=1, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(exported(images(5)).shape, model(images(5)).shape)
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)


def test_its_graph_is_for_one_image_size(tmp_path):
    words = (f'The graph of {NAME} is for one image size', 'talking heads')
    refused(lambda: export_model(variant(), tmp_path / 'm.pt2', dynamic_size=True), *words, kind=ModelError)


# --- options


def test_every_stage_of_attention_may_have_talking_heads_or_share_its_blocks():
    model = variant(depths=(1, 2, 2, 2), talking_heads=True, share_blocks=True)
    assert all(b.attn.talking_heads for stage in model.stages[1:] for b in stage.blocks)
    assert all(stage.blocks[0].attn.qkv is stage.blocks[1].attn.qkv for stage in model.stages[1:])
    plain = variant(talking_heads=False, share_blocks=False)
    assert plain.state_dict().keys() == timm.create_model('tinyvit_21m_224', **SMALL).state_dict().keys()


@pytest.mark.parametrize('setting', [(True, False, False, True), (False, True), [True] * 4])
def test_the_first_stage_and_other_numbers_of_stages_are_refused(setting):
    for name in ('talking_heads', 'share_blocks'):
        with pytest.raises(ValueError, match=rf'{name} is True, False, or one of them for each of the 4 stages'):
            variant(**{name: setting})


def test_there_are_no_released_weights():
    with pytest.raises(WeightsNotFoundError, match=f'No weights were released for {NAME}'):
        timm.create_model(NAME, pretrained=True)
    assert NAME not in timm.list_models(pretrained=True)
    assert timm.get_pretrained_cfg(NAME).input_size == (3, 224, 224)
