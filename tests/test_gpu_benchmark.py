"""The benchmark of a GPU, walked on a CPU: its order, what it writes after each step, what it skips, its targets."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import imported_benchmark
from test_tables import GPU, ROW

from tinyvit_zoo.bench import read_rows


@pytest.fixture(scope='module')
def gpu():
    with imported_benchmark('gpu') as module:
        yield module


@pytest.fixture
def steps(gpu):
    """Three steps that note that they ran, the second of which fails."""
    ran = []

    def one(name, error=None):
        def run(plan, out):
            ran.append((name, sorted(path.name for path in out.iterdir())))
            if error:
                raise error
            return {'found': name}

        return gpu.Step(name, run, 10)

    return ran, [one('first'), one('second', RuntimeError('no such kernel\nmore')), one('third')]


def report_in(folder):
    return json.loads((folder / 'report.json').read_text())


@pytest.mark.slow
def test_the_whole_plan_runs_on_a_cpu(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['gpu.py', '--dry-run', '--out', str(tmp_path)])
    gpu.main()
    report = report_in(tmp_path)
    assert list(report['steps']) == [step.name for step in gpu.STEPS]
    assert {step['state'] for step in report['steps'].values()} == {'done'}
    errors = report['steps']['correctness']['errors']
    assert [name for name in errors if 'gradients' in name]
    assert report['steps']['correctness']['wrong'] == []
    assert {row.mode for row in read_rows(tmp_path / 'rows.csv')} == {'inference', 'training'}
    assert {row.form for row in read_rows(tmp_path / 'rows.csv')} == {
        'created',
        'deploy',
        'compiled',
        'deploy+compiled',
    }
    assert all((tmp_path / f'profile_{name}.txt').read_text() for name in (
        f'{gpu.DRY.tinyvit[0]}_created', f'{gpu.DRY.tinyvit[0]}_deploy', f'{gpu.DRY.deit[0]}_created',
    ))  # fmt: skip
    assert {target['state'] for target in report['targets']} == {'not run'}
    assert '| TinyViT deploy / as created | 1.25 | - | not run |' in capsys.readouterr().out


def test_it_is_written_after_every_step_and_a_failure_does_not_end_it(gpu, steps, tmp_path, capsys):
    ran, plan = steps
    gpu.run(gpu.DRY, tmp_path, 8, plan)
    written = ['report.json', 'targets.md']
    assert ran == [('first', []), ('second', written), ('third', written)]
    found = report_in(tmp_path)['steps']
    assert [step['state'] for step in found.values()] == ['done', 'failed', 'done']
    assert found['second']['reason'] == 'RuntimeError: no such kernel'
    assert '| second | failed | 0 | RuntimeError: no such kernel |' in (tmp_path / 'targets.md').read_text()


def test_what_no_longer_fits_is_skipped_and_the_next_run_does_it(gpu, steps, tmp_path):
    ran, plan = steps
    plan = [replace(plan[0], seconds=100), plan[2]]
    gpu.run(gpu.DRY, tmp_path, 0.5, plan)
    assert [name for name, _ in ran] == ['third']
    assert report_in(tmp_path)['steps']['first'] == {'state': 'skipped', 'reason': '100 s no longer fitted'}
    gpu.run(gpu.DRY, tmp_path, 8, plan)
    assert [name for name, _ in ran] == ['third', 'first']
    assert list(report_in(tmp_path)['steps']) == ['first', 'third']


def test_steps_of_another_plan_are_run_again(gpu, steps, tmp_path):
    ran, plan = steps
    gpu.run(gpu.DRY, tmp_path, 8, plan[:1])
    gpu.run(replace(gpu.DRY, batch=3), tmp_path, 8, plan[:1])
    assert [name for name, _ in ran] == ['first', 'first']


def test_targets_are_met_missed_or_not_run(gpu):
    theirs = replace(ROW, **GPU, model='tiny_vit_21m_224', ratio=1.0)
    ours = replace(theirs, model='tinyvit_21m_224', ratio=1.02)
    deploy = replace(ours, form='deploy', ratio=1.1)
    found = {target.label: gpu.judged(target, [theirs, ours, deploy]) for target in gpu.targets(gpu.GPU)}
    assert found['TinyViT as created / timm channels_last'] == ('met', pytest.approx(1.02))
    assert found['TinyViT deploy / timm channels_last'] == ('missed', pytest.approx(1.1))
    assert found['TinyViT deploy / as created'] == ('missed', pytest.approx(1.1 / 1.02))
    assert found['training: TinyViT / timm channels_last'] == ('not run', None)
    assert found['TinyViT deploy in a graph / timm in a graph'] == ('not run', None)


def test_kernels_are_compared_in_each_type_on_cuda_only(gpu, tmp_path, monkeypatch):
    asked = []

    def check(device, dtype):
        asked.append((device, dtype))
        return {'6 heads': 1e-3}

    def broken(device, dtype):
        raise RuntimeError('no compiler')

    monkeypatch.setattr(gpu, 'CHECKS', (broken, check))
    monkeypatch.setattr(gpu, 'single', lambda name, plan: {name: (1e-4, gpu.SINGLE)})
    assert gpu.kernels(gpu.DRY, tmp_path) == {'note': 'not run: it needs CUDA'}
    assert not asked
    found = gpu.kernels(gpu.GPU, tmp_path)
    assert asked == [('cuda', torch.float32), ('cuda', torch.bfloat16)]
    assert found['wrong'] == [
        'broken, float32: RuntimeError', 'broken, bfloat16: RuntimeError', '6 heads, float32',
    ]  # fmt: skip
    assert set(found['errors']) >= {gpu.GPU.tinyvit[0], gpu.GPU.swin[0], gpu.GPU.deit[0]}


def test_an_error_that_is_too_large_is_named(gpu):
    found = {'a': (1e-6, gpu.EXACT), 'b': (1e-2, gpu.HALF), 'c': (float('nan'), gpu.HALF)}
    assert gpu._judged(found)['wrong'] == ['a', 'c']


def test_another_order_of_summation_is_no_error_and_another_weight_is(gpu):
    """The gradient of a bias before a softmax is rounding alone, whatever its device."""
    plan = replace(gpu.DRY, settings=replace(gpu.DRY.settings, img_size=(64, 64)))
    model, x = gpu._randomised(gpu.DRY.swin[0], plan)
    expected = gpu._outputs(model, x)
    output, *gradients = gpu._outputs(model, x.flip(0))
    assert max(gpu._errors([output.flip(0), *gradients], expected)) < gpu.EXACT
    with torch.no_grad():
        model.head.fc.weight[0, 0] += 1e-5
    assert min(gpu._errors(gpu._outputs(model, x), expected)) > gpu.EXACT


def test_without_a_gpu_it_says_so(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['gpu.py', '--out', str(tmp_path)])
    monkeypatch.setattr(gpu.torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit):
        gpu.main()
    assert '--dry-run walks the plan on a CPU' in capsys.readouterr().err
