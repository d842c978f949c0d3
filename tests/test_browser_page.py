"""The zoo browser in Chromium: plot, filters, table, comparison and programs, and the address that keeps them."""

import csv
import io
import re
import time
from pathlib import Path

from browser_page import choose, data, failing, in_a_browser

pytestmark = in_a_browser


def test_filters_leave_what_they_say_and_the_address_keeps_them(page):
    page.open()
    everything = page.names()
    assert len(everything) == 70
    choose(page, '#filter-q', 'tinyvit 21m')
    page.click('#timm')
    assert len(page.names()) == 5
    assert page.text('.count').startswith('5 of 40')
    choose(page, '#filter-side', '384')
    assert page.names() == ['tinyvit_21m_384.dist_in22k_ft_in1k']
    choose(page, '#filter-q', 'nothing like it')
    assert page.names() == []
    assert 'No model' in page.text('#plot')
    page.click('.below button')
    page.click('#filters input[value=mini_swin]')
    choose(page, '#filter-upto', '25')
    assert page.names() == ['mini_swin_tiny_patch4_window7_224.distill_in1k']
    shown, address = page.names(), page.driver.current_url
    assert address.endswith('?timm=0&family=mini_swin&upto=25')
    page.open(address.rpartition('/')[2])
    assert page.names() == shown
    for select, value in {'task': 'features', 'license': 'none', 'method': 'CLIP'}.items():
        page.open(f'?timm=0&{select}={value}')
        assert 0 < len(page.names()) < 40


def test_a_heading_sorts_and_sorts_the_other_way(page):
    page.open('?timm=0')
    heading = '#rows thead th:nth-child(3) button'
    page.click(heading)
    params = {model['name']: model['params']['value'] for model in data(page)['models']}
    values = [params[name] for name in page.names()]
    assert values == sorted(values)
    page.click(heading)
    assert page.names()[0].startswith('clip_vit')
    assert page.run("return document.querySelector('[aria-sort]').ariaSort") == 'descending'
    page.open(page.driver.current_url.rpartition('/')[2])
    assert page.names()[0].startswith('clip_vit')
    choose(page, '#speed', page.run("return document.querySelectorAll('#speed option')[1].value"))
    page.click('#rows thead th:nth-child(8) button')
    cells = page.run("return [...document.querySelectorAll('#rows tbody tr td:nth-child(8)')].map(x => x.innerText)")
    measured = [float(cell) for cell in cells if re.search(r'\d', cell)]
    assert measured == sorted(measured)  # the fastest first
    assert len(measured) > 30
    assert not any(re.search(r'\d', cell) for cell in cells[len(measured) :])


def test_the_plot_has_a_point_for_every_model_with_both_values_and_the_front_of_the_best(page):
    models = data(page)['models']
    page.open('?x=gmacs')
    known = [model for model in models if model['top1']]
    assert page.run("return document.querySelectorAll('.point').length") == len(known)
    best = {m['label'] or m['architecture'] for m in known if not any(
        o['gmacs']['value'] <= m['gmacs']['value'] and o['top1']['top1'] > m['top1']['top1'] for o in known
    )}  # fmt: skip
    labels = page.run("return [...document.querySelectorAll('.labels text')].map((label) => label.textContent)")
    assert len(labels) >= 3
    assert set(labels) <= best
    apart = page.run("""
        const front = document.querySelector('.front');
        const along = [...Array(400)].map((_, i) => front.getPointAtLength((i / 399) * front.getTotalLength()));
        const boxes = [...document.querySelectorAll('.labels text')].map((label) => label.getBBox());
        return boxes.every((box) => !along.some(
          ({ x, y }) => x > box.x && x < box.x + box.width && y > box.y + 2 && y < box.y + box.height - 2
        ));
    """)
    assert apart  # no label is struck through by the front
    page.open('?compare=' + ','.join(f'tinyvit_21m_{side}.dist_in22k_ft_in1k' for side in (512, 384, 224)))
    distances = page.run("""
        const between = (low, value, high) => Math.max(low - value, 0, value - high);
        const rings = [...document.querySelectorAll('.chosen .target')].map((ring) => ring.getBBox());
        const boxes = [...document.querySelectorAll('.labels text')].map((label) => label.getBBox());
        return boxes.flatMap((box) => rings.map((ring) => Math.hypot(
          between(box.x, ring.x + ring.width / 2, box.x + box.width),
          between(box.y, ring.y + ring.height / 2, box.y + box.height),
        ) - ring.width / 2));
    """)
    assert len(distances) >= 9
    assert min(distances) > -1.5  # nor drawn over the ring of what is chosen; a box is higher than its letters
    page.open('?x=ms&scale=linear')
    measured = [model for model in known if model['measured']]
    assert page.run("return document.querySelectorAll('.point').length") == len(measured)
    assert 'Milliseconds' in page.run("return document.querySelector('.grid .title').textContent")


def test_up_to_four_models_are_compared(page):
    page.open('?timm=0', reduced_motion='reduce')
    for i in range(1, 6):
        page.click(f'#rows tbody tr:nth-child({i}) input')
    chosen = page.names()[:4]
    assert page.run("return [...document.querySelectorAll('.compared .name')].map((name) => name.innerText)") == chosen
    assert not page.run("return document.querySelector('#rows tbody tr:nth-child(5) input').checked")
    assert page.text('#full').startswith('Four models are compared already')
    assert page.driver.current_url.endswith(f'&compare={",".join(chosen)}')
    widths = "return [...document.querySelectorAll('.compared thead th')].map((cell) => Math.round(cell.clientWidth))"
    assert len(set(page.run(widths))) == 1
    page.click('#rows tbody tr:nth-child(5) .name')
    assert page.run("return document.querySelector('#full').hidden")
    page.run("scrollTo({ top: 0, behavior: 'instant' }); document.querySelector('#details .buttons button').click()")
    page.until(  # said beside the table, which was out of sight
        "const { top, bottom } = document.querySelector('#full').getBoundingClientRect();"
        'return top >= 0 && bottom > top && bottom < innerHeight + 1'
    )
    page.click('.compared .remove')
    assert page.run("return document.querySelectorAll('.compared thead th').length") == 3
    assert page.run("return document.querySelector('#full').hidden")


def test_an_address_that_says_nonsense_shows_what_is_usual(page):
    page.open()
    usual = page.names()
    page.open(
        '?x=__proto__&timm=x&up=y&scale=a&sort=constructor&speed=b&task=c&license=d&method=e&side=f&upto=g&family=h&model=i'
        '&compare=j,k,l,m,tinyvit_5m_224.in1k,tinyvit_5m_224.in1k'
    )
    assert page.names() == usual
    assert page.run("return [...document.querySelectorAll('select')].every((select) => select.selectedIndex >= 0)")
    assert page.run("return document.querySelectorAll('.compared .name').length") == 1
    page.open('?q=.*%5B(')  # words, not a pattern
    assert page.names() == []
    page.open('/index.html')  # two slashes: another host where it is taken for an address
    page.click('#timm')
    assert page.driver.current_url.endswith('//index.html?timm=0')


def test_where_the_browser_refuses_a_change_of_the_address_the_page_goes_on(page):
    page.open()
    page.run("history.replaceState = () => { throw new DOMException('too often', 'SecurityError'); }")  # as Safari does
    choose(page, '#filter-q', 'tinyvit 5m')
    page.click('#timm')
    assert {name.partition('.')[0] for name in page.names()} == {'tinyvit_5m_224'}


def test_back_closes_a_model_that_was_opened(page):
    page.open('?q=tiny')
    shown = page.names()
    page.click('#rows tbody tr .name')
    assert not page.run("return document.querySelector('#details').hidden")
    page.driver.back()
    page.until("return document.querySelector('#details').hidden")
    assert page.names() == shown
    assert page.driver.current_url.endswith('?q=tiny')


def test_a_narrow_logarithmic_axis_has_ticks_too(page):
    code = """
    const [low, high, done] = arguments;
    import('/js/scales.js').then(({ logarithmic }) => done(logarithmic([low, high], [0, 100]).ticks));
    """
    ticks = [page.driver.execute_async_script(code, *ends) for ends in ((5, 400), (36, 118), (21.2, 21.2))]
    assert ticks == [[5, 10, 20, 50, 100, 200, 500], [30, 40, 50, 70, 100], [18, 20, 22, 24, 26]]


def test_a_program_is_copied_as_the_card_has_it(page):
    page.driver.execute_cdp_cmd('Browser.grantPermissions', dict(permissions=['clipboardReadWrite']))
    page.open('?model=mini_deit_tiny_patch16_224.distill_in1k')
    model = next(m for m in data(page)['models'] if m['name'].startswith('mini_deit_tiny'))
    for i, snippet in enumerate(model['snippets'], 1):
        page.click(f'[role=tab]:nth-child({i})')
        page.click('.copy')
        page.until("return document.querySelector('.copy').textContent === 'Copied'")
        copied = page.driver.execute_async_script('navigator.clipboard.readText().then(arguments[0])')
        assert copied == snippet['code']
    card = (Path(__file__).parent.parent / 'hub_configs' / model['name'] / 'README.md').read_text()
    assert model['snippets'][0]['code'] in card


def test_a_program_that_may_not_be_copied_is_selected(page):
    page.driver.execute_cdp_cmd('Browser.resetPermissions', {})
    denied = dict(permission=dict(name='clipboard-write'), setting='denied')
    page.driver.execute_cdp_cmd('Browser.setPermission', denied)
    page.open('?model=mini_deit_tiny_patch16_224.distill_in1k')
    page.click('.copy')
    page.until("return document.querySelector('.copy').textContent === 'Selected'")
    assert page.run('return getSelection().toString() === document.querySelector("#program code").textContent')
    page.driver.execute_cdp_cmd('Browser.resetPermissions', {})


def test_equal_values_are_ordered_by_name_and_models_without_one_come_last(page):
    models = {model['name']: model['top1'] and model['top1']['top1'] for model in data(page)['models']}
    for up in (0, 1):
        page.open(f'?sort=top1&up={up}')
        keys = [(models[name] is None, (models[name] or 0) * (1 if up else -1), name) for name in page.names()]
        assert keys == sorted(keys)
        assert keys[-1][0]


CSV = """
const [name, done] = arguments;
const speed = { machine: 'A, B', form: 'deploy', batch: 1, threads: 2, dtype: 'float32', date: '', source: 's' };
const number = { value: 1 };
const model = {
  name, of: 'zoo', series: 'a', task: 'b', method: null, license: { id: 'MIT' }, img_size: number, num_classes: number,
  params: number, gmacs: number, megabytes: number, top1: null, measured: [speed],
};
import('/js/csv.js').then(async ({ csvText }) => {
  const { speedKey } = await import('/js/models.js');
  done(csvText([model], { speed: speedKey(speed) }, { s: { text: 'c', url: null } }));
});
"""


def test_commas_quotes_and_ends_of_lines_stay_within_their_cell(page):
    name = 'a "b", c\nd'
    (row,) = csv.DictReader(io.StringIO(page.driver.execute_async_script(CSV, name), newline=''))
    assert (row['model'], row['method'], row['top1']) == (name, '', '')
    assert row['speed_measured_on'] == 'Batch 1, deploy form, A, B, 2 threads, float32'


def test_data_that_are_damaged_or_missing_are_said(page):
    for content, words in (
        (b'{"format": 1, ', 'zoo.json is damaged'),
        (b'{"format": 2}', 'of another version than this page'),
        (None, 'zoo.json is missing (404)'),
    ):
        with failing(page, '/zoo.json', content):
            page.driver.get(page.address)
            page.until("return !document.querySelector('#failure').hidden")
            assert words in page.text('#failure')
            assert 'tinyvit-zoo browser build' in page.text('#failure')


def test_the_table_is_saved_as_it_stands(page):
    page.open('?family=tinyvit&timm=0&sort=params&up=1')
    page.click('#csv')
    file = page.folder / 'saved' / 'tinyvit_zoo.csv'
    end = time.monotonic() + 120
    while not file.is_file() and time.monotonic() < end:
        time.sleep(0.05)
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [row['model'] for row in rows] == page.names()
    models = {model['name']: model for model in data(page)['models']}
    for row in rows:
        top1 = models[row['model']]['top1']
        assert row['top1'] == (str(top1['top1']) if top1 else '')
        assert bool(row['ms']) == bool(row['speed_date']) == bool(row['speed_source'])
