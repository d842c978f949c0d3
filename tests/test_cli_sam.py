"""`sam convert`: a folder from MobileSAM's file, and one sentence for every other file."""

import pytest
import torch
from conftest import assert_same
from sam_reference import mobile_sam

pytest.importorskip('transformers')

from tinyvit_zoo.hub.sam import load_sam


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp('sam') / 'mobile_sam.pt'
    torch.save(mobile_sam(), path)
    return path


def complaint(answer: tuple[int, str, str], *words: str, code: int = 1) -> None:
    """A run ended in one line with these words."""
    got, _, err = answer
    assert got == code, err
    assert err.count('\n') == 1, err
    for word in words:
        assert word in err


def test_a_file_becomes_a_folder_that_says_what_it_is(cli, file, tmp_path):
    page = tmp_path / "Ann's page"
    code, out, err = cli('sam', 'convert', file, page, '--img-size', 64)
    assert (code, err) == (0, '')
    for words in ('tinyvit_5m_224, 9.81 M', '64 pixels', f'load_sam("{page}")'):
        assert words in out
    assert_same(load_sam(page).state_dict(), load_sam(file, 64).state_dict())
    code, out, _ = cli('sam', 'convert', page, tmp_path / 'larger', '--img-size', '96x96')
    assert (code, load_sam(tmp_path / 'larger').config.prompt_encoder_config.image_embedding_size) == (0, 6)
    assert '96 pixels' in out


def test_what_is_no_such_model_ends_in_one_sentence(cli, file, tmp_path, monkeypatch):
    torch.save({'image_encoder.blocks.0.attn.qkv.weight': torch.zeros(2304, 768)}, tmp_path / 'sam_vit_b.pth')
    torch.save({'weight': torch.zeros(3)}, tmp_path / 'other.pt')
    torch.save({k: v for k, v in mobile_sam().items() if k.startswith('image_encoder.')}, tmp_path / 'encoder.pt')
    torch.save(mobile_sam() | {'mask_decoder.iou_token.weight': torch.full((1, 256), torch.nan)}, tmp_path / 'nan.pt')
    (tmp_path / 'cut.pt').write_bytes(file.read_bytes()[:1000])
    target = tmp_path / 'page'
    for name, words in (
        ('sam_vit_b.pth', 'ViT-B'),
        ('other.pt', 'Not a SAM with a TinyViT encoder'),
        ('encoder.pt', 'mask decoder'),
        ('cut.pt', 'damaged'),
        ('none.pt', 'No checkpoint'),
    ):
        complaint(cli('sam', 'convert', tmp_path / name, target), words)
    code, _, err = cli('sam', 'convert', tmp_path / 'nan.pt', target, '--img-size', 64)
    assert (code, '--allow-nonfinite' in err) == (1, True)
    complaint(cli('sam', 'convert', file, target, '--img-size', '100'), 'multiple of 16')
    answer = cli('sam', 'export', tmp_path / 'none', '--encoder', tmp_path / 'a.onnx')
    complaint(answer, 'No checkpoint at')
    assert '--weights' not in answer[2]  # it is an argument there
    complaint(cli('sam', 'convert', file, target, '--img-size', '512x768'), 'not a square', code=2)
    assert not target.exists()
    target.mkdir()
    (target / 'thesis.tex').write_text('years of work')
    complaint(cli('sam', 'convert', file, target, '--img-size', 64), 'thesis.tex')


class Exploit:
    def __reduce__(self):
        return print, ('arbitrary code',)


def test_a_file_that_would_run_code_is_refused(cli, tmp_path, capsys):
    torch.save({'image_encoder.neck.0.weight': torch.zeros(3), 'more': Exploit()}, tmp_path / 'evil.pt')
    answer = cli('sam', 'convert', tmp_path / 'evil.pt', tmp_path / 'page')
    complaint(answer, 'refused')
    assert 'arbitrary code\n' not in answer[1]
    assert not (tmp_path / 'page').exists()
