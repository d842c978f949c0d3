"""What pre-training, a pre-trained teacher, a chain of teachers and a contraction are worth, in miniature.

Plain ViTs of 3 blocks in three sizes (the papers' tiny, small and base have widths of 192, 384 and 768, ours of 32, 64
and 128) learn scikit-learn's handwritten digits or crops of photographs (textures). Every small one starts from the
same weights, is pre-trained on the training images without their labels, in as many steps on the same crops, and is
then fine-tuned on the same images with their labels:

    scratch                      no pre-training
    MAE                          masked autoencoder
    D-MAE                        beside the big model, which was pre-trained by MAE on the same images
    TinyMIM                      the same teacher's token relations, in one step
    TinyMIM, chain               a middle model learns those, and teaches the small one (as `pretrain tinymim --chain`)

A small TinyViT is contracted in two steps (`tinyvit-zoo contract`) to half of its parameters. Beside the result stands
the model with all stages narrowed alike to the same limit; both are trained from random weights, and so is the model
before contraction. The candidates are those of the first step, on the images that rank them. (That a search resumes
after a kill is the matter of `benchmarks/contraction.py`.)

Accuracy is measured on test images that no model saw, after the last epoch. Sizes and epochs were chosen after a look
at a seed of the digits that is not among those reported; nothing was tuned.

    python benchmarks/pretraining_chain.py                               # everything, 3 seeds
    python benchmarks/pretraining_chain.py --part mae chain --data digits
    python benchmarks/pretraining_chain.py --seeds 5                     # adds the missing ones to the 3

Every finished pre-training and fine-tuning is kept, and every training resumes: started again after a kill, the
benchmark does what is missing.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from contraction import START
from pretraining_claims import (
    ARMS,
    BIG,
    CHAIN,
    CONTRACTED,
    D_MAE,
    DEEPER,
    LARGE,
    MIDDLE,
    NARROWED,
    NARROWER,
    PARTS,
    SCRATCH,
    TINYMIM,
    plot,
    summarise,
    table,
    write_csv,
)
from seeds import seeds_parser, versions, write_json
from torch import nn
from tqdm import tqdm

from tinyvit_zoo.build import load_model
from tinyvit_zoo.common.counter_rng import child_key, permutations
from tinyvit_zoo.common.determinism import one_thread
from tinyvit_zoo.common.files import new_file
from tinyvit_zoo.common.paired_timing import timed
from tinyvit_zoo.data import load_dataset
from tinyvit_zoo.data.image_dataset import ImageDataset
from tinyvit_zoo.downstream.finetune import finetune
from tinyvit_zoo.models import PlainVit
from tinyvit_zoo.pretrain import DMae, MaskedAutoencoder, RelationEncoder, TinyMim, tinymim_student
from tinyvit_zoo.training import pretraining
from tinyvit_zoo.training.contraction import contract
from tinyvit_zoo.training.contraction_factors import Factors, candidates, count_parameters, factors_of
from tinyvit_zoo.training.loop import RunSettings
from tinyvit_zoo.training.recipes import PRETRAINING, RECIPES, Recipe
from tinyvit_zoo.training.recipes.contraction import CONTRACTION

SIZES = {MIDDLE: 1, BIG: 2}  # of `Settings.widths`; all others are small
TEACHERS = {D_MAE: BIG, TINYMIM: BIG, MIDDLE: BIG, CHAIN: MIDDLE}
CANDIDATES = {DEEPER: 'N3+2', NARROWER: 'D'}  # of the first step: deeper in stage 3 and narrower, and narrower alone
IMAGES = 1  # what is drawn has a counter of its own


@dataclass(frozen=True)
class Settings:
    """Everything that the results of a data set depend on, besides the seed.

    Attributes:
        size: Pixels per side.
        patch: Pixels per side.
        flip: Whether crops are flipped at random; digits must not be.
        images: Training images, of all that are pre-trained on and fine-tuned; None for all.
        test_images: None for all.
        widths: Of small, middle and big; the decoders have half of it.
        depth: Blocks of all three.
        heads: Of all three.
        pretraining_epochs: Of students and teachers alike.
        finetuning_epochs: Of all models.
        batch: Images of an update.
        pretraining_lr: Highest learning rate.
        finetuning_lr: The same.
        smallest_crop: Share of the image, in pre-training and fine-tuning.
        search_epochs: Of a candidate of the contraction.
    """

    size: int
    patch: int
    flip: bool
    images: int | None = None
    test_images: int | None = None
    widths: tuple[int, ...] = (32, 64, 128)
    depth: int = 3
    heads: int = 4
    pretraining_epochs: int = 20
    finetuning_epochs: int = 15
    batch: int = 32
    pretraining_lr: float = 1e-3
    finetuning_lr: float = 1e-3
    smallest_crop: float = 0.5
    search_epochs: int = 2

    def shape(self, size: int) -> dict[str, Any]:
        """Arguments of a plain ViT."""
        return dict(
            img_size=self.size, patch_size=self.patch, embed_dim=self.widths[size], depth=self.depth,
            num_heads=self.heads,
        )  # fmt: skip

    def pretraining(self, method: str) -> Recipe:
        """The recipe for some thousand images, shorter."""
        return PRETRAINING[f'{method}_small'].changed(
            epochs=self.pretraining_epochs, batch_size=self.batch, lr=self.pretraining_lr, lr_batch=self.batch,
            crop_area=(self.smallest_crop, 1.0), flip=self._flip,
        )  # fmt: skip

    @property
    def finetuning(self) -> Recipe:
        """The default one, shorter and the same for all: no layer decay, which would favor pre-trained layers."""
        return RECIPES['small'].changed(
            epochs=self.finetuning_epochs, batch_size=self.batch, lr=self.finetuning_lr, lr_batch=self.batch,
            layer_decay=None, auto_augment=None, crop_area=(self.smallest_crop, 1.0), flip=self._flip, crop_pct=1.0,
        )  # fmt: skip

    @property
    def search(self) -> Recipe:
        """That of a contraction's candidates."""
        return CONTRACTION.changed(
            epochs=self.search_epochs, batch_size=self.batch, lr=4e-3, lr_batch=self.batch,
            crop_area=(self.smallest_crop, 1.0), flip=self._flip, crop_pct=1.0,
        )  # fmt: skip

    @property
    def _flip(self) -> float:
        return 0.5 if self.flip else 0.0


SETTINGS = {
    'digits': Settings(size=20, patch=4, flip=False, images=800),
    'textures': Settings(size=40, patch=8, flip=True, images=420),
}


@dataclass(frozen=True)
class Case:
    """A data set and a seed: its pieces, each in a file as soon as it is finished, made when first asked for.

    Attributes:
        data: Name of the data set.
        settings: Of the data set.
        seed: Of split, choice of images, initial weights, order, crops and masks.
        folder: Of the pieces.
        say: Prints a line.
    """

    data: str
    settings: Settings
    seed: int
    folder: Path
    say: Callable[[str], None]

    def arm(self, name: str) -> dict[str, Any]:
        """What is compared: its 'accuracy' in %, among others."""
        if name in CANDIDATES:
            return self.search()['first step'][CANDIDATES[name]]
        if name in (LARGE, CONTRACTED, NARROWED):
            arguments = self.search()['arguments'][name]
            return self._piece(f'trained {name}', lambda run: self._classifier(self._tinyvit(**arguments), run))
        if name != SCRATCH:
            self.encoder(name)
        return self._piece(f'fine-tuned {name}', lambda run: self._classifier(self._plain(name), run))

    def encoder(self, name: str) -> Path:
        """The file of a pre-trained encoder."""
        if name in TEACHERS:
            self.encoder(TEACHERS[name])
        self._piece(f'pre-trained {name}', lambda run: self._pretrained(name, run))
        return self._file(name)

    def search(self) -> dict[str, Any]:
        """The contraction: 'arguments' of three TinyViTs by name, the 'first step' by candidate, the 'winners'."""
        return self._piece('contraction', self._contraction)

    def _piece(self, name: str, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """The result of a piece: read where it is kept already, else made."""
        path, run = self.folder / f'{slug(name)}.json', self.folder / 'runs' / slug(name)
        settings = json.loads(json.dumps(asdict(self.settings)))
        if path.exists():
            kept = json.loads(path.read_text())
            if kept['settings'] != settings:
                raise SystemExit(f'{path} was made with other settings: choose another --output, or delete it.')
            return kept
        seconds, result = timed(partial(make, run))
        write_json(path, dict(piece=name, settings=settings, cpu_seconds=round(seconds, 1), **result))
        shutil.rmtree(run, ignore_errors=True)
        accuracy = f': {result["accuracy"]:.2f} %' if 'accuracy' in result else ''
        self.say(f'{self.data}, seed {self.seed}: {name}, {seconds:.0f} s of CPU{accuracy}')
        return json.loads(path.read_text())

    def _pretrained(self, name: str, run: Path) -> dict[str, Any]:
        """Train an encoder, and keep it. Returns 'losses' by epoch."""
        settings, size = self.settings, SIZES.get(name, 0)
        start = self._autoencoder(size)
        if name not in TEACHERS:
            encoder, plan = start, self._plan('mae', start)
        elif name == D_MAE:
            form = DMae(start, self._teacher(TEACHERS[name]), attention_blocks=(settings.depth,))
            encoder, plan = start, self._plan('d_mae', form)
        else:
            rate = settings.pretraining('tinymim').drop_path['']
            student = tinymim_student('tiny', rate, **settings.shape(size), last_heads=settings.heads)
            encoder = student.vit
            encoder.load_state_dict(encoder_of(start))
            teacher = RelationEncoder(self._teacher(TEACHERS[name]), settings.depth, frozen=True)
            plan = self._plan('tinymim', TinyMim(student, teacher))
        trained = plan.train(run)
        write_encoder(self._file(name), encoder)
        return dict(losses=[epoch['loss'] for epoch in trained.history])

    def _plan(self, method: str, form: nn.Module) -> pretraining.Pretraining:
        make = dict(mae=pretraining.mae, d_mae=pretraining.d_mae, tinymim=pretraining.tinymim)[method]
        return make(form, self._images(), self.settings.pretraining(method), **self._run)

    def _autoencoder(self, size: int) -> MaskedAutoencoder:
        """With the initial weights of the seed, from which every model of that size starts."""
        torch.manual_seed(self.seed)
        settings = self.settings
        return MaskedAutoencoder(
            **settings.shape(size), decoder_embed_dim=settings.widths[size] // 2, decoder_num_heads=settings.heads // 2
        )

    def _teacher(self, name: str) -> PlainVit:
        vit = PlainVit(**self.settings.shape(SIZES[name]), num_classes=0, norm_layer=partial(nn.LayerNorm, eps=1e-6))
        vit.load_state_dict(safetensors.torch.load_file(self._file(name)))
        return vit

    def _plain(self, name: str) -> nn.Module:
        """A plain ViT to fine-tune, with a new classifier."""
        size, weights = SIZES.get(name, 0), self._file(name)
        if name == SCRATCH:
            write_encoder(weights, self._autoencoder(size))
        torch.manual_seed(self.seed)
        return load_model(
            'mae_lite_vit_tiny_patch16_224', weights, as_init=True, **self.settings.shape(size),
            num_classes=len(self._images().classes),
        )  # fmt: skip

    def _tinyvit(self, **arguments: Any) -> nn.Module:
        torch.manual_seed(self.seed)
        classes = len(self._images().classes)
        return timm.create_model('tinyvit_5m_224', **{**START, 'num_classes': classes, **arguments})

    def _classifier(self, model: nn.Module, run: Path) -> dict[str, Any]:
        """Fine-tune a model, and test it. Returns 'accuracy' in %, 'parameters', 'test images', 'losses' by epoch."""
        test = load(self.data, 'test', self.seed)
        test = test.subset(range(len(test))[: self.settings.test_images])
        trained = finetune(model, self._images(), self.settings.finetuning, run, test=test, held_out=0.0, **self._run)
        assert trained.test is not None
        return {
            'accuracy': trained.test.accuracy, 'parameters': count_parameters(model), 'test images': len(test),
            'losses': [epoch.loss for epoch in trained.history],
        }  # fmt: skip

    def _contraction(self, run: Path) -> dict[str, Any]:
        """Search in two steps, to half of the parameters."""
        start = self._tinyvit()
        limit = count_parameters(start) // 2
        found = contract(
            self._tinyvit, LARGE, self._images(), self.settings.search, run, parameters=limit, steps=2, **self._run
        )
        own, size = factors_of(start, LARGE), (START['img_size'],) * 2

        def count(factors: Factors) -> int:
            return count_parameters(self._tinyvit(device='meta', **factors.arguments(own)))

        narrowed = next(c for c in candidates(own, limit, size, count) if c.name == CANDIDATES[NARROWER])
        first = {
            ranked.outcome.candidate.name: dict(
                accuracy=ranked.outcome.accuracy, parameters=ranked.outcome.candidate.parameters
            )
            for ranked in found.steps[0].ranking
        }
        return {
            'arguments': {
                LARGE: {}, CONTRACTED: found.arguments, NARROWED: narrowed.factors.arguments(own),
            },
            'first step': first, 'winners': [step.winner.name for step in found.steps],
            'trained': sum(len(step.ranking) for step in found.steps), 'held-out images': found.held_out_images,
        }  # fmt: skip

    def _images(self) -> ImageDataset:
        images = load(self.data, 'train', self.seed)
        return images.subset(permutations(child_key(self.seed, IMAGES), len(images))[: self.settings.images])

    def _file(self, name: str) -> Path:
        return self.folder / f'{slug(name)}.safetensors'

    @property
    def _run(self) -> RunSettings:
        return dict(seed=self.seed, device=torch.device('cpu'), say=lambda text: None)


@cache
def load(data: str, part: str, seed: int) -> ImageDataset:
    """Every piece asks for them again."""
    return load_dataset(data, part, seed=seed)


def slug(name: str) -> str:
    """A name as that of a file."""
    return name.lower().replace(', ', '-').replace(' ', '-')


def encoder_of(vit: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a plain ViT or of the encoder of an autoencoder."""
    return {k: t for k, t in vit.state_dict().items() if not k.startswith(('decoder', 'mask_token'))}


def write_encoder(path: Path, vit: nn.Module) -> None:
    with new_file(path) as new:
        safetensors.torch.save_file({key: t.contiguous() for key, t in encoder_of(vit).items()}, new)


def run(
    parts: Sequence[str],
    settings: Mapping[str, Settings],
    seeds: int,
    output: Path,
    say: Callable[[str], None] = print,
) -> dict:
    """Make what is missing, and write results.json, results.csv and results.png. Returns what results.json holds.

    Args:
        parts: Of `PARTS`.
        settings: By data set.
        seeds: Their number; they are counted from 0.
        output: Folder.
        say: Prints a line.

    Raises:
        SystemExit: If the folder holds results of other settings.
    """
    wanted = [arm for arm in ARMS if any(arm in PARTS[part] for part in parts)]
    results: dict[str, dict[int, dict]] = {data: {} for data in settings}
    with torch.random.fork_rng(devices=[]), one_thread():
        for seed in range(seeds):
            for data, own in settings.items():
                case = Case(data, own, seed, output / 'pieces' / data / str(seed), say)
                results[data][seed] = {arm: case.arm(arm) for arm in wanted}
    summary = summarise(results, parts)
    say('\n' + table(summary, results))
    pieces = [json.loads(path.read_text()) for path in sorted((output / 'pieces').rglob('*.json'))]
    report = dict(
        data=summary, settings={data: asdict(own) for data, own in settings.items()}, versions=versions(),
        seeds=results, cpu_seconds=sum(piece['cpu_seconds'] for piece in pieces),
    )  # fmt: skip
    report = json.loads(json.dumps(report))
    write_json(output / 'results.json', report)
    write_csv(results, output / 'results.csv')
    plot(summary, results, output / 'results.png')
    say(
        f'{report["cpu_seconds"]:.0f} s of CPU in {len(pieces)} pieces. Written to {output}: results.json, '
        'results.csv, results.png, pieces/.'
    )
    return report


def main() -> None:
    parser = seeds_parser(__doc__, 'pretraining_chain')
    parser.add_argument('--part', nargs='+', choices=list(PARTS), default=list(PARTS), help='default: all')
    parser.add_argument('--data', nargs='+', choices=list(SETTINGS), default=list(SETTINGS), help='default: all')
    args = parser.parse_args()
    run(args.part, {data: SETTINGS[data] for data in args.data}, args.seeds, args.output, tqdm.write)


if __name__ == '__main__':
    main()
