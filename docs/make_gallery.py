"""Make the gallery of the documentation again, `docs/gallery.md` and its images: `make gallery`.

The small models are trained first, by the commands that the page shows; everything is on digits or textures, which come
with scikit-learn and scikit-image. It takes about four minutes of a CPU and needs the extra `dev`. With a folder as its
argument it keeps what the commands leave there, and the next run with that folder does only what is missing.
"""

import shlex
import sys
import tempfile
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from command_images import font, write_small
from PIL import Image, ImageDraw

from tinyvit_zoo.cli.app import app

DOCS = Path(__file__).resolve().parent
WIDTH, COLORS, MOST_BYTES = 1400, 128, 300_000
GAP, BAND, TEXT = 16, 40, 20  # pixels between panels, of the line below them, and of its letters
INK, PAPER = '#59636e', 'white'

TEXTURES = '-d textures --img-size 64'
SCRATCH = f'--random {TEXTURES} --layer-decay 1 --device cpu'
RUN = f'{TEXTURES} --layer-decay 1 --gradient-norms --epochs 4 --device cpu'
ANALYSED = '-d textures --images 256 --device cpu'

TRAINING = (
    f'tinyvit-zoo finetune mae_lite_vit_tiny_patch16_224 {SCRATCH} --epochs 4 -o deit',
    f'tinyvit-zoo pretrain mae --small {TEXTURES} --epochs 6 --device cpu -o mae',
    f'tinyvit-zoo finetune test_vit --random {RUN} -o vit',
    'tinyvit-zoo compress test_vit --random --num-classes 21 --share-every 2 --no-transform -o shared',
    f'tinyvit-zoo finetune shared {RUN} -o shared_vit',
    'tinyvit-zoo compress test_vit --random --num-classes 21 --share-every 2 -o mux',
    f'tinyvit-zoo finetune mux {RUN} -o mux_vit',
    f'tinyvit-zoo distill train test_vit --random {TEXTURES} --teacher deit --epochs 6 --batch-size 64 --lr 0.001 '
    '--device cpu -o student',
)
"""Leave the models that the figures are of."""


@dataclass(frozen=True)
class Shown:
    """An image of the gallery.

    Attributes:
        name: Of the file, after 'gallery_'.
        title: Heading on the page.
        caption: Below the image.
        commands: That draw it, after those of `TRAINING`.
        panels: What they write.
        data: Label in the image and in the caption.
        across: Panels beside each other instead of below each other.
        is_map: Keeps all colors, for few of them would make steps.
    """

    name: str
    title: str
    caption: str
    commands: tuple[str, ...]
    panels: tuple[str, ...]
    data: str = 'textures'
    across: bool = True
    is_map: bool = False

    @property
    def file(self) -> Path:
        return DOCS / 'images' / f'gallery_{self.name}.png'


def _analysed(what: str, *models: str, options: str = '') -> tuple[str, ...]:
    """An analysis of each of some models."""
    more = f'{options} ' if options else ''
    return tuple(f'tinyvit-zoo analyze {what} {model} {ANALYSED} {more}-o {what}_{model}' for model in models)


def _cka(a: str, b: str, output: str, layers: str) -> str:
    return f'tinyvit-zoo analyze cka {a} {b} {ANALYSED} --batch-size 64 --layers {layers} -o {output}'


GALLERY = (
    Shown(
        'mae_lite_figure1',
        'MAE-Lite, Figure 1: which layers are alike',
        'Left: the layers of a supervised ViT-Tiny with each other. Right: those of one that MAE pre-trained, in rows, '
        'with those of the supervised one.',
        (_cka('deit', 'deit', 'cka_deit', 'mae-lite'), _cka('mae', 'deit', 'cka_mae', 'mae-lite')),
        ('cka_deit/cka.png', 'cka_mae/cka.png'),
        is_map=True,
    ),
    Shown(
        'mae_lite_figure3',
        'MAE-Lite, Figure 3: which frequencies the layers keep',
        'Above: the supervised ViT-Tiny. Below: that of MAE.',
        _analysed('fourier', 'deit', 'mae'),
        ('fourier_deit/fourier.png', 'fourier_mae/fourier.png'),
        across=False,
    ),
    Shown(
        'mae_lite_figure5',
        'MAE-Lite, Figure 5: how far and how widely the heads look',
        'Left: the supervised ViT-Tiny. Right: that of MAE.',
        _analysed('attention', 'deit', 'mae'),
        ('attention_deit/attention.png', 'attention_mae/attention.png'),
    ),
    Shown(
        'minivit_figure4',
        'MiniViT, Figure 4: gradients of layers that share their weights',
        'From above: a small ViT, the same with weights that two layers share, and with transformations of each layer. '
        '`finetune --gradient-norms`, above, has drawn them.',
        (),
        ('vit/gradients.png', 'shared_vit/gradients.png', 'mux_vit/gradients.png'),
        across=False,
    ),
    Shown(
        'minivit_figure5',
        'MiniViT, Figure 5: what sharing does to the layers',
        'Left: the layers of the supervised ViT-Tiny with each other. Right: those of the same model after four layers '
        'share their weights each, in rows, before any training.',
        (
            'tinyvit-zoo compress deit --share-every 4 --no-transform -o shared_deit',
            _cka('deit', 'deit', 'cka_original', 'blocks'),
            _cka('shared_deit', 'deit', 'cka_shared', 'blocks'),
        ),
        ('cka_original/cka.png', 'cka_shared/cka.png'),
        is_map=True,
    ),
    Shown(
        'tinyvit_figure3',
        'TinyViT, Figure 3: relations of the classes',
        'Correlations of the logits of 21 classes, in the order of the teacher. From the left: the teacher, a student '
        'without distillation, and one that learned from the teacher.',
        (
            f'tinyvit-zoo analyze class-relations deit {ANALYSED} -o class-relations_deit',
            *_analysed('class-relations', 'vit', 'student', options='--order class-relations_deit/order.csv'),
        ),
        tuple(
            f'{folder}/class_relations.png'
            for folder in ('class-relations_deit', 'class-relations_vit', 'class-relations_student')
        ),
        is_map=True,
    ),
    Shown(
        'tinyvit_table1',
        'TinyViT, Table 1: hard samples',
        'Images whose label is among the three classes that the ViT-Tiny finds likeliest; the others would be removed.',
        ('tinyvit-zoo analyze hard-samples -d textures --teacher deit --top 3 --device cpu -o kept.json',),
        ('kept.png',),
    ),
    Shown(
        'tinyvit_table5',
        'TinyViT, Table 5: few-shot',
        'Episodes of five digits. Left: with features of the small ViT. Right: with those of the student of Figure 3. '
        'Both have seen textures only.',
        tuple(
            f'tinyvit-zoo fewshot {model} -d digits --img-size 64 --shots 1,5,20 --episodes 100 --device cpu '
            f'-o few_shot_{model}'
            for model in ('vit', 'student')
        ),
        ('few_shot_vit/accuracy.png', 'few_shot_student/accuracy.png'),
        data='digits',
    ),
)  # fmt: skip


def main() -> None:
    if len(sys.argv) > 1:
        make(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        make(Path(temporary))


def make(folder: Path) -> None:
    """Run the commands in a folder, and write the images and the page."""
    folder.mkdir(parents=True, exist_ok=True)
    for command in (*TRAINING, *(command for shown in GALLERY for command in shown.commands)):
        if not _done(command, folder):
            _run(command, folder)
    for shown in GALLERY:
        panels = [Image.open(folder / panel).convert('RGB') for panel in shown.panels]
        whole = labelled(joined(panels, shown.across), f'{shown.data}: not the figure of the paper')
        write_small(
            whole, shown.file, width=whole.width, colors=None if shown.is_map else COLORS, most_bytes=MOST_BYTES
        )  # fmt: skip
    (DOCS / 'gallery.md').write_text(page(), encoding='utf-8')


def _run(command: str, folder: Path) -> None:
    """Run a command of `tinyvit-zoo` in a folder, in this process: starting one for each takes a third of the time."""
    print(command, flush=True)
    before, sys.argv = sys.argv, shlex.split(command)  # which results.json says
    try:
        with chdir(folder):
            code = app(sys.argv[1:], prog_name='tinyvit-zoo', standalone_mode=False)
    finally:
        sys.argv = before
    if code:
        sys.exit(f'The command failed: {command}')


def _done(command: str, folder: Path) -> bool:
    """Whether a command has left what it ends with: results, or the model of `compress`."""
    output = folder / command.rpartition(' ')[2]
    return output.is_file() or any((output / name).is_file() for name in ('results.json', 'model.safetensors'))


def joined(panels: list[Image.Image], across: bool) -> Image.Image:
    """Panels of one height beside each other, or of one width below each other, at most `WIDTH` wide."""
    if across:
        height = min(panel.height for panel in panels)
        panels = [panel.resize((round(panel.width * height / panel.height), height)) for panel in panels]
        size = sum(panel.width for panel in panels) + GAP * (len(panels) - 1), height
    else:
        width = min(panel.width for panel in panels)
        panels = [panel.resize((width, round(panel.height * width / panel.width))) for panel in panels]
        size = width, sum(panel.height for panel in panels) + GAP * (len(panels) - 1)
    whole, place = Image.new('RGB', size, PAPER), 0
    for panel in panels:
        whole.paste(panel, (place, 0) if across else (0, place))
        place += (panel.width if across else panel.height) + GAP
    if whole.width <= WIDTH:
        return whole
    return whole.resize((WIDTH, round(whole.height * WIDTH / whole.width)), Image.Resampling.LANCZOS)


def labelled(image: Image.Image, text: str) -> Image.Image:
    """The image with a line below it."""
    whole = Image.new('RGB', (image.width, image.height + BAND), PAPER)
    whole.paste(image, (0, 0))
    ImageDraw.Draw(whole).text(
        (whole.width / 2, image.height + BAND / 2), text, fill=INK, font=font('DejaVuSans.ttf', TEXT), anchor='mm'
    )
    return whole


def page() -> str:
    """The page of the gallery."""
    parts = [
        '<!-- Written by docs/make_gallery.py. -->\n\n# Gallery',
        'What the analyses of the papers look like, on images that come with scikit-learn (digits) and scikit-image '
        '(textures), with models\nthat were trained for seconds. **None of it is a figure of a paper**: those need '
        'ImageNet and the released weights, and\n`tinyvit-zoo reproduce --list` names the commands of each. '
        '`make gallery` makes everything on this page again, in about four\nminutes of a CPU (measured: 198 CPU '
        'seconds on an AMD EPYC with much other work).',
        'The models, first:',
        _block(TRAINING),
    ]
    for shown in GALLERY:
        parts.append(f'## {shown.title}')
        if shown.commands:
            parts.append(_block(shown.commands))
        parts.append(f'![{shown.title}: {shown.data}](images/gallery_{shown.name}.png)')
        parts.append(f'*{shown.data.capitalize()}, not the figure of the paper.* {shown.caption}')
    return '\n\n'.join(parts) + '\n'


def _block(commands: tuple[str, ...]) -> str:
    return '```sh\n' + '\n'.join(commands) + '\n```'


if __name__ == '__main__':
    main()
