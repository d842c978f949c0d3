"""`pack`, `verify` and `push`: pages of the Hub."""

import sys
from pathlib import Path

import typer

from .console import explained, parse_size, quiet_logs

PAGE = 'OWNER/NAME'
NAME = typer.Argument(help='ARCH.TAG of a release, ARCH for your own weights, or a folder.', metavar='NAME|DIR')
WEIGHTS = typer.Option(None, '--weights', help='Checkpoint in any known layout.', metavar='FILE')
RANDOM = typer.Option(None, '--random-seed', help='Random weights instead, for tests.', metavar='N')
TAG = typer.Option(None, help='Name of your own weights: no facts of a release go with them.')
LABELS = typer.Option(None, help='Names of your own classes, one a line.', metavar='FILE')
LICENSE = typer.Option(None, '--license', help='License id for the card of your own weights.', metavar='ID')
SIZE = typer.Option(None, '--img-size', help="Size the weights are for, if not the model's.", metavar='SIZE')
TENSORS = typer.Option(
    None, '--test-tensors', help="Input and output by another program, such as the authors' code.", metavar='FILE'
)
FOR_TIMM = typer.Option(False, '--for-timm', help="Write TinyViT as timm's own: loads without tinyvit-zoo.")


def register(app: typer.Typer) -> None:
    app.command('pack')(pack)
    app.command('verify')(verify)
    app.command('push')(push)


@explained
def pack(
    name: str = NAME,
    output: Path = typer.Option(..., '--output', '-o', help='Folder of the page.', metavar='DIR'),
    weights: Path = WEIGHTS,
    random_seed: int = RANDOM,
    tag: str = TAG,
    labels: Path = LABELS,
    license: str = LICENSE,
    img_size: str = SIZE,
    repo: str = typer.Option(None, help='Page that it is for; the card of your own weights names it.', metavar=PAGE),
    for_timm: bool = FOR_TIMM,
    tensors: Path = TENSORS,
) -> None:
    """Write a whole page of the Hub into a folder: weights, configuration, card, test tensors, checksums."""
    size = parse_size(img_size)
    from ..hub.pack import pack as run

    quiet_logs()
    folder = run(name, output, weights, random_seed, tag, _read_labels(labels), license, size, repo, for_timm, tensors)
    print(f'Written to {folder}')
    print(f'To prove it: tinyvit-zoo verify {folder}')


@explained
def verify(
    place: str = typer.Argument(help='owner/name of a page, or a folder.', metavar='OWNER/NAME|DIR'),
) -> None:
    """Prove a page: every file is the one listed, and the model gives the output it should."""
    from ..hub.verify import verify as run

    _quiet_hub()
    _report(run(place))


@explained
def push(
    name: str = NAME,
    to: str = typer.Option(..., '--to', help='Page to push to.', metavar=PAGE),
    weights: Path = WEIGHTS,
    random_seed: int = RANDOM,
    tag: str = TAG,
    labels: Path = LABELS,
    license: str = LICENSE,
    img_size: str = SIZE,
    for_timm: bool = FOR_TIMM,
    private: bool = typer.Option(False, '--private', help='Make a new page private.'),
    dry_run: bool = typer.Option(False, '--dry-run', help='Pack, prove, look at the page, and change nothing.'),
    force: bool = typer.Option(False, '--force', help='Overwrite files that no push from here put there.'),
) -> None:
    """Publish a page on the Hub: a packed folder, or a name with weights. It is proved before anything is uploaded."""
    size = parse_size(img_size)
    from ..hub.pack import is_page, packed
    from ..hub.push import push as run
    from ..hub.remote import check_repo

    _quiet_hub()
    check_repo(to)  # before anything is packed
    if is_page(name):
        given = (weights, random_seed, tag, labels, license, size)
        if for_timm or any(value is not None for value in given):
            raise typer.BadParameter(f'{name} is packed already: `tinyvit-zoo pack` takes what is to be changed.')
        done = run(name, to, private, dry_run, force)
    else:
        with packed(
            name,
            weights=weights,
            random_seed=random_seed,
            tag=tag,
            labels=_read_labels(labels),
            license=license,
            img_size=size,
            repo=to,
            for_timm=for_timm,
        ) as folder:
            done = run(folder, to, private, dry_run, force)
    if not (done.uploaded or done.deleted):
        print('The page holds all of it already: no commit was made.')
    else:
        would = 'Would upload' if dry_run else 'Uploaded'
        print(f'{would} {", ".join(done.uploaded)}' + (f'; delete {", ".join(done.deleted)}' if done.deleted else ''))
    print(done.url)


def _report(proof) -> None:
    if proof.listed:
        print(f'{proof.listed} files have the sha256 of the manifest.')
    else:
        print('There is no manifest: checksums of small files were not compared.')
    print(f'The model has every tensor of its file and no other, {proof.params:,} parameters.')
    print(f'Largest difference from the output expected: {proof.difference:.1e} (allowed: {proof.tolerance:.0e}).')
    print(f'Proved: {proof.folder}' + (f' at commit {proof.commit}' if proof.commit else ''))


def _read_labels(file: Path | None) -> list[str] | None:
    if file is None:
        return None
    try:
        text = file.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as e:
        raise typer.BadParameter(f'{file} is no text in UTF-8: one name a line.') from e
    return [line.strip() for line in text.splitlines() if line.strip()]


def _quiet_hub() -> None:
    """No line for each try of the Hub's client, and its progress bars in a terminal only."""
    import logging
    import warnings

    quiet_logs()
    logging.getLogger('huggingface_hub').setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', module='huggingface_hub')  # such as a disk that will be full: the error says so
    if not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
