"""What a checkpoint tells of its model's attention heads, and what a user reads when it is the wrong model.

The files here carry no numbers that matter; `test_plain_vit_loading.py` has those of released layouts.
"""

from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from conftest import load, refused

FINE_TUNED = 'tinymim_vit_tiny_patch16_224'


@pytest.fixture(scope='module')
def fine_tuned() -> dict[str, torch.Tensor]:
    """State dict of a classifier of width 192, under released names."""
    return timm.create_model(FINE_TUNED).state_dict()


def saved(path: Path, state_dict: dict[str, torch.Tensor], **beside) -> Path:
    torch.save({'model': state_dict, **beside}, path)
    return path


def test_a_file_of_another_width_is_no_matter_of_heads(tmp_path, fine_tuned):
    path = saved(tmp_path / 'w.pth', fine_tuned, args=Namespace(model='vit_tiny_patch16'))
    message = refused(lambda: load('tinymim_vit_small_patch16_224', path), 'wrong shape', '(384,')
    assert 'would load' not in message
