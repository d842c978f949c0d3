"""A small encoder learns the maps of a SAM encoder: views, loss, stored maps, resumed runs, and each refusal."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import SMALL_OF, refused
from PIL import Image, ImageDraw
from torch import nn

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.image_dataset import Arrays, ImageDataset
from tinyvit_zoo.data.replay import Place
from tinyvit_zoo.data.sam_images import MEAN, STD, pixels_of
from tinyvit_zoo.dense.sam import SamImageEncoder
from tinyvit_zoo.training.feature_teacher import FeatureTeacher
from tinyvit_zoo.training.recipes.features import SAM_FEATURES
from tinyvit_zoo.training.run_state import read_weights
from tinyvit_zoo.training.sam import SamViews, distil_sam, plan_sam
from tinyvit_zoo.training.sam_embeddings import StoredEmbeddings, save_embeddings
from tinyvit_zoo.training.tasks.sam import SamDistillation, map_loss

transformers = pytest.importorskip('transformers')

IMAGES, BATCH, CHANNELS = 12, 4, 24
UPDATES = IMAGES // BATCH
RECIPE = SAM_FEATURES.changed(epochs=8, warmup_epochs=1, batch_size=BATCH, lr=5e-3, lr_batch=BATCH)


def student(size: int | tuple[int, int] = 64) -> SamImageEncoder:
    """A TinyViT of five blocks with SAM's neck."""
    torch.manual_seed(1)
    architecture, arguments = SMALL_OF['tinyvit']
    trunk = timm.create_model(architecture, **{**arguments, 'num_classes': 0}, img_size=size, output_stride=16)
    return SamImageEncoder(trunk, CHANNELS)


@pytest.fixture(scope='module')
def sam_teacher() -> FeatureTeacher:
    """SAM's own image encoder of transformers, two layers."""
    torch.manual_seed(9)
    config = transformers.SamVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=64, output_channels=CHANNELS,
        window_size=2, global_attn_indexes=[1],
    )  # fmt: skip
    return FeatureTeacher.of_transformers(transformers.SamVisionModel(config), 'a SAM of two layers', MEAN, STD)


@pytest.fixture(scope='module')
def shapes() -> ImageDataset:
    """Rectangles and ellipses of all colors, wider than high."""
    draws, pixels = np.random.default_rng(0), []
    for i in range(IMAGES):
        image = Image.new('RGB', (60, 40), tuple(draws.integers(0, 256, 3).tolist()))
        x, y = draws.integers(0, 30, 2).tolist()
        shape = ImageDraw.Draw(image).rectangle if i % 2 else ImageDraw.Draw(image).ellipse
        shape((x, y, x + 25, y + 9), fill=tuple(draws.integers(0, 256, 3).tolist()))
        pixels.append(np.array(image))
    return ImageDataset('shapes', 'train', ['shape'], [0] * IMAGES, Arrays(np.stack(pixels), 'shapes'))


def trained(shapes, folder, teacher, net=None, **settings):
    common = dict(recipe=RECIPE, device=torch.device('cpu'), say=lambda text: None)
    return distil_sam(student() if net is None else net, teacher, shapes, folder, **common | settings)


@pytest.fixture(scope='module')
def run(shapes, sam_teacher, tmp_path_factory):
    """A finished training, and its folder."""
    folder = tmp_path_factory.mktemp('sam') / 'run'
    return trained(shapes, folder, sam_teacher), folder


def test_the_loss_falls_and_the_result_is_the_encoder(run, sam_teacher):
    result, folder = run
    losses = [record['loss'] for record in result.history]
    assert losses[-1] < 0.9 * losses[0]
    assert set(result.history[0]) == {'loss', 'lr'}
    assert not result.student.training
    fresh = student()
    fresh.load_state_dict(read_weights(folder))
    assert all(map(torch.equal, fresh.state_dict().values(), result.student.state_dict().values()))
    assert result.teacher == dict(
        name='a SAM of two layers', sha256=sam_teacher.sha256, img_size=[64, 64], channels=CHANNELS, grid=[4, 4]
    )


def test_a_killed_training_resumes_with_the_same_losses_and_with_its_own_teacher_only(
    run, shapes, sam_teacher, tmp_path, monkeypatch
):
    expected, _ = run
    forward, calls = SamDistillation.forward, []

    def killed(self, *args):
        calls.append(1)
        if len(calls) > UPDATES + 1:
            raise KeyboardInterrupt
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SamDistillation, 'forward', killed)
        with pytest.raises(KeyboardInterrupt):
            trained(shapes, tmp_path, sam_teacher)
    other = copy.deepcopy(sam_teacher)
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    refused(lambda: trained(shapes, tmp_path, other), 'teacher', kind=EvaluationError)
    drawn_otherwise = student()
    nn.init.normal_(drawn_otherwise.neck[0].weight)
    refused(lambda: trained(shapes, tmp_path, sam_teacher, drawn_otherwise), 'weights', kind=EvaluationError)
    resumed = trained(shapes, tmp_path, sam_teacher)
    assert resumed.history == expected.history
    assert all(map(torch.equal, resumed.student.parameters(), expected.student.parameters()))


def test_stored_maps_teach_as_the_teacher_itself_does(run, shapes, sam_teacher, tmp_path):
    stored = save_embeddings(
        sam_teacher, shapes, tmp_path / 'maps', dtype='float32', per_file=5, device=torch.device('cpu'), say=str
    )
    assert sorted(path.name for path in (tmp_path / 'maps').glob('*.safetensors')) == [
        f'0000{i}.safetensors' for i in range(3)
    ]
    images = torch.cat([pixels_of(shapes.image(i), (64, 64)) for i in (0, 7, 11)])
    maps = torch.stack([stored[i] for i in (0, 7, 11)])
    torch.testing.assert_close(maps, sam_teacher.features(images).dense, atol=1e-5, rtol=0)
    result = trained(shapes, tmp_path / 'run', stored)
    for record, live in zip(result.history, run[0].history, strict=True):
        assert record['loss'] == pytest.approx(live['loss'], rel=1e-3)
    assert result.teacher['stored'] == 'float32'


def test_maps_are_stored_in_half_precision_and_the_rest_of_a_killed_pass_is_made_later(shapes, sam_teacher, tmp_path):
    said: list[str] = []
    settings = dict(per_file=4, device=torch.device('cpu'), say=said.append)
    save_embeddings(sam_teacher, shapes, tmp_path, **settings)
    facts = json.loads((tmp_path / 'embeddings.json').read_text())
    assert (facts['dtype'], facts['images'], facts['grid']) == ('float16', IMAGES, [4, 4])
    second = (tmp_path / '00001.safetensors').read_bytes()
    (tmp_path / '00001.safetensors').unlink()
    refused(lambda: StoredEmbeddings(tmp_path), '00001.safetensors', 'sam embed', kind=EvaluationError)
    said.clear()
    stored = save_embeddings(sam_teacher, shapes, tmp_path, **settings, workers=1)
    assert (tmp_path / '00001.safetensors').read_bytes() == second
    assert said == [f'Images 5 to 8 of {IMAGES} are embedded in {tmp_path}.']
    assert stored[5].dtype == torch.float32
    (tmp_path / '00002.safetensors').write_bytes(b'nothing')
    refused(lambda: StoredEmbeddings(tmp_path)[9], '00002.safetensors is damaged', kind=EvaluationError)
    refused(
        lambda: save_embeddings(sam_teacher, shapes.subset(range(8)), tmp_path, **settings),
        'other embeddings', 'images', kind=EvaluationError,
    )  # fmt: skip


def test_student_and_teacher_see_whole_images_each_at_its_own_size(shapes):
    ((ours, theirs),) = SamViews(shapes, (32, 32), (64, 64)).__getitems__([Place(1, 3)])
    assert torch.equal(ours, pixels_of(shapes.image(3), (32, 32))[0])
    assert torch.equal(theirs, pixels_of(shapes.image(3), (64, 64))[0])
    (alone,) = SamViews(shapes, (64, 64), (64, 64))[Place(0, 3)]
    assert torch.equal(alone, theirs)
    assert not theirs[:, 43:].any()  # 40 of 60 rows are 43 of 64


def test_the_loss_is_the_mean_squared_error_on_the_teachers_grid():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    large = F.interpolate(student, (4, 4), mode='bilinear')
    torch.testing.assert_close(map_loss(student, teacher), ((large - teacher) ** 2).sum() / 96, atol=1e-12, rtol=0)


def test_an_encoder_of_half_the_size_is_trained_too(shapes, sam_teacher, tmp_path):
    recipe = RECIPE.changed(epochs=1, warmup_epochs=0)
    result = trained(shapes, tmp_path, sam_teacher, student(32), recipe=recipe)
    assert np.isfinite(result.history[0]['loss'])


@pytest.mark.parametrize(
    ('net', 'settings', 'words'),
    [
        (lambda: student((64, 96)), {}, ('64x96', '64x64', 'same ratio')),
        (lambda: nn.Conv2d(3, CHANNELS, 16, 16), {}, ('Conv2d', 'img_size')),
        (lambda: nn.Conv2d(3, 8, 16, 16), dict(img_size=(64, 64)), (f'{CHANNELS} channels', 'out_chans')),
        (student, dict(recipe=RECIPE.changed(batch_size=64)), ('12 images', '--batch-size')),
        (lambda: student().requires_grad_(False), {}, ('frozen',)),
    ],
    ids=['ratio', 'size', 'channels', 'batch', 'frozen'],
)
def test_what_does_not_fit_is_named_before_the_first_epoch(net, settings, words, shapes, sam_teacher, tmp_path):
    refused(lambda: trained(shapes, tmp_path / 'run', sam_teacher, net(), **settings), *words, kind=EvaluationError)
    assert not (tmp_path / 'run').exists()


def test_maps_of_other_images_are_refused(shapes, sam_teacher, tmp_path):
    few = shapes.subset(range(4))
    stored = save_embeddings(sam_teacher, few, tmp_path, device=torch.device('cpu'), say=str)
    refused(lambda: plan_sam(student(), stored, shapes, RECIPE), 'of other images', kind=EvaluationError)
    refused(lambda: StoredEmbeddings(tmp_path / 'none'), 'no embeddings', kind=EvaluationError)
