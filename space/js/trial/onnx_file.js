/** What an ONNX file says of itself, read without a runtime: a small reader of protocol buffers. */

// Fields of ONNX's ModelProto, GraphProto, ValueInfoProto and StringStringEntryProto.
const GRAPH = 7;
const METADATA = 14;
const INPUT = 11;
const OUTPUT = 12;
const NAME = 1;
const KEY = 1;
const VALUE = 2;

/**
 * @typedef {object} OnnxFile
 * @property {Record<string, string>} metadata
 * @property {string[]} inputs Names.
 * @property {string[]} outputs Names.
 */

/**
 * @param {ArrayBuffer} buffer
 * @returns {OnnxFile}
 * @throws {Error} If it is not an ONNX file.
 */
export function readOnnx(buffer) {
  const file = { metadata: {}, inputs: [], outputs: [] };
  let graph = null;
  try {
    for (const [field, bytes] of messages(new Uint8Array(buffer))) {
      if (field === GRAPH) graph = bytes;
      if (field === METADATA) {
        const entry = new Map(messages(bytes));
        file.metadata[text(entry.get(KEY))] = text(entry.get(VALUE));
      }
    }
    for (const [field, bytes] of messages(graph)) {
      if (field === INPUT) file.inputs.push(text(new Map(messages(bytes)).get(NAME)));
      if (field === OUTPUT) file.outputs.push(text(new Map(messages(bytes)).get(NAME)));
    }
  } catch {
    throw new Error('This is not an ONNX file, or a damaged one.');
  }
  if (!file.inputs.length || !file.outputs.length) throw new Error('This is not an ONNX file, or a damaged one.');
  return file;
}

/** Fields of a message that have a length: their numbers and bytes. Others are passed over. */
function* messages(bytes) {
  let at = 0;
  const varint = () => {
    let [value, factor] = [0, 1];
    for (;;) {
      if (at >= bytes.length || factor > 2 ** 63) throw new RangeError('not a varint');
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
      factor *= 128;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const length = varint();
      if (at + length > bytes.length) throw new RangeError('cut off');
      yield [Math.floor(tag / 8), bytes.subarray(at, at + length)];
      at += length;
    } else throw new RangeError('not a field');
  }
  if (at !== bytes.length) throw new RangeError('cut off');
}

function text(bytes = new Uint8Array()) {
  return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
}
