/** All that is known of one model, and programs to copy. */

import { breakable, el, link } from './dom.js';
import { TASKS, digits, threads, whom } from './models.js';
import { icon } from './marks.js';
import { makeSnippets } from './snippets.js';

/** @param {any} context */
export function makeDetails({ zoo, close, toggleCompared }) {
  const section = document.getElementById('details');
  const byName = new Map(zoo.models.map((model) => [model.name, model]));
  let shownName = '';
  let compare = null;
  return (view) => {
    const model = byName.get(view.model);
    section.hidden = !model;
    if (model && view.model !== shownName) {
      compare = el('button', { type: 'button', onclick: () => toggleCompared(model.name) });
      const closing = el('button', { type: 'button', onclick: close }, 'Close');
      section.replaceChildren(...content(model, zoo.sources, [compare, closing]));
    }
    shownName = view.model;
    if (model) compare.textContent = view.compare.includes(model.name) ? 'Leave out of comparison' : 'Compare';
  };
}

function content(model, sources, buttons) {
  const heading = el('h2', { id: 'details-title' }, icon(model.series, model.more_data), el('code', {}, ...breakable(model.name)));
  const parts = [el('div', { class: 'heading' }, heading, el('div', { class: 'buttons' }, ...buttons)), facts(model, sources)];
  if (model.results.length > 1) parts.push(...table('Published accuracy', resultRows(model, sources)));
  if (model.measured.length) parts.push(...table('Speed measured here', speedRows(model)));
  if (model.notes.length) parts.push(el('h3', {}, 'Known quirks'), el('ul', {}, ...model.notes.map((note) => el('li', {}, note))));
  if (model.snippets.length) parts.push(el('h3', { id: 'programs' }, 'Programs'), makeSnippets(model));
  return parts;
}

function facts(model, sources) {
  const source = (key) => (sources[key].url ? link(sources[key].url, sources[key].text) : sources[key].text);
  const { license, weights, paper, top1 } = model;
  const rows = [
    ['Family', model.of === 'zoo' ? [model.series] : [`${model.series}, of timm`]],
    ['Task', [`${TASKS[model.task]}${model.task === 'classification' ? `, ${model.num_classes.value.toLocaleString('en')} classes` : ''}`]],
    model.training && ['Trained', [model.training]],
    ['Image', [`${model.img_size.value} × ${model.img_size.value} pixels`]],
    ['Parameters', [`${model.params.value.toLocaleString('en')}`]],
    ['GMACs', [String(model.gmacs.value)]],
    ['Weights', [`${model.megabytes.value} MB in float32`]],
    ['Top-1 on ImageNet-1k', top1 ? [`${top1.top1} %, measured by ${whom(top1)} (`, source(top1.source), ')'] : ['none published']],
    top1?.protocol && ['Preprocessing', [preprocessing(top1.protocol)]],
    ['License of the weights', [license.title, ...(license.url ? [' (', link(license.url, 'stated here'), ')'] : [])]],
    paper && ['Paper', [link(paper.url, paper.title), `, ${paper.venue}`]],
    ['Released', [where(weights)]],
  ];
  return el('dl', { class: 'facts' }, ...rows.filter(Boolean).flatMap(([name, words]) => [el('dt', {}, name), el('dd', {}, ...words)]));
}

function where({ url, hub, by_hand: byHand }) {
  if (url) return link(url, url.split('/').pop());
  if (byHand) return `${byHand} (with a browser)`;
  return hub ? `${hub} on the Hub` : 'not known';
}

function preprocessing(protocol) {
  return `${protocol.img_size} pixels, crop ${protocol.crop_pct} (${protocol.crop_mode}), ${protocol.interpolation}`;
}

function resultRows(model, sources) {
  const rows = model.results.map((result) => [
    result.dataset, String(result.top1), result.top5 === null ? '' : String(result.top5),
    result.protocol ? preprocessing(result.protocol) : '', whom(result),
    sources[result.source].url ? link(sources[result.source].url, sources[result.source].text) : sources[result.source].text,
  ]);
  return [['Data', 'Top-1 (%)', 'Top-5 (%)', 'Preprocessing', 'Measured by', 'Source'], ...rows];
}

function speedRows(model) {
  const rows = model.measured.map((row) => [
    `${row.machine}${row.emulated ? ' (emulated)' : ''}`, threads(row), row.dtype, String(row.batch), row.form,
    digits(row.ms), digits(row.images_per_second), el('time', {}, row.date),
  ]);
  return [['Machine', 'Threads', 'Type', 'Batch', 'Form', 'ms', 'Images/s', 'Date'], ...rows];
}

function table(title, [headings, ...rows]) {
  return [
    el('h3', {}, title),
    el('div', { class: 'scroll', role: 'region', 'aria-label': title, tabindex: 0 }, el(
      'table', { 'aria-label': title },
      el('thead', {}, el('tr', {}, ...headings.map((words) => el('th', { scope: 'col' }, words)))),
      el('tbody', {}, ...rows.map((row) => el('tr', {}, ...row.map((words) => el('td', {}, words))))),
    )),
  ];
}
