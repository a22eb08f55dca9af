// @ts-check
// What the pack's server answers (docs/monitor.md), and the jobs that the page knows: read once, then kept up to date by messages.
import { api } from "../../../scripts/api.js";
import { translated } from "./words.js";

/**
 * @typedef {{ id: string, tool: string, kind: string, verb: string | null, architecture: string | null, engine: string, name: string, run: string | null,
 *   state: string, paused: boolean, outcome: string | null, text: string, error: string | null, phase: string, step: number,
 *   total: number | null, first_step: number, epoch: number | null, epochs: number | null, loss: number | null, average: number | null,
 *   lr: number | null, seconds_per_step: number | null, seconds_left: number | null, created: number, started: number | null,
 *   ended: number | null, background: boolean, gpus: string[] | null, place: number | null, attempt: number, can: string[],
 *   cannot: string, version: number }} Job
 * @typedef {{ step: number, prompt: number, file: number, media: string, url: string | null }} Sample
 * @typedef {{ file: number, content: string, name: string, bytes: number | null, step: number | null, exists: boolean, url: string | null }} JobFile
 * @typedef {{ id: string, step: number, workflow: string, prompt: string, state: "queued" | "finished" | "failed", text: string, time: number,
 *   files: { media: string, url: string }[] }} WorkflowSample  what ComfyUI made with a graph of the user's own
 * @typedef {{ step: number, files: Record<string, string> }} Checkpoint  `files`: names, by the noise expert they are for
 * @typedef {{ checkpoints: Checkpoint[], occupied: string | null, generation: string }} Offered  `occupied`: the training that has the GPU
 * @typedef {Job & { folder: string, run_folder: string | null, settings: { name: string, value: any, default: any }[], series: string[],
 *   prompts: string[], samples: Sample[], saves: { step: number, epoch: number | null, content: string, expert: string, file: number }[],
 *   items?: { name: string, loss: number, count: number }[],
 *   files: JobFile[], optimizer?: { step: number, lines: string[] } | null,
 *   answers: { name: string, answer: string, step: number | null, text: string, time: number }[],
 *   log: Written, workflow: string | null, workflow_samples?: WorkflowSample[], jobs_of_run: string[] }} Detail
 * @typedef {{ text: string, bar: string, next: number, more: boolean }} Written  `bar`: the line that is not ended yet
 * @typedef {{ low: (number | null)[], high: (number | null)[], mean: (number | null)[] }} Buckets
 * @typedef {{ id: string, first: number | null, last: number | null, width: number, steps: number[], series: Record<string, Buckets> }} Series
 * @typedef {{ waiting: string[], running: string[], keeper: number | null }} Queue
 * @typedef {{ jobs?: Job[], removed?: string[], queue?: Queue }} Message
 */

const ROOT = "/musubi_tuner";
export const EVERYTHING = "";
export const MESSAGE = "musubi_tuner.jobs";

/** What the server said no to, or why it did not answer, in words for people. */
export class Refused extends Error {
  /** @param {string} message @param {number} status */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** What a route of the pack answers; with a body it is a POST. Throws `Refused`. @param {string} path @param {any} [body] @returns {Promise<any>} */
export async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await api.fetchApi(`${ROOT}/${path}`, { cache: "no-store", ...options });
  const values = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(values.error ? translated(values.error) : `${answer.status} ${answer.statusText}`, answer.status);
  return values;
}

/** @param {string} id @returns {Promise<Detail>} */
export const detail = (id) => ask(`jobs/${encodeURIComponent(id)}`);

/** @param {string} id @param {Record<string, string | number>} query @returns {Promise<Series>} */
export const series = (id, query) => ask(`jobs/${encodeURIComponent(id)}/series?${new URLSearchParams(/** @type {any} */ (query))}`);

/** @param {string} id @param {Record<string, string | number>} query @returns {Promise<Written>} */
export const log = (id, query) => ask(`jobs/${encodeURIComponent(id)}/log?${new URLSearchParams(/** @type {any} */ (query))}`);

/** @param {string} id @returns {Promise<{ workflow: any, prompt: any }>} */
export const workflow = (id) => ask(`jobs/${encodeURIComponent(id)}/workflow`);

/** @param {string} id @param {string} name one of `can` @returns {Promise<{ job: Job }>} */
export const request = (id, name) => ask(`jobs/${encodeURIComponent(id)}/request`, { name });

/** @param {string} id @param {{ steps?: number, epochs?: number }} more @returns {Promise<{ job: Job }>} */
export const goOn = (id, more) => ask(`jobs/${encodeURIComponent(id)}/continue`, more);

/** Starts TensorBoard over the logs of its run, where none runs yet. @param {string} id @returns {Promise<{ address: string }>} */
export const tensorBoard = (id) => ask(`jobs/${encodeURIComponent(id)}/tensorboard`, {});

/** @param {string} id @returns {Promise<Offered>} */
export const offered = (id) => ask(`jobs/${encodeURIComponent(id)}/checkpoints`);

/** Puts the LoRAs of a step where ComfyUI lists them; gives their names there, by expert. @param {string} id @param {number} step @returns {Promise<{ loras: Record<string, string> }>} */
export const publish = (id, step) => ask(`jobs/${encodeURIComponent(id)}/checkpoints`, { step });

/** Notes a sample of a checkpoint; the prompt that is queued next carries its id. @param {string} id @param {{ step: number, workflow: string, prompt: string }} sample @returns {Promise<{ sample: string }>} */
export const noteSample = (id, sample) => ask(`jobs/${encodeURIComponent(id)}/workflow_samples`, sample);

/** Takes the note of a sample back that ComfyUI did not queue. @param {string} id @param {string} sample */
export const sampleRefused = (id, sample) => ask(`jobs/${encodeURIComponent(id)}/workflow_samples/${encodeURIComponent(sample)}/refused`, {});

/** A graph that is kept, or the names of all. @param {string} [name] @returns {Promise<any>} */
export const keptWorkflows = (name) => ask(name === undefined ? "sampling_workflows" : `sampling_workflows/${encodeURIComponent(name)}`);

/** Keeps a graph; without one, forgets what has the name. @param {string} name @param {{ prompt: any, workflow: any } | {}} graph @returns {Promise<{ names: string[] }>} */
export const keepWorkflow = (name, graph) => ask(`sampling_workflows/${encodeURIComponent(name)}`, graph);

/** @type {Promise<unknown>} */
let reordered = Promise.resolve();

/** One order after the other, as the last that arrives counts. @param {string[]} order @returns {Promise<{ queue: Queue }>} */
export function reorder(order) {
  const asked = reordered.then(() => ask("queue", { order }));
  reordered = asked.catch(() => undefined); // whoever asked hears of it
  return asked;
}

/** An address that the server named, as the page reaches it. @param {string} url */
export const address = (url) => api.apiURL(url);

/** The jobs that are known, and whoever wants to hear of changes. */
class Jobs {
  constructor() {
    /** @type {Map<string, Job>} */
    this.byId = new Map();
    /** @type {Queue} */
    this.queue = { waiting: [], running: [], keeper: null };
    /** @type {Map<string, string | null>} for each question that was asked, as a query, where what is known of its answer ends: an id, or null where nothing is behind */
    this.ends = new Map();
    this.loaded = false;
    this.problem = "";
    /** @type {Set<(changed: Set<string> | null) => void>} */
    this._listeners = new Set();
    this._listening = false;
    /** @type {Set<Message[]>} for each list that was asked for: what was said since */
    this._asked = new Set();
  }

  /** Calls `act` with the ids that changed, or with null where everything may have. Returns what ends it. @param {(changed: Set<string> | null) => void} act */
  watch(act) {
    this._listeners.add(act);
    if (!this._listening) {
      this._listening = true;
      api.addEventListener(/** @type {any} */ (MESSAGE), (/** @type {any} */ event) => this.take(event.detail));
      api.addEventListener("reconnected", () => this.load());
    }
    return () => this._listeners.delete(act);
  }

  /** The place of a job in the queue: 0 is next; null where it does not wait. @param {Job} job */
  place(job) {
    const at = this.queue.waiting.indexOf(job.id);
    return at >= 0 ? at : job.place;
  }

  /** Reads the list anew. What is said while it is on its way may be newer. */
  async load() {
    /** @type {Message[]} */
    const since = [];
    this._asked.add(since);
    try {
      const answer = await ask("jobs");
      this.byId = new Map(answer.jobs.map((/** @type {Job} */ job) => [job.id, job]));
      this.queue = answer.queue;
      this.ends = new Map([[EVERYTHING, answer.next]]);
      this.problem = "";
      for (const message of since) this._put(message);
    } catch (error) {
      this.problem = error instanceof Error ? error.message : String(error);
    }
    this._asked.delete(since);
    this.loaded = true;
    this._tell(null);
  }

  /** Whether every job is known. */
  get complete() {
    return this.ends.get(EVERYTHING) === null;
  }

  /** Reads on in the answer to a question. Throws `Refused`. @param {string} question a query: `find`, `verbs`, `kind`, `outcome`; or EVERYTHING */
  async readOn(question) {
    const { ends } = this;
    const query = new URLSearchParams(question);
    const before = ends.get(question);
    if (before) query.set("before", before);
    const answer = await ask(`jobs?${query}`);
    if (this.ends !== ends) return; // the list was read anew meanwhile
    this._put({ jobs: answer.jobs });
    ends.set(question, answer.next);
    this._tell(null);
  }

  /** What the server has just said. @param {Message} message */
  take(message) {
    for (const since of this._asked) since.push(message);
    this._tell(this._put(message));
  }

  /** Returns the ids that changed. @param {Message} message */
  _put({ jobs = [], removed = [], queue }) {
    const changed = new Set(removed);
    for (const id of removed) this.byId.delete(id);
    for (const job of jobs) {
      if ((this.byId.get(job.id)?.version ?? -1) > job.version) continue;
      this.byId.set(job.id, job);
      changed.add(job.id);
    }
    if (queue) {
      for (const id of [...queue.waiting, ...this.queue.waiting]) changed.add(id);
      this.queue = queue;
    }
    return changed;
  }

  /** @param {Set<string> | null} changed */
  _tell(changed) {
    for (const listener of [...this._listeners]) listener(changed);
  }
}

export const jobs = new Jobs();

/** What a job is to people: one of queued, paused, starting, running, saving, sampling, stopping, finished, stopped, failed, removed, lost. @param {Job} job */
export const standing = (job) => (job.state === "ended" ? (job.outcome ?? "lost") : job.paused && job.state === "running" ? "paused" : job.state);
