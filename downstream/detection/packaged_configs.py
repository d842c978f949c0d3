"""The configs of this package: found by name, described, read with their bases, and copied as one file."""

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, DictAction

from tinyvit_zoo.common.errors import EvaluationError
from tinyvit_zoo.common.files import write_whole
from tinyvit_zoo.common.text import reason

__all__ = ['all_configs', 'describe', 'find_config', 'read_config', 'write_config']

FOLDERS = tuple(Path(__file__).parents[1] / task / 'configs' for task in ('detection', 'segmentation'))


def all_configs() -> dict[str, Path]:
    """Files of this package's configs by name, the small ones for CI last."""
    return {path.stem: path for sub in ('', 'ci') for folder in FOLDERS for path in sorted((folder / sub).glob('*.py'))}


def describe(path: Path) -> str:
    """First line of a config's docstring."""
    config = compile(path.read_text(encoding='utf-8'), str(path), 'exec', dont_inherit=True)
    text = next((c for c in config.co_consts if isinstance(c, str)), '') if config.co_consts else ''
    return text.strip().partition('\n')[0]


def find_config(name: str | Path) -> Path:
    """File of a config.

    Args:
        name: A path, or the name of a packaged config.

    Raises:
        EvaluationError: If there is neither such a file nor such a name.
    """
    path, configs = Path(name).expanduser(), all_configs()
    if path.is_file():
        return path
    if str(name) in configs:
        return configs[str(name)]
    close = [known for known in configs if known.startswith(path.stem)][:3]
    close = close or difflib.get_close_matches(path.stem, configs, n=3)
    meant = f' Did you mean {" or ".join(close)}?' if close else ' `tinyvit-zoo detect config` lists the names.'
    raise EvaluationError(f"'{name}' is neither a file nor the name of a packaged config.{meant}")


def read_config(name: str | Path, options: Sequence[str] = ()) -> Config:
    """A config with its bases merged.

    Args:
        name: See `find_config`.
        options: As of mmdet's `--cfg-options`: 'train_cfg.max_epochs=3', lists as 'key=1,2' or 'key="[1,2]"'.

    Raises:
        EvaluationError: If the config does not exist, cannot be read, or an option is invalid.
    """
    path = find_config(name)
    try:
        config = Config.fromfile(path)
    except EvaluationError:
        raise
    except Exception as e:  # a config is a program, and mmengine raises many kinds of errors
        raise EvaluationError(f'{path} cannot be read as a config ({type(e).__name__}: {reason(e)}).') from e
    wrong = [option for option in options if '=' not in option]
    if wrong:
        raise EvaluationError(f"--cfg-options takes KEY=VALUE, such as train_cfg.max_epochs=3, not '{wrong[0]}'.")
    if options:
        parser = argparse.ArgumentParser()
        parser.add_argument('--cfg-options', nargs='+', action=DictAction)
        try:
            config.merge_from_dict(parser.parse_args(['--cfg-options', *options]).cfg_options)
        except (KeyError, TypeError, IndexError, AssertionError) as e:
            raise EvaluationError(f'The --cfg-options do not fit {path.name}: {reason(e)}') from e
    return config


def write_config(name: str | Path, output: Path, force: bool = False) -> Path:
    """Write a config that needs no other file: its bases are merged into it.

    Args:
        name: See `find_config`.
        output: The new file.
        force: Replace it if it exists.

    Returns:
        `output`.

    Raises:
        EvaluationError: If the config cannot be read, or `output` exists or cannot be written.
    """
    if output.suffix != '.py':
        raise EvaluationError(f"mmdet's configs are Python files: give {output.with_suffix('.py')} as the output.")
    if output.exists() and not force:
        raise EvaluationError(f'{output} already exists: choose another name, or add --force to replace it.')
    path = find_config(name)
    origin = f'tinyvit-zoo detect config {path.stem}' if path in all_configs().values() else str(path)
    note = describe(path).replace('\n', ' ')
    head = f'# Made by: {origin}\n' + (f'# {note}\n' if note else '') + '# Its bases are merged into it.\n'
    write_whole(output, (head + read_config(path).pretty_text).encode())
    return output
