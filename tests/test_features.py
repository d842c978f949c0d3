"""Features: one pass per image, the same bytes however the work is shared, and files that are whole or absent."""

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import SMALL_OF, refused
from PIL import Image
from timm.data.transforms import TrimBorder
from torchvision import transforms

from tinyvit_zoo.common import files
from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.hashes import settings_of, state_hash
from tinyvit_zoo.data.datasets import load_dataset
from tinyvit_zoo.data.image_dataset import Arrays, ImageDataset
from tinyvit_zoo.data.transforms import augmentation, cdfsl_transform, data_config
from tinyvit_zoo.downstream.features import batches, cache
from tinyvit_zoo.downstream.features import extraction as features
from tinyvit_zoo.downstream.features.extraction import extract
from tinyvit_zoo.downstream.features.layers import feature_function

SIZE = 32


def small_model(name: str = 'resnet10t', **kwargs) -> torch.nn.Module:
    """A ConvNet with BatchNorm; random weights."""
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=7, **kwargs)


def noise_images(images: int = 10) -> ImageDataset:
    """Images of noise, three classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, SIZE, SIZE, 3), dtype=np.uint8)
    return ImageDataset('noise', 'all', 'abc', np.arange(images) % 3, Arrays(pixels, 'noise'))


TRANSFORM = transforms.Compose([transforms.Resize(SIZE), transforms.ToTensor(), transforms.Normalize(0.5, 0.25)])
RANDOM = transforms.Compose([transforms.RandomResizedCrop(SIZE), transforms.ColorJitter(0.4), transforms.ToTensor()])
SMALL = dict(transform=TRANSFORM, batch_size=4)


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of one batch."""
    monkeypatch.setattr(features, 'IMAGES_PER_SHARD', 1)


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


# Each image once, the backbone as it was


@pytest.mark.parametrize('views', [1, 3])
def test_every_image_passes_the_backbone_once_per_view(views, tmp_path):
    model, seen = small_model(), []
    model.conv1.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    kwargs = dict(views=views, batch_size=4, transform=RANDOM, cache=tmp_path)
    first = extract(model, noise_images(), **kwargs)
    assert sum(seen) == 10 * views
    again = extract(model, noise_images(), **kwargs)
    assert sum(seen) == 10 * views  # all from the cache
    assert torch.equal(first.values, again.values)


def test_values_are_those_of_the_model_in_eval_mode_image_by_image():
    model, dataset = small_model(), noise_images()
    result = extract(model, dataset, **SMALL)
    model.eval()
    with torch.no_grad():
        images = torch.stack([TRANSFORM(dataset[i][0]) for i in range(10)])
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(result.values, expected, rtol=1e-5, atol=1e-5)
    assert result.labels.tolist() == dataset.labels.tolist()
    assert result.classes == ('a', 'b', 'c')
    assert result.D == model.num_features
    assert not result.values.is_inference()


def test_the_backbone_and_the_callers_random_state_are_unchanged():
    model = small_model().train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before, state = state_hash(model), torch.get_rng_state()
    extract(model, noise_images(), transform=RANDOM, views=2, batch_size=4)
    assert state_hash(model) == before
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_changes_itself_is_detected():
    model = small_model()

    def drift(module, args, output):
        module.running_mean += 1

    model.bn1.register_forward_hook(drift)
    refused(lambda: extract(model, noise_images(), **SMALL), 'changed its own weights', kind=EvaluationError)


def test_the_hash_covers_names_dtypes_shapes_and_bytes():
    model = small_model()
    before, settings = state_hash(model), settings_of(model)
    model.bn1.running_mean[3] += 1e-6
    assert state_hash(model) != before
    assert settings_of(model) == settings
    model.global_pool.flatten.start_dim = 2
    assert settings_of(model) != settings
    assert state_hash(small_model()) == before
    assert state_hash(small_model().bfloat16()) != before


# The same bytes however the work is done


def test_workers_threads_and_interruptions_do_not_change_a_bit():
    model, dataset = small_model('tinyvit_5m_224', img_size=SIZE), noise_images(22)
    kwargs = dict(transform=RANDOM, views=2, batch_size=4)
    expected = extract(model, dataset, **kwargs).values
    assert torch.equal(extract(model, dataset, **kwargs, workers=2).values, expected)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(extract(model, dataset, **kwargs).values, expected)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_a_view_depends_on_seed_position_and_number_alone():
    model, dataset = small_model(), noise_images()
    two, three = (extract(model, dataset, transform=RANDOM, views=n, batch_size=4).values for n in (2, 3))
    assert torch.equal(three[:2], two)
    assert not torch.equal(two[0], two[1])
    other = extract(model, dataset, transform=RANDOM, views=2, batch_size=4, seed=1).values
    assert not torch.equal(other, two)


def test_a_killed_run_computes_only_the_missing_shards(tmp_path, small_shards):
    model, seen = small_model(), []
    whole = extract(model, noise_images(), **SMALL, cache=tmp_path / 'whole')
    model.conv1.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    assert [path.name for path in sorted(whole.folder.iterdir())] == [
        'key.json',
        *(f'view0-0000{i}.safetensors' for i in range(3)),
    ]
    expected = files_of(whole.folder)
    (whole.folder / 'view0-00001.safetensors').unlink()
    left = whole.folder / f'.view0-00001.safetensors.{files._this_machine()}.4194305.0a1b2c3d.part.safetensors'
    left.write_bytes(b'half')
    again = extract(model, noise_images(), **SMALL, cache=tmp_path / 'whole')
    assert seen == [4]
    assert torch.equal(again.values, whole.values)
    assert files_of(whole.folder) == expected


def test_a_complete_cache_is_only_read(tmp_path, monkeypatch):
    first = extract(small_model(), noise_images(), **SMALL, cache=tmp_path)
    monkeypatch.setattr(cache, 'write_whole', lambda path, data: pytest.fail(f'{path} was written'))
    assert torch.equal(extract(small_model(), noise_images(), **SMALL, cache=tmp_path).values, first.values)


@pytest.mark.parametrize('where', [-3, 12, 200])
def test_a_flipped_bit_is_detected_and_the_shard_computed_again(where, tmp_path, small_shards, caplog):
    first = extract(small_model(), noise_images(), **SMALL, cache=tmp_path)
    expected = files_of(first.folder)
    path = first.folder / 'view0-00002.safetensors'
    content = bytearray(path.read_bytes())
    content[where] ^= 4
    path.write_bytes(content)
    again = extract(small_model(), noise_images(), **SMALL, cache=tmp_path)
    assert torch.equal(again.values, first.values)
    assert files_of(first.folder) == expected
    assert 'damaged' in caplog.text


def test_shards_of_other_images_are_not_used(tmp_path, small_shards):
    first = extract(small_model(), noise_images(12), **SMALL, cache=tmp_path)
    expected = files_of(first.folder)
    shard = first.folder / 'view0-00001.safetensors'
    shard.write_bytes((first.folder / 'view0-00002.safetensors').read_bytes())
    again = extract(small_model(), noise_images(12), **SMALL, cache=tmp_path)
    assert torch.equal(again.values, first.values)
    assert files_of(first.folder) == expected


def test_everything_that_changes_the_values_changes_the_key(tmp_path):
    def key(model=None, dataset=None, **kwargs):
        return extract(model or small_model(), dataset or noise_images(), **{**SMALL, **kwargs}).key

    changed = small_model()
    changed.conv1[0].weight.data[0] += 1
    keys = [
        key(),
        key(changed),
        key(dataset=noise_images(9)),
        key(dataset=noise_images().subset([*range(8), 9, 8])),
        key(layers='last:1'),
        key(dtype=torch.bfloat16),
        key(batch_size=5),
        key(transform=cdfsl_transform(small_model())),
        key(transform=RANDOM),
        key(transform=RANDOM, seed=1),
        key(transform=RANDOM, views=2),
    ]
    assert len(set(keys)) == len(keys)
    assert key(small_model().train()) == keys[0]
    assert key(seed=1) == keys[0]  # nothing is drawn by that transform


def test_bfloat16_halves_the_cache_and_reads_back_equal(tmp_path):
    fp32 = extract(small_model(), noise_images(), **SMALL, cache=tmp_path)
    bf16 = extract(small_model(), noise_images(), **SMALL, cache=tmp_path, dtype=torch.bfloat16)
    again = extract(small_model(), noise_images(), **SMALL, dtype=torch.bfloat16)
    assert bf16.values.dtype == torch.float32
    assert torch.equal(bf16.values, bf16.values.bfloat16().float())
    assert torch.equal(bf16.values, again.values)
    torch.testing.assert_close(bf16.values, fp32.values, rtol=0.1, atol=0.1)
    sizes = [(f.folder / 'view0-00000.safetensors').stat().st_size for f in (fp32, bf16)]
    assert sizes[1] < 0.6 * sizes[0]


def test_on_cuda_the_batch_size_is_found_once_and_then_read_from_the_cache(tmp_path, monkeypatch):
    tried = []

    def fits(forward, shape, device):
        tried.append(shape)
        return shape[0] <= 64

    monkeypatch.setattr(features, '_fits', fits)
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: None)
    parts = dict(weights='w', layers='pooled')
    cuda = torch.device('cuda')
    single = batches.ImageBatches(noise_images(), TRANSFORM, None, batch_size=1, workers=0)
    find = features._find_batch_size
    assert find(None, single, torch.device('cpu'), tmp_path, parts) == features.CPU_BATCH_SIZE
    assert find(None, single, cuda, tmp_path, parts) == 64
    assert tried == [(2**i, 3, SIZE, SIZE) for i in range(1, 8)]
    cache.Cache(tmp_path, dict(weights='w', layers='pooled', batch_size=16))
    assert find(None, single, cuda, tmp_path, parts) == 16
    assert find(None, single, cuda, tmp_path, dict(parts, weights='other')) == 64


# Bad input


def test_an_image_whose_features_are_not_finite_is_named():
    model = small_model()
    transform = transforms.Compose([TRANSFORM, NaNAt(noise_images()[6][0])])
    refused(
        lambda: extract(model, noise_images(), transform=transform, batch_size=4),
        'noise[6]',
        'finite',
        kind=EvaluationError,
    )


class NaNAt:
    """Makes one image, known by its first pixel, not a number."""

    def __init__(self, image: Image.Image) -> None:
        self.pixel = TRANSFORM(image)[:, 0, 0]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * float('nan') if torch.equal(x[:, 0, 0], self.pixel) else x


@pytest.mark.parametrize('workers', [0, 2])
def test_an_image_that_cannot_be_read_is_named_without_a_traceback(workers, tmp_path):
    for i in range(6):
        path = tmp_path / 'a' / f'{i}.png'
        path.parent.mkdir(exist_ok=True)
        Image.new('RGB', (SIZE, SIZE), (i, 0, 0)).save(path)
    (tmp_path / 'a' / '4.png').write_bytes(b'no image')
    dataset = load_dataset(str(tmp_path), 'all')
    refused(
        lambda: extract(small_model(), dataset, **SMALL, workers=workers),
        '4.png',
        'skip_unreadable',
        kind=EvaluationError,
    )
    kept = load_dataset(str(tmp_path), 'all', skip_unreadable=True)
    assert len(extract(small_model(), kept, **SMALL)) == 5


def test_transforms_with_hidden_settings_are_distinguished(tmp_path):
    def key(border: int) -> str:
        transform = transforms.Compose([TrimBorder(border), TRANSFORM])
        return extract(small_model(), noise_images(), transform=transform, batch_size=4, cache=tmp_path).key

    assert repr(TrimBorder(1)) == repr(TrimBorder(2))
    assert key(1) != key(2)


def test_settings_that_do_not_fit_are_refused(tmp_path):
    model, dataset = small_model(), noise_images()
    for kwargs, word in (
        (dict(layers='all'), "named 'all'"),
        (dict(layers='last:0'), "named 'last:0'"),
        (dict(layers='last:9'), '5 blocks or stages'),
        (dict(views=0), 'at least 1'),
        (dict(batch_size=0), 'at least 1'),
        (dict(dtype=torch.float16), 'bfloat16'),
        (dict(transform=lambda image: image), 'same shape'),
        (dict(transform=lambda image: TRANSFORM(image), cache=tmp_path), 'repr'),
        (dict(transform=transforms.Compose([TRANSFORM, transforms.Lambda(abs)]), cache=tmp_path), 'repr'),
    ):
        refused(lambda k=kwargs: extract(model, dataset, **{**SMALL, **k}), word, kind=EvaluationError)
    refused(lambda: extract(torch.nn.Linear(2, 2), dataset, **SMALL), 'not a timm backbone', kind=EvaluationError)
    refused(lambda: extract(model, dataset.subset([]), **SMALL), 'at least 1', kind=EvaluationError)


def test_a_full_disk_leaves_no_partial_file_and_keeps_existing_ones(tmp_path, small_shards, monkeypatch):
    written = []
    fsync = os.fsync

    def full(handle):
        written.append(handle)
        if len(written) > 3:  # key.json and two shards
            raise OSError(errno.ENOSPC, 'No space left on device')
        fsync(handle)

    monkeypatch.setattr(os, 'fsync', full)
    refused(
        lambda: extract(small_model(), noise_images(), **SMALL, cache=tmp_path),
        'view0-00002',
        'No space left',
        'make room',
        kind=EvaluationError,
    )
    names = sorted(path.name for path in tmp_path.rglob('*') if path.is_file())
    assert names == ['key.json', 'view0-00000.safetensors', 'view0-00001.safetensors']


def test_a_cache_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    refused(
        lambda: extract(small_model(), noise_images(), **SMALL, cache=tmp_path / 'file'),
        'cannot be',
        kind=EvaluationError,
    )


# Which numbers are features


def test_last_blocks_of_a_vit_give_class_token_and_mean_of_patches():
    model = timm.create_model('vit_tiny_patch16_224', img_size=SIZE, depth=3, embed_dim=48, num_heads=3).eval()
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        found = feature_function(model, 'last:2')(x)
        tokens, expected = model.patch_embed(x), []
        tokens = model._pos_embed(tokens)
        for block in model.blocks:
            tokens = block(tokens)
            expected += [model.norm(tokens)[:, 0], model.norm(tokens)[:, 1:].mean(dim=1)]
    torch.testing.assert_close(found, torch.cat(expected[-4:], dim=1))


def test_pooled_is_the_input_of_the_classifier_unless_the_head_has_hidden_layers():
    x = torch.randn(2, 3, SIZE, SIZE)
    for name, hidden in (
        ('tinyvit_5m_224', False),
        ('swin_tiny_patch4_window7_224', False),
        ('mobilenetv3_small_050', True),
    ):
        kwargs = dict(img_size=SIZE) if not hidden else {}
        model = timm.create_model(name, num_classes=3, **kwargs).eval()
        with torch.no_grad():
            pooled, last = feature_function(model, 'pooled')(x), feature_function(model, 'pre_logits')(x)
            torch.testing.assert_close(model.get_classifier()(last), model(x), rtol=1e-4, atol=1e-4)
            if hidden:
                torch.testing.assert_close(pooled, model.forward_features(x).mean(dim=(2, 3)))
                assert pooled.shape[1] == model.num_features != last.shape[1]
            else:
                assert torch.equal(pooled, last)


@pytest.mark.parametrize('family', SMALL_OF)
def test_every_family_provides_every_kind_of_features(family):
    name, kwargs = SMALL_OF[family]
    model = timm.create_model(name, **kwargs).eval()
    x = torch.randn(2, *data_config(model)['input_size'])
    with torch.inference_mode():
        for layers in ('pooled', 'pre_logits', 'last:1', 'last:2'):
            values = feature_function(model, layers)(x)
            assert values.ndim == 2
            assert values.isfinite().all()


# Transforms


def test_the_benchmarks_transform_squashes_to_257_and_crops_224():
    model = small_model()
    model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': (3, 224, 224)}
    squash = cdfsl_transform(model).transforms
    assert squash[0].size == (257, 257)
    assert tuple(squash[1].size) == (224, 224)
    assert cdfsl_transform(model)(Image.new('RGB', (600, 300))).shape == (3, 224, 224)


def test_the_size_is_that_of_the_model_as_built():
    model = timm.create_model('vit_tiny_patch16_224', img_size=64)
    assert data_config(model)['input_size'] == (3, 64, 64)
    assert augmentation(model)(Image.new('RGB', (90, 70))).shape == (3, 64, 64)


@pytest.mark.parametrize(
    ('transform', 'random'),
    [(TRANSFORM, False), (RANDOM, True), (transforms.RandomHorizontalFlip(), True), (augmentation, True)],
)
def test_random_transforms_are_distinguished_from_fixed_ones(transform, random):
    transform = augmentation(small_model()) if transform is augmentation else transform
    assert batches.draws(transform, noise_images()[0][0]) is random


# Real processes

SCRIPT = """
import sys
import timm, torch
import tinyvit_zoo
from tinyvit_zoo.downstream.features import extraction as features
from tinyvit_zoo.data.datasets import load_dataset

features.IMAGES_PER_SHARD = 4
torch.manual_seed(0)
model = timm.create_model('tinyvit_5m_224', img_size=32, num_classes=3)
dataset = load_dataset('textures', 'test').subset(range(0, 840, 7))

def run(cache):
    return features.extract(model, dataset, views=2, batch_size=2, cache=cache, progress=False)
"""


def start(script: str, *args: object, launcher: tuple[str, ...] = ()) -> None:
    """Run a script in a process of its own."""
    path = Path(args[0]).parent / 'script.py'
    path.write_text(SCRIPT + textwrap.dedent(script))
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.getcwd()}
    command = [sys.executable, *launcher, str(path), *map(str, args)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_gives_the_same_bytes(tmp_path):
    # One process imports everything and forks each run: what is killed is a whole process, at any point of its work.
    start(
        """
        import os, random, shutil, signal, time
        from pathlib import Path

        whole, cut = map(Path, sys.argv[1:])
        shards = 60
        torch.set_num_threads(1)

        def fork(cache):
            child = os.fork()
            if child == 0:
                run(cache)
                os._exit(0)
            return child

        began = time.perf_counter()
        os.waitpid(fork(whole), 0)
        seconds = time.perf_counter() - began
        moments, kills, partial = random.Random(6), 0, 0
        while kills < 20:
            child = fork(cut)
            time.sleep(moments.uniform(0, seconds / 3))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status):
                shutil.rmtree(cut)  # it was done before
                continue
            kills += 1
            partial += 0 < len(list(cut.glob('*/*.safetensors'))) < shards
        assert partial >= 5, partial
        _, status = os.waitpid(fork(cut), 0)
        assert status == 0
        """,
        tmp_path / 'whole',
        tmp_path / 'cut',
    )
    expected = files_of(tmp_path / 'whole')
    assert len(expected) == 61
    assert files_of(tmp_path / 'cut') == expected


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_bytes_of_one(tmp_path):
    body = """
        result = run(sys.argv[1])
        plain = run(None)
        assert torch.equal(result.values, plain.values)
        seen = []
        model.patch_embed.register_forward_hook(lambda module, args, output: seen.append(len(output)))
        run(None)
        import os
        assert sum(seen) == 240 // int(os.environ.get('WORLD_SIZE', 1)), sum(seen)
        """
    start(body, tmp_path / 'one')
    start(body, tmp_path / 'two', launcher=('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2'))
    assert files_of(tmp_path / 'two') == files_of(tmp_path / 'one')


@pytest.mark.slow
def test_two_concurrent_runs_on_one_cache_do_not_interfere(tmp_path):
    start(
        """
        import os
        children = []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                torch.set_num_threads(1)
                run(sys.argv[1])
                os._exit(0)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        """,
        tmp_path / 'both',
    )
    start('run(sys.argv[1])', tmp_path / 'one')
    assert files_of(tmp_path / 'both') == files_of(tmp_path / 'one')
