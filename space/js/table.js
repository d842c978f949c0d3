/** The table: the plot as text. */

import { el } from './dom.js';
import { digits, valueOf } from './models.js';
import { icon } from './marks.js';

/** Columns by the names that the address keeps. */
export const COLUMNS = {
  name: 'Model',
  params: 'Params (M)',
  gmacs: 'GMACs',
  megabytes: 'MB',
  img_size: 'Image',
  top1: 'Top-1 (%)',
  ms: 'ms',
  images_per_second: 'Images/s',
  license: 'License',
};

/** @param {any} context */
export function makeTable({ zoo, settings, change, toggleCompared, open }) {
  const headings = Object.fromEntries(Object.keys(COLUMNS).map((column) => [column, el('th', { scope: 'col' })]));
  const caption = el('span', {});
  const body = el('tbody', {});
  let view = null;
  for (const [column, title] of Object.entries(COLUMNS)) {
    headings[column].append(el('button', { type: 'button', class: 'sort', onclick: () => change(sorted(view, column)) }, title, el('span', { class: 'arrow', 'aria-hidden': 'true' })));
    if (column !== 'name' && column !== 'license') headings[column].className = 'number';
  }
  const rows = new Map(zoo.models.map((model) => [model.name, makeRow(model, open, toggleCompared)]));
  const head = el('tr', {}, el('th', { scope: 'col' }, el('span', { class: 'visually-hidden' }, 'Compare')), ...Object.values(headings));
  document.getElementById('rows').append(el('table', { 'aria-describedby': 'table-hint' }, el('caption', {}, caption), el('thead', {}, head), body));

  return (given, models) => {
    view = given;
    const others = models.filter((model) => model.of === 'timm').length;
    caption.textContent = `${models.length} models, ${others} of them timm's. Speed: ${settings.get(view.speed) ?? 'not measured'}. Empty: not published, or not measured.`;
    for (const [column, heading] of Object.entries(headings)) {
      if (column === view.sort) heading.setAttribute('aria-sort', view.up ? 'ascending' : 'descending');
      else heading.removeAttribute('aria-sort');
    }
    const wanted = models.map((model) => rows.get(model.name));
    wanted.forEach(({ show }) => show(view));
    const order = wanted.map(({ row }) => row);
    if (order.length !== body.children.length || order.some((row, i) => row !== body.children[i])) body.replaceChildren(...order);
  };
}

function sorted(view, column) {
  if (view.sort === column) return { up: !view.up };
  return { sort: column, up: ['name', 'license', 'params', 'gmacs', 'megabytes', 'ms', 'img_size'].includes(column) };
}

function makeRow(model, open, toggleCompared) {
  const box = el('input', { type: 'checkbox', 'aria-label': `Compare ${model.name}`, onchange: () => toggleCompared(model.name) });
  const speeds = { ms: el('td', { class: 'number' }), images_per_second: el('td', { class: 'number' }) };
  const top1 = model.top1 ? [String(model.top1.top1), el('small', {}, ` ${model.top1.by}`)] : [];
  const number = (...words) => el('td', { class: 'number' }, ...words);
  const name = el('button', { type: 'button', class: 'name', onclick: () => open(model.name) }, model.name);
  const row = el(
    'tr', { 'data-name': model.name, class: model.of },
    el('td', {}, box),
    el('th', { scope: 'row' }, el('span', { class: 'with-icon' }, icon(model.series, model.more_data), name)),
    number((model.params.value / 1e6).toFixed(2)),
    number(model.gmacs.value.toFixed(2)),
    number(model.megabytes.value.toFixed(1)),
    number(String(model.img_size.value)),
    number(...top1),
    speeds.ms,
    speeds.images_per_second,
    el('td', {}, model.license.title),
  );
  const show = (view) => {
    for (const [column, cell] of Object.entries(speeds)) cell.textContent = digits(valueOf(model, column, view.speed));
    box.checked = view.compare.includes(model.name);
    row.classList.toggle('chosen', view.model === model.name);
  };
  return { row, show };
}
