"""The reader of image files: every mode keeps the values of the 8-bit image, or is refused in one sentence."""

import io
import struct

import numpy as np
import pytest
from conftest import refused
from PIL import Image

from tinyvit_zoo.common.errors import EvaluationError, ImageError
from tinyvit_zoo.data.datasets import load_dataset
from tinyvit_zoo.data.image_file import load_image, to_rgb, upright_size

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
ORIENTATION = 0x0112

WIDE = {
    '16 bits PNG': ('x.png', GREY.astype(np.uint16) * 257),
    '16 bits TIFF': ('x.tif', GREY.astype(np.uint16) * 256 + 255),
    '16 bits TIFF, big-endian': ('x.tif', (GREY.astype(np.uint16) * 257).astype('>u2')),
    '32 bits of 16': ('x.tif', GREY.astype(np.int32) * 257),
    '32 bits of 8': ('x.tif', GREY.astype(np.int32)),
    'floats to 1': ('x.tif', GREY.astype(np.float32) / 255),
    'floats to 255': ('x.tif', GREY.astype(np.float32)),
}


def grey_of(image: Image.Image) -> np.ndarray:
    """(H, W) of an RGB image with equal channels."""
    assert image.mode == 'RGB'
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize('name', WIDE)
def test_wide_grey_values_are_scaled_to_those_of_the_8_bit_image(name, tmp_path):
    file, array = WIDE[name]
    Image.fromarray(array).save(tmp_path / file)
    assert np.array_equal(grey_of(load_image(tmp_path / file)), GREY)


@pytest.mark.parametrize('name', WIDE)
def test_data_sets_read_like_the_file_reader(name, tmp_path):
    file, array = WIDE[name]
    (tmp_path / 'a').mkdir()
    Image.fromarray(array).save(tmp_path / 'a' / file)
    assert np.array_equal(grey_of(load_dataset(str(tmp_path), 'all')[0][0]), GREY)


def test_a_dark_16_bit_pgm_is_not_taken_for_8_bits(tmp_path):
    values = (np.arange(16) * 15).astype('>u2').reshape(4, 4)  # none above 255
    (tmp_path / 'x.pgm').write_bytes(b'P5 4 4 65535\n' + values.tobytes())
    assert not grey_of(load_image(tmp_path / 'x.pgm')).any()


def tiff(path, pixels: bytes, bits: int, photometric: int, signed: bool = False) -> None:
    """A minimal little-endian gray TIFF of 4 x 2 pixels."""
    entries = (
        (256, 4),
        (257, 2),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 122),
        (278, 2),
        (279, len(pixels)),
        (339, 1 + signed),
    )
    directory = b''.join(struct.pack('<HHIHH', tag, 3, 1, value, 0) for tag, value in entries)
    head = struct.pack('<2sHIH', b'II', 42, 8, len(entries)) + directory + struct.pack('<I', 0)
    path.write_bytes(head.ljust(122, b'\0') + pixels)


def test_12_bit_values_fill_the_range(tmp_path):
    tiff(tmp_path / 'x.tif', bytes.fromhex('000fff800010' * 2), bits=12, photometric=1)  # 0, 4095, 2048, 16
    assert grey_of(load_image(tmp_path / 'x.tif')).tolist() == [[0, 255, 128, 1]] * 2


@pytest.mark.parametrize('bits', [8, 16])
def test_tiff_files_whose_zero_is_white_are_inverted(bits, tmp_path):
    values = np.array([[0, 1, 128, 255]] * 2)
    pixels = values.astype('u1') if bits == 8 else (values * 257).astype('<u2')
    tiff(tmp_path / 'x.tif', pixels.tobytes(), bits, photometric=0)
    assert np.array_equal(grey_of(load_image(tmp_path / 'x.tif')), 255 - values)


REFUSED = {
    'negative': np.array([[-1, 5]], dtype=np.int32),
    'beyond 16 bits': np.array([[0, 70000]], dtype=np.int32),
    'negative float': np.array([[-0.5, 0.5]], dtype=np.float32),
    'beyond 255': np.array([[0, 256.5]], dtype=np.float32),
    'not a number': np.array([[0, np.nan]], dtype=np.float32),
    'infinite': np.array([[0, np.inf]], dtype=np.float32),
    '12 bits in 32': np.array([[0, 4095]], dtype=np.int32),
    'lighter than white': np.array([[0, 1.3]], dtype=np.float32),
    'from -1 to 1': np.array([[-1, 1]], dtype=np.float32),
    '16 bits as floats': np.array([[0, 65535]], dtype=np.float32),
}


@pytest.mark.parametrize('name', REFUSED)
def test_values_of_unknown_scale_are_refused_in_a_sentence(name, tmp_path):
    path = tmp_path / 'a' / 'strange.tif'
    path.parent.mkdir()
    Image.fromarray(REFUSED[name]).save(path)
    refused(lambda: load_image(path), 'strange.tif', 'values go from', '0 to 255', '8 or 16 bits', kind=ImageError)
    dataset = load_dataset(str(tmp_path), 'all')
    refused(lambda: dataset[0], 'strange.tif', 'values go from', '--skip-unreadable', kind=EvaluationError)


def test_floats_that_rounding_has_moved_beyond_their_range_count_as_its_end(tmp_path):
    for array in (GREY / 255 * 1.001, GREY / 255 - 0.001, GREY * 1.0005):
        Image.fromarray(array.astype(np.float32)).save(tmp_path / 'x.tif')
        assert np.abs(grey_of(load_image(tmp_path / 'x.tif')).astype(int) - GREY).max() <= 1


def test_signed_16_bit_values_fill_the_range(tmp_path):
    values = (np.array([[0, 1, 128, 255]] * 2) * 128).astype('<i2')
    tiff(tmp_path / 'x.tif', values.tobytes(), bits=16, photometric=1, signed=True)
    assert grey_of(load_image(tmp_path / 'x.tif')).tolist() == [[0, 1, 128, 255]] * 2
    tiff(tmp_path / 'x.tif', (values - 1).tobytes(), bits=16, photometric=1, signed=True)
    refused(lambda: load_image(tmp_path / 'x.tif'), 'x.tif', 'from -1', kind=ImageError)


COLOR = (200, 30, 90)


@pytest.mark.parametrize(
    ('mode', 'value', 'extension', 'expected'),
    [
        ('1', 1, 'png', (255, 255, 255)),
        ('L', 77, 'png', (77, 77, 77)),
        ('LA', (77, 10), 'png', (77, 77, 77)),  # transparency is dropped
        ('RGBA', (*COLOR, 10), 'png', COLOR),
        ('RGBA', (*COLOR, 10), 'webp', COLOR),
        ('CMYK', (55, 225, 165, 0), 'tif', COLOR),
        ('YCbCr', (80, 128, 128), 'tif', (80, 80, 80)),
        ('RGB', COLOR, 'jp2', COLOR),
        ('RGB', (80, 80, 80), 'avif', (80, 80, 80)),
        ('RGB', (80, 80, 80), 'jfif', (80, 80, 80)),
        ('RGB', COLOR, 'tga', COLOR),
    ],
)
def test_other_modes_keep_their_colors(mode, value, extension, expected, tmp_path):
    path = tmp_path / f'x.{extension}'
    options = dict(webp=dict(lossless=True, exact=True), jfif=dict(format='JPEG')).get(extension, {})
    Image.new(mode, (4, 3), value).save(path, **options)
    read = load_image(path)
    assert (read.mode, read.size) == ('RGB', (4, 3))
    assert read.getpixel((0, 0)) == expected


def test_lab_colors_become_rgb(tmp_path):
    Image.new('LAB', (4, 3), (255, 128, 128)).save(tmp_path / 'x.tif')  # white
    assert min(load_image(tmp_path / 'x.tif').getpixel((0, 0))) > 250


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('transparency', [None, 0, bytes([0, 128])])
def test_palettes_keep_their_colors_with_and_without_transparency(transparency, tmp_path):
    image = Image.new('P', (4, 3), 1)
    image.putpalette([9, 9, 9, *COLOR])
    image.save(tmp_path / 'x.png', **({} if transparency is None else dict(transparency=transparency)))
    assert load_image(tmp_path / 'x.png').getpixel((0, 0)) == COLOR


@pytest.mark.parametrize('extension', ['gif', 'png', 'webp', 'tif'])
def test_of_an_animation_the_first_frame_is_read(extension, tmp_path):
    first, second = Image.new('RGB', (8, 8), COLOR), Image.new('RGB', (8, 8), 'blue')
    options = dict(lossless=True) if extension == 'webp' else {}
    first.save(tmp_path / f'x.{extension}', save_all=True, append_images=[second], **options)
    with Image.open(tmp_path / f'x.{extension}') as image:
        assert image.n_frames == 2
    assert load_image(tmp_path / f'x.{extension}').getpixel((4, 4)) == COLOR


@pytest.mark.parametrize(
    ('kind', 'extension'), [('RGB', 'png'), ('RGB', 'jpg'), ('RGB', 'tif'), ('16 bits', 'png'), ('16 bits', 'tif')]
)
def test_images_are_turned_upright(kind, extension, tmp_path):
    array = np.full((20, 40), 60000 if kind == '16 bits' else 235, dtype=np.uint16 if kind == '16 bits' else np.uint8)
    array[:, :20] = 0  # dark on the left
    image = Image.fromarray(array) if kind == '16 bits' else Image.fromarray(array).convert('RGB')
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # shown after a quarter turn clockwise: dark above
    path = tmp_path / 'a' / f'x.{extension}'
    path.parent.mkdir()
    image.save(path, exif=exif)
    for read in (load_image(path), load_dataset(str(tmp_path), 'all')[0][0]):
        assert read.size == (20, 40)
        assert read.getpixel((10, 5))[0] < 5
        assert 230 < read.getpixel((10, 35))[0] < 240
    if extension != 'tif':  # Pillow turns these in any case
        assert load_image(path, upright=False).size == (40, 20)


@pytest.mark.parametrize('extension', ['png', 'jpg', 'tif', 'webp', 'gif', 'bmp'])
def test_the_header_tells_the_size_of_the_upright_image(extension, tmp_path):
    path = tmp_path / f'x.{extension}'
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.new('RGB', (40, 20)).save(path, exif=exif)
        size, told = upright_size(path)
        assert size == load_image(path).size
        assert told == (1 if extension in ('gif', 'bmp') else orientation)  # those have no EXIF data


@pytest.mark.parametrize('extension', ['png', 'jpg', 'webp'])
def test_the_header_tells_the_size_though_the_exif_data_are_damaged(extension, tmp_path):
    path = tmp_path / f'x.{extension}'
    Image.new('RGB', (40, 20)).save(path, exif=b'Exif\0\0garbage')
    assert upright_size(path) == ((40, 20), 1)


def test_a_file_without_a_header_has_no_size(tmp_path):
    (tmp_path / 'text.png').write_text('no image')
    refused(lambda: upright_size(tmp_path / 'text.png'), 'text.png', 'known format', kind=ImageError)
    refused(lambda: upright_size(tmp_path / 'none.png'), 'none.png', kind=ImageError)


SQUARE = np.arange(1, 4)[:, None] * (80, 20)  # (3, 2), no two equal
UPRIGHT = [
    SQUARE, SQUARE[:, ::-1], SQUARE[::-1, ::-1], SQUARE[::-1],
    SQUARE.T, SQUARE[::-1].T, SQUARE[::-1, ::-1].T, SQUARE[:, ::-1].T,
]  # fmt: skip
"""By EXIF orientation, from 1: where its first row and column are shown."""


@pytest.mark.parametrize('extension', ['png', 'jpg', 'webp', 'tif', 'lzw.tif'])
def test_each_orientation_is_turned_upright(extension, tmp_path):
    path, large = tmp_path / f'x.{extension}', np.kron(SQUARE, np.ones((16, 16)))  # whole blocks of JPEG
    options = {'webp': dict(lossless=True), 'lzw.tif': dict(compression='tiff_lzw')}.get(extension, {})
    errors = []
    for orientation, expected in enumerate(UPRIGHT, 1):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.fromarray(large.astype(np.uint8)).save(path, exif=exif, **options)
        errors.append(np.abs(grey_of(load_image(path))[8::16, 8::16].astype(int) - expected).max())
    assert len(errors) == 8
    assert max(errors) <= 2


def test_registered_benchmarks_are_read_as_stored_and_their_features_kept_apart(tmp_path):
    """The published numbers are of images whose EXIF orientation was ignored."""
    folder = tmp_path / 'val' / 'n01440764'
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new('RGB', (40, 20)).save(folder / 'x.JPEG', exif=exif)
    stored = load_dataset('imagenet-1k', 'validation', tmp_path, check_counts=False)
    turned = load_dataset(str(tmp_path / 'val'), 'all')
    assert (stored[0][0].size, turned[0][0].size) == ((40, 20), (20, 40))
    turned.classes = stored.classes
    turned._source.root = stored._source.root
    turned._source.names = stored._source.names
    assert turned.fingerprint() != stored.fingerprint()


@pytest.mark.parametrize('extension', ['png', 'jpg', 'webp'])
def test_damaged_exif_data_do_not_make_an_image_unreadable(extension, tmp_path):
    Image.new('RGB', (4, 3)).save(tmp_path / f'x.{extension}', exif=b'Exif\0\0garbage')
    assert load_image(tmp_path / f'x.{extension}').size == (4, 3)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize('extension', ['png', 'jpg', 'tif', 'webp', 'gif', 'bmp'])
def test_a_truncated_file_is_refused_by_name(extension, tmp_path):
    path = tmp_path / f'cut.{extension}'
    noise().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(lambda: load_image(path), f'cut.{extension}', kind=ImageError)


def test_a_decompression_bomb_is_refused_by_name(tmp_path, monkeypatch):
    noise().save(tmp_path / 'bomb.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    refused(lambda: load_image(tmp_path / 'bomb.png'), 'bomb.png', 'decompression bomb', kind=ImageError)


def test_what_is_no_image_is_refused_by_name(tmp_path):
    (tmp_path / 'text.png').write_text('no image')
    refused(lambda: load_image(tmp_path / 'text.png'), 'text.png', 'known format', kind=ImageError)
    refused(lambda: load_image(tmp_path / 'none.png'), 'none.png', 'No image at', kind=ImageError)
    refused(lambda: load_image(tmp_path), str(tmp_path), 'No image at', kind=ImageError)


def test_links_are_followed_and_an_empty_file_is_named(tmp_path):
    noise().save(tmp_path / 'x.png')
    (tmp_path / 'link.png').symlink_to(tmp_path / 'x.png')
    assert np.array_equal(load_image(tmp_path / 'link.png'), noise())
    (tmp_path / 'lost.png').symlink_to(tmp_path / 'nothing.png')
    refused(lambda: load_image(tmp_path / 'lost.png'), 'lost.png', 'No image at', kind=ImageError)
    (tmp_path / 'empty.jpg').touch()
    refused(lambda: load_image(tmp_path / 'empty.jpg'), 'empty.jpg', 'known format', kind=ImageError)
    (tmp_path / 'folder.jpg').mkdir()
    refused(lambda: load_image(tmp_path / 'folder.jpg'), 'folder.jpg', 'No image at', kind=ImageError)


def test_images_from_memory_become_rgb_alike():
    assert np.array_equal(grey_of(to_rgb(Image.fromarray(GREY.astype(np.uint16) * 257))), GREY)
    file = io.BytesIO()
    Image.fromarray(GREY.astype(np.float32) / 255).save(file, 'TIFF')
    assert np.array_equal(grey_of(to_rgb(Image.open(file))), GREY)
