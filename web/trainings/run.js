// @ts-check
// The jobs of one run, oldest first, with all that they made. Earlier ones have ended, so each is read once.
import { detail } from "./server.js";

/** @typedef {import("./server.js").Detail} Detail */

/** The newest jobs of a job's run, itself among them, oldest first. @param {Detail} job @param {number} most @returns {string[]} */
export function jobsOfRun(job, most) {
  return [...new Set([...job.jobs_of_run.slice(0, most), job.id])].sort(); // ids begin with the time
}

export class Earlier {
  constructor() {
    /** @type {Map<string, Detail>} */
    this._byJob = new Map();
  }

  /** A job behind those of its run that were before it. @param {Detail} job @param {string[]} ids of its run, oldest first @returns {Promise<Detail[]>} */
  async read(job, ids) {
    const before = ids.filter((id) => id < job.id);
    for (const id of before) {
      if (this._byJob.has(id)) continue;
      try {
        this._byJob.set(id, await detail(id));
      } catch (error) {
        if (/** @type {any} */ (error)?.status !== 404) throw error; // removed meanwhile
      }
    }
    return [...before.flatMap((id) => this._byJob.get(id) ?? []), job];
  }
}
