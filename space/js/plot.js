/** The scatter plot: top-1 over a cost, the front of the best drawn. */

import { el, svg } from './dom.js';
import { AXES, digits, front, speedTitle, measured, valueOf, whom } from './models.js';
import { icon, isOfZoo, mark, seriesNames } from './marks.js';
import { RING, placeLabels } from './labels.js';
import { linear, logarithmic } from './scales.js';

const MARGIN = { left: 56, right: 18, top: 18, bottom: 46 };
const WIDE = 560; // pixels that leave room for how speed was measured
const KEYS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/** @param {any} context */
export function makePlot({ settings, open }) {
  const box = document.getElementById('plot');
  const legend = document.getElementById('legend');
  const tip = el('div', { class: 'tip', hidden: true });
  let last = null;
  let current = ''; // name of the point that the tabulator key reaches

  function draw() {
    const { view, models } = last;
    const points = pointsOf(models, view);
    const focused = box.contains(document.activeElement) && document.activeElement.dataset.name;
    const size = { width: box.clientWidth, height: Math.round(Math.min(520, Math.max(300, box.clientWidth * 0.62))) };
    tip.hidden = true;
    if (!points.length) {
      const missing = view.x === 'ms' ? 'a top-1 and a time measured so' : 'a top-1';
      box.replaceChildren(el('p', { class: 'empty' }, models.length ? `No model that passes the filters has ${missing}.` : 'No model passes the filters.'));
      return;
    }
    if (!points.some((point) => point.model.name === current)) current = points[0].model.name;
    box.replaceChildren(picture(points, view, size), tip);
    if (focused) box.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus();
  }

  function picture(points, view, { width, height }) {
    const across = [MARGIN.left, width - MARGIN.right];
    const upwards = [height - MARGIN.bottom, MARGIN.top];
    const x = (view.scale === 'linear' ? linear : logarithmic)(points.map((p) => p.x), across, true);
    const y = linear(points.map((p) => p.y), upwards);
    for (const point of points) Object.assign(point, { px: x.at(point.x), py: y.at(point.y) });
    const best = front(points);
    const title = `Top-1 on ImageNet-1k over ${AXES[view.x].title}, ${points.length} models. Arrow keys move between models, Enter opens one.`;
    const axisTitle = view.x === 'ms' && width > WIDE ? `${AXES.ms.title}: ${settings.get(view.speed)}` : AXES[view.x].title;
    const order = [...points.filter((p) => p.model.of === 'timm'), ...points.filter((p) => p.model.of === 'zoo')];
    const marks = svg('g', {}, ...order.map((point) => button(point, view)));
    marks.addEventListener('keydown', (event) => move(event, points));
    return svg(
      'svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'group', 'aria-label': title },
      grid(x, y, axisTitle, width, height),
      svg('path', { class: 'front', d: steps(best) }),
      svg('g', { class: 'labels', 'aria-hidden': 'true' }, ...placeLabels(best, points, (point) => isChosen(point.model, view), { left: MARGIN.left, right: width - 4, top: 2, bottom: upwards[0] })),
      marks,
    );
  }

  function button(point, view) {
    const { model } = point;
    const words = sentence(point, view);
    const node = svg(
      'g', {
        class: 'point', role: 'button', tabindex: model.name === current ? 0 : -1, 'aria-label': words, 'data-name': model.name,
        onclick: () => open(model.name),
        onpointerenter: () => show(point, view),
        onpointerleave: () => { tip.hidden = true; },
        onfocus: () => { current = model.name; show(point, view); },
        onblur: () => { tip.hidden = true; },
      },
      svg('circle', { class: 'target', cx: point.px, cy: point.py, r: RING }),
      mark(model.series, { x: point.px, y: point.py, radius: model.of === 'zoo' ? 5.5 : 4, hollow: model.more_data }),
    );
    if (isChosen(model, view)) node.classList.add('chosen');
    return node;
  }

  function move(event, points) {
    const { name } = event.target.dataset;
    if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      open(name);
    } else if (event.key === 'Escape') {
      tip.hidden = true;
    } else if (event.key in KEYS) {
      event.preventDefault();
      const order = [...points].sort((a, b) => a.x - b.x || a.y - b.y);
      const next = order[(order.findIndex((p) => p.model.name === name) + KEYS[event.key] + order.length) % order.length];
      event.target.setAttribute('tabindex', '-1');
      const node = box.querySelector(`[data-name="${CSS.escape(next.model.name)}"]`);
      node.setAttribute('tabindex', '0');
      node.focus();
    }
  }

  function show(point, view) {
    const { model } = point;
    tip.replaceChildren(
      el('strong', {}, model.name),
      el('span', {}, `${point.y} % (${whom(model.top1)}), ${model.img_size.value} pixels`),
      el('span', {}, `${digits(point.x)} ${AXES[view.x].short}`),
    );
    tip.hidden = false;
    const left = Math.min(Math.max(point.px - tip.offsetWidth / 2, 0), box.clientWidth - tip.offsetWidth);
    const above = point.py - tip.offsetHeight - 14;
    tip.style.left = `${left}px`;
    tip.style.top = `${above < 0 ? point.py + 14 : above}px`;
  }

  drawLegend(legend);
  new ResizeObserver(() => last && draw()).observe(box);
  return (view, models) => {
    last = { view, models };
    draw();
  };
}

/** Whether a model has a ring around its mark. */
function isChosen(model, view) {
  return view.model === model.name || view.compare.includes(model.name);
}

/** Models with both values. */
function pointsOf(models, view) {
  return models
    .map((model) => ({ model, x: valueOf(model, view.x, view.speed), y: valueOf(model, 'top1', view.speed) }))
    .filter((point) => point.x !== null && point.y !== null);
}

function sentence({ model, x, y }, view) {
  const where = view.x === 'ms' ? ` (${speedTitle(measured(model, view.speed))})` : '';
  return `${model.name}: top-1 ${y} %, ${digits(x)} ${AXES[view.x].short}${where}`;
}

function grid(x, y, title, width, height) {
  const bottom = height - MARGIN.bottom;
  const lines = y.ticks.filter((tick) => y.at(tick) >= MARGIN.top - 1 && y.at(tick) <= bottom + 1).flatMap((tick) => [
    svg('line', { x1: MARGIN.left, x2: width - MARGIN.right, y1: y.at(tick), y2: y.at(tick) }),
    svg('text', { x: MARGIN.left - 8, y: y.at(tick) + 4, 'text-anchor': 'end' }, String(tick)),
  ]);
  const room = x.ticks.length > 1 ? Math.abs(x.at(x.ticks[1]) - x.at(x.ticks[0])) : Infinity;
  const ticks = x.ticks.filter((tick, i) => room > 26 || String(tick).startsWith('1') || i === 0);
  const marks = ticks.filter((tick) => x.at(tick) <= width - MARGIN.right + 1).flatMap((tick) => [
    svg('line', { x1: x.at(tick), x2: x.at(tick), y1: MARGIN.top, y2: bottom }),
    svg('text', { x: x.at(tick), y: bottom + 18, 'text-anchor': 'middle' }, String(tick)),
  ]);
  const middle = (MARGIN.left + width - MARGIN.right) / 2;
  return svg(
    'g', { class: 'grid', 'aria-hidden': 'true' }, ...lines, ...marks,
    svg('text', { class: 'title', x: middle, y: height - 8, 'text-anchor': 'middle' }, title),
    svg('text', { class: 'title', transform: `translate(12 ${(MARGIN.top + bottom) / 2}) rotate(-90)`, 'text-anchor': 'middle' }, 'ImageNet-1k top-1, %'),
  );
}

/** The front as steps: the best top-1 at a cost or less. */
function steps(best) {
  return best.map((p, i) => (i ? `H${p.px.toFixed(1)}V${p.py.toFixed(1)}` : `M${p.px.toFixed(1)} ${p.py.toFixed(1)}`)).join('');
}

function drawLegend(box) {
  const item = (image, words) => el('li', {}, image, words);
  const series = (zoo) => seriesNames().filter((name) => isOfZoo(name) === zoo).map((name) => item(icon(name), name));
  box.append(
    el('ul', { 'aria-label': 'Families of the zoo' }, ...series(true)),
    el('ul', { 'aria-label': 'Models of timm' }, el('li', {}, 'timm:'), ...series(false)),
    el('ul', {}, item(icon('TinyViT', true), 'hollow: more data than ImageNet-1k'), el('li', {}, el('span', { class: 'front-key', 'aria-hidden': 'true' }), 'best at its cost or less')),
  );
}
