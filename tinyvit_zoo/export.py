"""Export a model as one file for other runtimes, ONNX or torch.export's pt2: folded, verified, with its labels."""

import copy
import importlib.util
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.models import reparameterize_model, split_model_name_tag
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config

from . import __version__
from .build import build_model, check_part, load_model
from .classify import class_names
from .common.errors import ModelError
from .common.extras import needs_extra
from .common.files import check_writable, new_file
from .common.paths import user_path
from .common.preprocessing import model_data_config
from .hub.folder import WEIGHT_FACTS
from .hub.pack import OWN_TAG
from .models.mini_deit import MiniDeit
from .models.plain_vit import PlainVit
from .models.tinyvit import TinyViT
from .names import check_name

__all__ = [
    'DTYPES',
    'FORMATS',
    'Exported',
    'check_output',
    'export_model',
    'model_to_export',
    'onnx_session',
    'producer',
    'save_onnx',
    'sizes_left_open',
]

FORMATS = ('onnx', 'pt2')
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16}
TOLERANCE = {'fp32': 1e-4, 'fp16': 2e-2}
"""Largest allowed difference from PyTorch in float32, relative to the largest output where that is above 1."""

ONNX_PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
METADATA = ('producer', 'model', 'license', 'labels', 'preprocessing')
TAKE_PATCHES = (MiniDeit, PlainVit)
"""Classes that take images of any size in whole patches when made with `dynamic_img_size=True`."""
# At 32, the last map of TinyViT is a single cell, and torch.export treats sizes of 1 apart from all others.
SMALLEST_TINYVIT = 33


@dataclass(frozen=True)
class Exported:
    """A file that was written and verified.

    Attributes:
        path: The file.
        format: 'onnx' or 'pt2'.
        input_shape: Shape of 'images', (B, C, H, W), with a name for each dimension of any size.
        output: 'logits' (B, classes), or 'features' (B, width) of a model without classes.
        difference: Largest difference from PyTorch in float32 on two inputs, see `TOLERANCE`.
        tolerance: Largest difference allowed.
        snippet: Three lines of Python that run it.
    """

    path: Path
    format: str
    input_shape: tuple[int | str, ...]
    output: str
    difference: float
    tolerance: float
    snippet: str


def model_to_export(
    name: str,
    weights: str | Path | None = None,
    random: bool = False,
    img_size: tuple[int, int] | None = None,
    dynamic_size: bool = False,
    part: str | None = None,
) -> nn.Module:
    """The model of that name, ready to be exported with these arguments.

    Args:
        name: As in `build.build_model`.
        weights: Checkpoint instead of the pretrained weights. With the name of an architecture alone, they are your
            own, and no facts of a release are attributed to them.
        random: Random weights instead.
        img_size: (H, W), if not the model's own.
        dynamic_size: Accept images of other sizes as well.
        part: Which of several models in the checkpoint, see `checkpoints.read_checkpoint`.

    Raises:
        ModelError: On an unknown name, arguments that do not fit, or a model that takes only one size.
        CheckpointError: If the weights cannot be found, read or matched.
    """
    if weights is not None and random:
        raise ModelError('Weights from a file and random weights exclude each other: leave one of them out.')
    check_part(weights, part)
    kwargs: dict[str, Any] = {} if img_size is None else dict(img_size=img_size)
    if dynamic_size:
        blank = build_model(name, device='meta')
        if isinstance(blank, TAKE_PATCHES):
            kwargs['dynamic_img_size'] = True
        else:
            _check_dynamic(blank)
    file = str(weights) if weights else None
    model = build_model(name, **kwargs) if random else load_model(name, file, part, **kwargs)
    # With the name of an architecture alone, a file is the caller's own; with a tag, it is claimed to be that release.
    own = weights is not None and check_name(name) is None and not split_model_name_tag(name)[1]
    if random or own:
        timm_model = cast(Any, model)
        facts = {k: v for k, v in timm_model.pretrained_cfg.items() if k not in WEIGHT_FACTS}
        timm_model.pretrained_cfg = dict(facts, tag='random' if random else OWN_TAG)
    return model


def export_model(
    model: nn.Module,
    output: str | Path,
    format: str | None = None,
    dynamic_batch: bool = False,
    dynamic_size: bool = False,
    dtype: str = 'fp32',
) -> Exported:
    """Write a model as one file, folded (`timm.models.reparameterize_model`) and verified against PyTorch.

    The file appears whole or not at all. It takes 'images' (B, C, H, W) in float32, normalized as its metadata says,
    and returns 'logits' or 'features' in float32, whatever its internal precision. Metadata: producer, model, license,
    labels (JSON list in the order of the classes) and preprocessing (JSON of timm's data config); in ONNX as
    metadata_props, in pt2 as extra files.

    Args:
        model: A timm model; it is not changed.
        output: '*.onnx' or '*.pt2'.
        format: 'onnx' or 'pt2'; default: the suffix of `output`.
        dynamic_batch: Accept any number of images instead of one.
        dynamic_size: Accept images of any size: TinyViT from 33x33; plain ViTs and Mini-DeiT made with
            `dynamic_img_size=True`, every multiple of the patch from two patches a side.
        dtype: Internal precision, 'fp32' or 'fp16'.

    Returns:
        The file and its verification.

    Raises:
        ModelError: If an argument does not fit, a package is missing, the model takes only one size, or the file
            does not compute what the model does.
        OSError: If the file cannot be written.
    """
    output = user_path(output)
    format = check_output(output, format)
    if dtype not in DTYPES:
        raise ModelError(f"'{dtype}' is not a dtype for export: choose from {', '.join(DTYPES)}.")
    if not getattr(model, 'pretrained_cfg', None) or not hasattr(model, 'num_classes'):
        raise ModelError(f'{type(model).__name__} cannot be exported: it is not a whole timm model.')
    step = _check_dynamic(model) if dynamic_size else None
    reference = copy.deepcopy(model).float().cpu().eval()
    inputs = _inputs(reference, dynamic_batch, step)
    with torch.no_grad():
        expected = [reference(x) for x in inputs]
        program = _trace(_folded(reference, dtype), inputs[0], dynamic_batch, step)
        name = 'logits' if model.num_classes else 'features'
        names = {**({0: 'batch'} if dynamic_batch else {}), **({2: 'height', 3: 'width'} if dynamic_size else {})}
        with new_file(output) as new:
            run = _WRITERS[format](program, new, names, name, _metadata(model))
            difference = max(_difference(run(x), y) for x, y in zip(inputs, expected, strict=True))
            if not difference <= TOLERANCE[dtype]:
                raise ModelError(
                    f'The exported file differs from PyTorch by {difference:.1e}, more than {TOLERANCE[dtype]:.0e}: '
                    f'{output} was not written.'
                )
    sizes = (1, *inputs[0].shape[1:])
    shape = tuple(names.get(i, side) for i, side in enumerate(sizes))
    return Exported(output, format, shape, name, difference, TOLERANCE[dtype], _snippet(output, format, name, sizes))


def check_output(output: str | Path, format: str | None = None) -> str:
    """The format of an output file, 'onnx' or 'pt2'.

    Raises:
        ModelError: If the suffix of the file contradicts it, a package that the format needs is missing, or the file
            cannot be written there.
    """
    found = Path(output).suffix.removeprefix('.')
    format = format or found
    if format not in FORMATS or found != format:
        wanted = f'.{format}' if format in FORMATS else ' or '.join(f'.{f}' for f in FORMATS)
        raise ModelError(f'{output} must end in {wanted}.')
    with needs_extra('export'):
        missing = [p for p in ONNX_PACKAGES if importlib.util.find_spec(p) is None] if format == 'onnx' else []
    if missing:
        raise ModelError(f"ONNX needs {' and '.join(missing)}: pip install 'tinyvit-zoo[export]'.")
    try:
        check_writable(user_path(output))
    except OSError as e:
        raise ModelError(str(e)) from e
    return format


def _check_dynamic(model: nn.Module) -> int:
    """Step between the sizes that a model takes, in pixels.

    Raises:
        ModelError: If the model's graph is for one size only.
    """
    # torch.export fixes the number of windows where it is 1, in the products of talking heads.
    talking = any(getattr(m, 'talking_heads', False) for m in model.modules())
    if isinstance(model, TinyViT) and not talking:
        return 1
    if getattr(model, 'dynamic_img_size', False) and isinstance(model, TAKE_PATCHES):
        patch = model.patch_embed.patch_size
        if patch[0] == patch[1]:
            return patch[0]
    name = cast(Any, model).pretrained_cfg.get('architecture') or type(model).__name__
    raise ModelError(
        f'The graph of {name} is for one image size: its bias tables, shifted windows or talking heads depend on it. '
        'Export it at every size that you need, or choose a TinyViT, a Mini-DeiT or a plain ViT '
        '(dynamic_img_size=True).'
    )


def _inputs(model: nn.Module, dynamic_batch: bool, step: int | None) -> list[torch.Tensor]:
    """Two inputs with different batches or sizes where these are dynamic. The first is for tracing."""
    channels, height, width = model_data_config(model)['input_size']
    generator = torch.Generator().manual_seed(0)
    shapes = [[1, channels, height, width] for _ in range(2)]
    if dynamic_batch:  # torch.export treats a batch of 1 apart from all others
        shapes[0][0], shapes[1][0] = 2, 3
    if step is not None:  # the model's own size may be smaller than those that the graph takes
        shapes[0][2:] = [max(side, SMALLEST_TINYVIT if step == 1 else 2 * step) for side in (height, width)]
        shapes[1][2:] = [height + 2 * max(step, 16), width + max(step, 16)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@contextmanager
def sizes_left_open() -> Iterator[None]:
    """A block in which torch.export leaves open what is 1 in the trace.

    Otherwise it takes that for fixed: a TinyViT that was traced with a single window would take no larger images.
    """
    config: Any = _config
    if not hasattr(config, 'backed_size_oblivious'):  # an early torch 2.7
        yield
        return
    with config.patch(backed_size_oblivious=True):
        yield


class _Half(nn.Module):
    """A model that computes in float16, with inputs and outputs in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.half()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images.half()).float()


def _folded(model: nn.Module, dtype: str) -> nn.Module:
    folded = reparameterize_model(model)  # in float32: half precision is too coarse for folding statistics
    return _Half(folded) if dtype == 'fp16' else folded


def _trace(model: nn.Module, images: torch.Tensor, dynamic_batch: bool, step: int | None) -> ExportedProgram:
    open_sides: dict[int, Any] = {0: Dim('batch')} if dynamic_batch else {}
    if step == 1:
        open_sides |= {i: Dim(n, min=SMALLEST_TINYVIT) for i, n in ((2, 'height'), (3, 'width'))}
    elif step is not None:
        open_sides |= {i: step * Dim(n, min=2) for i, n in ((2, 'rows'), (3, 'columns'))}
    with sizes_left_open() if step == 1 else nullcontext():
        return torch.export.export(model, (images,), dynamic_shapes=(open_sides,))


def producer() -> str:
    """What wrote a file, for its metadata."""
    return f'tinyvit-zoo {__version__}, torch {torch.__version__}, timm {timm.__version__}'


def _metadata(model: nn.Module) -> dict[str, str]:
    cfg = cast(Any, model).pretrained_cfg
    values = (
        producer(),
        '.'.join(part for part in (cfg.get('architecture'), cfg.get('tag')) if part),
        cfg.get('license') or 'unknown',
        json.dumps(class_names(model) if model.num_classes else [], ensure_ascii=False),
        json.dumps(model_data_config(model)),
    )
    return dict(zip(METADATA, values, strict=True))


def _write_onnx(
    program: ExportedProgram, path: Path, names: dict[int, str], output: str, metadata: dict[str, str]
) -> Callable[[torch.Tensor], torch.Tensor]:
    save_onnx(program, path, ['images'], [output], (names,), metadata)
    session = onnx_session(path)
    return lambda x: torch.from_numpy(session.run([output], {'images': x.numpy()})[0])


def save_onnx(
    program: ExportedProgram,
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    names: Sequence[dict[int, str] | None],
    metadata: Mapping[str, str],
) -> None:
    """Write a traced program as ONNX, in one file.

    Args:
        program: Its dimensions of any size are dynamic already.
        path: File.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        names: Of the dynamic dimensions of each input.
        metadata: Becomes metadata_props.
    """
    onnx_program = torch.onnx.export(
        program,
        dynamo=True,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=tuple(names),
        external_data=False,
        verbose=False,
    )
    if onnx_program is None:  # None only where torch writes the file itself
        raise RuntimeError('torch.onnx.export returned no program.')
    onnx_program.model.metadata_props.update(metadata)
    onnx_program.save(path, external_data=False)


def onnx_session(path: Path) -> Any:
    """An onnxruntime session on the processor."""
    with needs_extra('export'):
        import onnxruntime

    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])


def _write_pt2(
    program: ExportedProgram, path: Path, names: dict[int, str], output: str, metadata: dict[str, str]
) -> Callable[[torch.Tensor], torch.Tensor]:
    file = io.BytesIO()  # torch's own writer aborts the process when the disk is full
    torch.export.save(program, file, extra_files=metadata)
    path.write_bytes(file.getbuffer())
    return torch.export.load(path).module()


_WRITERS = dict(onnx=_write_onnx, pt2=_write_pt2)


def _difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def _snippet(path: Path, format: str, output: str, sizes: tuple[int, ...]) -> str:
    if format == 'onnx':
        lines = (
            'import numpy, onnxruntime',
            f'session = onnxruntime.InferenceSession({str(path)!r})',
            f"{output} = session.run(None, {{'images': numpy.zeros({sizes}, 'float32')}})[0]",
        )
    else:
        lines = (
            'import torch',
            f'model = torch.export.load({str(path)!r}).module()',
            f'{output} = model(torch.zeros({sizes}))',
        )
    return '\n'.join(lines)
