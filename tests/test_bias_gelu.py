"""Bias and GELU in one Triton kernel: in Triton's interpreter, in a process of its own, since it must be chosen before
Triton is imported. Never run on a GPU here."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from conftest import images_for
from test_routes import seen_in
from timm.models import reparameterize_model

from tinyvit_zoo.layers import DeployConv2d, bias_gelu, deploy, routes

KERNEL = """
import torch, torch.nn.functional as F
from tinyvit_zoo.layers.bias_gelu import add_bias_gelu_, is_one_block, works_on

assert works_on(torch.device('cpu'))
torch.manual_seed(0)
# The interpreter cuts what a GPU rounds.
for dtype, rtol in ((torch.float32, 1e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-9)):
    for last in (torch.contiguous_format, torch.channels_last):
        for gelu in (False, True):
            x = (3 * torch.randn(2, 5, 13, 11)).to(dtype).contiguous(memory_format=last)
            bias = torch.randn(5).to(dtype)
            expected = x.double() + bias.double()[:, None, None]
            expected = F.gelu(expected) if gelu else expected
            result = add_bias_gelu_(x, bias, gelu)
            assert result is x and is_one_block(x) and x.is_contiguous(memory_format=last)
            error = (x.double() - expected).abs().max() / expected.abs().max()
            assert error < rtol, (dtype, last, gelu, error)
"""

MODEL = """
import sys
sys.path[:0] = ['tests']
import torch
from conftest import images_for, small_of
from timm.models import reparameterize_model
from tinyvit_zoo.layers import deploy, routes

model = small_of('tinyvit', depths=(1, 1, 1, 1))
x = images_for(model)
deployed = reparameterize_model(model)
with torch.no_grad():
    expected = deployed(x)
    for module in (routes, deploy):
        module.device_name = lambda device: 'cuda'
    with routes.recorded() as choices:
        result = deployed(x)
kinds = {}
for choice, taken in choices:
    kinds.setdefault(choice.kind, set()).add(taken)
assert kinds == dict(conv={'triton'}, depthwise={'triton'}, conv1x1={'linear'}, linear={'linear'}), kinds
assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()
"""


@pytest.mark.skipif(find_spec('triton') is None, reason='Triton is not installed: it comes with CUDA builds of torch')
@pytest.mark.parametrize('program', [KERNEL, MODEL], ids=['kernel', 'model'])
def test_in_the_interpreter_the_kernel_gives_what_torch_gives(program, pytestconfig):
    environment = os.environ | {'TRITON_INTERPRET': '1', 'TINYVIT_ZOO_ROUTES': 'table'}
    done = subprocess.run(
        [sys.executable, '-c', program], env=environment, cwd=pytestconfig.rootpath, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_where_the_kernel_does_not_run_convolutions_are_plain(small, monkeypatch):
    """No Triton, no compiler, an old GPU: here a CPU, for which Triton has no driver."""
    for module in (routes, deploy):
        monkeypatch.setattr(module, 'device_name', lambda device: 'cuda')
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    bias_gelu.works_on.cache_clear()
    model = reparameterize_model(small())
    with routes.recorded() as choices:
        seen = seen_in(model, images_for(model))
    taken = {(choice.kind, route) for choice, route in choices}
    assert {('depthwise', 'plain'), ('conv', 'plain'), ('conv1x1', 'linear'), ('linear', 'linear')} == taken
    assert not [name for name in seen if name.startswith('mkldnn::_')]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_double_precision_is_no_candidate_of_a_kernel_in_single(dtype, monkeypatch):
    monkeypatch.setattr(deploy, 'device_name', lambda device: 'cuda')
    monkeypatch.setattr(bias_gelu, 'works_on', lambda device: True)
    allowed = deploy._allowed(torch.zeros(1, 1, 2, 2, dtype=dtype), own_bias=True)
    assert ('triton' in allowed) is (dtype is torch.float32)


@torch.no_grad()
def test_a_map_that_is_no_block_of_memory_is_added_to_by_torch():
    layer, x = DeployConv2d(4, 4, 3, padding=1, groups=4), torch.randn(2, 4, 6, 5)
    conv = layer._conv_forward
    layer._conv_forward = lambda *args: conv(*args)[..., :4]
    expected = torch.nn.functional.gelu(conv(x, layer.weight, layer.bias)[..., :4])
    torch.testing.assert_close(layer.run(x, 'triton', True), expected)
