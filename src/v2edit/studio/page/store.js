/** What the page knows of the server, kept up to date by one stream of events. */

import * as api from "./api.js";
import { useEffect, useState } from "./vendor/ui.js";

export const state = {
  ready: false,
  online: true,
  locked: false,
  machine: null,
  jobs: new Map(),
  runs: new Map(), // those of which an event has told; null of one that has gone
  uploads: new Map(),
  runsVersion: 0, // grows when a run has come, changed or gone
  readings: 0, // grows when all has been read anew, since events may have been missed
};

const listeners = new Set();
let waits = false;

/** Tell the views that the state has changed, once a frame. */
export function changed() {
  if (waits) return;
  waits = true;
  setTimeout(() => {
    waits = false;
    for (const listener of [...listeners]) listener();
  }, 16);
}

/** The state; a view that uses it is drawn again when it changes. */
export function useStore() {
  const [, redraw] = useState(0);
  useEffect(() => {
    const listener = () => redraw((count) => count + 1);
    listeners.add(listener);
    return () => listeners.delete(listener);
  }, []);
  return state;
}

export function putJob(job) {
  state.jobs.set(job.id, job);
  changed();
}

export function putUpload(upload) {
  state.uploads.set(upload.id, upload);
  changed();
}

export function jobsInOrder() {
  const place = { running: 0, loading: 0, queued: 1, stopped: 2, failed: 2, done: 2 };
  return [...state.jobs.values()].sort(
    (a, b) =>
      place[a.state] - place[b.state] ||
      (place[a.state] === 1 ? (a.position ?? 0) - (b.position ?? 0) : (b.created ?? "").localeCompare(a.created ?? "")),
  );
}

let epoch = null;

/** What this machine has and which models fit takes the server a while the first time. */
async function readMachine() {
  try {
    state.machine = await api.get("machine");
  } catch (error) {
    state.machine = { models: [], devices: [], problems: [error.message] };
  }
  changed();
}

let since = null; // what events told while the list was read, which is older than they are

/** Read what events do not tell: the jobs there are, and all that has changed unseen. */
async function reload() {
  const news = (since = { jobs: new Map(), runs: new Map() });
  try {
    const jobs = await api.get("jobs");
    if (news !== since) return state.ready; // a later one reads it
    Object.assign(state, { ready: true, locked: false });
    state.jobs = new Map(jobs.jobs.map((job) => [job.id, job]));
    for (const [id, job] of news.jobs) job ? state.jobs.set(id, job) : state.jobs.delete(id);
    state.runs = new Map(news.runs);
    state.runsVersion += 1;
    state.readings += 1;
    for (const { id, state: stands } of [...state.uploads.values()]) if (stands === "probing") api.get(`uploads/${id}`).then(putUpload, () => {});
  } catch (error) {
    state.locked = error.status === 401;
    state.online = Boolean(error.status);
  }
  changed();
  return state.ready && !state.locked;
}

function putRun(name, run) {
  state.runs.set(name, run);
  since?.runs.set(name, run);
  state.runsVersion += 1;
}

const gone = {
  job: (id) => (state.jobs.delete(id), since?.jobs.set(id, null)),
  run: (id) => putRun(id, null),
  upload: (id) => state.uploads.delete(id),
};

/** Listen to the server's events. The browser itself connects again and says which event was the last. */
function listen() {
  const events = new EventSource(`${api.ROOT}/events`);
  const on = (kind, take) => events.addEventListener(kind, (event) => (take(JSON.parse(event.data)), changed()));
  on("hello", (hello) => {
    if (hello.epoch !== epoch) readMachine();
    if (hello.reset) reload(); // the first time too: what has happened between the first list and now
    epoch = hello.epoch;
  });
  on("job", (job) => (state.jobs.set(job.id, job), since?.jobs.set(job.id, job)));
  on("upload", (upload) => state.uploads.set(upload.id, upload));
  on("run", (run) => putRun(run.name, run));
  on("gone", ({ kind, id }) => gone[kind]?.(id));
  events.onopen = () => {
    state.online = true;
    changed();
  };
  events.onerror = () => {
    state.online = false;
    changed();
    if (events.readyState === EventSource.CLOSED) setTimeout(start, 2000);
  };
}

/** Read everything once, then follow the events. */
export async function start() {
  if (await reload()) listen();
  else if (!state.locked) setTimeout(start, 2000);
}

/** Give the server its token; it sets a cookie that scripts cannot read. */
export async function unlock(token) {
  await api.post("/login", { token });
  await start();
}
api.onLocked(() => {
  state.locked = true;
  changed();
});
