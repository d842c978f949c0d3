"""Biases spread once in deploy form on CUDA: always those of the table as it is now, and in no file. Run on a CPU that
stands for the GPU."""

import copy
import io
import pickle

import pytest
import torch
from conftest import images_for
from timm.models import reparameterize_model
from torch import nn

from tinyvit_zoo.layers import kept_bias
from tinyvit_zoo.models import tinyvit


@pytest.fixture(autouse=True)
def _as_on_cuda(monkeypatch):
    monkeypatch.setattr(kept_bias, 'keeps_on', lambda device: device.type == 'cpu')


@pytest.fixture
def spread(monkeypatch):
    """The shapes of the tables that are spread."""
    shapes, old = [], tinyvit.expand_abs_bias
    monkeypatch.setattr(tinyvit, 'expand_abs_bias', lambda *args: (shapes.append(args[0].shape), old(*args))[1])
    return shapes


def attentions(model: nn.Module) -> list[tinyvit.Attention]:
    return [m for m in model.modules() if isinstance(m, tinyvit.Attention)]


def randomised(model: nn.Module) -> nn.Module:
    for layer in attentions(model):
        nn.init.normal_(layer.attention_biases)
    return model


@pytest.fixture
def created(small) -> nn.Module:
    """With windows so small that the spread tables are smaller than the weights."""
    return randomised(small(window_sizes=3))


@pytest.fixture
def deploy(created) -> nn.Module:
    return reparameterize_model(created)


def as_if_spread_now(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a model of equal weights gives that keeps nothing."""
    other = copy.deepcopy(model)
    for layer in attentions(other):
        layer.may_keep_bias = False
    with torch.no_grad():
        return other(x)


def same_now(model: nn.Module) -> None:
    x = images_for(model)
    expected = as_if_spread_now(model, x)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(model(x), expected)


def test_a_deploy_form_spreads_once(created, spread):
    model, x = created, images_for(created)
    with torch.no_grad():
        model(x)
        assert len(spread) == len(attentions(model)) > 0
        deploy = reparameterize_model(model)
        deploy(x)
        spread.clear()
        deploy(x)
    assert spread == []


def table_edited(model):
    with torch.no_grad():
        for layer in attentions(model):
            layer.attention_biases.mul_(2)
    return model


def weights_loaded(model):
    state = {name: tensor + 1 if 'attention_biases' in name else tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def weights_assigned(model):
    state = {name: tensor + 1 if 'attention_biases' in name else tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


def in_double(model):
    return model.double()


def resized(model):
    model.set_input_size(window_sizes=4)
    return model


def trained(model):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images_for(model)).square().mean().backward()
    optimizer.step()
    return model.eval()


def trained_in_evaluation_mode(model):
    """By an optimizer whose changes torch does not count."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(images_for(model)).square().mean().backward()
    optimizer.step()
    return model


def pointed_elsewhere(model):
    for layer in attentions(model):
        layer.attention_biases.data = layer.attention_biases.data * 2
    return model


def initialised_again(model):
    model.to('meta').to_empty(device='cpu')
    for layer in attentions(model):
        layer.row_offsets.fill_(-(2**40))  # as memory may look
    model.eval()
    model.init_weights()
    return randomised(model)


def copied(model):
    return table_edited(copy.deepcopy(model))


def pickled(model):
    return table_edited(pickle.loads(pickle.dumps(model)))


CHANGES = [
    table_edited, weights_loaded, weights_assigned, in_double, resized, trained, trained_in_evaluation_mode,
    pointed_elsewhere, initialised_again, copied, pickled,
]  # fmt: skip


@pytest.mark.parametrize('change', CHANGES)
def test_what_is_kept_follows_its_table(change, deploy):
    same_now(deploy)
    dtype = torch.float64 if change is in_double else torch.float32
    model = change(deploy)
    x = images_for(model).to(dtype)
    expected = as_if_spread_now(model, x)
    with torch.no_grad():
        assert torch.equal(model(x), expected)
        assert attentions(model)[0]._kept.bias.dtype is dtype


@pytest.mark.parametrize('change', [nn.Module.eval, table_edited, weights_loaded, trained])
def test_what_is_kept_stays_where_a_captured_graph_reads_it(change, deploy):
    same_now(deploy)
    (first, *_), x = attentions(deploy), images_for(deploy)
    place = first._kept.bias.data_ptr()
    change(deploy)
    with torch.no_grad():
        deploy(x)
    assert first._kept.bias.data_ptr() == place
    assert torch.equal(first._kept.bias, first.spread_bias(torch.float32))


def test_a_table_that_is_no_plain_tensor_is_left_alone(deploy):
    """As FSDP has it, whose shards do not mix with plain indices."""

    class Shard(torch.Tensor):
        pass

    for layer in attentions(deploy):
        layer.attention_biases = nn.Parameter(layer.attention_biases.detach().as_subclass(Shard))
    deploy.eval()
    assert [layer._kept for layer in attentions(deploy)] == [None] * len(attentions(deploy))


def test_other_tables_in_a_functional_call_take_part(deploy):
    x = images_for(deploy)
    same_now(deploy)
    names = [name for name, _ in deploy.named_parameters() if name.endswith('attention_biases')]
    tables = {name: 2 * deploy.get_parameter(name).detach() for name in names}
    expected = as_if_spread_now(table_edited(copy.deepcopy(deploy)), x)
    with torch.no_grad():
        assert torch.equal(torch.func.functional_call(deploy, tables, (x,)), expected)
        stacked = {name: torch.stack([tables[name] / 2, tables[name]]) for name in names}
        mapped = torch.func.vmap(lambda t: torch.func.functional_call(deploy, t, (x,)))(stacked)
    torch.testing.assert_close(mapped[1], expected, rtol=1e-4, atol=1e-5)
    same_now(deploy)


def test_a_table_gets_its_gradient(deploy):
    same_now(deploy)
    deploy(images_for(deploy)).square().mean().backward()
    assert all(layer.attention_biases.grad.abs().sum() > 0 for layer in attentions(deploy))


def test_under_autocast_the_small_table_is_cast(deploy):
    x = images_for(deploy)
    same_now(deploy)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        result = deploy(x)
        for layer in attentions(deploy):
            layer.may_keep_bias = False
        assert torch.equal(result, deploy(x))


@pytest.mark.parametrize(('size', 'kept'), [((224, 224), True), ((384, 384), False), ((512, 512), False)])
def test_only_tables_smaller_than_the_weights_are_kept(size, kept):
    """TinyViT-21M: 11.5 MB at 224, 99 at 384, 315 at 512; the weights have 85."""
    with torch.device('meta'):
        model = tinyvit.TinyViT(size, embed_dims=(96, 192, 384, 576), num_heads=(3, 6, 12, 18))
    assert {layer.may_keep_bias for layer in attentions(model)} == {kept}
    model.set_input_size((224, 224))
    assert {layer.may_keep_bias for layer in attentions(model)} == {True}


def test_another_size_can_end_keeping(deploy):
    same_now(deploy)
    deploy.set_input_size((1024, 1024))
    assert [layer._kept for layer in attentions(deploy)] == [None] * len(attentions(deploy))


def test_files_do_not_grow(created, deploy):
    same_now(deploy)
    plain = reparameterize_model(created)
    for layer in attentions(plain):
        layer.keeps_bias, layer._kept = False, None
    assert deploy.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in deploy.named_buffers()] == [name for name, _ in plain.named_buffers()]
    sizes = []
    for model in (deploy, plain):
        file = io.BytesIO()
        torch.save(model, file)
        sizes.append(file.tell())
    assert abs(sizes[0] - sizes[1]) < 512 < sum(layer._kept.bias.nbytes for layer in attentions(deploy))


@pytest.mark.slow
def test_exported_files_do_not_grow(deploy):
    x = images_for(deploy)
    same_now(deploy)
    programs = []
    for keeps in (True, False):
        for layer in attentions(deploy):
            layer.may_keep_bias = keeps
        with torch.no_grad():
            programs.append(torch.export.export(deploy, (x,)))
    assert programs[0].constants.keys() == programs[1].constants.keys()
    assert [str(n.target) for n in programs[0].graph.nodes] == [str(n.target) for n in programs[1].graph.nodes]


@pytest.mark.slow
def test_a_compiled_graph_reads_what_is_kept(deploy, spread):
    x = images_for(deploy)
    same_now(deploy)
    compiled = torch.compile(deploy, backend='eager', fullgraph=True)
    with torch.no_grad():
        expected = deploy(x)
        spread.clear()
        assert torch.equal(compiled(x), expected)
        assert spread == []
        weights_loaded(deploy)
        assert torch.equal(compiled(x), as_if_spread_now(deploy, x))


@pytest.mark.slow
def test_a_compiled_graph_reads_nothing_outdated(deploy):
    """A step may follow any forward pass that records gradients, also a compiled one."""
    x = images_for(deploy)
    same_now(deploy)
    compiled = torch.compile(deploy, backend='eager', fullgraph=True)
    optimizer = torch.optim.AdamW(deploy.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        compiled(x)
    compiled(x).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        assert torch.equal(compiled(x), as_if_spread_now(deploy, x))
