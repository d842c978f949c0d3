"""Test tensors of a page, computed from its files alone: `pack` runs this file in a process of its own.

timm keeps such tensors under `test/` of its pages: an input, and the output that the model should give for it.
"""

import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import set_fused_attn
from timm.models._input import get_model_input_config
from torch import nn

from ..build import build_model
from ..checkpoints import CheckpointError
from .folder import write_safetensors

__all__ = ['TENSORS', 'copy_tensors', 'double_model', 'read_tensors', 'write_tensors']

TENSORS = 'test/rand_tensors.safetensors'
SEED = 42


def double_model(folder: Path) -> nn.Module:
    """The model of a folder, config.json and weights, in double precision and eval mode."""
    return build_model(f'local-dir:{folder}', pretrained=True).double()


@torch.inference_mode()
def write_tensors(folder: Path) -> None:
    """Write `test/rand_tensors.safetensors`: 'input' (1, C, H, W) at the model's own size, and 'output'.

    The output is computed in double precision, with unfused attention, and rounded to float32.
    """
    set_fused_attn(False)
    model = double_model(folder)
    image = torch.randn(1, *get_model_input_config(model)['input_size'], generator=torch.Generator().manual_seed(SEED))
    _write(image, model(image.double()), folder)


def copy_tensors(file: Path, folder: Path) -> None:
    """Write `test/rand_tensors.safetensors` with the input and output in another file, computed by another program.

    Raises:
        CheckpointError: See `read_tensors`.
    """
    _write(*read_tensors(file), folder)


def read_tensors(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output among the test tensors of a file.

    Raises:
        CheckpointError: If it cannot be read, lacks one of them, or its output is empty.
    """
    try:
        pair = load_file(file)
        image, output = pair['input'], pair['output']
    except (OSError, SafetensorError, KeyError) as e:
        raise CheckpointError(f'{file} holds no test tensors ({e}).') from e
    if not output.numel():
        raise CheckpointError(f'{file} holds no numbers to compare with.')
    return image, output


def _write(image: torch.Tensor, output: torch.Tensor, folder: Path) -> None:
    path = folder / TENSORS
    path.parent.mkdir(exist_ok=True)
    write_safetensors({'input': image.float().contiguous(), 'output': output.float().contiguous()}, path)


if __name__ == '__main__':
    import tinyvit_zoo  # noqa: F401  registers the models

    write_tensors(Path(sys.argv[1]))
