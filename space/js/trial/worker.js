/** Reads and prepares images and runs models by onnxruntime-web beside the page, which stays awake and can end it. */

import { decode } from './decode.js';
import { normalized, padded, resizedAndCropped } from './preprocess.js';

const RUNTIME = new URL('../../runtime/', import.meta.url);
const THREADS = 1; // more need headers that static hosts do not always send
const LEAST = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0); // the shortest WebAssembly
const INCOMPLETE = 'A part of onnxruntime-web cannot be fetched from this site: try again, or build the page anew with `tinyvit-zoo browser build --npm`.';
const TOO_OLD = 'onnxruntime-web does not start here: the browser may be too old, or a part of runtime/ missing.';

/** The runtime cannot be started. It remembers that, so the next try needs another worker. */
class NotStarted extends Error {}

let ort = null;
const sessions = new Map();

/** The WebAssembly, with a message for each part that arrives. */
async function fetchRuntime() {
  const answer = await fetch(new URL('ort-wasm-simd-threaded.wasm', RUNTIME)).catch(() => null);
  if (!answer?.ok) throw new NotStarted(INCOMPLETE);
  const total = Number(answer.headers.get('Content-Length')) || 0;
  const parts = [];
  let loaded = 0;
  const reader = answer.body.getReader(); // Safari cannot iterate over a stream
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    loaded += value.length;
    postMessage({ type: 'progress', loaded, total });
  }
  return new Blob(parts).arrayBuffer();
}

async function start() {
  if (ort) return;
  try {
    await WebAssembly.compile(LEAST);
  } catch { // not there, or forbidden by the site or by a setting
    throw new NotStarted('WebAssembly, which onnxruntime-web needs, is not allowed here: allow it, or try another browser.');
  }
  const loaded = await import(new URL('ort.wasm.bundle.min.mjs', RUNTIME)).catch(() => { throw new NotStarted(INCOMPLETE); });
  loaded.env.wasm.numThreads = THREADS;
  loaded.env.wasm.wasmPaths = RUNTIME.href;
  loaded.env.wasm.wasmBinary = await fetchRuntime();
  ort = loaded;
}

const ACTIONS = {
  /** The pixels of a file. */
  async decode({ file }) {
    const image = await decode(file);
    return { image, given: [image.data.buffer] };
  },
  /** What a classifier sees. */
  async prepare({ image, config }) {
    const seen = resizedAndCropped(image, config);
    return { seen, values: normalized(seen, config) };
  },
  /** What Segment Anything sees. */
  async fit({ image, config, fitted, size }) {
    return { values: padded(image, config, fitted, size) };
  },
  /** Make a session of a file, under a name. */
  async load({ name, model }) {
    await start();
    await sessions.get(name)?.release();
    sessions.delete(name);
    try {
      sessions.set(name, await ort.InferenceSession.create(new Uint8Array(model), { graphOptimizationLevel: 'all' }));
    } catch (error) {
      const words = error?.message ?? String(error); // WebAssembly may throw a number
      if (words.includes('no available backend')) throw new NotStarted(TOO_OLD);
      throw new Error(`onnxruntime-web cannot read this file, which may be damaged: ${words}`);
    }
    return {};
  },
  /** Run a session; inputs and outputs are {data, dims}, in float32. */
  async run({ name, inputs }) {
    const feeds = Object.fromEntries(Object.entries(inputs).map(([key, { data, dims }]) => [key, new ort.Tensor('float32', data, dims)]));
    const begin = performance.now();
    let outputs = null;
    try {
      outputs = await sessions.get(name).run(feeds);
    } catch (error) {
      throw new Error(`onnxruntime-web cannot run this file: ${error.message}`);
    }
    const ms = performance.now() - begin;
    return { ms, outputs: Object.fromEntries(Object.entries(outputs).map(([key, { data, dims }]) => [key, { data, dims }])) };
  },
};

let last = Promise.resolve();

/** One after the other: a file must not be made ready twice at once. */
onmessage = ({ data }) => { last = last.then(() => answer(data)); };

async function answer({ id, action, ...values }) {
  try {
    const { given = [], ...found } = await ACTIONS[action](values); // what is given away is not copied
    postMessage({ type: 'done', id, ...found }, given);
  } catch (error) {
    postMessage({ type: error instanceof NotStarted ? 'ended' : 'failed', id, message: error.message });
  }
}
