"""What plain inference does differently must show nowhere but in memory and time."""

import timm
import torch
import torch.nn.functional as F

import tinyvit_zoo  # noqa: F401  registers the models
from tinyvit_zoo.layers import GELU


def test_gelu_overwrites_its_input_in_plain_inference_only():
    act = GELU()
    x = torch.randn(3, 4)
    expected = F.gelu(x)
    with_grad = act(x)
    assert torch.equal(with_grad, expected)
    assert not torch.equal(x, expected)
    with torch.no_grad():
        out = act(x)
    assert out.data_ptr() == x.data_ptr()
    assert torch.equal(out, expected)


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
