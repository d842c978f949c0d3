/** The page: reads zoo.json and the address, and shows again what a change of the view changes. */

import { announce, el, link } from './dom.js';
import { DEFAULTS, MOST_COMPARED, readView, writeView } from './view.js';
import { AXES, TASKS, shown, speedSettings } from './models.js';
import { makeAxes } from './axes.js';
import { makeComparison } from './comparison.js';
import { saveCsv } from './csv.js';
import { makeDetails } from './details.js';
import { LIMITS, makeFilters } from './filters.js';
import { makePlot } from './plot.js';
import { COLUMNS, makeTable } from './table.js';
import { makeTrial } from './trial/panel.js';

/** @typedef {import('./view.js').View} View */

const FORMAT = 1; // of zoo.json

/** @returns {Promise<any>} */
async function readZoo() {
  const answer = await fetch('zoo.json').catch(() => null);
  if (!answer) throw new Error('zoo.json cannot be fetched from this site: load the page anew.');
  if (!answer.ok) throw new Error(`zoo.json is missing (${answer.status}): \`tinyvit-zoo browser build\` makes it.`);
  const zoo = await answer.json().catch(() => null);
  if (zoo?.format !== FORMAT) throw new Error('zoo.json is damaged, or of another version than this page: `tinyvit-zoo browser build` makes both.');
  return zoo;
}

function showSources(zoo) {
  const items = Object.values(zoo.sources).map((source) => el('li', {}, ...(source.url ? [link(source.url, source.text), el('small', {}, ` ${place(source.url)}`)] : [source.text])));
  document.getElementById('sources').append(...items);
  document.getElementById('version').textContent = `tinyvit-zoo ${zoo.version}`;
}

/** Where an address leads, short: several papers have a Table 1. */
function place(address) {
  const { host, pathname } = new URL(address);
  const parts = pathname.split('/').filter(Boolean);
  return host === 'github.com' ? parts.slice(0, 2).join('/') : `${host}/${parts.join('/')}`;
}

function start(zoo) {
  const settings = speedSettings(zoo.models);
  const names = new Set(zoo.models.map((model) => model.name));
  const families = new Set(zoo.families.map((family) => family.id));
  const known = {
    x: Object.keys(AXES),
    scale: ['log', 'linear'],
    task: Object.keys(TASKS),
    license: zoo.models.map((model) => model.license.id),
    method: zoo.models.map((model) => model.method),
    side: zoo.models.map((model) => String(model.img_size.value)),
    upto: LIMITS.map(String),
    sort: Object.keys(COLUMNS),
  };
  let view = settled(readView(location.search));
  let opener = null; // what had the focus when the details were opened
  const full = document.getElementById('full');

  /** @param {View} given @returns {View} With names and settings that exist. */
  function settled(given) {
    const others = Object.entries(known).filter(([key, values]) => !values.includes(given[key]));
    return {
      ...given,
      ...Object.fromEntries(others.map(([key]) => [key, DEFAULTS[key]])),
      family: given.family.filter((family) => families.has(family)),
      speed: settings.has(given.speed) ? given.speed : (settings.keys().next().value ?? ''),
      compare: [...new Set(given.compare)].filter((name) => names.has(name)).slice(0, MOST_COMPARED),
      model: names.has(given.model) ? given.model : '',
    };
  }

  /** @param {Partial<View>} changes A model that is opened is a new entry of the history: Back closes it. */
  function change(changes) {
    const opens = Boolean(changes.model) && changes.model !== view.model;
    view = { ...view, ...changes };
    const usual = view.speed === settings.keys().next().value ? { speed: '' } : {};
    const address = new URL(location.href);
    address.search = writeView({ ...view, ...usual });
    try {
      if (opens) history.pushState(null, '', address);
      else history.replaceState(null, '', address);
    } catch { // browsers allow so many in a time: the page goes on, the address follows at the next change
    }
    render();
  }

  /** @param {string} name */
  function toggleCompared(name) {
    const chosen = view.compare.includes(name) ? view.compare.filter((one) => one !== name) : [...view.compare, name];
    if (chosen.length > MOST_COMPARED) {
      render(); // takes the tick back
      full.hidden = false;
      full.scrollIntoView({ block: 'nearest' }); // from the details it is out of sight
      announce(full.textContent);
      return;
    }
    change({ compare: chosen });
  }

  /** @param {string} name */
  function open(name) {
    opener = document.activeElement;
    change({ model: name });
    const details = document.getElementById('details');
    details.focus({ preventScroll: true });
    details.scrollIntoView({ block: 'start' });
  }

  /** Close the details. The focus goes back to where they were opened. */
  function close() {
    const point = `.point[data-name="${CSS.escape(view.model)}"]`;
    change({ model: '' });
    const back = opener?.isConnected && opener !== document.body ? opener : document.querySelector(point);
    (back ?? document.getElementById('table')).focus();
  }

  const context = { zoo, settings, change, toggleCompared, open, close };
  const parts = [makeFilters, makeAxes, makePlot, makeTable, makeDetails, makeComparison].map((make) => make(context));
  function render() {
    const models = shown(zoo.models, view);
    for (const part of parts) part(view, models);
    full.hidden = true;
  }

  document.getElementById('csv').addEventListener('click', () => saveCsv(shown(zoo.models, view), view, zoo.sources));
  addEventListener('popstate', () => {
    view = settled(readView(location.search));
    render();
  });
  showSources(zoo);
  makeTrial(zoo.trial);
  render();
  document.documentElement.dataset.ready = 'true';
}

document.getElementById('waiting').remove();
readZoo().then(start).catch((error) => {
  const notice = document.getElementById('failure');
  notice.textContent = error.message;
  notice.hidden = false;
});

