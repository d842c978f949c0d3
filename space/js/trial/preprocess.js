/** From an image to what a model takes, as timm's transform for evaluation does it. */

import { FILTERS, resize } from './resize.js';

/** @typedef {import('./resize.js').Pixels} Pixels */

/**
 * @typedef {object} Preprocessing timm's data config, as our exported files hold it.
 * @property {[number, number, number]} input_size Channels, height, width.
 * @property {string} interpolation
 * @property {number[]} mean
 * @property {number[]} std
 * @property {number} crop_pct
 * @property {string} crop_mode
 */

/**
 * The data config in the metadata of a file.
 * @param {Record<string, string>} metadata
 * @returns {Preprocessing}
 * @throws {Error} If there is none, or this page cannot follow it.
 */
export function readPreprocessing(metadata) {
  if (!metadata.preprocessing) {
    throw new Error('This file does not say how images are prepared: `tinyvit-zoo export` writes files that do.');
  }
  const config = JSON.parse(metadata.preprocessing);
  if (config.input_size[0] !== 3) throw new Error(`This model takes ${config.input_size[0]} channels, and images have three.`);
  if (!(config.interpolation in FILTERS)) throw new Error(`This page cannot resize by '${config.interpolation}', only ${Object.keys(FILTERS).join(' and ')}.`);
  if (!['center', 'squash'].includes(config.crop_mode)) throw new Error(`This page cannot crop by '${config.crop_mode}', only center and squash.`);
  return config;
}

/**
 * The square, or rectangle, that a model sees.
 * @param {Pixels} image
 * @param {Preprocessing} config
 * @returns {Pixels}
 */
export function resizedAndCropped(image, config) {
  const [, height, width] = config.input_size;
  const [high, wide] = scaledSize(image, [Math.floor(height / config.crop_pct), Math.floor(width / config.crop_pct)], config.crop_mode);
  return centerCrop(resize(image, wide, high, config.interpolation), height, width);
}

/**
 * @param {Pixels} pixels
 * @param {Preprocessing} config
 * @returns {Float32Array} (1, 3, height, width), normalized.
 */
export function normalized(pixels, config) {
  const count = pixels.width * pixels.height;
  const values = new Float32Array(3 * count);
  for (let channel = 0; channel < 3; channel++) {
    const [mean, std] = [Math.fround(config.mean[channel]), Math.fround(config.std[channel])];
    for (let i = 0; i < count; i++) {
      const level = Math.fround(pixels.data[3 * i + channel] / 255);
      values[channel * count + i] = Math.fround(level - mean) / std;
    }
  }
  return values;
}

/** Height and width before the crop. */
function scaledSize(image, [high, wide], mode) {
  if (mode === 'squash') return [high, wide];
  if (high === wide) { // torchvision: the short side exactly, the other cut off to whole pixels
    const long = Math.trunc((high * Math.max(image.width, image.height)) / Math.min(image.width, image.height));
    return image.width <= image.height ? [long, high] : [high, long];
  }
  const ratio = Math.min(image.height / high, image.width / wide);
  return [halfToEven(image.height / ratio), halfToEven(image.width / ratio)];
}

function centerCrop(image, height, width) {
  const top = halfToEven((image.height - height) / 2);
  const left = halfToEven((image.width - width) / 2);
  if (top === 0 && left === 0 && image.height === height && image.width === width) return image;
  const data = new Uint8Array(width * height * 3);
  for (let row = 0; row < height; row++) {
    const start = ((row + top) * image.width + left) * 3;
    data.set(image.data.subarray(start, start + width * 3), row * width * 3);
  }
  return { width, height, data };
}

/** As Python rounds. */
function halfToEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return rest < 0.5 ? below : below + 1;
  return below % 2 === 0 ? below : below + 1;
}
