/** The shape of each series, in the plot, the legend and the table. Its color is that of its class in style.css. */

import { svg } from './dom.js';

/** Series of the zoo, then those of timm: name -> [class, path around (0, 0) with a radius of about 1]. */
const MARKS = {
  'TinyViT': ['tinyvit', 'M-1 0a1 1 0 1 0 2 0a1 1 0 1 0 -2 0z'],
  'Mini-DeiT': ['mini-deit', 'M-.88-.88h1.76v1.76h-1.76z'],
  'Mini-Swin': ['mini-swin', 'M0-1.25L1.25 0L0 1.25L-1.25 0z'],
  'TinyMIM': ['tinymim', 'M0-1.15L1.1.8H-1.1z'],
  'MAE-Lite': ['mae-lite', 'M0 1.15L1.1-.8H-1.1z'],
  'CLIP ViT': ['clip', 'M0-1.1L1.05-.34L.65.9H-.65L-1.05-.34z'],
  'ViT, DeiT': ['timm', 'M-.3-1h.6v.7h.7v.6h-.7v.7h-.6v-.7h-.7v-.6h.7z'],
  'Swin': ['timm', 'M0-.42L.6-1.02L1.02-.6L.42 0L1.02.6L.6 1.02L0 .42L-.6 1.02L-1.02.6L-.42 0L-1.02-.6L-.6-1.02z'],
  'ConvNeXt-T': ['timm', 'M-1.1-.45h2.2v.9h-2.2z'],
  'mobile networks': ['timm', 'M-.45-1.1h.9v2.2h-.9z'],
};

/** @returns {string[]} All series in order. */
export const seriesNames = () => Object.keys(MARKS);

/** @param {string} series */
export const isOfZoo = (series) => MARKS[series][0] !== 'timm';

/**
 * The mark of a series at a place.
 * @param {string} series
 * @param {object} [options]
 * @returns {SVGElement}
 */
export function mark(series, { x = 0, y = 0, radius = 5, hollow = false } = {}) {
  const [name, path] = MARKS[series];
  return svg('path', {
    d: path, class: `mark ${name}${hollow ? ' hollow' : ''}`, transform: `translate(${x} ${y}) scale(${radius})`,
  });
}

/**
 * The mark alone, as an image beside its name.
 * @param {string} series
 * @param {boolean} [hollow]
 */
export function icon(series, hollow = false) {
  const image = svg('svg', { class: 'icon', viewBox: '-8 -8 16 16', width: 16, height: 16, 'aria-hidden': 'true' });
  image.append(mark(series, { radius: 5, hollow }));
  return image;
}
