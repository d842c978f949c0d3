"""Pooled and dense features of models of timm and transformers, and what a model is told that lacks them."""

import json

import pytest
import timm
import torch
import transformers
from conftest import refused
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError, ModelError
from tinyvit_zoo.training.feature_readers import timm_reader, vision_part
from tinyvit_zoo.training.feature_teacher import FeatureTeacher, load_feature_teacher

SMALL = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=64, patch_size=16
)
HALF = [0.5] * 3


def random(name: str, **arguments) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **arguments).eval()


def images(height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def patches_of_vit(model, x):
    return model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]


MODELS = {
    'ViT': ('test_vit', dict(img_size=(64, 96)), patches_of_vit),
    'ViT with registers': ('test_vit2', dict(img_size=(64, 96)), patches_of_vit),
    'TinyViT': (
        'tinyvit_5m_224',
        dict(img_size=64, depths=(1, 1, 1, 1), num_classes=7),
        lambda model, x: model.forward_features(x),
    ),
    'Swin, channels last': (
        'swin_tiny_patch4_window7_224',
        dict(img_size=64, embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4),
        lambda model, x: model.forward_features(x).permute(0, 3, 1, 2),
    ),
    'ConvNet': ('test_convnext', {}, lambda model, x: model.forward_features(x)),
}


@torch.no_grad()
@pytest.mark.parametrize('name', MODELS)
def test_timm_models_give_the_input_of_their_classifier_and_their_last_map(name):
    architecture, arguments, expected = MODELS[name]
    model, x = random(architecture, **arguments), images(*(64, 96) if 'ViT' in name[:3] else (64, 64))
    pooled, dense = timm_reader(model, name, x.shape[-2:])(model, x)
    assert torch.equal(pooled, model.forward_head(model.forward_features(x), pre_logits=True))
    torch.testing.assert_close(dense, expected(model, x))


@torch.no_grad()
def test_a_head_with_hidden_layers_is_passed_over():
    model, x = random('mobilenetv3_small_050'), images()
    pooled, dense = timm_reader(model, 'm', (64, 64))(model, x)
    torch.testing.assert_close(pooled, model.forward_features(x).mean(dim=(2, 3)))
    assert pooled.shape[1] == dense.shape[1] == model.num_features


@torch.no_grad()
def test_only_what_is_asked_for_is_read():
    model, x = random('test_vit', img_size=64), images()
    assert timm_reader(model, 'm', (64, 64), dense=False)(model, x).dense is None
    assert timm_reader(model, 'm', (64, 64), pooled=False)(model, x).pooled is None


def vit():
    return transformers.ViTModel(transformers.ViTConfig(**SMALL))


def dinov2():
    return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**SMALL))


def dinov3():
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SMALL, num_register_tokens=4))


def clip():
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SMALL))


def siglip():
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL))


def beit():
    return transformers.BeitModel(transformers.BeitConfig(**SMALL))


def sam():
    config = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, mlp_dim=32, image_size=64)
    return transformers.SamVisionModel(
        transformers.SamVisionConfig(**config, output_channels=16, window_size=2, global_attn_indexes=[0])
    )


def yolos():
    config = transformers.YolosConfig(**SMALL | dict(image_size=[64, 64], num_detection_tokens=3))
    return transformers.YolosModel(config)


def detr():
    """Its 100 objects would be a map of 10 by 10."""
    backbone = dict(depths=[1] * 4, hidden_sizes=[8] * 4, embedding_size=8, out_features=['stage4'])
    small = {
        f'{part}_{what}': 2 for part in ('encoder', 'decoder') for what in ('layers', 'attention_heads', 'ffn_dim')
    }
    return transformers.DetrModel(
        transformers.DetrConfig(
            use_timm_backbone=False, backbone_config=transformers.ResNetConfig(**backbone), d_model=16, **small
        )
    )


def of_tokens(prefix: int):
    return lambda last: last[:, prefix:].transpose(1, 2).unflatten(2, (4, 4))


TRANSFORMERS = {
    vit: (lambda output: output.last_hidden_state[:, 0], of_tokens(1)),
    dinov2: (lambda output: output.pooler_output, of_tokens(5)),
    dinov3: (lambda output: output.pooler_output, of_tokens(5)),
    clip: (lambda output: output.pooler_output, of_tokens(1)),
    siglip: (lambda output: output.pooler_output, of_tokens(0)),
    beit: (lambda output: output.pooler_output, of_tokens(1)),
    sam: (lambda output: output.last_hidden_state.mean(dim=(2, 3)), lambda last: last),
}


@torch.no_grad()
@pytest.mark.parametrize('make', TRANSFORMERS, ids=lambda make: make.__name__)
def test_models_of_transformers_give_a_vector_and_a_map(make):
    torch.manual_seed(0)
    model, x = make().eval(), images()
    pooled_of, dense_of = TRANSFORMERS[make]
    teacher = FeatureTeacher.of_transformers(model, 'm', HALF, HALF)
    pooled, dense = teacher.features(x)
    output = model(pixel_values=x)
    torch.testing.assert_close(pooled, pooled_of(output))
    torch.testing.assert_close(dense, dense_of(output.last_hidden_state))
    assert teacher.input.size == (64, 64)


@pytest.mark.parametrize('make', [vit, dinov2, dinov3, clip, siglip], ids=lambda make: make.__name__)
def test_positions_are_resized_for_images_of_another_size(make):
    teacher = FeatureTeacher.of_transformers(make(), 'm', HALF, HALF, (96, 64))
    assert teacher.features(images(96, 64)).dense.shape == (2, 32, 6, 4)


def test_of_models_with_a_text_tower_or_a_classifier_the_part_that_sees_teaches():
    text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=99)
    config = transformers.SiglipConfig(text_config=text, vision_config=SMALL)
    both = transformers.SiglipModel(config)
    assert vision_part(both) is both.vision_model
    classifier = transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL))
    assert vision_part(classifier) is classifier.vit


def test_a_teacher_is_frozen_and_in_evaluation_mode():
    model = random('test_vit', img_size=64).train()
    teacher = FeatureTeacher.of_timm(model, 'm')
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not teacher.features(images()).pooled.requires_grad
    seen = []
    model.blocks[0].mlp.fc1.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    teacher.features(images())
    teacher.features(images(), torch.bfloat16)
    assert seen == [torch.float32, torch.bfloat16]


# by name


@pytest.fixture
def page(tmp_path):
    """A folder of transformers with a small DINOv2."""
    dinov2().save_pretrained(tmp_path / 'page')
    settings = dict(image_processor_type='BitImageProcessor', image_mean=HALF, image_std=[0.2] * 3, do_normalize=True)
    settings |= dict(do_resize=True, size=dict(shortest_edge=72), do_center_crop=True, crop_size=64)
    (tmp_path / 'page' / 'preprocessor_config.json').write_text(json.dumps(settings))
    return tmp_path / 'page'


def test_a_folder_of_transformers_is_a_teacher_with_its_own_weights(page):
    teacher = load_feature_teacher(str(page), img_size=(96, 96))
    assert teacher.sha256 == load_feature_teacher(f'local-dir:{page}').sha256
    assert load_feature_teacher(str(page)).input.size == (64, 64)
    assert (teacher.input.size, teacher.input.mean, teacher.input.std) == ((96, 96), (0.5,) * 3, (0.2,) * 3)
    assert not teacher.model.training


def test_a_timm_name_is_a_teacher_with_a_checkpoint(tmp_path):
    model = random('test_vit', img_size=64)
    torch.save(model.state_dict(), tmp_path / 't.pth')
    teacher = load_feature_teacher('test_vit', tmp_path / 't.pth', (64, 64))
    assert teacher.sha256 == FeatureTeacher.of_timm(model, 'm').sha256
    convnet = random('test_convnext')
    torch.save(convnet.state_dict(), tmp_path / 'c.pth')
    assert load_feature_teacher('test_convnext', tmp_path / 'c.pth', (64, 96)).input.size == (64, 96)


def test_a_page_without_some_weights_is_named(page):
    from safetensors.torch import load_file, save_file

    weights = load_file(page / 'model.safetensors')
    weights.pop('layernorm.weight')
    save_file(weights, page / 'model.safetensors', {'format': 'pt'})
    refused(lambda: load_feature_teacher(str(page)), 'no weights for', 'layernorm.weight', kind=ModelError)


def test_a_page_that_cannot_be_read_is_named(page):
    refused(lambda: load_feature_teacher(str(page), 'file.pth'), 'weights beside it', kind=ModelError)
    (page / 'preprocessor_config.json').unlink()
    refused(lambda: load_feature_teacher(str(page)), 'cannot be loaded', kind=ModelError)
    refused(lambda: load_feature_teacher('tinyvit_5n_224'), 'Unknown model', kind=ModelError)


def fixed_vit():
    return random('vit_tiny_patch16_224', img_size=64, depth=1, embed_dim=32, num_heads=2)


@torch.no_grad()
def test_mae_of_transformers_sees_every_patch_where_it_lies():
    model, x = transformers.ViTMAEModel(transformers.ViTMAEConfig(**SMALL | dict(num_hidden_layers=0))), images()
    teacher = FeatureTeacher.of_transformers(model, 'm', HALF, HALF)
    embeddings = model.embeddings
    tokens = model.layernorm(embeddings.patch_embeddings(x) + embeddings.position_embeddings[:, 1:])
    torch.testing.assert_close(teacher.features(x).dense, of_tokens(0)(tokens))


class NoMap(nn.Linear):
    """Like a timm model, but for the map."""

    def __init__(self):
        super().__init__(192, 4)
        self.pretrained_cfg = dict(input_size=(3, 8, 8))

    def forward_features(self, x):
        return super().forward(x.flatten(1))

    def forward_head(self, x, pre_logits=False):
        return x


@pytest.mark.parametrize(
    ('read', 'words'),
    [
        (lambda: FeatureTeacher.of_timm(nn.Linear(2, 2), 'm'), ('lacks features', 'forward_features')),
        (lambda: FeatureTeacher.of_timm(NoMap(), 'm'), ('lacks dense features', 'no map')),
        (lambda: FeatureTeacher.of_timm(fixed_vit(), 'm', (96, 96)), ('96x96', 'another size')),
        (lambda: FeatureTeacher.of_transformers(sam(), 'm', HALF, HALF, (96, 96)), ('96x96', 'another size')),
        (
            lambda: FeatureTeacher.of_transformers(yolos(), 'm', HALF, HALF, (64, 64)),
            ('num_detection_tokens', 'not lie'),
        ),
        (lambda: FeatureTeacher.of_transformers(detr(), 'm', HALF, HALF, (64, 64)), ('num_queries', 'not lie')),
    ],
    ids=['no backbone', 'no map', 'timm size', 'transformers size', 'tokens after the patches', 'objects'],
)
def test_what_a_model_lacks_is_one_sentence(read, words):
    refused(read, *words, kind=EvaluationError)
