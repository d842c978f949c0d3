/** Small helpers to make elements. Text is always set as text, never parsed as HTML. */

const SVG = 'http://www.w3.org/2000/svg';

/**
 * @param {string} tag
 * @param {Record<string, any>} [attributes] `on...` are listeners, `class` and the rest are attributes; null leaves out.
 * @param {...(Node|string|null|undefined)} children
 * @returns {HTMLElement}
 */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/**
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node|string|null|undefined)} children
 * @returns {SVGElement}
 */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * A link to another page, which opens in its own tab. An address of another kind, such as `javascript:`, is no link.
 * @param {string} href
 * @param {string} text
 */
export function link(href, text) {
  if (!href.startsWith('https://')) return el('span', {}, text);
  return el('a', { href, target: '_blank', rel: 'noopener noreferrer' }, text);
}

/**
 * A name that may be broken after its dots and underscores, and nowhere else.
 * @param {string} name
 * @returns {(string|HTMLElement)[]}
 */
export function breakable(name) {
  return name.split(/(?<=[._])/).flatMap((part, i) => (i ? [el('wbr'), part] : [part]));
}

/**
 * Say something to screen readers, and nothing else.
 * @param {string} text
 */
export function announce(text) {
  document.getElementById('status').textContent = text;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
