"""Frequencies of layers: the reference's numbers, maps of any shape, and what is refused."""

import numpy as np
import pytest
import timm
import torch
from analysed import GOLDEN, analysed, digits
from conftest import refused

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.downstream.analysis.fourier import log_amplitudes, measure


def test_the_curve_is_that_of_the_golden():
    with np.load(GOLDEN / 'fourier_unit.npz') as golden:
        tokens = torch.from_numpy(golden['tokens'])
        values = log_amplitudes(tokens.transpose(1, 2).unflatten(2, (14, 14))).mean(dim=0)
        np.testing.assert_allclose(values - values[0], golden['curve'], rtol=0, atol=1e-6)
        np.testing.assert_allclose(values[-1] - values[0], golden['delta_log_amplitude'], rtol=0, atol=1e-6)
        np.testing.assert_allclose(np.linspace(0, 1, len(values)), golden['freq'])


@pytest.mark.parametrize('side', [3, 7, 8])
def test_amplitudes_are_the_diagonal_of_the_shifted_spectrum(side):
    x = torch.randn(5, 4, side, side, dtype=torch.float64)
    spectrum = torch.fft.fftshift(torch.fft.fft2(x).abs().add(1e-6).log(), dim=(-2, -1))
    expected = spectrum.diagonal(dim1=-2, dim2=-1)[..., side // 2 :].mean(dim=1)
    torch.testing.assert_close(log_amplitudes(x), expected, rtol=0, atol=1e-10)


def test_maps_that_are_not_square_take_the_steps_of_the_shorter_side():
    x = torch.randn(2, 3, 6, 14, dtype=torch.float64)
    spectrum = torch.fft.fft2(x).abs().add(1e-6).log().mean(dim=1)
    torch.testing.assert_close(log_amplitudes(x), spectrum[:, [0, 1, 2], [0, 3, 6]], rtol=0, atol=1e-10)


def test_large_maps_are_taken_a_few_images_at_a_time(monkeypatch):
    x = torch.randn(5, 3, 8, 8)
    whole = log_amplitudes(x)
    monkeypatch.setattr('tinyvit_zoo.downstream.analysis.fourier.IN_CACHE', 400)  # two images
    torch.testing.assert_close(log_amplitudes(x), whole, rtol=0, atol=1e-12)


def test_layers_of_a_model_are_means_over_all_images_whatever_the_batches():
    model, dataset = analysed('clip_vit', img_size=64), digits(5)
    whole, parts = (measure(model, dataset, batch_size=n, progress=False) for n in (5, 2))
    images = torch.stack([model.transform(dataset.image(i)) for i in range(5)])
    kept = []
    handle = model.model.blocks[2].register_forward_hook(lambda module, args, output: kept.append(output[:, 1:]))
    with torch.no_grad():
        model(images)
    handle.remove()
    values = log_amplitudes(kept[0].transpose(1, 2).unflatten(2, (4, 4))).mean(dim=0)
    np.testing.assert_allclose(whole.layers[2].curve, values - values[0], rtol=0, atol=1e-5)
    assert [layer.layer for layer in whole.layers] == [f'blocks.{i}' for i in range(4)]
    assert {layer.grid for layer in whole.layers} == {(4, 4)}
    for a, b in zip(whole.layers, parts.layers, strict=True):
        np.testing.assert_allclose(a.curve, b.curve, rtol=0, atol=1e-5)
        assert a.delta == a.curve[-1] != 0
        assert a.curve[0] == 0


def test_maps_without_frequencies_are_left_out_and_reported():
    result = measure(analysed('tinyvit', img_size=96), digits(2), progress=False)
    assert [(layer.layer, layer.grid) for layer in result.layers] == [
        ('stages.0.blocks.0', (24, 24)), ('stages.1.blocks.0', (12, 12)), ('stages.2.blocks.0', (6, 6)),
        ('stages.2.blocks.1', (6, 6)), ('stages.3.blocks.0', (3, 3)),
    ]  # fmt: skip
    small = measure(analysed('tinyvit', img_size=32), digits(2), progress=False)
    assert small.left_out == ('stages.2.blocks.0', 'stages.2.blocks.1', 'stages.3.blocks.0')
    refused(
        lambda: measure(analysed('clip_vit', img_size=32), digits(2), progress=False), 'no map', kind=EvaluationError
    )


def test_convolutional_networks_have_frequencies_too():
    result = measure(analysed(timm.create_model('test_convnext')), digits(2), progress=False)
    assert len(result.layers) > 3
    assert all(np.isfinite(layer.curve).all() for layer in result.layers)


def test_what_is_no_map_or_not_finite_is_refused_by_name():
    model = analysed('clip_vit', img_size=64)
    refused(lambda: measure(model, digits(2), ['head'], progress=False), 'head', 'not a map', kind=EvaluationError)
    with torch.no_grad():
        model.model.blocks[1].mlp.fc2.bias[0] = torch.inf
    refused(lambda: measure(model, digits(2), progress=False), 'blocks.1', 'not finite', kind=EvaluationError)
