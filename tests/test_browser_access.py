"""The zoo browser is for everybody, and keeps to itself: keyboard, screen readers, narrow and dark, paper, no host.

axe-core, which finds what keeps people out, is fetched by npm into `build/`.
"""

import json

import pytest
from browser_page import asked_elsewhere, drop, in_a_browser, noise, png, press, shown_best
from npm_package import npm_package

AXE = ('axe-core', '4.14.1')
pytestmark = in_a_browser


def test_all_of_it_goes_by_keyboard(page):
    page.open()
    press(page, 'TAB')
    assert page.run('return document.activeElement.className') == 'skip'
    page.run('document.querySelector(\'.point[tabindex="0"]\').focus()')
    first = page.run('return document.activeElement.dataset.name')
    press(page, 'ARROW_RIGHT', 'ARROW_RIGHT', 'ARROW_LEFT')
    second = page.run('return document.activeElement.dataset.name')
    assert second != first
    assert second in page.text('.tip')
    press(page, 'ENTER')
    assert page.text('#details-title') == second
    assert page.run('return document.activeElement.id') == 'details'
    page.run("document.querySelector('#details .buttons button:last-child').focus()")
    press(page, 'ENTER')  # Close
    assert page.run('return document.activeElement.dataset.name') == second
    page.open('?model=tinyvit_5m_224.in1k')
    page.run("document.querySelector('[role=tab]').focus()")
    press(page, 'ARROW_RIGHT')
    assert page.run('return document.activeElement.ariaSelected') == 'true'
    assert 'transformers' in page.text('#program')
    page.run("document.querySelector('#rows tbody input').focus()")
    press(page, 'SPACE')
    assert 'compare=' in page.driver.current_url


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_axe_finds_nothing_serious(page, scheme):
    axe = npm_package(*AXE)
    if axe is None:
        pytest.skip('npm cannot fetch axe-core')
    page.open(
        '?q=tiny&model=tinyvit_5m_224.dist_in22k_ft_in1k&compare=tinyvit_5m_224.in1k,tinyvit_11m_224.in1k',
        color_scheme=scheme,
    )
    page.click('.samples button')
    shown_best(page)
    page.run((axe / 'axe.min.js').read_text() + '; window.axe = axe')
    rules = dict(runOnly=['color-contrast']) if scheme == 'dark' else {}  # nothing else depends on it
    found = page.driver.execute_async_script('axe.run(arguments[0]).then(arguments[1])', rules)
    assert len(found['passes']) >= (1 if rules else 20)
    serious = [
        (finding['id'], [node['html'][:200] for node in finding['nodes']])
        for finding in found['violations']
        if finding['impact'] in ('serious', 'critical')
    ]
    assert serious == []


def test_it_fits_320_pixels_and_moves_nothing_where_that_is_asked(page):
    page.open('?model=tinyvit_5m_224.in1k&compare=tinyvit_5m_224.in1k', width=320, height=640, reduced_motion='reduce')
    assert page.run('return document.documentElement.scrollWidth - document.documentElement.clientWidth') == 0
    assert page.run('return getComputedStyle(document.documentElement).scrollBehavior') == 'auto'
    last = "return document.querySelector('.explore').lastElementChild.className"
    assert page.run(last) == ''  # the filters follow the plot, in what is seen and for the tabulator key
    captions = (
        "return [...document.querySelectorAll('caption span')].map((words) => words.getBoundingClientRect().right)"
    )
    assert len(page.run(captions)) == 2
    assert max(page.run(captions)) < 320  # read without scrolling a table
    page.open(height=640)
    assert page.run(last) == 'stage'
    assert page.run('return getComputedStyle(document.documentElement).scrollBehavior') == 'smooth'


def test_names_without_an_end_of_their_own_stay_within_320_pixels(page):
    import onnx

    model = onnx.load(page.folder / 'site' / 'trial' / 'model.onnx')
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, metadata | dict(model='m' * 150, labels=json.dumps(['l' * 100] * 12)))
    page.open(width=320, height=640)
    drop(page, ('mine.onnx', '', model.SerializeToString()), ('noise.png', 'image/png', png(noise(1, 40, 40))))
    assert len(shown_best(page)) == 5
    beyond = 'return document.documentElement.scrollWidth - document.documentElement.clientWidth'
    assert page.run(beyond) == 0
    drop(page, ('n' * 150 + '.txt', 'text/plain', b'no image'))
    page.until("return !document.querySelector('#trial .notice').hidden")
    assert page.run(beyond) == 0


def test_on_paper_tables_are_whole_and_controls_are_left_out(page):
    page.open('?compare=tinyvit_5m_224.in1k')
    hidden = "return document.querySelector('#rows').scrollHeight - document.querySelector('#rows').clientHeight"
    assert page.run(hidden) > 1000
    page.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media='print'))
    assert page.run(hidden) == 0
    heights = "return ['#filters', '#csv', '#try'].map((id) => document.querySelector(id).offsetHeight)"
    assert page.run(heights) == [0, 0, 0]
    page.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media=''))


def test_whatever_is_used_has_a_name_for_screen_readers(page):
    page.open('?model=tinyvit_5m_224.in1k&compare=tinyvit_5m_224.in1k')
    page.click('.samples button')
    shown_best(page)
    nodes = page.driver.execute_cdp_cmd('Accessibility.getFullAXTree', {})['nodes']
    used = {'button', 'checkbox', 'combobox', 'image', 'link', 'region', 'searchbox', 'tab', 'table'}
    found = [(node['role']['value'], node.get('name', {}).get('value')) for node in nodes if not node['ignored']]
    assert used <= {role for role, _ in found}
    assert [role for role, name in found if role in used and not name] == []


def test_opened_as_a_file_the_page_says_what_it_needs(page):
    page.driver.get((page.folder / 'site' / 'index.html').as_uri())
    page.until("return getComputedStyle(document.querySelector('#waiting')).visibility === 'visible'")
    assert 'python -m http.server' in page.text('#waiting')
    assert any('main.js' in line for line in page.log())


def test_nothing_is_asked_beyond_loopback_and_the_console_stays_empty(page):
    page.open('?x=ms&model=tinyvit_5m_224.in1k')
    page.click('.samples button')
    shown_best(page)
    assert page.log() == []
    page.driver.execute_async_script(
        "addEventListener('securitypolicyviolation', () => setTimeout(arguments[0], 200));"
        "new Image().src = 'http://elsewhere.invalid/'"
    )
    (refused,) = page.log()
    assert 'Content Security Policy' in refused
    assert asked_elsewhere() == []  # not even tried
