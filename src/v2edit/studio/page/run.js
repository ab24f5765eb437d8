/** The result of a run: before and after, how it was made, and what to do with it. */

import * as api from "./api.js";
import { draftFrom } from "./draft.js";
import { bytes, duration, number, when } from "./format.js";
import { isActive, pageOf } from "./jobs.js";
import { ComparePlayer } from "./player.js";
import { Legend, Pieces, compareWords } from "./prompts.js";
import { SceneStage } from "./scene.js";
import { RunCard } from "./gallery.js";
import { reportOf } from "./report.js";
import { putJob, useStore } from "./store.js";
import { text } from "./text.js";
import { Bar, CopyButton, Editable, Empty, ErrorLine, Icon, IconButton, State, useAction, useAsync } from "./ui.js";
import { html, useEffect, useMemo, useState } from "./vendor/ui.js";

const FORMATS = { edit: ["mp4", "webm", "gif", "webp", "prores", "png-zip", "run-zip"], scene: ["ply", "mp4", "webm", "gif", "run-zip"], seeds: ["run-zip"] };
const QUIET = new Set(["model", "config", "input", "kind", "steps", "weight_files", "sigma", "frames_apart", "resumed", "drift"]);

/** What the player takes: one name for the edited video, and the subtasks before the last. */
export function mediaOf(run) {
  const { media = {}, kind } = run;
  const subtasks = kind === "scene" ? (media.subtasks ?? []).slice(0, -1) : media.subtasks;
  return { ...media, after: media.after ?? media.edited, subtasks };
}

function Prompts({ prompts }) {
  if (!prompts?.source) return null;
  const { source, intermediate = [], target } = prompts;
  const chain = [source, ...(intermediate ?? []), target].filter(Boolean);
  return html`<section aria-label=${text.prompts.title}>
    <h2>${text.prompts.title}</h2>
    ${chain.slice(1).map((next, at) => html`${chain.length > 2 ? html`<p class="aside">${text.run.subtask(at + 1, chain.length - 1)}</p>` : null}<${Pieces} pieces=${compareWords(chain[at], next)} />`)}
    <${Legend} />
  </section>`;
}

function show(value) {
  if (value == null || value === "") return "";
  if (typeof value === "number") return number(value, 3);
  if (typeof value === "boolean") return value ? text.yes : text.no;
  if (Array.isArray(value)) return value.map(show).join(", ");
  if (typeof value === "object") return Object.entries(value).map(([key, one]) => (show(one) ? `${key} ${show(one)}` : "")).filter(Boolean).join(", ");
  return String(value);
}

/** The settings as lines of [name, value]: the model and the edit's first, then the others. */
export function settingsOf(run) {
  const { model = {}, config = {}, ...others } = run.settings ?? {};
  const first = { model: model?.name ?? run.model, device: model?.device, ...config };
  const rest = Object.entries(others).filter(([name]) => !QUIET.has(name));
  return [...Object.entries(first), ...rest].map(([name, value]) => [name, show(value)]).filter(([, value]) => value);
}

function Downloads({ run }) {
  const { run: act, error, busy } = useAction();
  const addressOf = (format) => `${api.ROOT}/runs/${api.name(run.name)}/download?format=${format}`;
  const fetchAs = (format) =>
    act(async () => {
      // Its first byte waits until the server has made it: an error belongs here, not on a page of its own.
      const answer = await fetch(addressOf(format), { headers: { Range: "bytes=0-0" } });
      const body = answer.ok ? null : await answer.json().catch(() => ({}));
      if (body) throw new Error(body.error ?? text.run.noDownload);
      await answer.body?.cancel();
      Object.assign(document.createElement("a"), { href: addressOf(format), download: "" }).click();
    });
  const isThere = (format) => format === "ply" || run.media?.edited?.endsWith(ENDINGS[format]);
  const button = (format, style) =>
    isThere(format)
      ? html`<a key=${format} class=${`button ${style}`} href=${addressOf(format)} download>${style && html`<${Icon} name="down" />`}${text.formats[format]}</a>`
      : html`<button key=${format} type="button" class=${style} disabled=${busy} onClick=${() => fetchAs(format)}>${style && html`<${Icon} name="down" />`}${text.formats[format] ?? format}</button>`;
  const [first, ...others] = FORMATS[run.kind] ?? [];
  const files = (run.files ?? []).filter((file) => file.name.split("/").length < 3);
  return html`<section aria-label=${text.run.download}>
    <h2>${text.run.download}</h2>
    <div class="row wrap">
      ${first && button(first, "primary")}
      ${others.map((format) => button(format, ""))}
    </div>
    ${busy && html`<${Bar} label=${text.run.making} />`}
    <${ErrorLine}>${error}<//>
    <details class="more"><summary>${text.run.files(files.length)}</summary>
      <ul class="files">${files.map((file) => html`<li><a href=${`${api.ROOT}/runs/${api.name(run.name)}/files/${file.name.split("/").map(api.name).join("/")}`} target="_blank" rel="noopener noreferrer">${file.name}</a><span class="aside">${bytes(file.bytes)}</span></li>`)}</ul>
    </details>
  </section>`;
}

function Actions({ run, job }) {
  const { run: act, error, busy } = useAction();
  const star = () => act(() => api.patch(`runs/${api.name(run.name)}`, { starred: !run.starred }));
  const trash = () => act(async () => (await api.remove(`runs/${api.name(run.name)}`), (location.hash = "#/gallery?trash=1")));
  const settings = run.settings ?? {};
  const again = () =>
    act(async () => {
      if (job && !job.input.resume) return draftFrom(job);
      const { input } = await api.post(`runs/${api.name(run.name)}/input`).catch(() => ({ input: null })); // then it is asked for
      draftFrom({ kind: run.kind, input, instruction: run.instruction, options: optionsOf(settings, run) });
    });
  const further = () => draftFrom({ kind: run.kind, input: { run: run.name }, options: { model: run.model === "primitives" ? undefined : run.model } });
  return html`<div class="row actions">
      <${IconButton} icon="star" label=${run.starred ? text.run.unstar : text.run.star} pressed=${run.starred} filled=${run.starred} onClick=${star} disabled=${busy} />
      ${["edit", "scene"].includes(run.kind) && html`<button type="button" disabled=${busy} onClick=${again}>${text.jobs.againWith}</button>`}
      ${["edit", "scene"].includes(run.kind) && run.state === "done" && html`<button type="button" class="quiet" onClick=${further}>${text.run.further}</button>`}
      <${IconButton} icon="trash" label=${text.run.trash} onClick=${trash} disabled=${busy} />
    </div>
    <${ErrorLine}>${error}<//>`;
}

const EDITABLE = ["steps", "strength", "alpha", "beta", "guidance", "subtasks", "seed", "negative_prompt", "long", "loop", "mixture"];

/** The options that a run of the command line was made with, as far as the page has controls for them. */
function optionsOf({ config = {}, local }, { model, prompts }) {
  const options = Object.fromEntries(EDITABLE.filter((name) => config[name] != null && config[name] !== "").map((name) => [name, config[name]]));
  if (local?.box3d) options.box3d = local.box3d;
  return { ...options, model, source_prompt: prompts?.source, target_prompt: prompts?.target };
}

function Unfinished({ run, job }) {
  const { run: act, error, busy } = useAction();
  const active = job ? isActive(job) || job.state === "queued" || job.state === "done" : run.state === "running"; // done: it is here in a moment
  const resume = () =>
    act(async () => {
      const going = await api.post(job ? `jobs/${job.id}/resume` : `runs/${api.name(run.name)}/resume`); // of the command line
      putJob(going);
      location.hash = `#/jobs/${going.id}`;
    });
  return html`<div class="column">
    <${Empty} icon="film" title=${active ? text.run.running : text.run.stopped}>
      <p>${active ? (job?.progress?.text ?? text.run.runningHelp) : (job?.reason || (run.state === "failed" && run.reason) || text.run.stoppedHelp)}</p>
      ${(job?.progress?.done ?? run.progress?.done) != null && html`<${Bar} value=${job?.progress?.done ?? run.progress.done / (run.progress.total || 1)} label=${text.jobs.progress} />`}
      ${job && html`<a class="button primary" href=${`#/jobs/${job.id}`}>${text.run.toQueue}</a>`}
      ${!active && html`<button type="button" disabled=${busy} onClick=${resume}>${text.jobs.resume}</button>`}
      <${ErrorLine}>${error}<//>
    <//>
  </div>`;
}

function Group({ run }) {
  const name = api.name(run.name);
  const { value, error } = useAsync(() => api.get(`runs?parent=${name}&limit=200&sort=started`), [run.name]);
  const pages = (run.files ?? []).filter((file) => /^[^/]+\.html$/.test(file.name));
  const runs = value?.runs ?? [];
  const done = runs.filter((one) => one.state === "done").slice(0, 4);
  return html`<${ErrorLine}>${error}<//>
    ${pages.length > 0 && html`<p class="row">${pages.map((file) => html`<a class="button primary" href=${reportOf(run.name, file.name)}>${text.run.page(file.name)}</a>`)}</p>`}
    ${run.media?.sheet && html`<img class="sheet" src=${run.media.sheet} alt=${text.run.sheet} />`}
    ${done.length > 1 && html`<p><a class="button primary" href=${`#/compare?runs=${done.map((one) => api.name(one.name)).join(",")}`}>${text.run.compareAll(done.length)}</a></p>`}
    <div class="cards">${runs.map((one) => html`<${RunCard} key=${one.name} run=${one} />`)}</div>`;
}

function Panel({ run, job, setError }) {
  const save = async (change) => {
    try {
      await api.patch(`runs/${api.name(run.name)}`, change);
    } catch (problem) {
      setError(problem.message);
    }
  };
  const command = job?.command ?? run.command;
  const python = job?.python ?? run.python;
  const settings = settingsOf(run);
  return html`<aside class="panel" aria-label=${text.run.about}>
    <${Actions} run=${run} job=${job} />
    <${Prompts} prompts=${run.prompts} />
    ${run.state === "done" && html`<${Downloads} run=${run} />`}
    ${(command || python) && html`<section aria-label=${text.run.same}>
      <h2>${text.run.same}</h2>
      ${command && html`<pre class="command" tabindex="0">${command}</pre>`}
      <div class="row">${command && html`<${CopyButton} value=${command} label=${text.run.command} />`}${python && html`<${CopyButton} value=${python} label=${text.run.python} />`}</div>
    </section>`}
    <section aria-label=${text.run.note}>
      <h2>${text.run.note}</h2>
      <${Editable} tag="textarea" rows="3" label=${text.run.note} placeholder=${text.run.noteHelp} value=${run.note ?? ""} onSave=${(note) => save({ note })} />
    </section>
    ${settings.length > 0 && html`<section aria-label=${text.run.settings}>
      <details class="more"><summary>${text.run.settings}</summary>
        <dl class="pairs">${settings.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
      </details>
    </section>`}
  </aside>`;
}

export function RunView({ id }) {
  const { jobs, runs, readings } = useStore();
  const summary = runs.get(id);
  const gone = summary === null; // the server need not be asked
  const { value, error } = useAsync(async () => (gone ? null : api.get(`runs/${api.name(id)}`)), [id, gone, summary?.state, summary?.finished, readings]);
  const [problem, setProblem] = useState(null);
  const run = useMemo(() => value && { ...value, ...pick(summary) }, [value, summary]);
  const job = [...jobs.values()].find((one) => one.run === id);
  useEffect(() => {
    if (run) document.title = `${run.title} – V2Edit`;
    return () => (document.title = "V2Edit studio");
  }, [run?.title]);
  if (gone || error) return html`<${Empty} icon="film" title=${text.run.unknown}><p>${gone ? text.run.gone : error}</p><a class="button" href="#/gallery">${text.nav.gallery}</a><//>`;
  if (!run) return html`<p class="loading" role="status">${text.loading}</p>`;
  const media = mediaOf(run);
  const title = async (title) => api.patch(`runs/${api.name(id)}`, { title }).catch((e) => setProblem(e.message));
  const facts = [text.kinds[run.kind], run.model, run.width && `${run.width} × ${run.height}`, run.frames > 1 && text.edit.frames(run.frames), run.seconds && text.run.took(duration(run.seconds)), when(run.finished ?? run.started)].filter(Boolean);
  const single = run.kind === "edit" || run.kind === "scene";
  return html`<div class="result">
    <section class="stage" aria-label=${text.run.result}>
      <div class="stage-head"><h1><${Editable} label=${text.run.title} value=${run.title} onSave=${title} /></h1><${State} state=${run.state} /></div>
      <p class="facts">${facts.map((fact) => html`<span>${fact}</span>`)}</p>
      <${ErrorLine}>${problem}<//>
      ${run.parent && html`<p><a href=${pageOf(run.parent)}>${text.run.parent}</a></p>`}
      ${!single ? html`<${Group} run=${run} />` : run.state !== "done" ? html`<${Unfinished} run=${run} job=${job} />` : run.kind === "scene" && media.splat_after ? html`<${SceneStage} run=${run} media=${media} />` : html`<${ComparePlayer} media=${media} frames=${run.frames ?? 1} fps=${run.fps ?? 24} tiny=${run.height < 256} sound=${Boolean(run.sound)} />`}
    </section>
    <${Panel} run=${run} job=${job} setError=${setProblem} />
  </div>`;
}

const ENDINGS = { mp4: ".mp4", webm: ".webm", gif: ".gif", webp: ".webp", prores: ".mov" }; // of files that need not be made
const PICKED = ["title", "note", "starred", "state", "frames", "fps", "width", "height", "sound"];
const pick = (summary) => (summary ? Object.fromEntries(PICKED.filter((name) => summary[name] != null).map((name) => [name, summary[name]])) : {});
