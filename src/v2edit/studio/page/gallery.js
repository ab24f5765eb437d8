/** All runs: find, filter, star, compare, and the trash. */

import * as api from "./api.js";
import { duration, when } from "./format.js";
import { isActive } from "./jobs.js";
import { useStore } from "./store.js";
import { text } from "./text.js";
import { Empty, ErrorLine, Icon, IconButton, Segments, State, useAction, useAsync } from "./ui.js";
import { html, useEffect, useState } from "./vendor/ui.js";

const PAGE = 48;
const FILTER = { q: "", state: "", kind: "", model: "", sort: "-started", starred: false, limit: PAGE };
const KEPT = "v2edit-gallery"; // what was looked for and chosen, for the way back

function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT)) ?? {};
  } catch {
    return {};
  }
}

const COMPARED = new Set(["edit", "scene"]); // others are groups of runs

export function RunCard({ run, chosen, onChoose }) {
  const [broken, setBroken] = useState(false);
  useEffect(() => setBroken(false), [run.thumb, run.finished]);
  const star = () => api.patch(`runs/${api.name(run.name)}`, { starred: !run.starred }).catch(() => {});
  return html`<article class=${`card${chosen ? " chosen" : ""}`}>
    <a class="card-link" href=${`#/run/${api.name(run.name)}`} aria-label=${run.title}>
      <span class="thumb">${run.thumb && !broken ? html`<img src=${run.thumb} alt="" loading="lazy" onError=${() => setBroken(true)} />` : html`<${Icon} name=${run.kind === "scene" ? "cube" : "film"} />`}
        ${run.state !== "done" && html`<${State} state=${run.state} />`}
      </span>
      <span class="card-title">${run.parent ? run.name.split("~").pop() : run.title}</span>
    </a>
    <div class="card-foot">
      <span class="facts"><span>${text.kinds[run.kind]}</span>${run.seconds ? html`<span>${duration(run.seconds)}</span>` : null}<span>${when(run.finished ?? run.started)}</span></span>
      ${onChoose && run.state === "done" && COMPARED.has(run.kind) && html`<label class="check choose"><input type="checkbox" checked=${chosen} onChange=${onChoose} aria-label=${text.gallery.choose(run.title)} /></label>`}
      <${IconButton} icon="star" label=${run.starred ? text.run.unstar : text.run.star} pressed=${run.starred} filled=${run.starred} onClick=${star} />
    </div>
  </article>`;
}

function Trash() {
  const [version, setVersion] = useState(0);
  const { value, error } = useAsync(() => api.get("trash"), [version]);
  const { run, error: problem, busy } = useAction();
  const [asks, setAsks] = useState(null);
  const act = (action) => run(async () => (await action(), setVersion(version + 1), setAsks(null)));
  const list = value?.runs ?? [];
  return html`<${ErrorLine}>${error ?? problem}<//>
    ${value && !list.length && html`<${Empty} icon="trash" title=${text.gallery.trashEmpty}><p>${text.gallery.trashHelp}</p><//>`}
    <ul class="trash-list">
      ${list.map(
        (one) => html`<li key=${one.id}><span>${one.name}</span><span class="aside">${when(one.deleted)}</span>
          <span class="row"><button type="button" disabled=${busy} onClick=${() => act(() => api.post(`trash/${one.id}/restore`))}>${text.gallery.restore}</button>
          ${asks === one.id ? html`<button type="button" class="danger" disabled=${busy} onClick=${() => act(() => api.remove(`trash/${one.id}`))}>${text.gallery.really}</button>` : html`<button type="button" class="quiet" onClick=${() => setAsks(one.id)}>${text.gallery.remove}</button>`}</span></li>`,
      )}
    </ul>`;
}

function Filters({ filter, setFilter, models }) {
  const set = (change) => setFilter({ ...filter, ...change, limit: PAGE });
  const pick = (name, choices) => html`<label class="pick"><span>${text.gallery[name]}</span>
    <select onChange=${(e) => set({ [name]: e.target.value })}>${choices.map(([value, label]) => html`<option value=${value} selected=${value === filter[name]}>${label}</option>`)}</select></label>`;
  return html`<div class="filters" role="search">
    <label class="search"><${Icon} name="search" /><span class="visually-hidden">${text.gallery.search}</span>
      <input type="search" placeholder=${text.gallery.search} value=${filter.q} onInput=${(e) => set({ q: e.target.value })} /></label>
    <div class="picks">${pick("state", [["", text.gallery.any], ["done", text.states.done], ["running", text.states.running], ["suspended,interrupted,failed", text.gallery.notDone]])}
    ${pick("kind", [["", text.gallery.any], ...Object.entries(text.kinds)])}
    ${pick("model", [["", text.gallery.any], ...models.map((one) => [one, one])])}
    ${pick("sort", Object.entries(text.gallery.sorts))}
    <label class="check"><input type="checkbox" checked=${filter.starred} onChange=${(e) => set({ starred: e.target.checked })} /><span>${text.gallery.starred}</span></label></div>
  </div>`;
}

export function Gallery({ query }) {
  const { runs, runsVersion, jobs } = useStore();
  const where = query.get("trash") ? "trash" : "runs";
  const setWhere = (next) => (location.hash = next === "trash" ? "#/gallery?trash=1" : "#/gallery");
  const [filter, setFilter] = useState({ ...FILTER, ...kept().filter });
  const [ever, setChosen] = useState(kept().chosen ?? []);
  const chosen = ever.filter((name) => runs.get(name) !== null); // null: it has gone
  useEffect(() => sessionStorage.setItem(KEPT, JSON.stringify({ filter, chosen })), [filter, chosen.join()]);
  const asked = new URLSearchParams(Object.entries(filter).filter(([, value]) => value !== "" && value !== false)).toString();
  const { value, error, waits } = useAsync(() => api.get(`runs?${asked}`), [asked, runsVersion], patience(filter.q));
  const [shown, setShown] = useState(null);
  useEffect(() => value && setShown(value), [value]);
  const list = (shown?.runs ?? []).map((run) => runs.get(run.name) ?? run);
  const models = shown?.models ?? [...new Set(list.map((run) => run.model).filter(Boolean))];
  const choose = (name) => setChosen(chosen.includes(name) ? chosen.filter((one) => one !== name) : [...chosen, name].slice(-4));
  const filtered = asked.replace(/sort=[^&]*|limit=\d+|&/g, "") !== "";
  const busy = [...jobs.values()].filter(isActive).length;
  return html`<div class="gallery">
    <div class="page-head"><h1>${text.nav.gallery}</h1>
      <${Segments} label=${text.gallery.where} value=${where} choices=${[["runs", text.gallery.runs], ["trash", text.gallery.trash]]} onChange=${setWhere} /></div>
    ${where === "trash"
      ? html`<${Trash} />`
      : html`<${Filters} filter=${filter} setFilter=${setFilter} models=${models} />
          <${ErrorLine}>${error}<//>
          ${shown && !list.length && !waits && (filtered ? html`<${Empty} icon="search" title=${text.gallery.nothing}><p>${text.gallery.nothingHelp}</p><//>` : html`<${Empty} icon="grid" title=${text.gallery.empty}><p>${busy ? text.gallery.emptyBusy : text.gallery.emptyHelp}</p><a class="button primary" href="#/edit">${text.jobs.emptyAction}</a><//>`)}
          <div class="cards" aria-busy=${waits}>${list.map((run) => html`<${RunCard} key=${run.name} run=${run} chosen=${chosen.includes(run.name)} onChoose=${() => choose(run.name)} />`)}</div>
          ${shown && list.length < shown.total && html`<p class="row centre"><button type="button" onClick=${() => setFilter({ ...filter, limit: filter.limit + PAGE })}>${text.gallery.moreOf(shown.total - list.length)}</button></p>`}
          ${chosen.length > 0 &&
          html`<div class="bottom-bar" role="region" aria-label=${text.gallery.chosen(chosen.length)}><span>${text.gallery.chosen(chosen.length)}</span>
            <a class=${`button primary${chosen.length < 2 ? " disabled" : ""}`} aria-disabled=${chosen.length < 2} href=${chosen.length < 2 ? undefined : `#/compare?runs=${chosen.map(api.name).join(",")}`}>${text.gallery.compare}</a>
            <a class="button" href=${`#/studies?runs=${chosen.map(api.name).join(",")}`}>${text.gallery.study}</a>
            <button type="button" class="quiet" onClick=${() => setChosen([])}>${text.gallery.chooseNone}</button></div>`}`}
  </div>`;
}

const patience = (words) => (words ? 200 : 30);
