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

import argparse
import csv
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
from matplotlib.figure import Figure
from seeds import interval, sign_of, write_json
from torch import nn
from tqdm import tqdm

import tinyvit_zoo
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

SCRATCH, MAE, D_MAE, TINYMIM, CHAIN = 'scratch', 'MAE', 'D-MAE', 'TinyMIM', 'TinyMIM, chain'
BIG, MIDDLE = 'big, MAE', 'middle, TinyMIM'  # the teachers
LARGE, CONTRACTED, NARROWED = 'TinyViT', 'TinyViT, contracted', 'TinyViT, narrowed'
DEEPER, NARROWER = 'candidate N3+2', 'candidate D'
SIZES = {MIDDLE: 1, BIG: 2}  # of `Settings.widths`; all others are small
TEACHERS = {D_MAE: BIG, TINYMIM: BIG, MIDDLE: BIG, CHAIN: MIDDLE}
CANDIDATES = {DEEPER: 'N3+2', NARROWER: 'D'}  # of the first step: deeper in stage 3 and narrower, and narrower alone
PARTS = {  # what is measured for each
    'mae': (SCRATCH, MAE),
    'teachers': (SCRATCH, MAE, D_MAE, TINYMIM, BIG),
    'chain': (SCRATCH, MAE, TINYMIM, CHAIN),
    'contraction': (LARGE, CONTRACTED, NARROWED, DEEPER, NARROWER),
}
ARMS = (SCRATCH, MAE, D_MAE, TINYMIM, CHAIN, BIG, LARGE, CONTRACTED, NARROWED, DEEPER, NARROWER)
IMAGES = 1  # what is drawn has a counter of its own


@dataclass(frozen=True)
class Claim:
    """What a paper has above what, on ImageNet-1k and by how much; the points are None where it gives no numbers."""

    part: str
    better: str
    worse: str
    points: float | None
    source: str


CLAIMS = (
    Claim('mae', MAE, SCRATCH, 2.2, 'MAE-Lite, Table 1: MAE-Tiny 78.0, DeiT-Tiny 75.8'),
    Claim('mae', SCRATCH, MAE, 0.6, 'TinyMIM, Table 2: ViT-T 72.2 from scratch, 71.6 after MAE'),
    Claim('teachers', D_MAE, MAE, 0.4, 'MAE-Lite, Table 5: D-MAE-Tiny 78.4, MAE-Tiny 78.0'),
    Claim('teachers', D_MAE, SCRATCH, 2.6, 'MAE-Lite, Tables 5 and 1: D-MAE-Tiny 78.4, DeiT-Tiny 75.8'),
    Claim('teachers', TINYMIM, MAE, 2.8, 'TinyMIM, Tables 11 and 2: ViT-T under MAE-ViT-B 74.4, after MAE 71.6'),
    Claim('teachers', TINYMIM, SCRATCH, 2.2, 'TinyMIM, Tables 11 and 2: ViT-T under MAE-ViT-B 74.4, scratch 72.2'),
    Claim('chain', CHAIN, TINYMIM, 0.6, 'TinyMIM, Table 11: ViT-T under TinyMIM-ViT-S 75.0, under MAE-ViT-B 74.4'),
    Claim('chain', CHAIN, MAE, 3.4, 'TinyMIM, Tables 11 and 2: ViT-T under TinyMIM-ViT-S 75.0, after MAE 71.6'),
    Claim('chain', CHAIN, SCRATCH, 2.8, 'TinyMIM, Tables 11 and 2: ViT-T under TinyMIM-ViT-S 75.0, scratch 72.2'),
    Claim(
        'contraction',
        CONTRACTED,
        NARROWED,
        None,
        'TinyViT, Sec. 3.2, as read here: a search is worth it',
    ),
    Claim('contraction', DEEPER, NARROWER, None, 'TinyViT, supplement A: narrower models were given a deeper stage 3'),
)


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


# what they say


def summarise(results: dict[str, dict[int, dict]], parts: Sequence[str]) -> dict:
    """Means and paired differences with their intervals, and whether what the papers found is found here.

    Args:
        results: Accuracies and more by data set, seed and arm.
        parts: Of `PARTS`, which were measured.

    Returns:
        By data set 'rows' by arm, with the fewest and the most 'parameters' of any seed, and 'claims', each with the
        paper's difference, ours, its interval and a 'verdict'.
    """
    summary = {}
    for data, seeds in results.items():
        wanted = next(iter(seeds.values()))
        values = {arm: [arms[arm]['accuracy'] for arms in seeds.values()] for arm in wanted}
        claims = []
        for claim in CLAIMS:
            if claim.part in parts:
                pairs = zip(values[claim.better], values[claim.worse], strict=True)
                difference = interval([better - worse for better, worse in pairs])
                claims.append(dict(asdict(claim), **difference, verdict=verdict(**difference)))
        rows: dict[str, dict] = {arm: interval(column) for arm, column in values.items()}
        for arm, row in rows.items():
            sizes = [arms[arm]['parameters'] for arms in seeds.values()]
            row['parameters'] = [min(sizes), max(sizes)]
        summary[data] = dict(rows=rows, claims=claims)
    return summary


def verdict(mean: float, half_width: float) -> str:
    """Of a difference that a paper has above 0."""
    return {0: 'undecided', 1: 'holds', -1: 'REVERSED'}[sign_of(mean, half_width)]


def table(summary: dict, results: dict[str, dict[int, dict]]) -> str:
    """All of it as text."""
    lines = []
    for data, found in summary.items():
        lines.append(f'{data}: accuracy in per cent, mean and 95 % interval over {len(results[data])} seeds')
        for arm, row in found['rows'].items():
            sizes = ' to '.join(f'{size:,}' for size in sorted(set(row['parameters'])))
            lines.append(f'  {arm:22s}{row["mean"]:8.2f} ± {row["half_width"]:5.2f}   {sizes} parameters')
        lines.append("  The paper's order beside ours: paired differences (each interval 95 % by itself)")
        for claim in found['claims']:
            what = f'{claim["better"]} > {claim["worse"]}'
            points = '' if claim['points'] is None else f'{claim["points"]:+.1f}'
            ours = f'{claim["mean"]:+7.2f} ± {claim["half_width"]:5.2f}'
            lines.append(f'    {what:42s}{points:>6s}{ours}   {claim["verdict"]:11s}({claim["source"]})')
    return '\n'.join(lines)


def write_csv(results: dict[str, dict[int, dict]], path: Path) -> None:
    """A line for every accuracy."""
    with new_file(path) as new, new.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['data', 'seed', 'arm', 'accuracy', 'parameters'])
        for data, seeds in results.items():
            for seed, arms in seeds.items():
                for arm, found in arms.items():
                    writer.writerow([data, seed, arm, f'{found["accuracy"]:.4f}', found['parameters']])


def plot(summary: dict, results: dict[str, dict[int, dict]], path: Path) -> None:
    """Every seed as a dot, with mean and interval."""
    figure = Figure(figsize=(5.5 * len(summary) + 1, 4.2), dpi=110, facecolor='white', layout='constrained')
    for axis, (data, found) in zip(figure.subplots(1, len(summary), squeeze=False)[0], summary.items(), strict=True):
        for place, (arm, row) in enumerate(found['rows'].items()):
            values = [arms[arm]['accuracy'] for arms in results[data].values()]
            axis.plot(values, [place + 0.18] * len(values), '.', color='#59636e', alpha=0.6)
            axis.errorbar(row['mean'], place, xerr=row['half_width'], fmt='o', color='#0969da', capsize=4)
        axis.set_yticks(range(len(found['rows'])), list(found['rows']))
        axis.invert_yaxis()
        title = f'{data}: mean and 95 % interval of {len(results[data])} seeds (dots)'
        axis.set(title=title, xlabel='accuracy, per cent')
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(axis='x', alpha=0.25)
    with new_file(path) as new:
        figure.savefig(new, format='png')


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
    versions = dict(torch=torch.__version__, timm=timm.__version__, tinyvit_zoo=tinyvit_zoo.__version__)
    report = dict(
        data=summary, settings={data: asdict(own) for data, own in settings.items()}, versions=versions, seeds=results,
        cpu_seconds=sum(piece['cpu_seconds'] for piece in pieces),
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--part', nargs='+', choices=list(PARTS), default=list(PARTS), help='default: all')
    parser.add_argument('--data', nargs='+', choices=list(SETTINGS), default=list(SETTINGS), help='default: all')
    parser.add_argument('--seeds', type=int, default=3, help='at least 2 (default 3)')
    parser.add_argument('--output', type=Path, default=Path('demo_output/pretraining_chain'))
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error('an interval needs at least 2 seeds')
    run(args.part, {data: SETTINGS[data] for data in args.data}, args.seeds, args.output, tqdm.write)


if __name__ == '__main__':
    main()
