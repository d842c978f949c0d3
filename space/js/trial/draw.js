/** The answer of a model beside what it saw. */

import { el } from '../dom.js';

/**
 * @param {import('./trial.js').Answer} answer
 * @param {import('./trial.js').Classifier} model
 * @returns {HTMLElement[]}
 */
export function draw(answer, model) {
  const time = el('p', { class: 'hint' }, `${answer.ms.toFixed(0)} ms in this browser, one thread.`);
  const seen = el('figure', {}, canvasOf(answer.seen), el('figcaption', {}, 'What the model saw'));
  if (!model.labels.length) return [seen, el('div', {}, el('p', {}, `${answer.values.length} features, from ${Math.min(...answer.values).toFixed(3)} to ${Math.max(...answer.values).toFixed(3)}.`), time)];
  const rows = answer.best.map(({ label, probability }) => {
    const bar = el('span', { class: 'bar', 'aria-hidden': 'true' });
    bar.style.width = `${100 * probability}%`;
    return el('li', {}, el('span', { class: 'label' }, label), el('span', { class: 'percent' }, `${(100 * probability).toFixed(1)} %`), el('span', { class: 'track' }, bar));
  });
  return [seen, el('div', {}, el('ol', { class: 'best', 'aria-label': 'Most probable classes' }, ...rows), time)];
}

/** @param {import('./resize.js').Pixels} pixels */
function canvasOf(pixels) {
  const { width, height } = pixels;
  const canvas = el('canvas', { width, height, role: 'img', 'aria-label': 'The image as resized and cropped' });
  canvas.getContext('2d').putImageData(toImageData(pixels), 0, 0);
  return canvas;
}

/**
 * @param {import('./resize.js').Pixels} pixels
 * @returns {ImageData}
 */
export function toImageData({ width, height, data }) {
  const image = new ImageData(width, height);
  for (let i = 0, j = 0; i < data.length; i += 3, j += 4) {
    image.data[j] = data[i];
    image.data[j + 1] = data[i + 1];
    image.data[j + 2] = data[i + 2];
    image.data[j + 3] = 255;
  }
  return image;
}
