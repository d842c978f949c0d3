/** The form that says which models are shown. */

import { el } from './dom.js';
import { DEFAULTS } from './view.js';
import { TASKS } from './models.js';
import { icon } from './marks.js';

export const LIMITS = [6, 12, 25, 50, 100]; // millions of parameters

/** @param {any} context */
export function makeFilters({ zoo, change }) {
  const form = document.getElementById('filters');
  const ours = zoo.models.filter((model) => model.of === 'zoo');
  const selects = {
    task: choice('Task', Object.entries(TASKS)),
    method: choice('Method', options(ours, (model) => model.method)),
    license: choice('License', options(zoo.models, (model) => model.license.id, (model) => model.license.title)),
    upto: choice('Size', LIMITS.map((limit) => [String(limit), `up to ${limit} M parameters`])),
    side: choice('Image', options(zoo.models, (model) => String(model.img_size.value), (model) => `${model.img_size.value} pixels`)),
  };
  const text = el('input', { type: 'search', id: 'filter-q', autocomplete: 'off', spellcheck: 'false' });
  const boxes = zoo.families.map((family) => el('input', { type: 'checkbox', value: family.id, name: 'family' }));
  const count = el('output', { class: 'count', 'aria-live': 'polite' });

  text.addEventListener('input', () => change({ q: text.value }));
  for (const [key, [, select]] of Object.entries(selects)) {
    select.id = `filter-${key}`;
    select.addEventListener('change', () => change({ [key]: select.value }));
  }
  for (const box of boxes) {
    box.addEventListener('change', () => change({ family: boxes.filter((one) => one.checked).map((one) => one.value) }));
  }
  form.addEventListener('submit', (event) => event.preventDefault());
  const { q, family, task, license, method, side, upto } = DEFAULTS;
  form.append(
    field('Name', text),
    el('fieldset', {}, el('legend', {}, 'Family'), ...zoo.families.map((one, i) => el('label', { class: 'check' }, boxes[i], icon(one.title), one.title))),
    ...Object.values(selects).map(([title, select]) => field(title, select)),
    el('div', { class: 'below' }, count, el('button', { type: 'button', onclick: () => change({ q, family, task, license, method, side, upto }) }, 'Show all')),
  );

  followPlot(form);
  return (view, models) => {
    if (text.value !== view.q) text.value = view.q;
    for (const box of boxes) box.checked = view.family.includes(box.value);
    for (const [key, [, select]] of Object.entries(selects)) select.value = view[key];
    const zoos = models.filter((model) => model.of === 'zoo').length;
    count.textContent = `${zoos} of ${ours.length} models`;
  };
}

/** On a narrow page the plot comes first. What the tabulator key reaches follows the order of the elements. */
function followPlot(form) {
  const narrow = matchMedia('(max-width: 60rem)'); // as in style.css
  const place = () => form.parentElement[narrow.matches ? 'append' : 'prepend'](form);
  narrow.addEventListener('change', place);
  place();
}

function field(title, input) {
  return el('div', { class: 'field' }, el('label', { for: input.id }, title), input);
}

/** A select with 'All' in front, and its title. */
function choice(title, pairs) {
  return [title, el('select', {}, ...[['', 'All'], ...pairs].map(([value, words]) => el('option', { value }, words)))];
}

/** The different values of models as options, in their order. */
function options(models, value, words = value) {
  const found = new Map(models.map((model) => [value(model), words(model)]));
  const numeric = [...found.keys()].every((key) => key !== '' && !Number.isNaN(Number(key)));
  return [...found].sort(([a], [b]) => (numeric ? Number(a) - Number(b) : String(a).localeCompare(String(b))));
}
