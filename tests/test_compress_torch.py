"""Multiplexed models in timm and torch: state dicts, copies, optimizers, compilers, sizes."""

import copy
import io
import pickle
import threading

import pytest
import torch
from conftest import assert_same
from multiplexed import KINDS, blocks, count, each_kind, each_transform, images, stirred, teacher
from safetensors.torch import load_file, save_file
from timm.models._manipulate import reinit_non_persistent_buffers
from timm.utils import ModelEmaV3
from torch import nn

from tinyvit_zoo.compress import multiplex

# --- state dicts


@each_kind
@each_transform
def test_a_state_dict_holds_a_shared_tensor_once_under_its_first_name(kind, transform):
    student = multiplex(teacher(kind), transform=transform)
    state_dict = student.state_dict()
    assert list(state_dict) == [name for name, _ in student.named_parameters()]
    path = 'blocks' if kind == 'vit' else 'layers.0.blocks'
    assert f'{path}.0.attn.qkv.weight' in state_dict
    assert f'{path}.1.attn.qkv.weight' not in state_dict
    assert f'{path}.1.norm1.weight' in state_dict


@each_kind
@each_transform
@pytest.mark.parametrize('assign', [False, True])
def test_loading_is_strict_and_keeps_the_weights_shared(kind, transform, assign, tmp_path):
    student = stirred(multiplex(teacher(kind), transform=transform))
    save_file(student.state_dict(), tmp_path / 'file.safetensors')
    other = multiplex(teacher(kind), transform=transform)
    other.load_state_dict(load_file(tmp_path / 'file.safetensors'), assign=assign)
    assert_same(other.state_dict(), student.state_dict())
    assert count(other) == count(student)
    x = images()
    torch.testing.assert_close(other(x), student(x), rtol=0, atol=0)
    state_dict = student.state_dict()
    del state_dict[next(name for name in state_dict if name.endswith('0.attn.qkv.weight'))]
    with pytest.raises(RuntimeError, match='Missing'):
        other.load_state_dict(state_dict)


@each_kind
def test_weights_that_are_not_shared_are_not_loaded_silently(kind):
    model = teacher(kind)
    with pytest.raises(RuntimeError, match=r'differs from .*qkv.*: the checkpoint is of a model that is not multiplex'):
        multiplex(model, transform=False).load_state_dict(model.state_dict(), strict=False)


@each_kind
def test_inside_another_module_the_names_are_the_same_behind_a_prefix(kind):
    student = stirred(multiplex(teacher(kind)))
    wrapper = nn.ModuleDict({'inner': student})
    assert list(wrapper.state_dict()) == [f'inner.{name}' for name in student.state_dict()]
    other = nn.ModuleDict({'inner': multiplex(teacher(kind))})
    other.load_state_dict(wrapper.state_dict())
    assert_same(other['inner'].state_dict(), student.state_dict())


@each_kind
@each_transform
@pytest.mark.parametrize('how', ['deepcopy', 'pickle', 'torch.save'])
def test_copies_share_weights_among_themselves(kind, transform, how):
    student = stirred(multiplex(teacher(kind), transform=transform))
    if how == 'deepcopy':
        other = copy.deepcopy(student)
    elif how == 'pickle':
        other = pickle.loads(pickle.dumps(student))
    else:
        torch.save(student, file := io.BytesIO())
        other = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert_same(other.state_dict(), student.state_dict())
    assert count(other) == count(student)
    with torch.no_grad():
        blocks(other)[0].mlp.fc1.weight.zero_()
        assert not blocks(other)[1].mlp.fc1.weight.any()
        assert blocks(student)[1].mlp.fc1.weight.any()
    other.load_state_dict(student.state_dict())  # the hooks are those of the copy
    assert blocks(other)[1].mlp.fc1.weight.any()


@each_kind
@each_transform
def test_moves_keep_the_weights_shared(kind, transform):
    student = stirred(multiplex(teacher(kind), transform=transform))
    names = list(student.state_dict())
    for moved in (copy.deepcopy(student).double(), copy.deepcopy(student).to('meta').to_empty(device='cpu')):
        assert list(moved.state_dict()) == names
        assert count(moved) == count(student)
    moved.load_state_dict(student.state_dict())
    reinit_non_persistent_buffers(moved)
    x = images()
    torch.testing.assert_close(moved(x), student(x), rtol=0, atol=0)


def test_a_model_that_has_left_the_meta_device_fills_its_buffers_by_eval():
    student = stirred(multiplex(teacher('swin')))
    with torch.device('meta'):
        other = multiplex(teacher('swin'), init='first').eval()
    other.to_empty(device='cpu')
    for tensor in other.buffers():
        tensor.zero_()
    other.load_state_dict(student.state_dict())
    x = images()
    torch.testing.assert_close(other.eval()(x), student(x), rtol=0, atol=0)


@pytest.mark.parametrize('exclude_buffers', [False, True])
@pytest.mark.parametrize('foreach', [False, True])
def test_timms_ema_moves_a_shared_weight_once(exclude_buffers, foreach):
    student = multiplex(teacher('swin'))
    ema = ModelEmaV3(student, decay=0.5, exclude_buffers=exclude_buffers, foreach=foreach)
    start = copy.deepcopy(ema.module.state_dict())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    ema.update(student)
    assert start
    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value, start[name] + 0.5, rtol=0, atol=1e-5)


def test_distributed_training_reduces_a_shared_weight_once(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1)
    try:
        student = multiplex(teacher('swin')).train()
        alone = copy.deepcopy(student)
        wrapped = nn.parallel.DistributedDataParallel(student)
        x = images()
        torch.manual_seed(0)
        wrapped(x).sum().backward()
        torch.manual_seed(0)
        alone(x).sum().backward()
        for ours, theirs in zip(student.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
        assert list(wrapped.state_dict()) == [f'module.{name}' for name in student.state_dict()]
    finally:
        torch.distributed.destroy_process_group()


def test_a_layer_replaced_in_one_place_is_saved_separately():
    student = multiplex(teacher('vit'))
    student.blocks[1].mlp.fc1 = nn.Linear(48, 192)
    assert 'blocks.1.mlp.fc1.weight' in student.state_dict()
    assert 'blocks.1.mlp.fc2.weight' not in student.state_dict()
    other = multiplex(teacher('vit'))
    other.blocks[1].mlp.fc1 = nn.Linear(48, 192)
    other.load_state_dict(student.state_dict())
    assert_same(other.state_dict(), student.state_dict())


# --- interfaces of timm and torch


@each_kind
def test_timms_forward_methods_agree(kind):
    student, x = stirred(multiplex(teacher(kind))), images()
    features = student.forward_features(x)
    torch.testing.assert_close(student.forward_head(features), student(x))
    final, intermediates = student.forward_intermediates(x)
    torch.testing.assert_close(final, features)
    assert len(intermediates) == 4
    if kind == 'vit':
        last = student.get_intermediate_layers(x, n=1, norm=True)[0]
        torch.testing.assert_close(last, features[:, 1:])


@each_kind
def test_checkpointed_gradients_are_the_same(kind):
    student = stirred(multiplex(teacher(kind))).train()
    other = copy.deepcopy(student)
    other.set_grad_checkpointing()
    x = images()
    for model in (student, other):
        torch.manual_seed(0)
        model(x).sum().backward()
    assert list(student.parameters())
    for ours, theirs in zip(student.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@each_kind
@each_transform
def test_it_is_resized_as_timms_model_is(kind, transform):
    model = teacher(kind).double()
    student = multiplex(model, 1, transform=transform, init='first')
    tied = multiplex(model, 2, transform=transform, init='first')
    before = list(tied.state_dict())
    x = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    for m in (model, student, tied):
        m.set_input_size((64, 48))
    torch.testing.assert_close(student(x), model(x), rtol=0, atol=1e-10)
    assert list(tied.state_dict()) == before
    assert tied(x).shape == (2, 11)


@each_kind
def test_the_classifier_can_be_changed(kind):
    student = multiplex(teacher(kind))
    student.reset_classifier(5)
    assert student(images()).shape == (2, 5)
    assert len(student.state_dict()) == len(list(student.parameters()))


def test_two_threads_do_not_disturb_each_other():
    student = stirred(multiplex(teacher('swin')))
    inputs = [images() for _ in range(2)]
    expected = [student(x) for x in inputs]
    wrong = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(student(inputs[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@each_kind
def test_a_hook_on_a_shared_layer_runs_for_every_block(kind):
    student, calls = multiplex(teacher(kind)), []
    blocks(student)[0].attn.qkv.register_forward_hook(lambda *args: calls.append(args))
    student(images())
    assert len(calls) == 2


@each_kind
@each_transform
def test_functional_calls_do_not_change_the_model(kind, transform):
    student, x = stirred(multiplex(teacher(kind), transform=transform)), images()
    parameters = dict(student.named_parameters())

    def total(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(student, values, (x,), tie_weights=False).sum()

    gradients = torch.func.grad(total)(parameters)
    assert all(p is parameters[name] for name, p in student.named_parameters())
    student(x).sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad)


@each_kind
def test_it_runs_in_mixed_precision(kind):
    student, x = stirred(multiplex(teacher(kind))), images()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        mixed = student(x)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), student(x), rtol=0.1, atol=0.1)


def test_a_model_for_any_image_size_stays_one():
    for kind in KINDS:
        model = teacher(kind, dynamic_img_size=True)
        x = torch.randn(1, 3, 48, 40)
        torch.testing.assert_close(multiplex(model, 1, init='first')(x), model(x))
        assert multiplex(model, calibration=[x])(x).shape == (1, 11)


@pytest.mark.slow
@each_kind
@each_transform
def test_it_compiles_as_one_graph(kind, transform):
    torch._dynamo.reset()
    student, x = stirred(multiplex(teacher(kind), transform=transform)), images()
    compiled = torch.compile(student, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), student(x))
    assert list(compiled.state_dict()) == [f'_orig_mod.{name}' for name in student.state_dict()]


@pytest.mark.slow
@each_kind
@each_transform
def test_it_exports(kind, transform):
    student, x = stirred(multiplex(teacher(kind), transform=transform)), images(5)
    batch = torch.export.Dim('batch', min=1, max=64)
    exported = torch.export.export(student, (images(2),), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(exported.module()(x), student(x))


@pytest.mark.slow
@each_kind
@each_transform
def test_it_can_be_traced_by_fx_and_scripted(kind, transform):
    from timm.models._features_fx import create_feature_extractor

    student, x = stirred(multiplex(teacher(kind), transform=transform)), images()
    graph = create_feature_extractor(student, {'head': 'out'})
    torch.testing.assert_close(graph(x)['out'], student(x))
    assert count(graph) == count(student)
    torch.testing.assert_close(torch.jit.script(student)(x), student(x))
