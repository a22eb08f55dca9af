// @ts-check
// The numbers of several jobs as far as they were read: what is known is not read again, only what has come since.
import { extended } from "./curves.js";
import { jobs, series } from "./server.js";

/** @typedef {import("./server.js").Series} Series */

export class Pieces {
  /** @param {number} points at most so many of a job */
  constructor(points) {
    this.points = points;
    /** @type {Map<string, Series>} */
    this.byJob = new Map();
    /** @type {Set<string>} jobs that have ended and are read to the end */
    this._whole = new Set();
  }

  /** Reads the curves of these jobs. One that is gone has none. @param {string[]} ids @param {string[]} names */
  async read(ids, names) {
    for (const id of ids) {
      if (this._whole.has(id)) continue;
      const ended = jobs.byId.get(id)?.state === "ended";
      try {
        this.byJob.set(id, await this._news(id, { names: names.join(","), points: this.points }));
      } catch (error) {
        if (/** @type {any} */ (error)?.status !== 404) throw error;
        continue;
      }
      if (ended) this._whole.add(id);
    }
  }

  /** @param {string} id @param {{ names: string, points: number }} query @returns {Promise<Series>} */
  async _news(id, query) {
    const had = this.byJob.get(id);
    if (had?.last && had.width === 1) {
      const news = await series(id, { ...query, after: had.last - 1 }); // the last step again: its validation comes after it
      if (!news.steps.length) return had;
      if (news.width === 1 && had.steps.length + news.steps.length <= this.points) return extended(had, news);
    }
    return series(id, query);
  }

  /** @param {string[]} ids @returns {Series[]} */
  of(ids) {
    return ids.flatMap((id) => this.byJob.get(id) ?? []);
  }
}
