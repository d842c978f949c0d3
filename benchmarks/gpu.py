"""Everything that a machine with an NVIDIA GPU should be asked, in one command.

    python benchmarks/gpu.py --minutes 8 --out DIR
    python benchmarks/gpu.py --dry-run --out DIR     # the whole plan on a CPU, smallest models, less than a minute

In order: correctness (float64 on the GPU against the CPU, forward and backward; bfloat16), the kernels against plain
code, then speed: eager, training, one image with a CUDA graph, profiles of kernels, compiled. After every step DIR
holds all that is known: `report.json`, `rows.csv` (to be kept as `benchmarks/results/NAME.csv`, see `tables.py`) and
`targets.md`: met, missed, not run. A step that no longer fits into the minutes is skipped, one that fails says why, and
the same command with the same DIR runs what is missing.
"""

import argparse
import copy
import json
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tables
import timm
import torch
import torch.nn.functional as F
from head_mix import check_attention, check_head_mix
from timm.models import reparameterize_model
from torch import nn
from torch.profiler import ProfilerActivity, profile

import tinyvit_zoo
from tinyvit_zoo.bench import Row, Settings, bench_variants, call_of, read_rows
from tinyvit_zoo.common.files import write_whole
from tinyvit_zoo.common.paired_timing import cpu_name
from tinyvit_zoo.layers.bias_gelu import add_bias_gelu_

__all__ = ['DRY', 'GPU', 'STEPS', 'Plan', 'Step', 'Target', 'run', 'targets']

EXACT, KERNEL, SINGLE, HALF = 1e-10, 1e-5, 1e-3, 3e-2
"""Largest relative errors against float64: models in float64, a kernel and models in float32, all in bfloat16."""

Errors = dict[str, tuple[float, float]]
"""By what was compared: the relative error, and its limit."""

Models = tuple[str, str]
"""Ours, and the one of timm that it is compared with."""


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        settings: Device, type, rounds and image size of everything that is timed.
        tinyvit: TinyViT, and timm's.
        small: A smaller TinyViT, and timm's.
        swin: Mini-Swin, and the uncompressed one.
        deit: Mini-DeiT, and the uncompressed one.
        exact: Models of the comparison in float64.
        batch: Images of a call.
        train_batch: Images of a training step.
        graph: Whether one image is run with a CUDA graph as well.
        compile: Whether models are really compiled, or only called.
        dry: Whether nothing that is found counts.
    """

    settings: Settings
    tinyvit: Models = tables.T21
    small: Models = tables.T5
    swin: Models = tables.SWIN
    deit: Models = tables.DEIT
    exact: tuple[str, ...] = (tables.T5[0], tables.SWIN[0], tables.DEIT[0])
    batch: int = 256
    train_batch: int = 128
    graph: bool = True
    compile: bool = True
    dry: bool = False


GPU = Plan(Settings(device='cuda', rounds=7, channels_last=True, dtype='bfloat16'))
DRY = Plan(
    Settings(device='cpu', rounds=1, channels_last=True, img_size=(32, 32)),
    tinyvit=tables.T5,
    deit=('mini_deit_tiny_patch16_224', 'deit_tiny_patch16_224'),
    exact=(tables.T5[0], 'mini_deit_tiny_patch16_224'),
    batch=2,
    train_batch=2,
    graph=False,
    compile=False,
    dry=True,
)


# --- correctness


def correctness(plan: Plan, out: Path) -> dict[str, Any]:
    """Outputs and gradients in float64 on the device against the CPU, the deploy form, and bfloat16 on the device."""
    found: Errors = {}
    for name in plan.exact:
        model, x = _randomised(name, plan)
        there, images = copy.deepcopy(model).to(plan.settings.device), x.to(plan.settings.device)
        output, gradients = _errors(_outputs(there, images), _outputs(model, x))
        found[f'{name}: output, float64'] = output, EXACT
        found[f'{name}: gradients, float64'] = gradients, EXACT
        with torch.no_grad():
            expected = model(x)
            found[f'{name}: deploy form, float64'] = _error(reparameterize_model(there)(images), expected), EXACT
            half = there.bfloat16()(images.bfloat16())
            found[f'{name}: output, bfloat16'] = _norm_error(half, expected), HALF
    return _judged(found)


def kernels(plan: Plan, out: Path) -> dict[str, Any]:
    """Every kernel against plain code in float64, alone and in the models, those of head mixing in both directions."""
    if plan.settings.device != 'cuda':
        return dict(note='not run: it needs CUDA')
    found: Errors = {}
    for check in CHECKS:
        for dtype, limit in {'float32': KERNEL, 'bfloat16': HALF}.items():
            found |= _checked(check, plan.settings.device, dtype, limit)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for name in (plan.tinyvit[0], plan.swin[0], plan.deit[0]):
            found |= single(name, plan)
    return _judged(found)


def _checked(check: Callable[..., dict[str, float]], device: str, dtype: str, limit: float) -> Errors:
    """What a check found; one that ends in an error is wrong, and the others are worth running."""
    try:
        return {f'{case}, {dtype}': (error, limit) for case, error in check(device, getattr(torch, dtype)).items()}
    except Exception as error:
        traceback.print_exc()
        return {f'{check.__name__}, {dtype}: {type(error).__name__}': (float('inf'), limit)}


def check_bias_gelu(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Errors of the kernel of bias and GELU relative to the largest value in float64, in both memory formats."""
    errors = {}
    for size in ((2, 96, 28, 28), (3, 5, 7, 11)):
        for layout in (torch.contiguous_format, torch.channels_last):
            for gelu in (False, True):
                x = torch.randn(size, device=device, dtype=dtype).contiguous(memory_format=layout)
                bias = torch.randn(size[1], device=device, dtype=dtype)
                expected = x.double() + bias.double()[:, None, None]
                expected = F.gelu(expected) if gelu else expected
                what = f'bias{" and GELU" if gelu else ""}, {"x".join(map(str, size))}, {layout}'
                errors[what] = _error(add_bias_gelu_(x, bias, gelu), expected)
    return errors


CHECKS = (check_head_mix, check_attention, check_bias_gelu)
"""Of each kernel: device and type -> by what was compared, the relative error."""


def single(name: str, plan: Plan) -> Errors:
    """Output and gradients of a model in float32 on the device, where kernels run, against float64 on the CPU."""
    model, x = _randomised(name, plan)
    there = copy.deepcopy(model).to(plan.settings.device, torch.float32)
    images = x.to(plan.settings.device, torch.float32)
    output, gradients = _errors(_outputs(there, images), _outputs(model, x))
    with torch.inference_mode():
        deploy = _error(reparameterize_model(there)(images), model(x))
    errors = {'output': output, 'gradients': gradients, 'deploy form': deploy}
    return {f'{name}: {what}, float32': (error, SINGLE) for what, error in errors.items()}


def _randomised(name: str, plan: Plan) -> tuple[nn.Module, torch.Tensor]:
    """A model in float64 whose every parameter matters, in evaluation mode, and two images."""
    torch.manual_seed(0)
    size = plan.settings.img_size or (224, 224)
    model = timm.create_model(name, img_size=size, num_classes=10).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model, torch.randn(2, 3, *size, dtype=torch.float64)


def _outputs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, then the gradient of each parameter."""
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(model.parameters()))]


def _errors(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Errors of the output and of the gradients.

    Gradients that are next to nothing are taken relative to a thousandth of the largest of all: that of a bias before a
    softmax is zero but for rounding.
    """
    floor = 1e-3 * max(gradient.abs().max().item() for gradient in expected[1:])
    gradients = (_error(a, b, floor) for a, b in zip(actual[1:], expected[1:], strict=True))
    return _error(actual[0], expected[0]), max(gradients)


def _error(actual: torch.Tensor, expected: torch.Tensor, floor: float = 0.0) -> float:
    """Largest difference over the largest value, or over `floor` where that is larger."""
    actual, expected = actual.cpu().double(), expected.cpu().double()
    return (actual - expected).abs().max().item() / max(expected.abs().max().item(), floor)


def _norm_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.cpu().double(), expected.cpu().double()
    return ((actual - expected).norm() / expected.norm()).item()


def _judged(found: Errors) -> dict[str, Any]:
    """The errors, and the names of those that are not below their limit."""
    wrong = [name for name, (error, limit) in found.items() if not error < limit]
    return dict(errors={name: error for name, (error, _) in found.items()}, wrong=wrong)


# --- speed


def eager(plan: Plan, out: Path) -> dict[str, Any]:
    for ours, theirs in (plan.tinyvit, plan.swin, plan.deit, plan.small):
        _bench(plan, out, [(theirs, 'created'), (ours, 'created'), (ours, 'deploy')], plan.batch)
    return {}


def training(plan: Plan, out: Path) -> dict[str, Any]:
    """A step under autocast, weights in float32."""
    settings = replace(plan.settings, train=True, rounds=min(plan.settings.rounds, 5), dtype='float32', amp='bfloat16')
    for ours, theirs in (plan.tinyvit, plan.swin, plan.deit):
        _bench(plan, out, [(theirs, 'created'), (ours, 'created')], plan.train_batch, settings)
    return {}


def one_image(plan: Plan, out: Path) -> dict[str, Any]:
    ours, theirs = plan.tinyvit
    pairs = [(theirs, 'created'), (ours, 'created'), (ours, 'deploy')]
    if plan.graph:
        pairs += [(theirs, 'graph'), (ours, 'graph'), (ours, 'deploy+graph')]
    _bench(plan, out, pairs, 1, replace(plan.settings, rounds=3 * plan.settings.rounds))
    return {} if plan.graph else dict(note='no graph: it needs CUDA')


def compiled(plan: Plan, out: Path) -> dict[str, Any]:
    ours, theirs = plan.tinyvit
    with ExitStack() as stack:
        if not plan.compile:
            stack.enter_context(torch.compiler.set_stance('force_eager'))
        _bench(plan, out, [(theirs, 'compiled'), (ours, 'compiled'), (ours, 'deploy+compiled')], plan.batch)
    return {} if plan.compile else dict(note='called without being compiled')


def _bench(
    plan: Plan, out: Path, pairs: Sequence[tuple[str, str]], batch: int, settings: Settings | None = None
) -> None:
    rows = bench_variants(pairs, [batch], settings or plan.settings, out / 'rows.csv')
    for row in rows:
        rate = 'out of memory' if row.images_per_second is None else f'{row.images_per_second:.0f} images/s'
        print(f'  {row.model} {row.form}, {row.mode}, B={batch}: {rate}', flush=True)
    if plan.settings.device == 'cuda':
        torch.cuda.empty_cache()


def profiles(plan: Plan, out: Path) -> dict[str, Any]:
    """What the kernels of a forward pass take: `profile_<model>_<form>.txt`, and the sum and number of each kind."""
    found = {}
    for name, form in [
        *((plan.tinyvit[0], form) for form in ('created', 'deploy')),
        *((name, 'created') for name in (plan.tinyvit[1], plan.swin[0], plan.deit[0])),
    ]:
        found[f'{name} {form}'] = _profile(name, form, plan, out)
    return dict(models=found)


def _profile(name: str, form: str, plan: Plan, out: Path) -> dict[str, Any]:
    cuda = plan.settings.device == 'cuda'
    call = call_of(name, form, plan.batch, plan.settings)
    for _ in range(3):
        call()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        call()
        if cuda:
            torch.cuda.synchronize()
    times = {
        one.key: one.self_device_time_total if cuda else one.self_cpu_time_total for one in profiler.key_averages()
    }
    counts = {one.key: one.count for one in profiler.key_averages()}
    order = sorted((key for key, time in times.items() if time > 0), key=lambda key: -times[key])
    lines = [f'{times[key] / 1e3:9.3f} ms {counts[key]:5} {key[:160]}' for key in order]
    write_whole(out / f'profile_{name}_{form}.txt', ('\n'.join(lines) + '\n').encode())
    return dict(
        ms=sum(times[key] for key in order) / 1e3,
        launches=sum(counts[key] for key in order),
        longest={key[:80]: times[key] / 1e3 for key in order[:8]},
    )


# --- the plan


@dataclass(frozen=True)
class Step:
    """A step and how many seconds it is expected to take on an H200."""

    name: str
    run: Callable[[Plan, Path], dict[str, Any]]
    seconds: float


STEPS = (
    Step('correctness', correctness, 45),
    Step('kernels', kernels, 30),
    Step('eager', eager, 60),
    Step('training', training, 60),
    Step('one image', one_image, 30),
    Step('profiles', profiles, 45),
    Step('compiled', compiled, 150),
)


@dataclass(frozen=True)
class Target:
    """A ratio that is aimed at: the rate of one variant over that of another, or of the one in `over` alone.

    Attributes:
        label: What it is.
        wanted: At least so much.
        ours: Model and form.
        over: Model and form of the same run.
        batch: Images of a call.
        train: A training step.
    """

    label: str
    wanted: float
    ours: tuple[str, str]
    over: tuple[str, str]
    batch: int
    train: bool = False


def targets(plan: Plan) -> list[Target]:
    """What is aimed at on an H200 in bfloat16."""
    (ours, theirs), (swin, swin_t), (deit, deit_s) = plan.tinyvit, plan.swin, plan.deit
    created, deploy, b, t = 'created', 'deploy', plan.batch, plan.train_batch
    return [
        Target('TinyViT as created / timm channels_last', 1.00, (ours, created), (theirs, created), b),
        Target('TinyViT deploy / timm channels_last', 1.20, (ours, deploy), (theirs, created), b),
        Target('TinyViT deploy / as created', 1.25, (ours, deploy), (ours, created), b),
        Target('TinyViT deploy in a graph / timm eager', 4.00, (ours, 'deploy+graph'), (theirs, created), 1),
        Target('TinyViT deploy in a graph / timm in a graph', 1.10, (ours, 'deploy+graph'), (theirs, 'graph'), 1),
        Target('compiled deploy / timm compiled', 1.15, (ours, 'deploy+compiled'), (theirs, 'compiled'), b),
        Target('Mini-DeiT-S / DeiT-S', 0.40, (deit, created), (deit_s, created), b),
        Target('Mini-DeiT-S / DeiT-S, second step', 0.60, (deit, created), (deit_s, created), b),
        Target('Mini-Swin-T / Swin-T', 0.90, (swin, created), (swin_t, created), b),
        Target('training: TinyViT / timm channels_last', 1.05, (ours, created), (theirs, created), t, train=True),
        Target('training: Mini-DeiT-S / DeiT-S', 0.60, (deit, created), (deit_s, created), t, train=True),
        Target('training: Mini-Swin-T / Swin-T', 0.85, (swin, created), (swin_t, created), t, train=True),
    ]


def judged(target: Target, rows: Sequence[Row]) -> tuple[str, float | None]:
    """met, missed or not run, and the ratio."""
    ratios = {}
    for row in rows:
        if row.batch == target.batch and (row.mode == 'training') == target.train and row.ratio:
            ratios[row.first, row.model, row.form] = row.ratio
    for (first, *variant), ratio in ratios.items():
        over = ratios.get((first, *target.over))
        if tuple(variant) == target.ours and over:
            return ('met' if ratio / over >= target.wanted else 'missed'), ratio / over
    return 'not run', None


@dataclass
class Report:
    """What is known, and where it is written."""

    out: Path
    plan: Plan
    minutes: float
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    def machine(self) -> dict[str, str]:
        cuda = self.plan.settings.device == 'cuda'
        return dict(
            gpu=torch.cuda.get_device_name() if cuda else '',
            processor=cpu_name(),
            torch=torch.__version__,
            timm=timm.__version__,
            tinyvit_zoo=tinyvit_zoo.__version__,
        )

    def resume(self) -> None:
        """Take over the steps that an earlier run of this plan on such a machine has done."""
        path = self.out / 'report.json'
        if path.exists():
            known = json.loads(path.read_text(encoding='utf-8'))
            if known['machine'] == self.machine() and known['plan'] == json.loads(json.dumps(asdict(self.plan))):
                self.steps = {name: step for name, step in known['steps'].items() if step['state'] == 'done'}

    def rows(self) -> list[Row]:
        path = self.out / 'rows.csv'
        return read_rows(path) if path.exists() else []

    def write(self) -> None:
        rows = self.rows()
        found = [(target, *judged(target, rows)) for target in targets(self.plan)]
        if self.plan.dry:
            found = [(target, 'not run', None) for target, _, _ in found]
        lines = [['target', 'wanted', 'found', ''], *(_line(*one) for one in found)]
        state = [['step', 'state', 'seconds', ''], *(_step_line(name, step) for name, step in self.steps.items())]
        text = f'{_where(self.machine())}\n\n{tables.table(state)}\n\n{tables.table(lines)}\n'
        write_whole(self.out / 'targets.md', text.encode())
        report = dict(machine=self.machine(), plan=asdict(self.plan), minutes=self.minutes, steps=self.steps)
        report['targets'] = [dict(asdict(target), state=state, found=ratio) for target, state, ratio in found]
        write_whole(self.out / 'report.json', json.dumps(report, indent=1).encode())


def _line(target: Target, state: str, ratio: float | None) -> list[str]:
    return [target.label, f'{target.wanted:.2f}', '-' if ratio is None else f'{ratio:.2f}', state]


def _step_line(name: str, step: dict[str, Any]) -> list[str]:
    wrong = step.get('wrong')
    why = step.get('reason') or step.get('note') or ('wrong: ' + ', '.join(wrong) if wrong else '')
    return [name, step['state'], f'{step.get("seconds", 0):.0f}', why]


def _where(machine: dict[str, str]) -> str:
    return f'{machine["gpu"] or machine["processor"]}, torch {machine["torch"]}, timm {machine["timm"]}'


def run(plan: Plan, out: Path, minutes: float, steps: Sequence[Step] = STEPS) -> Report:
    """Run the steps in order and write after each one.

    Args:
        plan: What is run, `GPU` or `DRY`.
        out: Folder of the results; steps that are done there are not run again.
        minutes: A step that would end later, as far as one can tell, is skipped.
        steps: Those to run.
    """
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    report = Report(out, plan, minutes)
    report.resume()
    for step in steps:
        if step.name in report.steps:
            continue
        left = 60 * minutes - (time.monotonic() - start)
        if step.seconds > left:
            report.steps[step.name] = dict(state='skipped', reason=f'{step.seconds:.0f} s no longer fitted')
        else:
            print(step.name, flush=True)
            report.steps[step.name] = _done(step, plan, out)
        report.write()
    report.steps = {step.name: report.steps[step.name] for step in steps}
    report.write()
    return report


def _done(step: Step, plan: Plan, out: Path) -> dict[str, Any]:
    start = time.monotonic()
    try:
        result = dict(state='done', **step.run(plan, out))
    except Exception as error:
        traceback.print_exc()
        result = dict(state='failed', reason=f'{type(error).__name__}: {error}'.splitlines()[0][:300])
    return result | dict(seconds=time.monotonic() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=8, help='what would take longer is skipped')
    parser.add_argument('--out', type=Path, required=True, help='folder of the results')
    parser.add_argument('--dry-run', action='store_true', help='on a CPU, smallest models')
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        parser.error('there is no CUDA device here: --dry-run walks the plan on a CPU')
    if args.dry_run:
        torch.set_num_threads(1)
    report = run(DRY if args.dry_run else GPU, args.out, args.minutes)
    print((args.out / 'targets.md').read_text(encoding='utf-8'))
    if any(step['state'] == 'failed' or step.get('wrong') for step in report.steps.values()):
        raise SystemExit(1)


if __name__ == '__main__':
    main()
