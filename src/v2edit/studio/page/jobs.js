/** The queue: what runs with its progress and preview, what waits, and what has ended. */

import * as api from "./api.js";
import { draftFrom } from "./draft.js";
import { duration, when } from "./format.js";
import { jobsInOrder, putJob, state, useStore } from "./store.js";
import { text } from "./text.js";
import { Bar, CopyButton, Empty, ErrorLine, IconButton, State, useAction } from "./ui.js";
import { html, useEffect, useRef, useState } from "./vendor/ui.js";

export const isActive = (job) => job.state === "running" || job.state === "loading";
export const pageOf = (run) => `#/run/${api.name(run)}`;

function Progress({ job }) {
  const { progress } = job;
  const [now, setNow] = useState(0);
  useEffect(() => {
    setNow(0);
    const timer = setInterval(() => setNow((one) => one + 1), 1000);
    return () => clearInterval(timer);
  }, [progress?.step, progress?.stage, progress?.seconds_left]);
  if (!isActive(job)) return null;
  const left = progress?.seconds_left != null ? Math.max(0, progress.seconds_left - now) : null;
  const soon = left != null && (left > 0 ? text.jobs.left(duration(left)) : text.jobs.soon);
  return html`<div class="progress">
    <${Bar} value=${progress?.done} label=${text.jobs.progress} />
    <p class="progress-text"><span role="status">${progress?.text ?? text.states[job.state]}</span>${soon && html`<span class="aside">${soon}</span>`}</p>
    <p class="help then">${progress?.then?.length ? text.jobs.then(progress.then) : null}</p>
  </div>`;
}

/** The newest preview, in a place that the source's picture holds until there is one: nothing jumps when it comes. It is
 * a picture that moves, or a video; its address is another when there is a newer one. */
function Preview({ job }) {
  const { preview: address, preview_type: type, source } = job;
  const [broken, setBroken] = useState(null);
  const place = useRef();
  const ratio = source?.width && source.height ? source.width / source.height : null;
  useEffect(() => ratio && place.current?.style.setProperty("--ratio", ratio), [ratio]);
  const fails = () => setBroken(address);
  const shown = address && broken !== address;
  return html`<div class="preview" ref=${place}>
    ${source?.thumb && !shown && html`<img class="dim" src=${source.thumb} alt="" onError=${(event) => event.target.remove()} />`}
    ${shown && type?.startsWith("video/") && html`<video src=${address} autoplay muted loop playsinline aria-label=${text.jobs.preview} onError=${fails} />`}
    ${shown && !type?.startsWith("video/") && html`<img src=${address} alt=${text.jobs.preview} onError=${fails} />`}
  </div>`;
}

function JobActions({ job, waiting, children }) {
  const { run, error, busy } = useAction();
  const act = (what, body) => run(async () => putJob((await api.post(`jobs/${job.id}/${what}`, body)) ?? job));
  const forget = () => run(async () => (await api.remove(`jobs/${job.id}`), state.jobs.delete(job.id), putJobGone()));
  const index = waiting?.findIndex((one) => one.id === job.id) ?? -1;
  const move = (by) => {
    const others = waiting.filter((one) => one.id !== job.id);
    act("move", { before: others[index + by]?.id ?? null });
  };
  return html`<div class="row actions">
      ${job.state === "queued" && waiting?.length > 1 && html`<${IconButton} icon="raise" label=${text.jobs.sooner} disabled=${busy || index === 0} onClick=${() => move(-1)} /><${IconButton} icon="lower" label=${text.jobs.later} disabled=${busy || index === waiting.length - 1} onClick=${() => move(1)} />`}
      ${(isActive(job) || job.state === "queued") && html`<button type="button" disabled=${busy || job.stopping} onClick=${() => act("cancel")}>${job.stopping ? text.jobs.stopping : text.jobs.cancel}</button>`}
      ${(job.state === "stopped" || job.state === "failed") && html`<button type="button" disabled=${busy} onClick=${() => act("resume")}>${text.jobs.resume}</button>`}
      ${job.state === "done" && job.run && html`<a class="button" href=${pageOf(job.run)}>${text.jobs.open}</a>`}
      ${!isActive(job) && job.state !== "queued" && html`<button type="button" class="quiet" disabled=${busy} onClick=${() => run(async () => { const again = await api.post(`jobs/${job.id}/again`); putJob(again); location.hash = `#/jobs/${again.id}`; })}>${text.jobs.again}</button>`}
      <button type="button" class="quiet" onClick=${() => draftFrom(job)}>${text.jobs.againWith}</button>
      ${children}
      ${!isActive(job) && job.state !== "queued" && html`<${IconButton} icon="close" label=${text.jobs.forget} disabled=${busy} onClick=${forget} />`}
    </div>
    <${ErrorLine}>${error}<//>`;
}
const putJobGone = () => (location.hash.startsWith("#/jobs") ? (location.hash = "#/jobs") : null);

function JobCard({ job, waiting, open }) {
  const big = isActive(job) || open;
  return html`<article class=${`job${big ? " big" : ""}`} aria-labelledby=${`job-${job.id}`}>
    <div class="job-head">
      <h2 id=${`job-${job.id}`}><a href=${job.state === "done" && job.run ? pageOf(job.run) : `#/jobs/${job.id}`}>${job.title || job.instruction}</a></h2>
      <${State} state=${job.stopping ? "stopping" : job.state} />
    </div>
    ${job.state === "done" && job.run && html`<span class="job-thumb"><img src=${`${api.ROOT}/runs/${api.name(job.run)}/thumb.jpg`} alt="" loading="lazy" onError=${(e) => e.target.remove()} /></span>`}
    <p class="facts"><span>${text.kinds[job.kind]}</span>${job.options?.model && html`<span>${job.options.model}</span>`}<span>${when(job.finished ?? job.started ?? job.created)}</span></p>
    ${isActive(job) && html`<${Preview} job=${job} />`}
    <${Progress} job=${job} />
    ${job.stopping && html`<p class="help" role="status">${text.jobs.stoppingHelp}</p>`}
    ${job.reason && html`<p class=${job.state === "failed" ? "error" : "help"}>${job.reason}</p>`}
    ${big && job.notes?.length ? html`<details class="more"><summary>${text.jobs.notes}</summary><ul class="notes">${job.notes.map((note) => html`<li>${note}</li>`)}</ul></details>` : null}
    <${JobActions} job=${job} waiting=${waiting}>${big && job.command && html`<${CopyButton} value=${job.command} label=${text.run.command} /><${CopyButton} value=${job.python} label=${text.run.python} />`}<//>
  </article>`;
}

export function JobsView({ id }) {
  const { jobs } = useStore();
  const job = id ? jobs.get(id) : null;
  useEffect(() => {
    if (job?.state === "done" && job.run) location.replace(pageOf(job.run));
  }, [job?.state, job?.run]);
  const all = jobsInOrder();
  const waiting = all.filter((one) => one.state === "queued");
  if (!all.length)
    return html`<${Empty} icon="queue" title=${text.jobs.empty}><p>${text.jobs.emptyHelp}</p><a class="button primary" href="#/edit">${text.jobs.emptyAction}</a><//>`;
  const groups = [
    [text.jobs.running, all.filter(isActive)],
    [text.jobs.waiting, waiting],
    [text.jobs.ended, all.filter((one) => !isActive(one) && one.state !== "queued")],
  ];
  return html`<div class="column">
    <h1>${text.nav.jobs}</h1>
    ${id && !job && html`<${ErrorLine}>${text.jobs.unknown}<//>`}
    ${groups.map(
      ([title, list]) =>
        list.length > 0 &&
        html`<section class="job-group"><h2 class="group-title">${title}</h2>
          ${list.map((one) => html`<${JobCard} key=${one.id} job=${one} waiting=${waiting} open=${one.id === id} />`)}
        </section>`,
    )}
  </div>`;
}
