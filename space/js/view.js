/** What is shown, as the address of the page keeps it. */

/**
 * @typedef {object} View
 * @property {string} x Axis: params, gmacs, ms or megabytes.
 * @property {string} scale log or linear.
 * @property {string} speed Where and how speed was measured, see `speedKey`.
 * @property {boolean} timm Whether timm's models are shown.
 * @property {string[]} family Families; none means all.
 * @property {string} task
 * @property {string} license
 * @property {string} method
 * @property {string} side Side of the image in pixels.
 * @property {string} upto Largest number of parameters in millions.
 * @property {string} q Words that a name must hold.
 * @property {string} sort Column.
 * @property {boolean} up Whether the smallest value comes first.
 * @property {string[]} compare Names of models.
 * @property {string} model Name of the model whose details are shown.
 */

/** @type {View} */
export const DEFAULTS = Object.freeze({
  x: 'params', scale: 'log', speed: '', timm: true,
  family: [], task: '', license: '', method: '', side: '', upto: '', q: '',
  sort: 'top1', up: false, compare: [], model: '',
});

export const MOST_COMPARED = 4;

/**
 * @param {string} search The query of an address.
 * @returns {View} What it does not say is as usual. Values are as given, known or not.
 */
export function readView(search) {
  const given = new URLSearchParams(search);
  const view = { ...DEFAULTS };
  for (const [key, usual] of Object.entries(DEFAULTS)) {
    const text = given.get(key);
    if (text === null) continue;
    if (Array.isArray(usual)) view[key] = text.split(',').filter(Boolean);
    else if (typeof usual === 'boolean') view[key] = ['0', '1'].includes(text) ? text === '1' : usual;
    else view[key] = text;
  }
  return view;
}

/**
 * @param {View} view
 * @returns {string} The query, with what is not as usual.
 */
export function writeView(view) {
  const parts = new URLSearchParams();
  for (const [key, usual] of Object.entries(DEFAULTS)) {
    const value = view[key];
    const text = Array.isArray(value) ? value.join(',') : typeof value === 'boolean' ? (value ? '1' : '0') : value;
    const asUsual = Array.isArray(usual) ? text === '' : value === usual;
    if (!asUsual) parts.set(key, text);
  }
  const query = parts.toString().replaceAll('%2C', ',');
  return query ? `?${query}` : '';
}
