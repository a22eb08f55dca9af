// @ts-check
// Numbers of a training over its steps, made ready to be drawn: pieces of several jobs as one curve, smoothing, several runs on one axis.

/**
 * @typedef {import("./server.js").Series} Series
 * @typedef {{ steps: number[], low: (number | null)[], high: (number | null)[], mean: (number | null)[] }} Curve
 */

/**
 * The curve of one name over the jobs of a run. Where jobs overlap (a training went on from an older state), the later job counts.
 * @param {Series[]} pieces oldest first
 * @param {string} name
 * @returns {Curve}
 */
export function joined(pieces, name) {
  /** @type {Curve} */
  const curve = { steps: [], low: [], high: [], mean: [] };
  for (const piece of pieces) {
    const buckets = piece.series[name];
    if (!buckets || !piece.steps.length) continue;
    let kept = curve.steps.length;
    while (kept > 0 && curve.steps[kept - 1] >= piece.steps[0]) kept -= 1;
    for (const part of [curve.steps, curve.low, curve.high, curve.mean]) part.length = kept;
    curve.steps.push(...piece.steps);
    curve.low.push(...buckets.low);
    curve.high.push(...buckets.high);
    curve.mean.push(...buckets.mean);
  }
  return curve;
}

/**
 * A running mean that begins at the first value: each value counts `weight` times as much as the one after it.
 * @param {(number | null)[]} values
 * @param {number} weight 0 (none) to below 1
 * @returns {(number | null)[]}
 */
export function smoothed(values, weight) {
  let sum = 0;
  let weights = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    weights = weight * weights + (1 - weight);
    return sum / weights;
  });
}

/**
 * The pieces with what has come since put behind the last of them.
 * @param {Series} piece
 * @param {Series} news
 * @returns {Series}
 */
export function extended(piece, news) {
  const begin = news.steps[0];
  if (begin === undefined) return piece;
  let kept = piece.steps.length;
  while (kept > 0 && piece.steps[kept - 1] >= begin) kept -= 1;
  const all = (/** @type {any[]} */ before, /** @type {any[]} */ after) => [...before.slice(0, kept), ...after];
  /** @type {Series["series"]} */
  const series = {};
  for (const [name, { low, high, mean }] of Object.entries(news.series)) {
    const none = piece.steps.map(() => null);
    const had = piece.series[name] ?? { low: none, high: none, mean: none };
    series[name] = { low: all(had.low, low), high: all(had.high, high), mean: all(had.mean, mean) };
  }
  return { ...piece, last: news.last, steps: all(piece.steps, news.steps), series };
}

/**
 * Curves over one axis of steps: the steps that any of them has, and each curve's values there, undefined where it has no point.
 * @param {Curve[]} curves
 * @param {number[]} weights of the smoothing of each
 * @returns {(number | null | undefined)[][]} steps; then low, high, smoothed of each curve
 */
export function aligned(curves, weights) {
  const steps = curves.length === 1 ? curves[0].steps : [...new Set(curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, index) => [step, index]));
  /** @type {(number | null | undefined)[][]} */
  const columns = [steps];
  for (const [number, curve] of curves.entries()) {
    for (const values of [curve.low, curve.high, smoothed(curve.mean, weights[number])]) {
      const column = new Array(steps.length).fill(undefined);
      curve.steps.forEach((step, index) => (column[/** @type {number} */ (place.get(step))] = values[index]));
      columns.push(column);
    }
  }
  return columns;
}
