"""What TinyViT's attention does otherwise on CUDA, run here: the same values on a CPU, its copies on meta tensors."""

import copy
from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tinyvit_zoo.layers import cuda_sdpa
from tinyvit_zoo.layers.cuda import CUDA_SDPA
from tinyvit_zoo.models import tinyvit


def always(x: torch.Tensor) -> bool:
    return True


@pytest.fixture
def cuda_form(monkeypatch):
    """The layers take the form that they have on CUDA, wherever they are."""
    monkeypatch.setattr(tinyvit, 'runs_on_cuda', always)


class Operators(TorchDispatchMode):
    """How often each operator runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.__name__.split('.')[0]] += 1
        return func(*args, **(kwargs or {}))


def training_step(name: str) -> tuple[Counter, Counter]:
    """Operators of the forward and of the backward pass, on meta tensors in channels_last as a GPU is given them."""
    model = timm.create_model(name, device='meta').train().to(memory_format=torch.channels_last)
    x = torch.empty(2, 3, 224, 224, device='meta').contiguous(memory_format=torch.channels_last)
    with Operators() as forward:
        y = model(x)
    with Operators() as backward:
        y.backward(torch.empty_like(y))
    return forward.counts, backward.counts


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = timm.create_model('tinyvit_5m_224', depths=(1, 1, 1, 1), img_size=(96, 160), num_classes=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith('attention_biases'):
                parameter.normal_()
    return model


def test_a_training_step_copies_no_more_than_timms(cuda_form):
    forward, backward = training_step('tinyvit_21m_224')
    of_timm = training_step('tiny_vit_21m_224')
    assert backward['clone'] <= 15
    assert (forward['clone'], backward['clone']) == tuple(counts['clone'] for counts in of_timm)
    assert not backward['index_add']


def test_on_a_cpu_the_bias_is_expanded_in_two_steps():
    forward, _ = training_step('tinyvit_21m_224')  # meta tensors are not on CUDA
    assert forward['index_select'] == 2 * 10
    assert not forward['index']


@pytest.mark.parametrize('train', [False, True])
def test_both_forms_compute_the_same(train, small, monkeypatch):
    x = torch.randn(2, 3, 96, 160, dtype=torch.float64)

    def run() -> tuple[torch.Tensor, ...]:
        model = copy.deepcopy(small).double().train(train)
        with torch.set_grad_enabled(train):
            y = model(x)
        tables = [p for name, p in model.named_parameters() if name.endswith('attention_biases')]
        return (y.detach(), *torch.autograd.grad(y.square().sum(), tables)) if train else (y,)

    expected = run()
    monkeypatch.setattr(tinyvit, 'runs_on_cuda', always)
    assert len(expected) == (4 if train else 1)
    torch.testing.assert_close(run(), expected, rtol=1e-10, atol=1e-12)


def masks(model: nn.Module, size: tuple[int, int], monkeypatch) -> list[int]:
    """Dimensions of the mask of each call of torch's attention."""
    seen = []
    attend = F.scaled_dot_product_attention

    def spy(q, k, v, attn_mask):
        seen.append(attn_mask.ndim)
        return attend(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(F, 'scaled_dot_product_attention', spy)
    with torch.no_grad():
        model(torch.empty(1, 3, *size, device='meta'))
    return seen


def test_the_kernel_follows_the_table(cuda_form, monkeypatch):
    """A mask in three dimensions leads torch to the memory-efficient kernel, one in four to cuDNN's."""
    assert [cuda_sdpa(n) for n in (49, 144, 196, 576, 1024)] == ['memory-efficient'] * 3 + ['cuDNN'] * 2
    assert CUDA_SDPA[-1][0] is None
    at_224 = timm.create_model('tinyvit_5m_224', depths=(1, 1, 1, 1), device='meta').eval()
    assert masks(at_224, (224, 224), monkeypatch) == [3, 3, 3]
    at_384 = timm.create_model('tinyvit_21m_384', depths=(1, 1, 1, 1), device='meta').eval()
    assert masks(at_384, (384, 384), monkeypatch)[:3] == [3, 4, 3]


def test_a_cpu_is_given_four_dimensions_always(monkeypatch):
    model = timm.create_model('tinyvit_5m_224', depths=(1, 1, 1, 1), device='meta').eval()
    assert masks(model, (224, 224), monkeypatch) == [4, 4, 4]


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@torch.no_grad()
def test_the_cuda_form_can_be_scripted_traced_and_exported(cuda_form, small):
    small.eval()
    x = torch.randn(2, 3, 96, 160)
    expected = small(x)
    graphs = [torch.jit.script(small), torch.jit.trace(small, x), torch.export.export(small, (x,)).module()]
    assert len(graphs) == 3
    for graph in graphs:
        torch.testing.assert_close(graph(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_the_cuda_form_is_one_graph_for_the_compiler(cuda_form, small):
    small.eval()
    x = torch.randn(2, 3, 96, 160)
    torch._dynamo.reset()
    fast = torch.compile(small, fullgraph=True, backend='eager')
    torch.testing.assert_close(fast(x), small(x), rtol=1e-4, atol=1e-5)
