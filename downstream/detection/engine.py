"""Training and testing of a config with mmengine's runner, as in mmdet's tools, plus the checks that they lack."""

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import write_whole
from tinyvit_zoo.common.text import reason
from tinyvit_zoo.training.run_state import alone_in

from .config_parts import LOADERS, classes_of, datasets_of
from .custom_data import match_by_name
from .data_checks import check_data
from .detector_checkpoint import check_start, latest_checkpoint, load_detector

__all__ = ['Run', 'evaluate', 'train']


@dataclass(frozen=True)
class Run:
    """How a config is run.

    Attributes:
        work_dir: Folder for everything, `work_dirs/NAME` by default.
        resume: Resume from the newest checkpoint in `work_dir`, if there is one.
        load_from: Checkpoint to start a training from; heads with another number of classes start from random weights.
        amp: Mixed precision, on a GPU.
        auto_scale_lr: Scale the learning rate with the number of images in an update.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'; by default 'pytorch' under torchrun, else 'none'.
        seed: Random seed; by default that of the config, else 0.
    """

    work_dir: Path | None = None
    resume: bool = False
    load_from: Path | None = None
    amp: bool = False
    auto_scale_lr: bool = False
    launcher: str | None = None
    seed: int | None = None


def train(config: Config, run: Run = Run(), say: Callable[[str], None] = print) -> Path | None:
    """Train, validate and save as the config says; the log, curves and checkpoints go to the work dir.

    Args:
        config: Of mmdet or mmseg; changed in place.
        run: How to run it.
        say: Prints a line.

    Returns:
        The last checkpoint.

    Raises:
        EvaluationError: If the data does not fit, the work dir holds another run, or another run is writing to it.
        CheckpointError: If `load_from` does not fit.
    """
    folder = _prepare(config, run)
    config.resume, config.load_from = False, str(run.load_from) if run.load_from else config.get('load_from')
    found = latest_checkpoint(folder)
    if found and run.resume:
        config.resume, config.load_from = True, str(found)
    elif found:
        raise EvaluationError(
            f'{folder} holds {found.name} of an earlier run: add --resume to resume it, or choose another --work-dir.'
        )
    elif run.resume and is_main_process():
        say(f'{folder} holds no checkpoint: the training starts from the beginning.')
    if run.amp:
        _use_amp(config)
    if run.auto_scale_lr:
        if 'base_batch_size' not in config.get('auto_scale_lr', {}):
            raise EvaluationError(
                'The config has no auto_scale_lr.base_batch_size, so the learning rate cannot be scaled: set it with '
                '--cfg-options, or leave --auto-scale-lr out.'
            )
        config.auto_scale_lr.enable = True
    if is_main_process():
        check_data(config, training=True, say=say)
    _add_hooks(config)
    if config.load_from and 'backbone' in config.model:
        config.model.backbone.init_cfg = None  # do not download weights that the checkpoint replaces
    runner = Runner.from_cfg(config)
    if config.load_from:
        # Checked before any work; mmengine itself loads whatever happens to fit.
        fresh = check_start(runner.model, config.load_from, _class_names(config, LOADERS[0]))
        if config.resume and fresh:
            raise EvaluationError(f'{config.load_from} is of another model than {config.filename}: {fresh}')
        if fresh:
            say(f'{config.load_from}: {fresh}')
    with alone_in(folder, '--work-dir') if is_main_process() else nullcontext():
        runner.train()
    last = runner.message_hub.runtime_info.get('last_ckpt')
    if is_main_process():
        say(f'Log, curves (losses.png, metrics.png, curves.csv), TensorBoard events and checkpoints: {folder}')
    return Path(last) if last else None


def evaluate(
    config: Config, checkpoint: Path, run: Run = Run(), say: Callable[[str], None] = print
) -> dict[str, float]:
    """Metrics of a checkpoint on the test data of a config, also written to test_results.json in the work dir.

    Args:
        config: Of mmdet or mmseg; changed in place.
        checkpoint: Of the same model.
        run: How to run it.
        say: Prints a line.

    Raises:
        EvaluationError: If the data does not fit.
        CheckpointError: If the checkpoint does not fit.
    """
    folder = _prepare(config, run)
    config.resume, config.load_from = False, None
    if is_main_process():
        check_data(config, training=False, say=say)
    runner = Runner.from_cfg(config)
    load_detector(runner.model, checkpoint, _class_names(config, LOADERS[2]))
    metrics = {name: float(value) for name, value in runner.test().items()}
    if is_main_process():
        results = dict(config=str(config.filename), checkpoint=str(checkpoint), metrics=metrics)
        write_whole(folder / 'test_results.json', json.dumps(results, indent=2).encode())
        say(f'Metrics: {folder / "test_results.json"}')
    return metrics


def _prepare(config: Config, run: Run) -> Path:
    """Set work dir, seed and processes, for training and testing alike. Returns the work dir."""
    name = Path(config.filename).stem if config.filename else 'run'
    folder = run.work_dir or Path(config.get('work_dir') or Path('work_dirs') / name)
    config.work_dir = str(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise EvaluationError(f'The work dir {folder} cannot be created ({reason(e)}): choose another.') from e
    config.default_scope = config.get('default_scope') or 'mmdet'
    match_by_name(config)
    for loader in filter(None, map(config.get, LOADERS)):
        if not loader.get('num_workers'):  # torch refuses what needs workers
            loader.persistent_workers = False
            loader.pop('prefetch_factor', None)
    randomness = config.get('randomness', {})
    if run.seed is not None or randomness.get('seed') is None:
        config.randomness = dict(randomness, seed=run.seed or 0)
    if config.get('visualizer'):
        # With a fixed name all runs of a process would share one visualizer; mmengine's default is the run's name.
        config.visualizer = {key: value for key, value in config.visualizer.items() if key != 'name'}
    config.launcher = run.launcher or ('pytorch' if {'RANK', 'WORLD_SIZE'} <= os.environ.keys() else 'none')
    if config.launcher != 'none' and not torch.cuda.is_available():
        _use_gloo(config)
    return folder


def _class_names(config: Config, loader: str) -> tuple[str, ...]:
    """Names of the classes of a loader's data, none if their type does not say them."""
    dataset = next(datasets_of(config.get(loader)), None)
    return classes_of(dataset) if dataset is not None else ()


def _use_gloo(config: Config) -> None:
    """Start processes and wrap models without GPUs; mmengine does so for GPUs only."""
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    config.model_wrapper_cfg = {**wrapper, 'find_unused_parameters': config.get('find_unused_parameters', False)}


def _use_amp(config: Config) -> None:
    if not torch.cuda.is_available():
        raise EvaluationError(
            "--amp needs a GPU, as mmengine's AmpOptimWrapper does not support the CPU: leave it out."
        )
    config.optim_wrapper.type = 'AmpOptimWrapper'
    config.optim_wrapper.loss_scale = 'dynamic'


def _add_hooks(config: Config) -> None:
    """Add to a user's config what it may lack: our hooks, and events for TensorBoard."""
    hooks = list(config.get('custom_hooks') or [])
    for name in ('RandomStateHook', 'CurvesHook'):
        if not any(hook.get('type') == name for hook in hooks):
            hooks.append(dict(type=name))
    config.custom_hooks = hooks
    default_hooks = dict(config.get('default_hooks') or {})
    checkpoint = dict(default_hooks.get('checkpoint') or dict(type='CheckpointHook', interval=1))
    if checkpoint.get('type', 'CheckpointHook') == 'CheckpointHook':
        config.default_hooks = dict(default_hooks, checkpoint=dict(checkpoint, type='AtomicCheckpointHook'))
    visualizer = dict(config.get('visualizer') or {})
    backends = list(visualizer.get('vis_backends') or [])
    if visualizer and find_spec('tensorboard'):
        if not any(backend['type'] == 'TensorboardVisBackend' for backend in backends):
            backends.append(dict(type='TensorboardVisBackend'))
        config.visualizer = dict(visualizer, vis_backends=backends)
