"""The shortcuts of plain inference must change nothing but memory and time."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.layers import ConvNorm, activate


def test_gelu_overwrites_a_fresh_input_in_plain_inference_only():
    act, x = nn.GELU(), torch.randn(3, 4)
    expected = F.gelu(x)
    assert torch.equal(activate(act, x, fresh=True), expected)  # autograd is on
    with torch.no_grad():
        assert torch.equal(activate(act, x, fresh=False), expected)
        assert not torch.equal(x, expected)
        assert activate(act, x, fresh=True).data_ptr() == x.data_ptr()
    assert torch.equal(x, expected)


def watched(model, images, names):
    """Tensors that forward hooks on these modules see, with autograd and without."""
    seen = []
    hooks = [model.get_submodule(n).register_forward_hook(lambda m, i, out: seen.append(out)) for n in names]
    model(images)
    with_grad = [t.detach().clone() for t in seen]
    seen.clear()
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return zip(with_grad, seen, strict=True)


@pytest.mark.parametrize('kind', [ConvNorm, nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.GELU])
def test_forward_hooks_see_the_same_with_and_without_autograd(small, kind):
    model = small()
    names = [n for n, m in model.named_modules() if type(m) is kind]
    assert names
    for with_grad, without in watched(model, torch.randn(1, 3, 64, 64), names):
        torch.testing.assert_close(without, with_grad, rtol=1e-3, atol=1e-4)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) * 1.5


def pruned(unit):
    prune.l1_unstructured(unit.conv, 'weight', 0.5)
    with torch.no_grad():
        unit.conv.weight_orig.mul_(2)


def pre_hooked(unit):
    unit.conv.register_forward_pre_hook(lambda m, args: (args[0] * 2,))


def subclassed(unit):
    unit.conv = Doubled(3, unit.conv.out_channels, 3, stride=2, padding=1, bias=False)


def wrapped(unit):
    unit.conv = Wrapped(unit.conv)


def biased(unit):
    unit.conv.bias = nn.Parameter(torch.ones(unit.conv.out_channels))


def without_statistics(unit):
    unit.bn = nn.BatchNorm2d(unit.conv.out_channels, track_running_stats=False)


def without_affine(unit):
    unit.bn = nn.BatchNorm2d(unit.conv.out_channels, affine=False)


@pytest.mark.parametrize(
    'change', [pruned, pre_hooked, subclassed, wrapped, biased, without_statistics, without_affine]
)
def test_a_changed_convolution_is_run_as_it_is(small, change):
    model, images = small(), torch.randn(2, 3, 64, 64)
    change(model.patch_embed.conv1)
    model.eval()
    expected = model(images).detach()
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected)
        deployed = timm.models.reparameterize_model(model)
        torch.testing.assert_close(deployed(images), expected, rtol=1e-3, atol=1e-4)


def test_a_block_without_its_first_convolution_keeps_its_shortcut(small):
    model, images = small(), torch.randn(2, 3, 64, 64)
    block = model.stages[0].blocks[0]
    dim = block.conv1.conv.in_channels
    block.conv1, block.conv2, block.conv3 = nn.Identity(), nn.Identity(), nn.Conv2d(dim, dim, 1)
    expected = model(images).detach()
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected)


def test_the_deploy_form_keeps_a_changed_linear_layer(small):
    class Shifted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model, images = small(), torch.randn(2, 3, 64, 64)
    attn, mlp = model.stages[1].blocks[0].attn, model.stages[2].blocks[0].mlp
    attn.proj = Shifted(attn.proj.in_features, attn.proj.out_features)
    prune.l1_unstructured(mlp.fc1, 'weight', 0.5)
    with torch.no_grad():
        expected = model(images)
        deployed = timm.models.reparameterize_model(model, inplace=True)  # torch cannot copy a pruned layer
        torch.testing.assert_close(deployed(images), expected, rtol=1e-3, atol=1e-4)


def test_inference_does_not_change_the_images_it_is_given():
    model = timm.create_model('tinyvit_5m_224', img_size=64).eval()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        images = torch.randn(2, 3, 64, 64).contiguous(memory_format=memory_format)
        before = images.clone()
        with torch.inference_mode():
            model(images)
            taps = model.forward_intermediates(images, intermediates_only=True)
            kept = [t.clone() for t in taps]
            model.forward_head(taps[-1])
        assert torch.equal(images, before)
        assert all(torch.equal(a, b) for a, b in zip(taps, kept, strict=True))
