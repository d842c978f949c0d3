"""`pack`, `verify` and `push`: pages of the Hub."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import command, quiet_logs
from .options import AllowNonfinite, ImgSize, Part, Random, Seed, pair_of

if TYPE_CHECKING:
    from ..hub.verify import Proof

PAGE = 'OWNER/NAME'
Name = Annotated[
    str, typer.Argument(help='ARCH.TAG of a release, ARCH for your own weights, or a folder.', metavar='NAME|DIR')
]
Weights = Annotated[Path | None, typer.Option('--weights', help='Checkpoint in any known layout.', metavar='FILE')]
Tag = Annotated[
    str | None, typer.Option('--tag', help='Tag of your own weights; no facts of a release are attached to them.')
]
Labels = Annotated[
    Path | None, typer.Option('--labels', help='Names of your own classes, one per line.', metavar='FILE')
]
License = Annotated[
    str | None, typer.Option('--license', help='License id for the card of your own weights.', metavar='ID')
]
ForTimm = Annotated[
    bool, typer.Option('--for-timm', help="Write TinyViT in timm's own layout, which loads without tinyvit-zoo.")
]


def register(app: typer.Typer, panel: str) -> None:
    app.command('pack', rich_help_panel=panel)(command(pack))
    app.command('verify', rich_help_panel=panel)(command(verify))
    app.command('push', rich_help_panel=panel)(command(push))


def pack(
    *,
    name: Name,
    output: Annotated[Path, typer.Option('--output', '-o', help='Folder of the page.', metavar='DIR')],
    weights: Weights = None,
    part: Part = None,
    allow_nonfinite: AllowNonfinite = False,
    random: Random = False,
    seed: Seed = 0,
    tag: Tag = None,
    labels: Labels = None,
    license: License = None,
    img_size: ImgSize = None,
    repo: Annotated[
        str | None,
        typer.Option(help='Page to publish it on; the card of your own weights names it.', metavar=PAGE),
    ] = None,
    for_timm: ForTimm = False,
    test_tensors: Annotated[
        Path | None,
        typer.Option(help="Input and output by another program, such as the authors' code.", metavar='FILE'),
    ] = None,
) -> None:
    """Write a whole page of the Hub into a folder: weights, configuration, card, test tensors, checksums."""
    from ..hub.pack import pack as write_page

    quiet_logs()
    folder = write_page(
        _page_of(name), output, weights, seed if random else None, tag, _read_labels(labels), license,
        pair_of(img_size), repo, for_timm, test_tensors, part, allow_nonfinite,
    )  # fmt: skip
    print(f'Written to {folder}')
    print(f'To prove it: tinyvit-zoo verify {shlex.quote(str(folder))}')


def verify(
    *, place: Annotated[str, typer.Argument(help='owner/name of a page, or a folder.', metavar='OWNER/NAME|DIR')]
) -> None:
    """Verify a page: every file matches its checksum, and the model gives the expected output."""
    from ..hub.verify import verify as prove

    _quiet_hub()
    _print_proof(prove(_page_of(place)))


def push(
    *,
    name: Name,
    to: Annotated[str, typer.Option('--to', help='Page to push to.', metavar=PAGE)],
    weights: Weights = None,
    part: Part = None,
    allow_nonfinite: AllowNonfinite = False,
    random: Random = False,
    seed: Seed = 0,
    tag: Tag = None,
    labels: Labels = None,
    license: License = None,
    img_size: ImgSize = None,
    for_timm: ForTimm = False,
    private: Annotated[bool, typer.Option('--private', help='Make a new page private.')] = False,
    dry_run: Annotated[
        bool, typer.Option('--dry-run', help='Pack, verify, look at the page, and change nothing.')
    ] = False,
    force: Annotated[bool, typer.Option('--force', help='Overwrite files that were not pushed from here.')] = False,
) -> None:
    """Publish a page on the Hub: a packed folder, or a name with weights. It is verified before it is uploaded."""
    from ..hub.pack import is_page, packed
    from ..hub.push import push as publish
    from ..hub.remote import check_repo

    _quiet_hub()
    check_repo(to)  # before anything is packed
    name = _page_of(name)
    if is_page(name):
        if for_timm or random or any(value is not None for value in (weights, part, tag, labels, license, img_size)):
            raise typer.BadParameter(f'{name} is packed already: `tinyvit-zoo pack` takes what is to be changed.')
        done = publish(name, to, private, dry_run, force)
    else:
        with packed(
            name,
            weights=weights,
            random_seed=seed if random else None,
            tag=tag,
            labels=_read_labels(labels),
            license=license,
            img_size=pair_of(img_size),
            repo=to,
            for_timm=for_timm,
            part=part,
            allow_nonfinite=allow_nonfinite,
        ) as folder:
            done = publish(folder, to, private, dry_run, force)
    if not (done.uploaded or done.deleted):
        print('The page holds all of it already: no commit was made.')
    else:
        would = 'Would upload' if dry_run else 'Uploaded'
        print(f'{would} {", ".join(done.uploaded)}' + (f'; delete {", ".join(done.deleted)}' if done.deleted else ''))
    print(done.url)


def _page_of(name: str) -> str:
    """The name, or the folder of the model in one that `finetune` wrote."""
    from timm.models import is_model

    from ..names import model_folder

    return name if is_model(name.partition('.')[0]) else str(model_folder(Path(name)) or name)


def _print_proof(proof: 'Proof') -> None:
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
    except OSError as e:
        raise typer.BadParameter(
            f'{file} cannot be read ({e.strerror}): --labels takes a file, one name per line.'
        ) from e
    except UnicodeDecodeError as e:
        raise typer.BadParameter(f'{file} is not UTF-8 text: write one name per line.') from e
    return [line.strip() for line in text.splitlines() if line.strip()]


def _quiet_hub() -> None:
    """No line for each attempt of the Hub's client, and its progress bars in a terminal only."""
    import logging
    import warnings

    quiet_logs()
    logging.getLogger('huggingface_hub').setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', module='huggingface_hub')  # such as a disk that will be full: the error says so
    if not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
