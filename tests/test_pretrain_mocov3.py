"""MoCo-v3: the released loss, names and positions; the momentum encoder; keys from all processes."""

import math
import subprocess
import sys

import pytest
import torch
from conftest import refused
from golden_rule import golden, manifest
from torch import nn

from tinyvit_zoo.distill import info_nce_loss
from tinyvit_zoo.layers import sincos_position
from tinyvit_zoo.pretrain import MocoV3, cosine_momentum, moco_position, mocov3_tiny

SINGLE = 5e-6  # the reference is single precision


def small(**kwargs) -> MocoV3:
    """On images of 2 x 3 patches."""
    args = dict(img_size=(32, 48), embed_dim=16, depth=2, num_heads=2)
    return mocov3_tiny(dim=8, mlp_dim=12, **{**args, **kwargs}).double()


def views() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 3, 32, 48, dtype=torch.float64), torch.randn(4, 3, 32, 48, dtype=torch.float64)


# the released code


def test_the_names_and_shapes_are_the_released_ones():
    model = mocov3_tiny(device='meta')
    expected = {key: shape for key, (shape, _) in manifest('maelite_mocov3_tiny').items()}
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == expected
    assert sum(p.numel() for p in model.parameters()) == 50_411_392
    assert {b.attn.num_heads for b in model.base_encoder.blocks} == {12}


def test_the_loss_of_one_direction_is_the_released_one():
    official = {name: torch.from_numpy(array).double() for name, array in golden('maelite_mocov3_loss_unit').items()}
    loss = info_nce_loss(official['q'], official['k'], official['T'].item())
    torch.testing.assert_close(loss, official['loss'], rtol=0, atol=SINGLE)


def test_positions_are_the_released_ones():
    official = torch.from_numpy(golden('maelite_mocov3_pos_embed')['pos_embed'])
    torch.testing.assert_close(moco_position(192, (14, 14)), official, rtol=0, atol=SINGLE)
    assert not torch.allclose(moco_position(192, (14, 14)), sincos_position(192, (14, 14)), atol=0.1)


# the loss


def test_the_loss_is_the_papers():
    queries, keys, temperature = torch.randn(3, 5).double(), torch.randn(3, 5).double(), 0.3
    total = 0.0
    for i in range(3):
        cosines = [torch.cosine_similarity(queries[i], key, dim=0).item() / temperature for key in keys]
        total += math.log(sum(map(math.exp, cosines))) - cosines[i]
    assert info_nce_loss(queries, keys, temperature).item() == pytest.approx(2 * temperature * total / 3, abs=1e-10)


def test_no_gradient_goes_into_the_keys():
    queries, keys = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    info_nce_loss(queries, keys).backward()
    assert queries.grad is not None
    assert keys.grad is None


def test_half_precision_is_computed_in_single():
    queries, keys = torch.randn(3, 5).bfloat16(), torch.randn(3, 5).bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = info_nce_loss(queries, keys)
    assert torch.equal(loss, info_nce_loss(queries.float(), keys.float()))


def test_queries_without_their_keys_are_refused():
    refused(lambda: info_nce_loss(torch.randn(3, 5), torch.randn(4, 5)), '(4, 5)', kind=ValueError)
    refused(lambda: info_nce_loss(torch.randn(3, 5), torch.randn(3, 5), 0.0), 'temperature', kind=ValueError)


RANK = """
import sys, torch
from tinyvit_zoo.distill import info_nce_loss
rank, store = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=2)
torch.manual_seed(0)
queries, keys = torch.randn(6, 5).double(), torch.randn(6, 5).double()
mine = slice(3 * rank, 3 * rank + 3)
queries = queries[mine].requires_grad_()
loss = info_nce_loss(queries, keys[mine])
loss.backward()
print(loss.item(), queries.grad.norm().item())
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_compute_the_same_as_one(tmp_path):
    command = [sys.executable, '-c', RANK]
    store = str(tmp_path / 'store')
    ranks = [subprocess.Popen([*command, str(rank), store], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    losses, norms = zip(*[map(float, rank.communicate(timeout=500)[0].split()) for rank in ranks], strict=True)
    torch.manual_seed(0)
    queries, keys = torch.randn(6, 5).double().requires_grad_(), torch.randn(6, 5).double()
    loss = info_nce_loss(queries, keys)
    loss.backward()
    assert sum(losses) / 2 == pytest.approx(loss.item(), abs=1e-12)
    assert [norm / 2 for norm in norms] == pytest.approx([g.norm().item() for g in queries.grad.split(3)], abs=1e-12)


# the module


def test_each_views_queries_are_compared_with_the_other_views_keys():
    model = small().train()
    first, second = views()
    with torch.no_grad():
        # In training mode BatchNorm uses the statistics of the batch alone, so the model will compute the same.
        queries = [model.predictor(model.base_encoder(view)) for view in (first, second)]
        keys = [model.momentum_encoder(view) for view in (first, second)]
        expected = info_nce_loss(queries[0], keys[1]) + info_nce_loss(queries[1], keys[0])
        loss = model(first, second, momentum=1.0)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-10)


def test_the_projector_reads_the_normalized_class_token():
    model = small().eval()
    image = views()[0]
    token = model.base_encoder.forward_features(image)[:, 0]
    torch.testing.assert_close(model.base_encoder(image), model.base_encoder.head(token))


def test_the_momentum_encoder_is_updated_before_it_computes_keys():
    model = small()
    with torch.no_grad():
        for parameter in model.base_encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = {name: p.clone() for name, p in model.momentum_encoder.named_parameters()}
    base = dict(model.base_encoder.named_parameters())
    model(*views(), momentum=0.75)
    assert before.keys() == base.keys()
    for name, parameter in model.momentum_encoder.named_parameters():
        expected = 0.75 * before[name] + 0.25 * base[name]
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-12, msg=lambda m, n=name: f'{n}: {m}')


def test_only_encoder_and_predictor_learn():
    model = small()
    model(*views(), momentum=0.99).backward()
    learned = {name.partition('.')[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learned == {'base_encoder', 'predictor'}
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert not model.base_encoder.pos_embed.requires_grad


def test_both_encoders_are_initialized_alike_and_as_released():
    model = mocov3_tiny(img_size=(64, 96), mlp_dim=8, dim=4)
    for name, tensor in model.base_encoder.state_dict().items():
        assert torch.equal(tensor, model.momentum_encoder.state_dict()[name]), name
    vit = model.base_encoder
    assert torch.equal(vit.pos_embed, moco_position(192, (4, 6)))
    for part in vit.blocks[1].attn.qkv.weight.chunk(3):  # each a separate matrix
        assert part.std().item() == pytest.approx(math.sqrt(2 / (192 + 192)), rel=0.02)
    assert vit.patch_embed.proj.weight.std().item() == pytest.approx(math.sqrt(2 / (768 + 192)), rel=0.02)
    assert not any(m.bias.any() for m in vit.blocks.modules() if isinstance(m, nn.Linear))
    assert vit.cls_token.abs().max() < 1e-5


def test_a_vit_without_some_biases_is_initialized_too():
    model = small(qkv_bias=False)
    assert model.base_encoder.blocks[0].attn.qkv.bias is None
    assert model(*views(), 0.99).isfinite()


def test_positions_of_a_rectangle_encode_the_row_first():
    grid = moco_position(8, (2, 3))[0, 1:].view(2, 3, 8)
    assert torch.equal(grid[1, 0, :4], grid[1, 2, :4])
    assert torch.equal(grid[0, 1, 4:], grid[1, 1, 4:])
    assert grid[1, 2, 0].item() == pytest.approx(math.sin(1))
    assert grid[1, 2, 4].item() == pytest.approx(math.sin(2))
    assert moco_position(8, (2, 3))[0, 0].abs().max() == 0


def test_momentum_rises_to_one_along_a_cosine():
    assert cosine_momentum(0, 100) == 0.99
    assert cosine_momentum(50, 100) == pytest.approx(0.995)
    assert cosine_momentum(100, 100) == 1.0
