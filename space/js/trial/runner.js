/** The page's side of the worker: calls that end with an answer, and a stop at any time. */

/** What calls end with whose worker ended before it answered: it was stopped, or could not go on. */
export class Stopped extends Error {}

/** @typedef {{data: Float32Array, dims: readonly number[]}} Tensor */

export class Runner {
  /**
   * @param {(loaded: number, total: number) => void} onProgress Bytes of the runtime that arrived.
   * @param {() => void} onEnd The worker ended, and what it held is gone.
   */
  constructor(onProgress, onEnd = () => {}) {
    this.onProgress = onProgress;
    this.onEnd = onEnd;
    this.worker = null;
    this.waiting = new Map();
    this.count = 0;
  }

  /**
   * Make a file ready under a name.
   * @param {string} name
   * @param {ArrayBuffer} model
   */
  load(name, model) {
    return this.#ask({ action: 'load', name, model });
  }

  /**
   * @param {string} name
   * @param {Record<string, Tensor>} inputs
   * @returns {Promise<{ms: number, outputs: Record<string, Tensor>}>}
   */
  run(name, inputs) {
    return this.#ask({ action: 'run', name, inputs });
  }

  /**
   * The pixels of an image file, see `decode`.
   * @param {Blob} file
   * @returns {Promise<{image: import('./resize.js').Pixels}>}
   */
  decode(file) {
    return this.#ask({ action: 'decode', file });
  }

  /**
   * What a classifier sees of an image, and its normalized pixels.
   * @param {import('./resize.js').Pixels} image
   * @param {import('./preprocess.js').Preprocessing} config
   * @returns {Promise<{seen: import('./resize.js').Pixels, values: Float32Array}>}
   */
  prepare(image, config) {
    return this.#ask({ action: 'prepare', image, config });
  }

  /**
   * What Segment Anything sees, see `padded`.
   * @returns {Promise<{values: Float32Array}>}
   */
  fit(image, config, fitted, size) {
    return this.#ask({ action: 'fit', image, config, fitted, size });
  }

  /**
   * End whatever runs; loaded files are gone with it. The next call begins with another worker.
   * @param {string} [words] Why.
   */
  stop(words = 'Stopped.') {
    this.worker?.terminate();
    this.worker = null;
    for (const { reject } of this.waiting.values()) reject(new Stopped(words));
    this.waiting.clear();
    this.onEnd();
  }

  #ask(message) {
    this.worker ??= this.#start();
    const id = ++this.count;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, ...message });
    });
  }

  #start() {
    const worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
    worker.onmessage = ({ data }) => {
      if (data.type === 'progress') {
        this.onProgress(data.loaded, data.total);
        return;
      }
      if (data.type === 'ended') {
        this.stop(data.message);
        return;
      }
      const { resolve, reject } = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      if (data.type === 'done') resolve(data);
      else reject(new Error(data.message));
    };
    worker.onerror = () => this.stop('A part of this page cannot be fetched: try again, or load the page anew.');
    return worker;
  }
}
