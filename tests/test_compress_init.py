"""Initial weights of a multiplexed model: blocks of its teacher, and transformations fitted to it."""

import pytest
import timm
import torch
from conftest import assert_same
from multiplexed import KINDS, blocks, each_kind, each_transform, images, teacher
from torch import nn

from tinyvit_zoo.compress import multiplex
from tinyvit_zoo.compress.init import natural_noise


@each_kind
def test_a_group_starts_from_its_first_block_or_the_mean(kind):
    model = teacher(kind)
    first, second = (block.mlp.fc1.weight for block in blocks(model)[:2])
    assert torch.equal(blocks(multiplex(model, init='first'))[0].mlp.fc1.weight, first)
    torch.testing.assert_close(blocks(multiplex(model, init='mean'))[0].mlp.fc1.weight, (first + second) / 2)
    student = multiplex(model, init='mean')
    for ours, theirs in zip(blocks(student), blocks(model), strict=True):
        assert_same(ours.norm1.state_dict(), theirs.norm1.state_dict())


def features_apart(student: nn.Module, model: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        goal = model.forward_features(x)
        return ((student.forward_features(x) - goal).norm() / goal.norm()).item()


def test_the_best_of_a_group_is_the_nearest_of_its_blocks_and_their_mean():
    """With one group, the features are the group's output after the final norm."""
    model, x = teacher('vit'), images(8)
    distances = [features_apart(multiplex(model, 'stage', init='mean'), model, x)]
    for block in model.blocks:
        student = multiplex(model, 'stage', transform=False, init='first')
        for name in ('attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'):
            student.blocks[0].get_submodule(name).load_state_dict(block.get_submodule(name).state_dict())
        distances.append(features_apart(student, model, x))
    best = multiplex(model, 'stage', calibration=[x[:3], x[3:]], fit=False)
    assert features_apart(best, model, x) == pytest.approx(min(distances), rel=1e-5)


@each_kind
@each_transform
def test_fitting_brings_every_layer_closer_and_keeps_the_weights(kind, transform):
    model, x = teacher(kind), images(8)
    chosen = multiplex(model, transform=transform, init='first')
    fitted = multiplex(model, transform=transform, init='first', calibration=[x])
    assert features_apart(fitted, model, x) < features_apart(chosen, model, x)
    for ours, theirs in zip(blocks(fitted), blocks(chosen), strict=True):
        assert_same(ours.mlp.state_dict(), theirs.mlp.state_dict())
    ours, theirs = blocks(fitted)[-1], blocks(chosen)[-1]
    assert not torch.equal(ours.norm2.weight, theirs.norm2.weight)
    if transform:
        assert not torch.equal(ours.attn.mix_logits.weight, theirs.attn.mix_logits.weight)
        assert not torch.equal(ours.attn.mix_probs.weight, theirs.attn.mix_probs.weight)
    if transform and kind == 'swin':
        assert ours.mlp_conv.conv.weight.any()


def test_fitting_keeps_frozen_parameters_marked_and_leaves_no_gradients():
    model = teacher('vit')
    model.blocks[0].requires_grad_(False)
    student = multiplex(model, calibration=[images()])
    assert all(p.grad is None for p in student.parameters())
    assert not student.blocks[0].norm1.weight.requires_grad
    assert student.blocks[2].norm1.weight.requires_grad


def test_nothing_is_fitted_where_nothing_is_shared():
    model = teacher('vit').double()
    x = images(dtype=torch.float64)
    torch.testing.assert_close(multiplex(model, 1, calibration=[x])(x), model(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize('kind', KINDS)
def test_without_images_the_result_is_the_same_every_time(kind):
    model = teacher(kind)
    torch.manual_seed(1)
    first = multiplex(model).state_dict()
    torch.manual_seed(2)
    assert_same(multiplex(model).state_dict(), first)


def test_noise_has_the_spectrum_of_natural_images():
    noise = natural_noise(teacher('vit', img_size=(64, 32)), count=16)
    assert noise.shape == (16, 3, 64, 32)
    assert abs(noise.mean()) < 1e-5
    assert abs(noise.std() - 1) < 1e-5
    power = torch.fft.fft2(noise).abs().square().mean((0, 1))
    # Amplitude 1/f: twice the frequency, a quarter of the power.
    assert 2.5 < power[4:7, 0].mean() / power[8:14, 0].mean() < 6.5


def test_a_trained_model_stays_closer_to_itself_on_unseen_images():
    sklearn_datasets = pytest.importorskip('sklearn.datasets')
    digits = sklearn_datasets.load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(digits.target)
    train, held = slice(0, 1400), slice(1400, None)
    small = dict(img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=32, depth=4, num_heads=4)
    model = timm.create_model('deit_small_patch16_224', **small)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(8):
        for batch in torch.randperm(1400).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()
    plain = multiplex(model, transform=False, init='first')
    ours = multiplex(model, calibration=[x[train][:64]])
    apart = {name: features_apart(m, model, x[held]) for name, m in (('plain', plain), ('ours', ours))}
    assert apart['ours'] < 0.9 * apart['plain']


def test_weights_on_the_meta_device_are_not_compared():
    with pytest.raises(ValueError, match="init='first'"):
        multiplex(timm.create_model('deit_tiny_patch16_224', device='meta'))


def test_half_precision_is_chosen_but_not_fitted():
    model = teacher('vit').bfloat16()
    assert multiplex(model)(images(dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r'model\.float\(\)'):
        multiplex(model, calibration=[images()])


def test_nothing_random_is_drawn():
    model = timm.create_model('swin_tiny_patch4_window7_224', embed_dim=8, num_heads=(1, 1, 2, 2), depths=(2, 2, 2, 2))
    before = torch.get_rng_state()
    multiplex(model, 2, init='first')
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    'calibration',
    [
        [],
        [torch.zeros(0, 3, 224, 224)],
        [torch.full((1, 3, 224, 224), torch.nan)],
        [torch.zeros(3, 224, 224)],
        [(torch.zeros(1, 3, 224, 224), torch.zeros(1))],
    ],
    ids=['none', 'empty', 'nan', 'one image', 'with labels'],
)
def test_unusable_calibration_images_are_refused(calibration):
    model = timm.create_model('deit_tiny_patch16_224', embed_dim=24, num_heads=1, depth=2)
    with pytest.raises(ValueError, match='calibration'):
        multiplex(model, 2, calibration=calibration)
