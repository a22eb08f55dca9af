// @ts-check
// A chart of curves over steps: their extremes faint, their running mean strong, saves and samples marked; what is measured now and then
// dashed, with a dot for each time, as it is. Drag to zoom, double click or
// Escape to see all; arrow keys move over the values, which are said in words below.
import uPlot from "../vendor/uplot.js";
import { element } from "./element.js";
import { aligned } from "./curves.js";
import { count, number, say } from "./words.js";

/**
 * @typedef {import("./curves.js").Curve} Curve
 * @typedef {{ label: string, curve: Curve, of?: number }} Line of: it is measured now and then, and has the colour of that line
 * @typedef {{ step: number, kind: "save" | "sample" }} Mark
 */

export const COLOURS = ["#3b8eea", "#e07b39", "#35a869", "#b565d8", "#c79a1b", "#dd5577"];
const SYNC = "musubi-trainings";

/** A colour of ComfyUI's theme. @param {string} name @param {string} otherwise */
const themed = (name, otherwise) => getComputedStyle(document.body).getPropertyValue(name).trim() || otherwise;

/** @param {string} colour #rrggbb @param {number} opacity */
const faint = (colour, opacity) => colour + Math.round(opacity * 255).toString(16).padStart(2, "0");

export class Chart {
  /**
   * @param {{ title: string, height: number, log?: boolean, bare?: boolean, format?: (value: number | null | undefined) => string }} look
   *   bare: without axes' names, values and keys, for a small place
   */
  constructor({ title, height, log = false, bare = false, format = number }) {
    this.title = title;
    this.height = height;
    this.log = log;
    this.bare = bare;
    this.format = format;
    this.smoothing = 0.9;
    this.hint = true;
    /** @type {Line[]} */
    this.lines = [];
    /** @type {Mark[]} */
    this.marks = [];
    /** @type {any} */
    this._plot = null;
    this._shape = "";
    this._zoomed = false;
    this.place = element("div", { class: "mt-plot", role: "img", tabindex: bare ? undefined : "0", "aria-label": title });
    this.readout = element("div", { class: "mt-readout" });
    this.whole = element("figure", { class: bare ? "mt-chart mt-bare" : "mt-chart" }, this.place, bare ? null : this.readout);
    this._sizes = new ResizeObserver(() => this._fit());
    this._sizes.observe(this.place);
    this._theme = new MutationObserver(() => this._plot?.redraw(false, true));
    for (const root of [document.body, document.documentElement]) this._theme.observe(root, { attributes: true, attributeFilter: ["class", "style"] });
    if (!bare) this.place.addEventListener("keydown", (event) => this._key(event));
  }

  /** Draws these lines with these marks. @param {Line[]} lines @param {Mark[]} marks */
  show(lines, marks = []) {
    this.lines = lines;
    this.marks = marks;
    const data = aligned(lines.map((line) => line.curve), lines.map((line) => (line.of === undefined ? this.smoothing : 0)));
    const shape = JSON.stringify([this.log, lines.map((line) => [line.label, line.of])]);
    if (!this._plot || shape !== this._shape) {
      this._shape = shape;
      this._build(data);
    } else {
      this._plot.setData(data, !this._zoomed);
      if (this._zoomed) this._plot.redraw();
    }
    this._describe();
  }

  /** @param {boolean} log */
  setLog(log) {
    this.log = log;
    this.show(this.lines, this.marks);
  }

  /** @param {number} weight */
  setSmoothing(weight) {
    this.smoothing = weight;
    this.show(this.lines, this.marks);
  }

  seeAll() {
    this._zoomed = false;
    this._plot?.setData(this._plot.data, true);
  }

  end() {
    this._sizes.disconnect();
    this._theme.disconnect();
    this._plot?.destroy();
    this._plot = null;
  }

  /** @param {any} data */
  _build(data) {
    this._plot?.destroy();
    this._zoomed = false;
    const text = () => themed("--descrip-text", "#999");
    const grid = () => faint(/^#[0-9a-f]{6}$/i.test(text()) ? text() : "#888888", 0.18);
    const axis = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1, size: 4 }, font: "11px sans-serif" };
    const values = (/** @type {any} */ _, /** @type {(number | null)[]} */ ticks, /** @type {number} */ __, /** @type {number} */ ___, /** @type {number} */ between) =>
      ticks.map((tick) => (tick === null ? "" : this.format === number ? tickText(tick, between) : this.format(tick)));
    const series = this.lines.flatMap((line, index) => {
      const colour = this._colour(index);
      const rare = line.of !== undefined;
      const edge = { stroke: faint(colour, 0.28), width: 1, points: { show: false } };
      return [
        { ...edge, label: `${line.label} low` },
        { ...edge, label: `${line.label} high` },
        { stroke: colour, width: 2, dash: rare ? [6, 4] : undefined, points: { show: (/** @type {any} */ plot) => rare || plot.data[0].length < 3, size: 6, fill: colour }, spanGaps: true, label: line.label },
      ];
    });
    const bands = this.lines.map((_, index) => ({ series: [3 * index + 2, 3 * index + 1], fill: faint(this._colour(index), 0.18) }));
    this._plot = new uPlot(
      /** @type {any} */ ({
        width: Math.max(80, this.place.clientWidth),
        height: this.height,
        legend: { show: false },
        padding: this.bare ? [6, 4, 8, 0] : [8, 18, 0, 0],
        cursor: this.bare ? { show: false } : { y: false, sync: { key: SYNC }, drag: { x: true, y: false }, points: { size: 6 } },
        scales: { x: { time: false }, y: { distr: this.log ? 3 : 1, range: this.log ? undefined : spread } },
        axes: this.bare
          ? [{ show: false }, { ...axis, size: 44, space: 24, values }]
          : [
              { ...axis, size: 26, values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map((tick) => (Number.isInteger(tick) ? count(tick) : "")) },
              { ...axis, size: 66, values },
            ],
        series: [{}, ...series],
        bands,
        hooks: {
          draw: [(/** @type {any} */ plot) => this._drawMarks(plot)],
          setCursor: [(/** @type {any} */ plot) => this._read(plot.cursor.idx)],
          setSelect: [(/** @type {any} */ plot) => (this._zoomed ||= plot.select.width > 0)],
        },
      }),
      data,
      this.place,
    );
    this._plot.over.addEventListener("dblclick", () => this.seeAll());
  }

  _fit() {
    const width = this.place.clientWidth;
    if (this._plot && width > 0 && width !== this._plot.width) this._plot.setSize({ width, height: this.height });
  }

  /** Saves are ticks at the bottom, samples dots at the top. @param {any} plot */
  _drawMarks(plot) {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    ctx.save();
    for (const { step, kind } of this.marks) {
      const { min, max } = plot.scales.x;
      if (step < min || step > max) continue;
      const x = plot.valToPos(step, "x", true);
      ctx.fillStyle = kind === "save" ? "#35a869" : "#c79a1b";
      ctx.beginPath();
      if (kind === "save") {
        const bottom = bbox.top + bbox.height;
        ctx.moveTo(x - 4 * ratio, bottom);
        ctx.lineTo(x + 4 * ratio, bottom);
        ctx.lineTo(x, bottom - 8 * ratio);
      } else {
        ctx.arc(x, bbox.top + 4 * ratio, 3 * ratio, 0, 2 * Math.PI);
      }
      ctx.fill();
    }
    ctx.restore();
  }

  /** Says the values at a point; without one, what the marks mean. @param {number | null | undefined} index */
  _read(index) {
    if (this.bare) return;
    const plot = this._plot;
    if (index === null || index === undefined || !plot) {
      this.readout.classList.add("mt-quiet");
      this.readout.replaceChildren(
        ...(this.marks.some((mark) => mark.kind === "save") ? [element("span", { class: "mt-key-save" }, "▲ ", say("chart.saves"))] : []),
        ...(this.marks.some((mark) => mark.kind === "sample") ? [element("span", { class: "mt-key-sample" }, "● ", say("chart.samples"))] : []),
        ...(this.lines.length > 1 ? this.lines.map((line, at) => element("span", {}, this._swatch(at), line.label)) : this.hint ? [element("span", {}, say("chart.hint"))] : []),
      );
      return;
    }
    const step = plot.data[0][index];
    const marked = [...new Set(this.marks.filter((mark) => mark.step === step).map((mark) => say(`chart.${mark.kind}`)))];
    this.readout.classList.remove("mt-quiet");
    this.readout.replaceChildren(
      element("b", {}, say("chart.step", { step: count(step) })),
      ...this.lines.flatMap((line, at) => {
        const [low, high, mean] = [1, 2, 3].map((part) => plot.data[3 * at + part][index]);
        if (mean === undefined || mean === null) return line.of === undefined ? element("span", {}, this._swatch(at), "–") : [];
        const range = low === high ? this.format(low) : `${this.format(low)} – ${this.format(high)}`;
        const name = this.lines.length > 1 ? `${line.label} ` : "";
        return element("span", {}, this._swatch(at), name, line.of === undefined ? say("chart.value", { value: range, mean: this.format(mean) }) : range);
      }),
      ...marked.map((text) => element("span", {}, text)),
    );
  }

  /** @param {number} at */
  _colour(at) {
    return COLOURS[(this.lines[at].of ?? at) % COLOURS.length];
  }

  /** @param {number} at */
  _swatch(at) {
    const rare = this.lines[at].of !== undefined;
    return element("i", { class: rare ? "mt-swatch mt-rare" : "mt-swatch", style: rare ? { color: this._colour(at) } : { background: this._colour(at) }, "aria-hidden": "true" });
  }

  /** For those who do not see it. */
  _describe() {
    const said = this.lines.map(({ label, curve }) => {
      const there = curve.mean.map((value, index) => ({ value, step: curve.steps[index] })).filter((point) => point.value !== null);
      if (!there.length) return `${label}: ${say("chart.nothing")}`;
      const lowest = there.reduce((best, point) => (Number(point.value) < Number(best.value) ? point : best));
      const [first, last] = [there[0], there[there.length - 1]];
      return say("chart.summary", {
        label,
        first: this.format(first.value), from: first.step, last: this.format(last.value), to: last.step, lowest: this.format(lowest.value), at: lowest.step,
      });
    });
    this.place.setAttribute("aria-label", `${this.title}. ${said.join(". ")}`);
    this._read(this._plot?.cursor.idx);
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    const plot = this._plot;
    if (!plot) return;
    const last = plot.data[0].length - 1;
    const at = plot.cursor.idx ?? last;
    const stride = Math.max(1, Math.round(last / 100)) * (event.shiftKey ? 10 : 1);
    const { min, max } = plot.scales.x;
    const centre = plot.data[0][at] ?? (min + max) / 2;
    const zoom = (/** @type {number} */ factor) => {
      this._zoomed = true;
      plot.setScale("x", { min: centre - (centre - min) * factor, max: centre + (max - centre) * factor });
    };
    /** @type {Record<string, () => void>} */
    const acts = {
      ArrowLeft: () => this._point(Math.max(0, at - stride)),
      ArrowRight: () => this._point(Math.min(last, at + stride)),
      Home: () => this._point(0),
      End: () => this._point(last),
      "+": () => zoom(0.6),
      "-": () => zoom(1 / 0.6),
      Escape: () => this.seeAll(),
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    this.readout.setAttribute("aria-live", "polite"); // values are spoken to those who walk with keys, not to those who hover
    acts[event.key]();
  }

  /** @param {number} index */
  _point(index) {
    const left = this._plot.valToPos(this._plot.data[0][index], "x");
    this._plot.setCursor({ left, top: 10 });
  }
}

/** Room above and below. @param {any} _ @param {number | null} low @param {number | null} high @returns {[number, number]} */
function spread(_, low, high) {
  if (low === null || high === null) return [0, 1];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

/** A number on an axis, with as many digits as tell it from its neighbours. @param {number} value @param {number} between two of them */
function tickText(value, between) {
  const decimals = between > 0 ? Math.max(0, Math.ceil(-Math.log10(between) - 1e-9)) : 3;
  if (value === 0) return "0";
  const order = Math.floor(Math.log10(Math.abs(value)));
  if (order >= -4 && decimals <= 5) return String(Number(value.toFixed(decimals)));
  return value.toExponential(Math.max(0, Math.min(4, order + decimals))).replace(/\.?0+e/, "e");
}
