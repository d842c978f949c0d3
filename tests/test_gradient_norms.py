"""Gradient norms of logical layers: contributions of calls, and the table that a training writes."""

import json

import numpy as np
import pytest
import timm
import torch
from conftest import refused, small_of

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.downstream.analysis.gradients import CallGradients, GradientNorms, read_norms
from tinyvit_zoo.downstream.finetune import finetune
from tinyvit_zoo.training.recipes import find_recipe

CPU = torch.device('cpu')
PLAIN = dict(epochs=2, batch_size=8, held_out=0.0, mixup=0.0, cutmix=0.0)


def vit():
    torch.manual_seed(0)
    return timm.create_model('test_vit', num_classes=10, img_size=32, depth=2)


MODELS = {
    'vit': (vit, 2),
    'crossvit': (  # its blocks are made of lists called blocks
        lambda: timm.create_model(
            'crossvit_9_240', img_size=120, embed_dim=(16, 16), depth=((1, 1, 0),) * 2, num_heads=(2, 2), num_classes=3
        ),
        2,
    ),
    'mini_deit': (lambda: small_of('mini_deit', img_size=32), 4),
    'mini_swin': (lambda: small_of('mini_swin', img_size=32), 10),
    'multiplexed': (
        lambda: timm.create_model(
            'multiplexed', base='vit_tiny_patch16_224', share_every=2, embed_dim=24, depth=4, num_heads=2, img_size=32
        ),
        4,
    ),
    'multiplexed, norms too': (
        lambda: timm.create_model(
            'multiplexed', base='vit_tiny_patch16_224', share_every=2, share_norms=True, mlp_transform=True,
            embed_dim=24, depth=4, num_heads=2, img_size=32,
        ),
        4,
    ),
}  # fmt: skip


@pytest.mark.parametrize('kind', MODELS)
def test_contributions_of_calls_sum_to_the_gradient(kind):
    make, calls = MODELS[kind]
    torch.manual_seed(0)
    model = make().double().train()
    side = 120 if kind == 'crossvit' else 32
    images = torch.randn(3, 3, side, side, dtype=torch.float64)

    def loss():
        return model(images).square().mean()

    loss().backward()
    plain = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    with CallGradients(model) as gradients:
        loss().backward()
        with torch.no_grad():
            model(images)
    assert len(gradients.sums) == calls
    summed = {}
    for layer in gradients.sums.values():
        for parameter, gradient in layer.items():
            summed[parameter] = summed.get(parameter, 0) + gradient
    for name, parameter in model.named_parameters():
        if 'blocks' in name:
            assert torch.allclose(summed[parameter], parameter.grad, rtol=1e-12, atol=1e-15), name
        if name in plain:
            assert torch.allclose(parameter.grad, plain[name], rtol=1e-12, atol=1e-15), name
    shared = len(summed) < sum(map(len, gradients.sums.values()))
    assert shared == (kind not in ('vit', 'crossvit'))


def test_a_call_that_shares_its_weights_has_the_gradient_of_a_block_of_its_own():
    torch.manual_seed(0)
    model = small_of('mini_deit', img_size=32).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with CallGradients(model) as gradients:
        model(images).square().sum().backward()
    assert list(gradients.sums) == ['blocks.0', 'blocks.0 (2)', 'blocks.1', 'blocks.1 (2)']
    block, weight = model.blocks[1], model.blocks[1].mlp.fc1.weight
    inputs = []
    handle = block.register_forward_pre_hook(lambda module, args: inputs.append(args))
    model(images)
    handle.remove()
    own = weight.detach().clone().requires_grad_()
    held, block.mlp.fc1._parameters['weight'] = weight, own
    x = block(*inputs[1])
    block.mlp.fc1._parameters['weight'] = held
    model.forward_head(model.norm(x)).square().sum().backward()
    assert torch.allclose(gradients.sums['blocks.1 (2)'][weight], own.grad, rtol=1e-12)


def test_blocks_that_checkpointing_runs_again_are_no_further_layers():
    model, images = vit(), torch.randn(2, 3, 32, 32)
    found = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        with CallGradients(model) as gradients:
            model(images).square().mean().backward()
        found.append(gradients.sums)
    plain, again = found
    assert list(again) == ['blocks.0', 'blocks.1']
    assert all(torch.equal(again[name][p], gradient) for name in plain for p, gradient in plain[name].items())


def test_hooks_and_views_are_gone_after_an_error():
    model = vit()
    parameters = dict(model.named_parameters())

    def fail(*args):
        raise RuntimeError('Enough.')

    model.blocks[1].mlp.register_forward_pre_hook(fail)
    with CallGradients(model), pytest.raises(RuntimeError, match='Enough'):
        model(torch.zeros(1, 3, 32, 32))
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (model, *model.blocks))


def train(folder, observer, **options):
    dataset = load_dataset('digits', 'train').subset(range(24))
    recipe = find_recipe('tinyvit_scratch').changed(**PLAIN)
    model = vit()
    return finetune(
        model, dataset, recipe, folder, held_out=0.0, observer=observer, device=CPU,
        **{'say': lambda text: None, **options},
    ), model  # fmt: skip


def test_a_training_writes_a_line_an_update_and_learns_the_same(tmp_path):
    result, model = train(tmp_path / 'a', GradientNorms())
    plain, other = train(tmp_path / 'b', None)
    assert [epoch.loss for epoch in result.history] == [epoch.loss for epoch in plain.history]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    norms = read_norms(tmp_path / 'a')
    assert norms.layers == ('blocks.0', 'blocks.1')
    assert norms.updates.tolist() == [1, 2, 3, 4, 5, 6]
    assert (norms.values > 0).all()
    assert not (tmp_path / 'b' / 'gradients.csv').exists()


def test_the_norm_is_that_of_the_whole_update_before_clipping(tmp_path):
    train(tmp_path / 'whole', GradientNorms())
    train(tmp_path / 'parts', GradientNorms(), micro_batch=2)
    whole, parts = read_norms(tmp_path / 'whole'), read_norms(tmp_path / 'parts')
    # Drop path is off and each image counts for itself, so the first update has the same gradients.
    assert np.allclose(whole.values[0], parts.values[0], rtol=1e-4)


class Killed(BaseException): ...


def test_a_resumed_run_has_every_line_once(tmp_path):
    train(tmp_path / 'whole', GradientNorms())

    class Killing(GradientNorms):
        def updated(self, number):
            super().updated(number)
            if number == 5:
                raise Killed

    with pytest.raises(Killed):
        train(tmp_path / 'killed', Killing(), save_minutes=60.0)
    with (tmp_path / 'killed' / 'gradients.csv').open('a') as file:
        file.write('6,0.1')
    train(tmp_path / 'killed', GradientNorms())
    assert (tmp_path / 'killed' / 'gradients.csv').read_text() == (tmp_path / 'whole' / 'gradients.csv').read_text()


def test_what_cannot_be_observed_is_refused(tmp_path):
    refused(lambda: train(tmp_path, GradientNorms(), compile=True), 'leave --compile out', kind=EvaluationError)
    refused(lambda: read_norms(tmp_path), 'missing or damaged', kind=EvaluationError)


def test_a_run_that_has_ended_without_norms_says_so(tmp_path):
    train(tmp_path, None)
    train(tmp_path, GradientNorms())
    refused(lambda: read_norms(tmp_path), 'has no update', 'trained without --gradient-norms', kind=EvaluationError)


def test_finetune_draws_the_norms_that_it_wrote(cli, tmp_path):
    code, out, err = cli(
        'finetune', 'test_vit', '--random', '--img-size', 32, '-d', 'digits', '--subset', '1%', '--held-out', 0,
        '--epochs', 2, '--gradient-norms', '-o', tmp_path / 'out',
    )  # fmt: skip
    assert code == 0, err
    assert 'Gradient norms of 6 layers at 2 updates' in out
    assert (tmp_path / 'out' / 'gradients.png').read_bytes()[1:4] == b'PNG'
    assert json.loads((tmp_path / 'out' / 'results.json').read_text())['evaluator'] == 'finetune'
