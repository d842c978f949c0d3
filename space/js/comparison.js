/** Up to four models side by side. */

import { breakable, el } from './dom.js';
import { digits, valueOf, whom } from './models.js';
import { icon } from './marks.js';
import { MOST_COMPARED } from './view.js';

/** Line -> [column, whether less is better]; null where neither is. */
const LINES = {
  'Top-1 (%)': ['top1', false],
  'Parameters (M)': ['params', true],
  'GMACs': ['gmacs', true],
  'Megabytes': ['megabytes', true],
  'Milliseconds': ['ms', true],
  'Images/s': ['images_per_second', false],
  'Image (pixels)': ['img_size', null],
};

const [HEADINGS, COLUMN] = [8.5, 11]; // widths in rem, the first as in style.css

/** @param {any} context */
export function makeComparison({ zoo, settings, toggleCompared, open }) {
  const box = document.getElementById('comparison');
  const byName = new Map(zoo.models.map((model) => [model.name, model]));
  return (view) => {
    const models = view.compare.map((name) => byName.get(name));
    if (!models.length) {
      box.replaceChildren(el('p', { class: 'hint' }, `Tick up to ${MOST_COMPARED} models in the table to see them side by side.`));
      return;
    }
    const focused = document.activeElement?.dataset?.remove;
    const head = models.map((model) => el(
      'th', { scope: 'col' },
      el('span', { class: 'with-icon' }, icon(model.series, model.more_data), el('button', { type: 'button', class: 'name', onclick: () => open(model.name) }, ...breakable(model.name))),
      el('button', { type: 'button', class: 'remove', 'data-remove': model.name, 'aria-label': `Leave out ${model.name}`, onclick: () => toggleCompared(model.name) }, 'Leave out'),
    ));
    const words = (title, of) => el('tr', {}, el('th', { scope: 'row' }, title), ...models.map((model) => el('td', {}, of(model))));
    const rows = [
      ...Object.entries(LINES).map(([title, [column, less]]) => numbers(title, models.map((model) => valueOf(model, column, view.speed)), less)),
      words('Top-1 by', (model) => (model.top1 ? whom(model.top1) : '')),
      words('Family', (model) => model.series),
      words('Trained', (model) => model.training ?? ''),
      words('License', (model) => model.license.title),
    ];
    const table = el(
      'table', { class: 'compared' },
      el('caption', {}, el('span', {}, `Bold: the best of these. Speed: ${settings.get(view.speed) ?? 'not measured'}.`)),
      el('thead', {}, el('tr', {}, el('td', {}), ...head)),
      el('tbody', {}, ...rows),
    );
    table.style.minWidth = `${HEADINGS + COLUMN * models.length}rem`;
    box.replaceChildren(el('div', { class: 'scroll', role: 'region', 'aria-label': 'Comparison', tabindex: 0 }, table));
    if (focused) document.getElementById('compare').focus();
  };
}

function numbers(title, values, less) {
  const known = values.filter((value) => value !== null);
  const best = less === null || known.length < 2 ? null : Math[less ? 'min' : 'max'](...known);
  const cells = values.map((value) => el('td', { class: 'number' }, value !== null && value === best ? el('strong', {}, format(title, value)) : format(title, value)));
  return el('tr', {}, el('th', { scope: 'row' }, title), ...cells);
}

function format(title, value) {
  if (value === null) return '';
  return title.startsWith('Top-1') || title.startsWith('Image (') ? String(value) : digits(value);
}
