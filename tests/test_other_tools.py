"""accelerate, torchao and peft on the models, with and without autograd: offloading, quantized weights, adapters."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import images_for, small_of, used_parameters
from timm.models import reparameterize_model
from torch import nn

from tinyvit_zoo.dense import DenseBackbone, VitDetTrunk
from tinyvit_zoo.layers import SimpleFeaturePyramid, inference

accelerate = pytest.importorskip('accelerate')
SIZE = (64, 32)
BATCH = 3
CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def _sub_batches_of_one_image(monkeypatch):
    monkeypatch.setattr(inference, 'SUB_BATCH_TOKENS', 8)


def formed(family: str, form: str) -> nn.Module:
    model = small_of(family, img_size=SIZE)
    return model if form == 'plain' else reparameterize_model(model)


forms = pytest.mark.parametrize('form', ['plain', 'deploy'])


def outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Without autograd, and with it."""
    with torch.no_grad():
        without = model(x)
    return [without, model(x).detach()]


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


# --- accelerate


def offload_to_cpu(model: nn.Module, folder: Path) -> nn.Module:
    return accelerate.cpu_offload(model, CPU, offload_buffers=True)


def offload_to_disk(model: nn.Module, folder: Path) -> nn.Module:
    return accelerate.disk_offload(model, folder, CPU)


def dispatch(model: nn.Module, folder: Path) -> nn.Module:
    """Blocks on the disk, everything else in memory."""
    parts = [name for name, _ in model.named_children()] + [name for name, _ in model.named_parameters(recurse=False)]
    device_map = {name: 'disk' if name in ('blocks', 'stages') else 'cpu' for name in parts}
    return accelerate.dispatch_model(model, device_map, main_device='cpu', offload_dir=folder)


@forms
@pytest.mark.filterwarnings('ignore:.*state_dict.*|.*[Oo]ffload.*')
@pytest.mark.parametrize('offload', [offload_to_cpu, offload_to_disk, dispatch], ids=lambda way: way.__name__)
def test_an_offloaded_model_computes_the_same(offload, form, family, tmp_path):
    model = formed(family, form)
    x = images_for(model, BATCH)
    expected = model(x).detach()
    offloaded = offload(copy.deepcopy(model), tmp_path)
    assert any(p.is_meta for p in offloaded.parameters())
    for actual in outputs(offloaded, x):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_shortcuts_return_with_the_weights(tmp_path):
    model = small_of('tinyvit', img_size=SIZE)
    x = images_for(model, BATCH)
    expected = model(x)
    offloaded = accelerate.cpu_offload(model, CPU)
    conv = model.patch_embed.conv1
    assert not conv.folds(x)
    accelerate.hooks.remove_hook_from_submodules(offloaded)
    assert conv.folds(x)
    assert torch.equal(model(x), expected)


# --- torchao


@pytest.mark.slow
@forms
@pytest.mark.parametrize('activations', ['float', 'int8'])
def test_quantized_weights_are_as_near_without_autograd(activations, form, family):
    torchao = pytest.importorskip('torchao.quantization')
    config = torchao.Int8WeightOnlyConfig if activations == 'float' else torchao.Int8DynamicActivationInt8WeightConfig
    model = formed(family, form)
    x = images_for(model, BATCH)
    expected = model(x).detach()
    torchao.quantize_(model, config())
    without, with_grad = (error(actual, expected) for actual in outputs(model, x))
    assert 0 < without < with_grad + 0.01
    # Quantized first and folded afterwards.
    folded = reparameterize_model(model, inplace=True)
    assert all(0 < error(actual, expected) < with_grad + 0.01 for actual in outputs(folded, x))


# --- peft

TARGETS = {
    'queries, keys and values': lambda model: ['qkv'],
    'all linear layers': lambda model: 'all-linear',
    'convolutions': lambda model: [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1],
}


@pytest.mark.slow
@forms
@pytest.mark.parametrize('targets', TARGETS)
def test_adapters_learn_and_merge(targets, form, family):
    peft = pytest.importorskip('peft')
    model = formed(family, form)
    used = set(used_parameters(model))
    x = images_for(model, BATCH)
    before = model(x).detach()
    config = peft.LoraConfig(target_modules=TARGETS[targets](model), r=2)
    adapted = peft.get_peft_model(copy.deepcopy(model), config).eval()
    adapters = {
        name.removeprefix('base_model.model.'): parameter
        for name, parameter in adapted.named_parameters()
        if 'lora_' in name
    }
    for name, parameter in adapters.items():
        if 'lora_B' in name:
            nn.init.normal_(parameter, std=0.1)
    adapted(x).square().sum().backward()
    in_use = {name for name in adapters if f'{name.partition(".lora_")[0]}.weight' in used}
    assert {name for name, p in adapters.items() if p.grad is not None and p.grad.any()} == in_use != set()
    expected = adapted(x).detach()
    assert error(expected, before) > 1e-3
    tolerance = dict(rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(outputs(adapted, x)[0], expected, **tolerance)
    adapted.merge_adapter()
    for actual in outputs(adapted, x):
        torch.testing.assert_close(actual, expected, **tolerance)
    adapted.unmerge_adapter()
    for actual in outputs(reparameterize_model(adapted.base_model.model, inplace=True), x):
        torch.testing.assert_close(actual, expected, **tolerance)
    for actual in outputs(adapted.merge_and_unload(), x):
        torch.testing.assert_close(actual, expected, **tolerance)


@pytest.mark.slow
def test_a_convolution_with_its_norm_takes_no_adapter():
    """It would add to the norm's output, and to its input once merged."""
    peft = pytest.importorskip('peft')
    model = DenseBackbone(VitDetTrunk(64, embed_dim=48, depth=2, num_heads=3), SimpleFeaturePyramid(48, 16), [1])
    assert 'pyramid.simfp_4.0.norm.weight' in model.state_dict()
    with pytest.raises(ValueError, match='is not supported'):
        peft.get_peft_model(model, peft.LoraConfig(target_modules=['pyramid.simfp_4.0']))
