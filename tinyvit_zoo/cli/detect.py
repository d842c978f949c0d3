"""`detect`: train, test and use detectors and segmenters of mmdet and mmseg configs."""

import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import command, only_with, print_error
from .options import Device, Size, Words, find_device, make_output, read_size, read_words

Launcher = StrEnum('Launcher', ['none', 'pytorch', 'slurm', 'mpi'])

# mmdet's `--cfg-options a=1 b=2`: what follows the first is an argument of its own to typer.
MORE_OPTIONS = {'allow_extra_args': True}

ConfigName = Annotated[
    str, typer.Argument(help='File, or name of a packaged config (see `detect config`).', metavar='CONFIG')
]
Checkpoint = Annotated[Path, typer.Argument(help='A .pth file that training wrote.', metavar='CHECKPOINT')]
CfgOptions = Annotated[
    list[str] | None,
    typer.Option(
        '--cfg-options', help='Change the config, such as train_cfg.max_epochs=3; several one after another.',
        metavar='KEY=VALUE ...',
    ),
]  # fmt: skip
WorkDir = Annotated[
    Path | None, typer.Option('--work-dir', help='Folder for everything; default: work_dirs/CONFIG.', metavar='DIR')
]
LauncherName = Annotated[
    Launcher | None, typer.Option('--launcher', help='Default: pytorch under torchrun, else none.')
]
Data = Annotated[
    Path | None,
    typer.Option('--data', '-d', help='Folder of your own data, in COCO format (mmseg: ADE20K).', metavar='DIR'),
]
ValidationAnnotations = Annotated[
    Path | None,
    typer.Option('--validation-annotations', help='COCO-format file to validate and test on.', metavar='FILE'),
]
ValidationImages = Annotated[
    Path | None,
    typer.Option('--validation-images', help='Folder of its images, if not found by its name.', metavar='DIR'),
]
Classes = Annotated[
    Words | None,
    typer.Option(
        '--classes', parser=read_words, help="Names separated by commas; default: the annotations' categories.",
        metavar='LIST',
    ),
]  # fmt: skip
LocalRank = Annotated[int, typer.Option('--local-rank', '--local_rank', hidden=True)]


def register(app: typer.Typer, panel: str) -> None:
    group = typer.Typer(
        help='Detectors and segmenters: train, test, predict, bench, config, install-ops.', no_args_is_help=True
    )
    group.command('train', context_settings=MORE_OPTIONS)(command(train))
    group.command('test', context_settings=MORE_OPTIONS)(command(evaluate))
    group.command('predict')(command(predict, results=False))
    group.command('bench')(command(bench, results=False))
    group.command('config')(command(config))
    group.command('install-ops')(command(install_ops))
    app.add_typer(group, name='detect', rich_help_panel=panel)


def _read(name: str, context: typer.Context | None, cfg_options: list[str] | None) -> Any:
    given = [*(cfg_options or []), *(context.args if context else ())]
    if context and context.args and not cfg_options:
        raise typer.BadParameter(f"'{context.args[0]}' is one argument too many.")
    from ..downstream.detection.packaged_configs import read_config

    return read_config(name, given)


def _use_custom_data(
    config: Any, data: Path | None, classes: Words | None, trained: bool = False, **files: Path | None
) -> None:
    if data is None:
        if classes or any(files.values()):
            raise typer.BadParameter('Give the folder of your data as well: --data DIR.')
        return
    from ..common.text import count_of, escaped  # names are of whoever annotated
    from ..downstream.detection.config_parts import datasets_of
    from ..downstream.detection.custom_data import CustomData, use_custom_data

    found = use_custom_data(config, CustomData(data, classes=tuple(classes or ()), **files), trained)
    if found:
        print(f'{count_of(len(found), "class")}: {escaped(", ".join(found))}')
    if files.get('train_annotations') and not files.get('validation_annotations'):
        for dataset in datasets_of(config.get('val_dataloader')):
            kept = Path(dataset.get('data_root') or '', dataset.get('ann_file', ''))
            print(f'The validation is on {kept}, as the config says: --validation-annotations names another file.')


def train(
    *,
    context: typer.Context,
    name: ConfigName,
    work_dir: WorkDir = None,
    resume: Annotated[
        bool, typer.Option('--resume', help='Resume from the newest checkpoint of the work dir.')
    ] = False,
    load_from: Annotated[
        Path | None,
        typer.Option(help='Start from a detector; heads of other classes are initialized anew.', metavar='FILE'),
    ] = None,
    amp: Annotated[bool, typer.Option('--amp', help='Mixed precision, on a GPU.')] = False,
    auto_scale_lr: Annotated[
        bool, typer.Option('--auto-scale-lr', help='Scale the learning rate with the images of an update.')
    ] = False,
    data: Data = None,
    train_annotations: Annotated[
        Path | None, typer.Option(help='COCO-format file below --data.', metavar='FILE')
    ] = None,
    train_images: Annotated[
        Path | None, typer.Option(help='Folder of its images, if not found by its name.', metavar='DIR')
    ] = None,
    validation_annotations: ValidationAnnotations = None,
    validation_images: ValidationImages = None,
    classes: Classes = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: the config's, else 0.")] = None,
    launcher: LauncherName = None,
    local_rank: LocalRank = 0,
    cfg_options: CfgOptions = None,
) -> None:
    """Train a detector or segmenter.

    Several processes: torchrun --nproc-per-node=8 -m tinyvit_zoo.cli detect train CONFIG ...
    """
    config = _read(name, context, cfg_options)
    from ..downstream.detection.engine import Run
    from ..downstream.detection.engine import train as train_detector

    _use_custom_data(
        config, data, classes, train_annotations=train_annotations, train_images=train_images,
        validation_annotations=validation_annotations, validation_images=validation_images,
    )  # fmt: skip
    run = Run(work_dir, resume, load_from, amp, auto_scale_lr, launcher and str(launcher), seed)
    last = train_detector(config, run)
    if last and int(os.environ.get('RANK', 0)) == 0:
        written = shlex.join([str(Path(config.work_dir) / Path(config.filename).name), str(last)])
        print(f'Next: tinyvit-zoo detect test {written}')
        print(f'      tinyvit-zoo detect predict {written} IMAGE -o FOLDER')


def evaluate(
    *,
    context: typer.Context,
    name: ConfigName,
    checkpoint: Checkpoint,
    work_dir: WorkDir = None,
    data: Data = None,
    validation_annotations: ValidationAnnotations = None,
    validation_images: ValidationImages = None,
    classes: Classes = None,
    launcher: LauncherName = None,
    local_rank: LocalRank = 0,
    cfg_options: CfgOptions = None,
) -> None:
    """Metrics of a checkpoint on the test data of its config."""
    config = _read(name, context, cfg_options)
    from ..downstream.detection.engine import Run
    from ..downstream.detection.engine import evaluate as measure

    _use_custom_data(
        config, data, classes, trained=True, validation_annotations=validation_annotations,
        validation_images=validation_images,
    )  # fmt: skip
    metrics = measure(config, checkpoint, Run(work_dir, launcher=launcher and str(launcher)))
    for metric, value in metrics.items():
        print(f'{metric}: {value:.4g}')
    if not metrics:
        print('No object was found in any image, so there are no metrics.')


def predict(
    *,
    name: ConfigName,
    checkpoint: Checkpoint,
    images: Annotated[list[Path], typer.Argument(help='Image files, or folders of them.', metavar='IMAGE...')],
    output: Annotated[Path, typer.Option('--output', '-o', help='Folder for drawn images and JSON.', metavar='DIR')],
    threshold: Annotated[float, typer.Option(min=0, max=1, help='Leave out objects with a lower score.')] = 0.3,
    skip_unreadable: Annotated[
        bool,
        typer.Option('--skip-unreadable', help='Succeed even if images cannot be read; they are listed at the end.'),
    ] = False,
    device: Device = None,
    cfg_options: CfgOptions = None,
) -> None:
    """Find objects in images, and draw their boxes and masks (with a segmenter: the class of every pixel)."""
    config = _read(name, None, cfg_options)
    from ..common.text import escaped
    from ..downstream.detection.predict import Predictor, find_images, in_words, write_predictions

    found = find_images(images)
    make_output(output)
    predictor = Predictor(config, checkpoint, find_device(device), threshold)
    refused: list[str] = []
    done = 0
    for drawn, result in write_predictions(predictor, found, output, progress=True, refused=refused.append):
        print(escaped(f'{drawn}: {in_words(result, predictor.classes)}'))
        done += 1
    for sentence in refused:
        print_error(sentence)
    if refused and not (skip_unreadable and done):
        raise typer.Exit(1)


def config(
    *,
    name: Annotated[
        str | None,
        typer.Argument(help='Of a packaged config, or a file; without one they are listed.', metavar='CONFIG'),
    ] = None,
    output: Annotated[Path | None, typer.Option('--output', '-o', help='New config file.', metavar='FILE.py')] = None,
    force: Annotated[bool, typer.Option('--force', help='Replace an existing file.')] = False,
) -> None:
    """List the packaged configs, or write one with its bases merged into it, for you to change."""
    only_with(name, 'a CONFIG', 'output')
    only_with(output, '--output', 'force')
    from ..downstream.detection.packaged_configs import all_configs, describe, read_config, write_config

    if name is None:
        for config_name, path in all_configs().items():
            print(f'{config_name}\n    {describe(path)}')
    elif output is None:
        print(read_config(name).pretty_text)
    else:
        print(write_config(name, output, force))


def install_ops(*, remove: Annotated[bool, typer.Option('--remove', help='Remove it again.')] = False) -> None:
    """Put the stand-in for mmcv's compiled ops where mmdet's stock tools find it (not needed for these commands)."""
    from ..downstream.detection.ops import remove_file, write_file

    path, status = remove_file() if remove else write_file()
    print(f'{path}: {status}')


def bench(
    *,
    names: Annotated[
        list[str] | None,
        typer.Argument(help='Backbones; default: those of the papers and their baselines.', metavar='NAME...'),
    ] = None,
    img_size: Annotated[
        Size, typer.Option('--img-size', parser=read_size, help='Side, or HEIGHTxWIDTH.', metavar='SIZE')
    ] = Size(800, 1344),
    rounds: Annotated[int, typer.Option(min=1, help='Of measuring, the variants in turn.')] = 5,
    device: Device = None,
    output: Annotated[Path | None, typer.Option('--output', '-o', help='Folder for bench.json.', metavar='DIR')] = None,
) -> None:
    """Compare backbones with FPN features: time of forward and training step, peak memory, parameters."""
    from ..downstream.detection.bench import DEFAULT, report
    from ..downstream.detection.bench import run as measure

    make_output(output)
    results = measure(names or DEFAULT, (img_size.height, img_size.width), rounds, find_device(device), say=print)
    report(results, output, say=print)
