"""MAE of MAE-Lite: the released losses, predictions and gradients under given noise, and its parts on their own."""

import math

import pytest
import torch
from conftest import refused
from golden_rule import fill_by_rule, golden, manifest, noise
from torch import nn

from tinyvit_zoo.layers import sincos_position
from tinyvit_zoo.pretrain import MaskedAutoencoder, mae_lite_base, mae_lite_small, mae_lite_tiny

SINGLE = 5e-6  # the reference is single precision
BUILD = {'tiny': mae_lite_tiny, 'small': mae_lite_small}
GRID = (3, 5)


def filled(size: str) -> MaskedAutoencoder:
    """With the weights of the reference outputs, in float64."""
    return fill_by_rule(BUILD[size]()).double()


def small(**kwargs) -> MaskedAutoencoder:
    """On images of 3 x 5 patches, each 4 high and 2 wide; float64, weights far from their initial values."""
    args = dict(img_size=(12, 10), patch_size=(4, 2), embed_dim=24, depth=2, num_heads=3)
    model = MaskedAutoencoder(**{**args, 'decoder_embed_dim': 16, 'decoder_num_heads': 2, **kwargs}).double()
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return model


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 12, 10, dtype=torch.float64)


# the released code


@pytest.mark.parametrize('size', BUILD)
def test_the_names_and_shapes_are_the_released_ones(size):
    expected = {key: shape for key, (shape, _) in manifest(f'maelite_mae_{size}').items()}
    model = BUILD[size](device='meta')
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == expected


@pytest.mark.parametrize(
    ('build', 'parameters', 'trained'),
    [
        (mae_lite_tiny, 5_748_480, 5_691_744),
        (mae_lite_small, 22_371_072, 22_257_600),
        (mae_lite_base, 111_907_840, 111_655_680),
    ],
)
def test_there_are_as_many_parameters_as_released_and_positions_are_not_trained(build, parameters, trained):
    model = build(device='meta')
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained


@pytest.mark.parametrize('size', BUILD)
def test_masks_predictions_loss_and_gradients_are_the_released_ones(size):
    official, model = golden(f'maelite_mae_{size}'), filled(size)
    x = noise(224, 224).double()
    output = model(x, noise=torch.from_numpy(official['noise']))
    output.loss.backward()
    assert torch.equal(output.ids_shuffle, torch.from_numpy(official['ids_shuffle']))
    assert torch.equal(output.mask, torch.from_numpy(official['mask']))
    assert output.loss.item() == pytest.approx(official['loss'].item(), abs=SINGLE)
    for actual, name in ((output.pred, 'pred_rows'), (model.patchify(x), 'patches_rows')):
        rows = torch.from_numpy(official[name]).double()
        torch.testing.assert_close(actual[:, official['pred_row_ids']].detach(), rows, rtol=0, atol=SINGLE)
    parameters = dict(model.named_parameters())
    for name, norm in official.items():
        if name.startswith('gradnorm/'):
            assert parameters[name.removeprefix('gradnorm/')].grad.norm().item() == pytest.approx(norm, rel=1e-5), name


@pytest.mark.parametrize('size', BUILD)
@torch.no_grad()
def test_encoded_patches_and_the_loss_on_plain_pixels_are_the_released_ones(size):
    official, model = golden(f'maelite_mae_{size}'), filled(size)
    x, ids_shuffle = noise(224, 224).double(), torch.from_numpy(official['ids_shuffle'])
    latent, _ = model.forward_encoder(x, ids_shuffle[:, :49])
    torch.testing.assert_close(latent, torch.from_numpy(official['latent']).double(), rtol=0, atol=SINGLE)
    model.norm_pix_loss = False
    loss = model(x, ids_shuffle=ids_shuffle).loss
    assert loss.item() == pytest.approx(official['loss_no_norm_pix'].item(), abs=SINGLE)


# against its definition, on rectangular images and patches


def plain_patches(x: torch.Tensor) -> torch.Tensor:
    """(B, 3, 12, 10) -> (B, 15, 24), pixel by pixel."""
    patches = torch.empty(len(x), 15, 24, dtype=x.dtype)
    for row in range(GRID[0]):
        for column in range(GRID[1]):
            for i in range(4):
                for j in range(2):
                    for c in range(3):
                        patches[:, row * 5 + column, (i * 2 + j) * 3 + c] = x[:, c, row * 4 + i, column * 2 + j]
    return patches


def plain_loss(model: MaskedAutoencoder, x: torch.Tensor, keep: list[list[int]]) -> float:
    """Image by image, mask tokens set one at a time; only the blocks and norms are the model's own."""
    total, hidden = 0.0, 0
    for image, visible in zip(x, keep, strict=True):
        tokens = model.patch_embed.proj(image[None]).flatten(2).mT[0]
        tokens = torch.stack([tokens[i] + model.pos_embed[0, 1 + i] for i in visible])
        tokens = torch.cat([model.cls_token[0] + model.pos_embed[0, :1], tokens])[None]
        encoded = model.decoder_embed(model.norm(model.blocks(tokens)))[0]
        everywhere = [model.mask_token[0, 0]] * 15
        for place, token in zip(visible, encoded[1:], strict=True):
            everywhere[place] = token
        decoded = (torch.stack([encoded[0], *everywhere]) + model.decoder_pos_embed[0])[None]
        pred = model.decoder_pred(model.decoder_norm(model.decoder_blocks(decoded)))[0, 1:]
        for i, target in enumerate(plain_patches(image[None])[0]):
            if i not in visible:
                if model.norm_pix_loss:
                    mean = target.mean()
                    deviation = math.sqrt(((target - mean) ** 2).sum() / (len(target) - 1) + 1e-6)
                    target = (target - mean) / deviation
                total, hidden = total + ((pred[i] - target) ** 2).mean().item(), hidden + 1
    return total / hidden


@pytest.mark.parametrize('norm_pix_loss', [True, False])
@torch.no_grad()
def test_the_loss_is_the_papers(norm_pix_loss):
    model, x = small(norm_pix_loss=norm_pix_loss), images()
    output = model(x, mask_ratio=0.6)
    keep = output.ids_shuffle[:, :6]
    assert output.mask.sum(1).tolist() == [9, 9]
    assert output.mask.gather(1, keep).sum() == 0
    assert output.loss.item() == pytest.approx(plain_loss(model, x, keep.tolist()), abs=1e-8)


def test_patches_are_rows_then_columns_then_channels():
    model, x = small(), images()
    assert torch.equal(model.patchify(x), plain_patches(x))
    assert torch.equal(model.unpatchify(model.patchify(x)), x)


@torch.no_grad()
def test_all_patches_are_encoded_as_by_the_plain_vit_whatever_their_order():
    model, x = small(), images()
    order = torch.stack([torch.randperm(15) for _ in x])
    latent, _ = model.forward_encoder(x, order)
    expected = model.forward_features(x)
    torch.testing.assert_close(latent[:, 0], expected[:, 0], rtol=0, atol=1e-12)
    patches = expected[:, 1:].gather(1, order[..., None].expand(-1, -1, 24))
    torch.testing.assert_close(latent[:, 1:], patches, rtol=0, atol=1e-12)


@torch.no_grad()
def test_hidden_pixels_are_not_seen():
    model, x = small(), images()
    output = model(x)
    hidden = model.unpatchify(output.mask[..., None].expand(-1, -1, 24).double())
    other = model(x + hidden * torch.randn_like(x), ids_shuffle=output.ids_shuffle)
    assert torch.equal(other.pred, output.pred)
    assert other.loss != output.loss


@torch.no_grad()
def test_noise_and_its_permutation_hide_the_same_patches():
    model, x, drawn = small(), images(), torch.rand(2, 15)
    output = model(x, noise=drawn)
    again = model(x, ids_shuffle=drawn.argsort(1))
    assert torch.equal(output.mask, again.mask)
    assert torch.equal(output.loss, again.loss)
    assert (drawn[output.mask == 0].view(2, 3).amax(1) < drawn[output.mask == 1].view(2, 12).amin(1)).all()


@torch.no_grad()
def test_without_noise_other_patches_are_hidden_each_time_in_each_image():
    model = small()
    first, second = (model(images()).ids_shuffle for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_inputs_of_blocks_are_returned_with_the_encoding():
    model, x = small(), images()
    ids_keep = torch.arange(4).expand(2, -1)
    latent, inputs = model.forward_encoder(x, ids_keep, inputs_of=(1, 2))
    assert set(inputs) == {1, 2}
    torch.testing.assert_close(model.blocks[1](inputs[1]), inputs[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(model.norm(inputs[2]), latent, rtol=0, atol=1e-12)


# as a module


def test_it_is_initialized_as_released():
    model = mae_lite_tiny(img_size=(64, 96))
    for pos_embed, width in ((model.pos_embed, 192), (model.decoder_pos_embed, 96)):
        assert torch.equal(pos_embed, sincos_position(width, (4, 6)))
    for weight in (model.blocks[1].attn.qkv.weight, model.decoder_pred.weight, model.patch_embed.proj.weight):
        out, width = weight.flatten(1).shape
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (out + width)), rel=0.03)
    for token in (model.cls_token, model.mask_token):
        assert token.std().item() == pytest.approx(0.02, rel=0.3)


def test_it_can_be_made_on_the_meta_device_and_initialized_later():
    model = small(device='meta').to_empty(device='cpu')
    model.init_weights()
    assert torch.equal(model.decoder_pos_embed, sincos_position(16, GRID, dtype=torch.float64))
    assert not model.decoder_pos_embed.requires_grad
    assert model(images()).loss.isfinite()


@torch.no_grad()
def test_another_image_size_gets_the_tables_of_its_grid():
    model = small()
    model.set_input_size((8, 14))
    assert torch.equal(model.pos_embed, sincos_position(24, (2, 7), dtype=torch.float64))
    assert torch.equal(model.decoder_pos_embed, sincos_position(16, (2, 7), dtype=torch.float64))
    assert not any(p.requires_grad for p in (model.pos_embed, model.decoder_pos_embed))
    x = torch.randn(1, 3, 8, 14, dtype=torch.float64)
    assert model(x).pred.shape == (1, 14, 24)
    assert torch.equal(model.unpatchify(model.patchify(x)), x)


def test_the_same_image_size_leaves_positions_as_they_were_loaded():
    model = small()
    nn.init.ones_(model.pos_embed)
    nn.init.ones_(model.decoder_pos_embed)
    model.set_input_size()
    model.set_input_size(model.patch_embed.img_size)
    assert model.pos_embed.min() == model.decoder_pos_embed.min() == 1


def test_tokens_are_decayed_as_released():
    assert small().no_weight_decay() == set()


def test_checkpointing_changes_no_gradient():
    model, x, gradients = small(), images(), []
    ids_shuffle = torch.stack([torch.randperm(15) for _ in x])
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x, ids_shuffle=ids_shuffle).loss.backward()
        gradients.append(model.patch_embed.proj.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize('whole', [True, False])
def test_half_precision_gives_a_loss_in_single(whole):
    model, x = small().float(), images().float()
    if whole:
        model, x = model.bfloat16(), x.bfloat16()
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=not whole):
        output = model(x)
    assert output.loss.dtype == torch.float32
    output.loss.backward()
    assert model.mask_token.grad.isfinite().all()


# refusals


@pytest.mark.parametrize('mask_ratio', [0.0, 0.99, 1.0, -0.1])
def test_a_ratio_that_hides_nothing_or_everything_is_refused(mask_ratio):
    refused(lambda: small()(images(), mask_ratio), '15', str(mask_ratio), kind=ValueError)


def test_noise_and_permutation_together_are_refused():
    drawn = torch.rand(2, 15)
    refused(lambda: small()(images(), noise=drawn, ids_shuffle=drawn.argsort(1)), 'not both', kind=ValueError)


def test_noise_of_another_shape_is_refused():
    refused(lambda: small()(images(), noise=torch.rand(2, 16)), '(2, 15)', '(2, 16)', kind=ValueError)


def test_another_patch_size_is_refused():
    refused(lambda: small().set_input_size(patch_size=2), '(4, 2)', kind=ValueError)
