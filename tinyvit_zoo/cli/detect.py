"""`detect`: train, test and use detectors and segmenters of mmdet and mmseg configs."""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from . import evaluator_options as options
from .console import complain, explained

Launcher = StrEnum('Launcher', ['none', 'pytorch', 'slurm', 'mpi'])

EXTRA = ('cv2', 'matplotlib', 'mmcv', 'mmdet', 'mmengine', 'mmseg', 'pycocotools', 'tqdm')
# mmdet's `--cfg-options a=1 b=2`: what follows the first is an argument of its own to typer.
MORE_OPTIONS = {'allow_extra_args': True}

CONFIG = typer.Argument(help='File, or name of a packaged config (see `detect config`).', metavar='CONFIG')
CHECKPOINT = typer.Argument(help='What a training has left: a .pth file.', metavar='CHECKPOINT')
CFG_OPTIONS = typer.Option(
    None, '--cfg-options', help='Change the config, such as train_cfg.max_epochs=3; several after another.',
    metavar='KEY=VALUE ...',
)  # fmt: skip
WORK_DIR = typer.Option(None, '--work-dir', help='Folder for everything; default: work_dirs/CONFIG.', metavar='DIR')
LAUNCHER = typer.Option(None, help='Default: pytorch under torchrun, else none.')
DATA = typer.Option(
    None, '--data', '-d', help='Folder of your own data, in COCO format (mmseg: ADE20K).', metavar='DIR'
)
TRAIN_ANNOTATIONS = typer.Option(None, help='COCO-format file below --data.', metavar='FILE')
TRAIN_IMAGES = typer.Option(None, help='Folder of its pictures, if not found beside it.', metavar='DIR')
VALIDATION_ANNOTATIONS = typer.Option(None, help='COCO-format file to validate and test on.', metavar='FILE')
VALIDATION_IMAGES = typer.Option(None, help='Folder of its pictures, if not found beside it.', metavar='DIR')
CLASSES = typer.Option(None, help="Names between commas; default: the annotations' categories.", metavar='LIST')
LOCAL_RANK = typer.Option(0, '--local-rank', '--local_rank', hidden=True)


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help='Detectors and segmenters: train, test, predict, bench, config, install-ops.',
        rich_markup_mode=None,
        no_args_is_help=True,
    )
    group.command('train', context_settings=MORE_OPTIONS)(train)
    group.command('test', context_settings=MORE_OPTIONS)(evaluate)
    group.command('predict')(predict)
    group.command('bench')(bench)
    group.command('config')(config)
    group.command('install-ops')(install_ops)
    app.add_typer(group, name='detect')


@contextmanager
def needs_detection_extra(what: str) -> Iterator[None]:
    """Turn the absence of a package of the extra `detection-lite` into one sentence and exit code 1."""
    try:
        yield
    except ModuleNotFoundError as e:
        missing = (e.name or '').partition('.')[0]
        if missing not in EXTRA:
            raise
        complain(f"{what} needs {missing}: pip install 'tinyvit-zoo[detection-lite]'")
        raise typer.Exit(1) from e


def _module(name: str) -> ModuleType:
    """A module of `tinyvit_zoo.downstream.detection`."""
    with needs_detection_extra('detect'):
        return importlib.import_module(f'tinyvit_zoo.downstream.detection.{name}')


def _read(name: str, context: typer.Context | None, cfg_options: list[str] | None) -> Any:
    given = [*(cfg_options or []), *(context.args if context else ())]
    if context and context.args and not cfg_options:
        raise typer.BadParameter(f"'{context.args[0]}' is one argument too many.")
    with needs_detection_extra('detect'):
        return _module('packaged_configs').read_config(name, given)


def _custom_data(config: Any, data: Path | None, classes: str | None, **files: Path | None) -> None:
    if data is None:
        if classes or any(files.values()):
            raise typer.BadParameter('Give the folder of your data as well: --data DIR.')
        return
    custom_data = _module('custom_data')
    names = tuple(name.strip() for name in classes.split(',') if name.strip()) if classes else ()
    found = custom_data.use_custom_data(config, custom_data.CustomData(data, classes=names, **files))
    if found:
        print(f'{len(found)} classes: {", ".join(found)}')


@explained
def train(
    context: typer.Context,
    name: str = CONFIG,
    work_dir: Path = WORK_DIR,
    resume: bool = typer.Option(False, '--resume', help='Go on with the newest checkpoint of the work dir.'),
    load_from: Path = typer.Option(
        None, help='Start from a detector; heads of other classes start anew.', metavar='FILE'
    ),
    amp: bool = typer.Option(False, '--amp', help='Mixed precision, on a GPU.'),
    auto_scale_lr: bool = typer.Option(False, '--auto-scale-lr', help='Learning rate by images in an update.'),
    data: Path = DATA,
    train_annotations: Path = TRAIN_ANNOTATIONS,
    train_images: Path = TRAIN_IMAGES,
    validation_annotations: Path = VALIDATION_ANNOTATIONS,
    validation_images: Path = VALIDATION_IMAGES,
    classes: str = CLASSES,
    seed: int = typer.Option(None, min=0, help="Default: the config's, else 0."),
    launcher: Launcher = LAUNCHER,
    local_rank: int = LOCAL_RANK,
    cfg_options: list[str] = CFG_OPTIONS,
) -> None:
    """Train a detector or segmenter.

    Several processes: torchrun --nproc-per-node=8 -m tinyvit_zoo.cli detect train CONFIG ...
    """
    config = _read(name, context, cfg_options)
    _custom_data(
        config, data, classes, train_annotations=train_annotations, train_images=train_images,
        validation_annotations=validation_annotations, validation_images=validation_images,
    )  # fmt: skip
    engine = _module('engine')
    run = engine.Run(work_dir, resume, load_from, amp, auto_scale_lr, launcher and str(launcher), seed)
    last = engine.train(config, run)
    if last and int(os.environ.get('RANK', 0)) == 0:
        written = Path(config.work_dir) / Path(config.filename).name
        print(f'Next: tinyvit-zoo detect test {written} {last}')
        print(f'      tinyvit-zoo detect predict {written} {last} PICTURE -o FOLDER')


@explained
def evaluate(
    context: typer.Context,
    name: str = CONFIG,
    checkpoint: Path = CHECKPOINT,
    work_dir: Path = WORK_DIR,
    data: Path = DATA,
    validation_annotations: Path = VALIDATION_ANNOTATIONS,
    validation_images: Path = VALIDATION_IMAGES,
    classes: str = CLASSES,
    launcher: Launcher = LAUNCHER,
    local_rank: int = LOCAL_RANK,
    cfg_options: list[str] = CFG_OPTIONS,
) -> None:
    """Metrics of a checkpoint on the test data of its config."""
    config = _read(name, context, cfg_options)
    _custom_data(
        config, data, classes, validation_annotations=validation_annotations, validation_images=validation_images
    )
    engine = _module('engine')
    metrics = engine.evaluate(config, checkpoint, engine.Run(work_dir, launcher=launcher and str(launcher)))
    for metric, value in metrics.items():
        print(f'{metric}: {value:.4g}')
    if not metrics:
        print('No object was found in any picture, so there are no metrics.')


@explained
def predict(
    name: str = CONFIG,
    checkpoint: Path = CHECKPOINT,
    images: list[Path] = typer.Argument(help='Pictures, or folders of pictures.', metavar='IMAGE...'),
    output: Path = typer.Option(..., '--output', '-o', help='Folder for drawn pictures and JSON.', metavar='DIR'),
    threshold: float = typer.Option(0.3, min=0, max=1, help='Leave out objects with a lower score.'),
    device: str = options.DEVICE,
    cfg_options: list[str] = CFG_OPTIONS,
) -> None:
    """Find objects in pictures, and draw their boxes and masks (of a segmenter: the class of every pixel)."""
    config = _read(name, None, cfg_options)
    module = _module('predict')
    pictures = module.find_pictures(images)
    options.make_output(output)
    predictor = module.Predictor(config, checkpoint, options.find_device(device), threshold)
    for drawn, result in module.write_predictions(predictor, pictures, output, progress=True):
        print(f'{drawn}: {module.in_words(result, predictor.classes)}')


@explained
def config(
    name: str = typer.Argument(None, help='Of a packaged config, or a file; without one they are listed.'),
    output: Path = typer.Option(None, '--output', '-o', help='New config file.', metavar='FILE.py'),
    force: bool = typer.Option(False, '--force', help='Replace the file if it is there.'),
) -> None:
    """List the packaged configs, or write one with its bases merged into it, to change as you like."""
    packaged_configs = _module('packaged_configs')
    if name is None:
        for config_name, path in packaged_configs.all_configs().items():
            print(f'{config_name}\n    {packaged_configs.describe(path)}')
        return
    if output is None:
        print(packaged_configs.read_config(name).pretty_text)
        return
    with needs_detection_extra('detect config'):
        print(packaged_configs.write_config(name, output, force))


@explained
def install_ops(
    remove: bool = typer.Option(False, '--remove', help='Take it away again.'),
) -> None:
    """Put the stand-in for mmcv's compiled ops where mmdet's stock tools find it (not needed for these commands)."""
    ops = _module('ops')
    act: Callable[[], tuple[Path, str]] = ops.remove_file if remove else ops.write_file
    path, what = act()
    print(f'{path}: {what}')


@explained
def bench(
    names: list[str] = typer.Argument(None, help='Backbones; default: those of the papers and their rivals.'),
    size: tuple[int, int] = typer.Option((800, 1344), help='Height and width of the picture.'),
    rounds: int = typer.Option(5, min=1, help='Of measuring, the variants in turn.'),
    device: str = options.DEVICE,
    output: Path = typer.Option(None, '--output', '-o', help='Folder for bench.json.', metavar='DIR'),
) -> None:
    """Compare backbones with FPN features: time of forward and training step, peak memory, parameters."""
    module = _module('bench')
    options.make_output(output)
    results = module.run(names or module.DEFAULT, size, rounds, options.find_device(device), say=print)
    module.report(results, output, say=print)
