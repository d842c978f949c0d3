"""Rows of record and the tables written from them: README and docs/speed.md say what the rows say."""

from dataclasses import replace

import pytest
from conftest import imported_benchmark

from tinyvit_zoo.bench import Row, read_rows, write_rows
from tinyvit_zoo.releases import all_releases


@pytest.fixture(scope='module')
def tables():
    with imported_benchmark('tables') as module:
        yield module


@pytest.fixture(scope='module')
def record():
    with imported_benchmark('record') as module:
        yield module


ROW = Row(
    model='tinyvit_21m_224', form='created', batch=8, first='tiny_vit_21m_224 created', mode='inference', device='cpu',
    dtype='float32', amp='', channels_last=False, img_size='', threads=1, rounds=9, processor='Some CPU', isa='AVX512',
    gpu='', torch='2.0', timm='1.0', tinyvit_zoo='0', commit='abc', date='2026-01-01', load=0.5,
    clock='process CPU time', state='ok', images_per_second=10.0, median_ms=800.0, p95_ms=900.0, ratio=1.234,
    ratio_low=1.2, ratio_high=1.3,
)  # fmt: skip
GPU = dict(device='cuda', gpu='NVIDIA H200', amp='bfloat16', batch=256)


def test_readme_and_speed_page_are_what_the_rows_of_record_say(tables):
    pages = tables.pages()  # `python benchmarks/tables.py` writes them
    assert {path.name: path.read_text(encoding='utf-8') for path in pages} == {
        path.name: text for path, text in pages.items()
    }


def test_columns_stand_beside_each_other(tables, tmp_path):
    write_rows(tmp_path / 'a.csv', [ROW, replace(ROW, batch=1, ratio=1.1)])
    write_rows(tmp_path / 'b.csv', [replace(ROW, isa='AVX2', state='oom', ratio=None)])
    write_rows(tmp_path / 'c.csv', [replace(ROW, **GPU, ratio=2.0)])
    text = tables.short_table(tables.columns(tmp_path))
    assert '| AVX2, Some CPU, float32 | AVX-512, Some CPU, float32 | NVIDIA H200, bfloat16 |' in text
    assert '| TinyViT-21M, as created | oom / - | 1.23 / 1.10 | 2.00 |' in text
    assert '| TinyViT-21M, deploy form | - / - | - / - | - |' in text
    assert 'commit abc' in text


def test_a_processor_of_that_kind_takes_the_place_of_an_emulated_one(tables, tmp_path):
    write_rows(tmp_path / 'x_emulated.csv', [replace(ROW, isa='AVX2', date='2026-02-02')])
    assert tables.columns(tmp_path)[0].title == 'AVX2, emulated on Some CPU, float32'
    write_rows(tmp_path / 'y.csv', [replace(ROW, isa='AVX2', processor='Real CPU')])
    assert tables.columns(tmp_path)[0].title == 'AVX2, Real CPU, float32'


def test_what_nobody_measured_says_so(tables, tmp_path):
    assert [column.title for column in tables.columns(tmp_path)] == [
        'AVX2: not measured', 'AVX-512: not measured', 'H200: not measured',
    ]  # fmt: skip
    (tmp_path / 'earlier').mkdir()
    (tmp_path / 'earlier' / 'nvidia_h200.csv').write_text(
        'model,form,mode,batch,dtype,images_per_second,first,first_images_per_second,gpu,before,source\n'
        'tinyvit_21m_224,created,inference,256,bfloat16,96,timm,100,NVIDIA H200,abc1234,Somebody measured it.\n'
    )
    text = tables.short_table(tables.columns(tmp_path))
    assert 'NVIDIA H200, bfloat16: not measured since abc1234' in text
    assert '| TinyViT-21M, as created | - | - | 0.96 |' in text
    assert 'Somebody measured it.' in text


def test_a_page_without_the_marks_is_refused(tables):
    assert tables.replaced(f'a\n{tables.BEGIN}\nold\n{tables.END}\nb', 'new') == (
        f'a\n{tables.BEGIN}\n\nnew\n\n{tables.END}\nb'
    )
    with pytest.raises(ValueError, match='once each'):
        tables.replaced(f'a\n{tables.BEGIN}\n', 'new')


def test_every_line_of_the_tables_is_measured_in_one_run_with_what_it_is_compared_with(tables, record):
    all_runs = record.runs()
    for line in tables.COMPARISONS:
        for batch in line.cpu:
            found = [
                pairs for pairs, b, settings in all_runs
                if b == batch and settings.train == line.train and (line.model, line.form) in pairs
            ]  # fmt: skip
            assert [pairs[0] for pairs in found] == [(line.first, line.first_form)], line
    assert all(len(pairs) == len(set(pairs)) for pairs, _, _ in all_runs)


def test_rows_of_models_that_the_tables_leave_out_do_not_change_them(tables, tmp_path):
    write_rows(tmp_path / 'a.csv', [ROW])
    before = tables.short_table(tables.columns(tmp_path)), tables.long_table(tables.columns(tmp_path))
    other = replace(ROW, batch=1, commit='def', date='2027-01-01', load=9.0)
    alone = replace(other, model='tinyvit_11m_224', first='tinyvit_11m_224 created')
    zoo = [alone, replace(alone, form='deploy'), replace(other, first='tinyvit_21m_224 created')]
    write_rows(tmp_path / 'a.csv', [zoo[0], ROW, *zoo[1:]])
    write_rows(tmp_path / 'b.csv', [replace(row, isa='AVX2') for row in zoo])
    assert (tables.short_table(tables.columns(tmp_path)), tables.long_table(tables.columns(tmp_path))) == before


def test_every_architecture_of_the_zoo_browser_is_measured_once_with_one_image(record):
    measured = [
        pair for pairs, batch, settings in (*record.runs(), *record.zoo_runs())
        if batch == 1 and not settings.train for pair in pairs
    ]  # fmt: skip
    assert len(measured) == len(set(measured))
    architectures = {release.architecture for release in all_releases()}
    assert set(measured) >= {(name, form) for name in architectures for form in ('created', 'deploy')}
    timms = {model for model, _ in measured} - architectures
    assert {'deit_base_patch16_384', 'convnext_tiny', 'swin_tiny_patch4_window7_224'} <= timms
    assert 'mobilenetv4_hybrid_large' not in timms  # timm makes it for 384 pixels, and the page shows 448
    assert all((settings.threads, settings.img_size) == (1, None) for _, _, settings in record.zoo_runs())


def test_new_rows_replace_those_of_earlier_commits_and_others_stay(record):
    old = [ROW, replace(ROW, batch=1)]
    new = replace(ROW, commit='def', ratio=2.0)
    assert record.merged(old, [new]) == [replace(ROW, batch=1), new]


def test_a_record_is_taken_up_and_takes_the_place_of_earlier_rows(record, tmp_path, capsys):
    file = tmp_path / 'rows.csv'
    pairs = [('test_vit', 'created'), ('test_resnet', 'deploy')]
    first, second = [(pairs, batch, record.Settings(rounds=2, img_size=(64, 64))) for batch in (1, 2)]
    before = record.measure([first], file)
    older = [replace(row, batch=2, commit='earlier', median_ms=1.0) for row in before]
    write_rows(file, [*read_rows(file), *older])
    record.measure([first, second], file)
    rows = read_rows(file)
    assert [(row.model, row.batch) for row in rows] == [
        ('test_vit', 1), ('test_resnet', 1), ('test_vit', 2), ('test_resnet', 2),
    ]  # fmt: skip
    assert [row.median_ms for row in rows[:2]] == pytest.approx([row.median_ms for row in before], rel=1e-5)
    assert 'earlier' not in {row.commit for row in rows}
    assert 'test_resnet deploy, B=2, inference' in capsys.readouterr().out


def test_targets_are_met_or_missed(record):
    deploy = replace(ROW, form='deploy', ratio=2.5)
    slow = [replace(row, model='tinyvit_5m_224', ratio=ratio) for row, ratio in ((ROW, 2.0), (deploy, 1.9))]
    assert record.against_targets([ROW, deploy, *slow]) == [
        'tinyvit_21m_224 created, B=8, over timm: 1.23, target 1.55 missed',
        'tinyvit_21m_224 deploy, B=8, over timm: 2.50, target 2.43 met',
        'tinyvit_21m_224 deploy, B=8, over as created: 2.03, target 0.98 met',
        'tinyvit_5m_224 deploy, B=8, over as created: 0.95, target 0.98 missed',
    ]


def test_a_file_of_results_is_named_by_processor_and_instructions(record, monkeypatch):
    monkeypatch.setattr(record, 'cpu_name', lambda: 'AMD EPYC (R) 9-Core')
    monkeypatch.setattr(record.torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX512')
    assert record.file_name(False) == 'amd_epyc_r_9_core_avx512.csv'
    assert record.file_name(True) == 'amd_epyc_r_9_core_avx512_emulated.csv'
