/** The controls above the plot. */

import { el } from './dom.js';
import { AXES } from './models.js';

/** @param {any} context */
export function makeAxes({ settings, change }) {
  const bar = document.getElementById('axes');
  const axis = select('axis', Object.entries(AXES).map(([key, { label }]) => [key, label]));
  const scale = select('scale', [['log', 'Logarithmic'], ['linear', 'Linear']]);
  const speed = select('speed', [...settings]);
  const timm = el('input', { type: 'checkbox', id: 'timm' });
  axis.addEventListener('change', () => change({ x: axis.value }));
  scale.addEventListener('change', () => change({ scale: scale.value }));
  speed.addEventListener('change', () => change({ speed: speed.value }));
  timm.addEventListener('change', () => change({ timm: timm.checked }));
  bar.append(
    labelled('Top-1 over', axis),
    labelled('Scale', scale),
    labelled('Speed measured on', speed),
    el('label', { class: 'check', for: 'timm' }, timm, "timm's models"),
  );
  return (view) => {
    axis.value = view.x;
    scale.value = view.scale;
    speed.value = view.speed;
    timm.checked = view.timm;
  };
}

function select(id, pairs) {
  return el('select', { id }, ...pairs.map(([value, words]) => el('option', { value }, words)));
}

function labelled(title, input) {
  return el('div', { class: 'field' }, el('label', { for: input.id }, title), input);
}
