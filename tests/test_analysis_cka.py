"""CKA of layers: the authors' numbers, what it ignores, and what is refused."""

import weakref

import numpy as np
import pytest
import timm
import torch
from analysed import GOLDEN, analysed, digits
from conftest import refused, small_of

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.downstream.analysis.cka import CKA, compare, gram, hsic, hsic_self
from tinyvit_zoo.downstream.analysis.layers import BLOCKS, LayerOutputs


def of(first: list, second: list) -> CKA:
    """The state after batches of layers' outputs."""
    state = CKA()
    for a, b in zip(first, second, strict=True):
        state.add(*({str(i): gram(x) for i, x in enumerate(side)} for side in (a, b)))
    return state


def outputs(layers: int = 2, batches: int = 3, seed: int = 0) -> list[list[torch.Tensor]]:
    """Of each layer in each batch: float64 (8, 5, 6)."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(8, 5, 6, dtype=torch.float64, generator=generator) for _ in range(layers)] for _ in range(batches)
    ]


@pytest.mark.parametrize(('offset', 'close'), [(0, 1e-6), (10, 1e-6), (100, 1e-6), (1000, 1e-4)])
def test_the_numbers_are_those_of_the_authors_code_at_any_offset(offset, close):
    """At 1000 features in float32 have lost digits themselves."""
    with np.load(GOLDEN / 'maelite_cka_unit.npz') as golden:
        first, second = torch.from_numpy(golden['feats1']), torch.from_numpy(golden['feats2'])
        result = of(list(first + offset), list(second)).result()
        np.testing.assert_allclose(result.value, golden['cka'], rtol=0, atol=close)
    assert (result.value < 0).any()  # nothing is clamped


def test_one_hsic_is_that_of_the_authors_code():
    with np.load(GOLDEN / 'maelite_cka_unit.npz') as golden:
        first, second = (
            [torch.stack([gram(torch.from_numpy(x)) for x in golden[name][batch]]) for batch in range(2)]
            for name in ('feats1', 'feats2')
        )
        mixed = sum(hsic(K, L) for K, L in zip(first, second, strict=True))
        own = sum(hsic_self(K) for K in first)
        sums = golden['hsic_sums']
    np.testing.assert_allclose(mixed, sums[..., 1], rtol=1e-5)
    np.testing.assert_allclose(own, sums[:, 0, 0], rtol=1e-5)


def test_rotation_scale_and_shift_change_nothing():
    first, second = outputs(seed=1), outputs(seed=2)
    rotation = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64)).Q
    moved = [[3.5 * x.flatten(1) @ rotation + 7 for x in batch] for batch in first]
    np.testing.assert_allclose(of(moved, second).result().value, of(first, second).result().value, rtol=0, atol=1e-12)


def test_a_layer_is_like_itself():
    batches = outputs()
    np.testing.assert_allclose(of(batches, batches).result().value.diagonal(), 1, rtol=0, atol=1e-12)


def test_the_interval_leaves_one_batch_out_at_a_time():
    first, second = outputs(batches=4, seed=1), outputs(batches=4, seed=2)
    result = of(first, second).result()
    without = np.stack([of(first[:i] + first[i + 1 :], second[:i] + second[i + 1 :]).result().value for i in range(4)])
    error = np.sqrt(3 / 4 * np.square(without - without.mean(0)).sum(0))
    np.testing.assert_allclose(result.high - result.value, 3.18244630528 * error, rtol=1e-9)  # t, 3 degrees of freedom
    np.testing.assert_allclose(result.value - result.low, 3.18244630528 * error, rtol=1e-9)


def test_a_single_batch_has_no_interval():
    assert np.isnan(of(outputs(batches=1), outputs(batches=1)).result().low).all()


@pytest.mark.parametrize('rounding', [0, 1e-7])
def test_a_layer_that_says_the_same_of_all_images_is_named(rounding):
    batches = outputs()
    for batch in batches:
        batch[1] = (1 + rounding * batch[1]).float()
    result = of(outputs(seed=3), batches).result()
    assert result.undefined == ('/1',)
    assert np.isnan(result.value[:, 1]).all()
    assert np.isfinite(result.value[:, 0]).all()


def test_models_of_any_kind_are_compared_on_the_images_that_fill_batches():
    a, b = analysed('tinyvit', img_size=32), analysed('mini_deit', img_size=32)
    result = compare(a, b, digits(19), batch_size=8, progress=False)
    assert result.rows == (
        'stages.0.blocks.0', 'stages.1.blocks.0', 'stages.2.blocks.0', 'stages.2.blocks.1', 'stages.3.blocks.0',
    )  # fmt: skip
    assert result.columns == ('blocks.0', 'blocks.0 (2)', 'blocks.1', 'blocks.1 (2)')
    assert (result.batches, result.batch_size, result.left_out) == (2, 8, 3)
    assert np.isfinite(result.value).all()


def test_no_output_of_a_layer_is_kept():
    model, alive = analysed('tinymim', img_size=32), []

    def reduce(name: str, x: torch.Tensor, size: tuple[int, int], module: torch.nn.Module) -> torch.Tensor:
        alive.append(weakref.ref(x))
        return gram(x)

    with torch.no_grad(), LayerOutputs(model, [BLOCKS], reduce) as layers:
        grams = layers(torch.randn(4, 3, 32, 32))
        assert len(alive) == len(grams) == 4
        assert all(x() is None for x in alive)
    assert {tuple(x.shape) for x in grams.values()} == {(4, 4)}


def test_one_model_is_compared_with_itself_in_one_pass():
    model = analysed('tinymim', img_size=32)
    calls = []
    model.model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    alone = compare(model, None, digits(16), batch_size=8, progress=False)
    assert calls == [8, 8]
    np.testing.assert_allclose(alone.value.diagonal(), 1, atol=1e-12)
    twice = compare(model, model, digits(16), batch_size=8, progress=False)
    np.testing.assert_allclose(alone.value, twice.value, atol=1e-12)


def test_pairs_are_those_of_their_outputs():
    """By hand: a model's blocks, run one by one."""
    model, dataset = analysed('tinymim', img_size=32), digits(8)
    result = compare(model, None, dataset, batch_size=8, progress=False)
    images = torch.stack([model.transform(dataset.image(i)) for i in range(8)])
    with torch.no_grad():
        x = model.model._embed(images)
        grams = []
        for block in model.model.blocks:
            x = block(x)
            grams.append(gram(x.double()))
    K = torch.stack(grams)
    expected = hsic(K, K) / torch.outer(hsic_self(K).sqrt(), hsic_self(K).sqrt())
    np.testing.assert_allclose(result.value, expected, rtol=0, atol=1e-5)


def test_batches_that_are_too_small_are_refused():
    model = analysed('tinymim', img_size=32)
    refused(lambda: compare(model, None, digits(16), batch_size=3), 'at least 4', kind=EvaluationError)
    refused(lambda: compare(model, None, digits(5), batch_size=8), '5 images', kind=EvaluationError)
    refused(lambda: compare(model, None, digits(3), batch_size=8), 'at least 4', kind=EvaluationError)


def test_models_of_different_image_sizes_are_refused():
    models = analysed('tinymim', img_size=32), analysed('tinyvit', img_size=64)
    refused(lambda: compare(*models, digits(8), batch_size=8), '32x32', '64x64', '--img-size', kind=EvaluationError)


def test_an_output_that_is_not_finite_is_named():
    model = analysed('tinymim', img_size=32)
    with torch.no_grad():
        model.model.blocks[2].mlp.fc2.bias[0] = torch.nan
    refused(
        lambda: compare(model, None, digits(8), batch_size=8, progress=False), 'blocks.2', 'not finite',
        kind=EvaluationError,
    )  # fmt: skip
    assert not any(module._forward_hooks for module in model.model.modules())


def test_the_model_is_as_it_was():
    model = small_of('tinymim', img_size=32)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    compare(analysed(model), None, digits(8), batch_size=4, progress=False)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_convolutional_networks_have_layers_too():
    model = analysed(timm.create_model('test_convnext'))
    result = compare(model, None, digits(8), batch_size=4, progress=False)
    assert len(result.rows) == len(result.columns) > 3
