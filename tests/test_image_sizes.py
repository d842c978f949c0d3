"""Sizes of images by position, from headers where there are any."""

import io
import struct
import tarfile
import zlib

import fake_datasets as fake
import numpy as np
import pytest
from conftest import refused
from PIL import Image, ImageFile, PngImagePlugin

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.data.datasets import load_dataset
from tinyvit_zoo.data.image_dataset import Arrays, Files, ImageDataset, Wrapped, join
from tinyvit_zoo.data.image_file import header_size, open_image
from tinyvit_zoo.data.timm_datasets import ReaderFiles

ORIENTATION = 0x0112
FORMATS = ('JPEG', 'PNG', 'WEBP', 'TIFF', 'GIF', 'BMP', 'PPM')
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def encoded(kind, **options):
    buffer = io.BytesIO()
    IMAGE.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def chunk(name, content):
    return struct.pack('>I', len(content)) + name + content + struct.pack('>I', zlib.crc32(name + content))


def png_with(*parts, behind):
    """PNG chunks put before or behind the pixels."""
    plain = encoded('PNG')
    place = plain.index(b'IEND' if behind else b'IDAT') - 4
    return plain[:place] + b''.join(parts) + plain[place:]


def xmp(orientation):
    text = f'<x:xmpmeta tiff:Orientation="{orientation}"/>'.encode()
    return chunk(b'iTXt', b'XML:com.adobe.xmp\0\0\0\0\0' + text)


def exif_chunk(orientation):
    return chunk(b'eXIf', turned(orientation).tobytes().removeprefix(b'Exif\0\0'))


FILES = {
    **{kind: encoded(kind) for kind in FORMATS},
    **{
        f'{kind} turned by {orientation}': encoded(kind, exif=turned(orientation))
        for kind in ('JPEG', 'PNG', 'WEBP', 'TIFF')
        for orientation in range(1, 9)
    },
    'orientation of no meaning': encoded('JPEG', exif=turned(9)),
    'damaged EXIF': encoded('JPEG', exif=b'Exif\0\0MM\0*\0\0'),
    'EXIF behind the pixels': png_with(exif_chunk(6), behind=True),
    'text behind the pixels': png_with(chunk(b'tEXt', b'Author\0I'), behind=True),
    'XMP': png_with(xmp(8), behind=False),
    'XMP behind the pixels': png_with(xmp(8), behind=True),
    'two frames': encoded('GIF', save_all=True, append_images=[IMAGE.rotate(90)]),
}
MUST_LOAD = {name for name in FILES if name.endswith('behind the pixels')}


@pytest.mark.parametrize('upright', [True, False])
@pytest.mark.parametrize('name', FILES)
def test_the_size_in_a_header_is_that_of_the_image(name, upright, tmp_path, monkeypatch):
    path = tmp_path / 'x'
    path.write_bytes(FILES[name])
    image, loads = open_image(path, upright=upright), []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: loads.append(self) or load(self))
    assert header_size(path, upright=upright) == (image.height, image.width)
    assert header_size(io.BytesIO(FILES[name]), upright=upright) == (image.height, image.width)
    assert not loads or (upright and name in MUST_LOAD)


def check_sizes(dataset):
    sizes = [dataset.image_size(i) for i in range(len(dataset))]
    assert sizes == [(image.height, image.width) for image in map(dataset.image, range(len(dataset)))]
    return sizes


def test_images_of_folders_are_upright_and_those_of_registered_sets_as_stored(tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'x.jpg').write_bytes(FILES['JPEG turned by 6'])
    assert check_sizes(load_dataset(str(tmp_path), 'all')) == [(30, 20)]
    stored = ImageDataset('x', '', 'a', [0], Files([tmp_path / 'a' / 'x.jpg'], tmp_path))
    assert check_sizes(stored) == [(20, 30)]


def test_sizes_follow_subsets_and_parts(tmp_path):
    for i in range(4):
        fake.image(tmp_path / 'a' / f'{i}.png', size=(10 + i, 5))
    dataset = load_dataset(str(tmp_path), 'all')
    arrays = ImageDataset('x', '', 'a', [0], Arrays(np.zeros((1, 7, 8, 3), np.uint8), 'x'))
    joined = join([dataset, arrays], 'all')
    assert check_sizes(joined) == [(5, 10), (5, 11), (5, 12), (5, 13), (7, 8)]
    assert check_sizes(joined.subset([4, 2])) == [(7, 8), (5, 12)]


def test_images_that_a_reader_scales_have_the_size_they_are_scaled_to(tmp_path):
    fake.chestx(tmp_path)
    sizes = check_sizes(load_dataset('chestx', 'all', tmp_path, check_counts=False))
    assert set(sizes) == {(256, 256)}


def test_images_of_other_libraries_have_sizes(tmp_path):
    wrapped = ImageDataset('x', '', 'a', [0], Wrapped([(IMAGE, 0)], 'x'))
    assert check_sizes(wrapped) == [(20, 30)]
    assert ReaderFiles([(io.BytesIO(FILES['JPEG turned by 6']), 0)], 'x').size(0) == (20, 30)
    for name, content in (('1.jpg', FILES['JPEG turned by 6']), ('1.cls', b'0')):
        (tmp_path / name).write_bytes(content)
    with tarfile.open(tmp_path / 'train.tar', 'w') as tar:
        for name in ('1.jpg', '1.cls'):
            tar.add(tmp_path / name, name)
    assert check_sizes(load_dataset(f'wds/{tmp_path}', 'train')) == [(20, 30)]


@pytest.mark.parametrize('content', [b'', b'no image', FILES['PNG'][:20]])
def test_a_file_without_a_header_is_named(content, tmp_path):
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'x.png').write_bytes(content)
    dataset = load_dataset(str(tmp_path), 'all')
    refused(lambda: dataset.image_size(0), 'x.png', 'skip_unreadable', kind=EvaluationError)
    with pytest.raises(IndexError):
        dataset.image_size(1)


def test_a_png_with_a_large_text_before_the_pixels_needs_no_decoding(monkeypatch):
    info = PngImagePlugin.PngInfo()
    info.add_text('Comment', 'x' * 100_000)
    content = encoded('PNG', pnginfo=info)
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda self: pytest.fail('it was decoded'))
    assert header_size(io.BytesIO(content), upright=True) == (20, 30)
