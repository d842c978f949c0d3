/** From an image to what a model takes, as timm's transform for evaluation does it. */

import { FILTERS, resize } from './resize.js';

/** @typedef {import('./resize.js').Pixels} Pixels */

const DAMAGED = 'What this file says of itself is damaged: export it anew.';

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
  const config = parsed(metadata.preprocessing);
  if (![config?.input_size, config?.mean, config?.std].every(Array.isArray)) throw new Error(DAMAGED);
  if (config.input_size[0] !== 3) throw new Error(`This model takes ${config.input_size[0]} channels, and images have three.`);
  if (!(config.interpolation in FILTERS)) throw new Error(`This page cannot resize by '${config.interpolation}', only ${Object.keys(FILTERS).join(' and ')}.`);
  if (!['center', 'squash'].includes(config.crop_mode)) throw new Error(`This page cannot crop by '${config.crop_mode}', only center and squash.`);
  return config;
}

/**
 * A text of the metadata that should be JSON.
 * @param {string} text
 * @throws {Error} If it is not.
 */
export function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error(DAMAGED);
  }
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

/**
 * Height and width of an image in the upper left corner of what Segment Anything takes.
 * @param {Pixels} image
 * @param {[number, number]} size Height and width of the model.
 * @returns {[number, number]}
 */
export function fittedSize({ height, width }, size) {
  const scaled = (scale) => [height, width].map((side) => Math.max(1, Math.trunc(side * scale + 0.5)));
  const found = scaled(Math.max(...size) / Math.max(height, width));
  return found[0] > size[0] || found[1] > size[1] ? scaled(Math.min(size[0] / height, size[1] / width)) : found;
}

/**
 * What Segment Anything takes: normalized pixels in the upper left corner, zeros around them.
 * @param {Pixels} image
 * @param {Preprocessing} config
 * @param {[number, number]} fitted Height and width of the resized image.
 * @param {[number, number]} size Height and width of the result.
 * @returns {Float32Array} (1, 3, height, width)
 */
export function padded(image, config, fitted, [height, width]) {
  const values = normalized(resize(image, fitted[1], fitted[0], config.interpolation), config);
  const whole = new Float32Array(3 * height * width);
  for (let channel = 0; channel < 3; channel++) {
    for (let row = 0; row < fitted[0]; row++) {
      const start = (channel * fitted[0] + row) * fitted[1];
      whole.set(values.subarray(start, start + fitted[1]), (channel * height + row) * width);
    }
  }
  return whole;
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
