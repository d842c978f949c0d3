/** Values of models, and which of them a view shows in which order. No page is needed here. */

/** @typedef {import('./view.js').View} View */

/** Axes of the plot, by their names in the address. */
export const AXES = {
  params: { label: 'Parameters', title: 'Parameters (M)', short: 'M parameters' },
  gmacs: { label: 'GMACs', title: 'GMACs of one image', short: 'GMACs' },
  ms: { label: 'Measured time', title: 'Milliseconds', short: 'ms' },
  megabytes: { label: 'Megabytes', title: 'Megabytes of the weights in float32', short: 'MB' },
};

export const TASKS = { classification: 'Classification', features: 'Features alone' };

/**
 * Where and how a speed was measured, as one word of the address.
 * @param {any} row An entry of `measured`.
 */
export function speedKey(row) {
  const words = [row.machine, row.emulated ? 'emulated' : '', row.form, row.batch, row.threads, row.dtype];
  return words.join(' ').toLowerCase().replace(/[^a-z0-9]+/g, '-');
}

/**
 * The same in words, those first that differ most: a narrow list cuts the last ones off.
 * @param {any} row
 */
export function speedTitle(row) {
  const machine = row.machine + (row.emulated ? ' (emulated)' : '');
  const form = row.form === 'deploy' ? 'deploy form' : 'as created';
  return `Batch ${row.batch}, ${form}, ${machine}, ${threads(row)}, ${row.dtype}`;
}

/** @param {any} row */
export function threads(row) {
  return row.threads === 1 ? '1 thread' : `${row.threads} threads`;
}

/**
 * Every setting that speeds were measured with: key -> words; one image of real processors first.
 * @param {any[]} models
 * @returns {Map<string, string>}
 */
export function speedSettings(models) {
  const rows = models.flatMap((model) => model.measured);
  rows.sort((a, b) => a.emulated - b.emulated || a.batch - b.batch || a.form.localeCompare(b.form));
  return new Map(rows.map((row) => [speedKey(row), speedTitle(row)]));
}

/**
 * The number of a model under the name of a column, or null.
 * @param {any} model
 * @param {string} column
 * @param {string} speed
 * @returns {number|string|null}
 */
export function valueOf(model, column, speed) {
  switch (column) {
    case 'params': return model.params.value / 1e6;
    case 'gmacs':
    case 'megabytes':
    case 'img_size': return model[column].value;
    case 'top1': return model.top1 ? model.top1.top1 : null;
    case 'ms':
    case 'images_per_second': return measured(model, speed)?.[column] ?? null;
    case 'license': return model.license.title;
    default: return model[column];
  }
}

/**
 * The row of a model with a setting of speed.
 * @param {any} model
 * @param {string} speed
 */
export function measured(model, speed) {
  return model.measured.find((row) => speedKey(row) === speed);
}

/**
 * The models of a view in its order.
 * @param {any[]} models
 * @param {View} view
 */
export function shown(models, view) {
  const words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
  return models.filter((model) => passes(model, view, words)).sort(byColumn(view));
}

function passes(model, view, words) {
  const text = `${model.name} ${model.series} ${model.training ?? ''}`.toLowerCase();
  if (!words.every((word) => text.includes(word))) return false;
  if (view.license && model.license.id !== view.license) return false;
  if (view.side && model.img_size.value !== Number(view.side)) return false;
  if (view.upto && model.params.value > Number(view.upto) * 1e6) return false;
  if (view.task && model.task !== view.task) return false;
  if (model.of === 'timm') return view.timm; // families and methods are the zoo's
  if (view.family.length && !view.family.includes(model.family)) return false;
  return !view.method || model.method === view.method;
}

function byColumn(view) {
  const sign = view.up ? 1 : -1;
  return (a, b) => {
    const [one, other] = [valueOf(a, view.sort, view.speed), valueOf(b, view.sort, view.speed)];
    if (one === null || other === null) return (one === null) - (other === null) || a.name.localeCompare(b.name);
    const order = typeof one === 'string' ? one.localeCompare(String(other)) : one - Number(other);
    return sign * order || a.name.localeCompare(b.name);
  };
}

/**
 * Points of which no other has a higher value at the same cost or less, by cost.
 * @template {{x: number, y: number}} P
 * @param {P[]} points
 * @returns {P[]}
 */
export function front(points) {
  const best = [];
  for (const point of [...points].sort((a, b) => a.x - b.x || b.y - a.y)) {
    if (!best.length || point.y > best[best.length - 1].y) best.push(point);
  }
  return best;
}

/**
 * A number for people: three digits, or more where they stand before the point.
 * @param {number|null} value
 */
export function digits(value) {
  if (value === null) return '';
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** Who measured an accuracy, in words. */
export function whom(result) {
  return result.by === 'timm' ? "timm's author" : 'the authors';
}
