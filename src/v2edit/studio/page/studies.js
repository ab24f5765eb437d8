/** Blind comparisons: make one of runs or of a bench report, its link for voters, and what they found. */

import * as api from "./api.js";
import { when } from "./format.js";
import { text } from "./text.js";
import { CopyButton, Empty, ErrorLine, Icon, Segments, useAction, useAsync } from "./ui.js";
import { html, useEffect, useState } from "./vendor/ui.js";

const MOST_RUNS = 200;
const words = text.studies;
const linkOf = (study) => new URL(study.link, location.origin).href;

function StudyRow({ study }) {
  return html`<li class="study-row">
    <a href=${`#/study/${api.name(study.id)}`}><b>${study.title}</b></a>
    <span class="facts"><span>${words.shownShort[study.shown]}</span><span>${words.comparisons(study.comparisons)}</span>
      <span>${words.voters(study.voters)}</span><span>${when(study.created)}</span>${study.closed && html`<span>${words.closed}</span>`}</span>
    <${CopyButton} value=${linkOf(study)} label=${words.copyLink} />
  </li>`;
}

/** The list of what can be compared, each with what the results are to call it. */
function RunPicker({ chosen, setChosen }) {
  const [search, setSearch] = useState("");
  const asked = new URLSearchParams({ q: search, state: "done", limit: MOST_RUNS, sort: "-started" }).toString();
  const { value, error } = useAsync(() => api.get(`runs?${asked}`), [asked], search ? 200 : 30);
  const runs = (value?.runs ?? []).filter((run) => ["edit", "scene"].includes(run.kind));
  const toggle = (run) => {
    const next = new Map(chosen);
    if (!next.delete(run.name)) next.set(run.name, "");
    setChosen(next);
  };
  return html`<div class="run-picker">
    <label class="search"><${Icon} name="search" /><span class="visually-hidden">${text.gallery.search}</span>
      <input type="search" placeholder=${text.gallery.search} value=${search} onInput=${(e) => setSearch(e.target.value)} /></label>
    <${ErrorLine}>${error}<//>
    ${value && !runs.length && html`<p class="muted">${search ? text.gallery.nothing : words.noRuns}</p>`}
    <ul>
      ${runs.map(
        (run) => html`<li key=${run.name}>
          <label class="check"><input type="checkbox" checked=${chosen.has(run.name)} onChange=${() => toggle(run)} />
            ${run.thumb ? html`<img src=${run.thumb} alt="" loading="lazy" width="64" height="36" />` : null}
            <span>${run.title}<span class="aside">${run.name}</span></span></label>
          ${chosen.has(run.name) &&
          html`<input class="label" aria-label=${words.labelOf(run.title)} placeholder=${words.label} maxlength="200" value=${chosen.get(run.name)}
            onInput=${(e) => setChosen(new Map(chosen).set(run.name, e.target.value))} />`}
        </li>`,
      )}
    </ul>
  </div>`;
}

function ReportPicker({ bench, setBench }) {
  const { value, error } = useAsync(() => api.get(`runs?kind=bench&limit=${MOST_RUNS}`), []);
  const reports = value?.runs ?? [];
  useEffect(() => {
    if (!bench && reports.length) setBench(reports[0].name);
  }, [value]);
  if (value && !reports.length) return html`<p class="muted">${words.noReports}</p>`;
  return html`<${ErrorLine}>${error}<//>
    <label class="pick"><span>${words.report}</span><select onChange=${(e) => setBench(e.target.value)}>
      ${reports.map((one) => html`<option value=${one.name} selected=${one.name === bench}>${one.title}</option>`)}</select></label>`;
}

function NewStudy({ names }) {
  const [title, setTitle] = useState("");
  const [shown, setShown] = useState("lists");
  const [from, setFrom] = useState("runs");
  const [chosen, setChosen] = useState(new Map(names.map((name) => [name, ""])));
  const [bench, setBench] = useState(null);
  const { run, error, busy } = useAction();
  const ready = from === "bench" ? Boolean(bench) : chosen.size > 0;
  const send = (event) => {
    event.preventDefault();
    const runs = [...chosen].map(([name, label]) => ({ run: name, label: label.trim() || null }));
    run(async () => {
      const study = await api.post("studies", { title, shown, ...(from === "bench" ? { bench } : { runs }) });
      location.hash = `#/study/${api.name(study.id)}`;
    });
  };
  return html`<form class="new-study" onSubmit=${send}>
    <h2>${words.make}</h2>
    <p class="help">${words.makeHelp}</p>
    <div class="field"><label for="study-title">${words.title}</label>
      <input id="study-title" maxlength="200" placeholder=${words.titlePlaceholder} value=${title} onInput=${(e) => setTitle(e.target.value)} /></div>
    <${Segments} label=${words.from} value=${from} choices=${Object.entries(words.sources)} onChange=${setFrom} />
    ${from === "bench" ? html`<${ReportPicker} bench=${bench} setBench=${setBench} />` : html`<${RunPicker} chosen=${chosen} setChosen=${setChosen} />`}
    <${Segments} label=${words.shown} value=${shown} choices=${Object.entries(words.shownNames)} onChange=${setShown} />
    <p class="help">${words.shownHelp[shown]}</p>
    <${ErrorLine}>${error}<//>
    <p class="row"><button class="primary" disabled=${busy || !ready}>${words.create}</button><a class="button quiet" href="#/studies">${words.cancel}</a></p>
  </form>`;
}

export function Studies({ query }) {
  const names = (query.get("runs") ?? "").split(",").filter(Boolean).map(decodeURIComponent);
  const { value, error } = useAsync(() => api.get("studies"), []);
  if (query.has("new") || names.length) return html`<div class="column"><${NewStudy} names=${names} /></div>`;
  const list = [...(value?.studies ?? [])].reverse();
  return html`<div class="column studies">
    <div class="page-head"><h1>${text.nav.studies}</h1><a class="button primary" href="#/studies?new=1">${words.make}</a></div>
    <${ErrorLine}>${error}<//>
    ${value && !list.length && html`<${Empty} icon="study" title=${words.empty}><p>${words.emptyHelp}</p><//>`}
    <ul class="study-list">${list.map((study) => html`<${StudyRow} key=${study.id} study=${study} />`)}</ul>
  </div>`;
}

/** A mean on a scale with its interval. */
function Mean({ mean, low, high, from, to }) {
  if (mean == null) return html`<span class="muted">–</span>`;
  const at = (value) => (100 * (value - from)) / (to - from);
  const digits = to - from > 1.5 ? 2 : 0;
  const shown = (value) => (digits ? value.toFixed(2) : `${Math.round(100 * value)} %`);
  const label = low == null ? shown(mean) : words.interval(shown(mean), shown(low), shown(high));
  return html`<span class="mean" title=${label}>
    <svg viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">
      <line class="axis" x1="0" x2="100" y1="6" y2="6" />
      ${low != null && html`<line class="interval" x1=${at(low)} x2=${at(high)} y1="6" y2="6" />`}
      <line class="point" x1=${at(mean)} x2=${at(mean)} y1="1" y2="11" />
    </svg><b>${shown(mean)}</b>${low != null && html`<span class="aside">${shown(low)} – ${shown(high)}</span>`}
  </span>`;
}

function Results({ study, results }) {
  const questions = Object.keys(study.questions);
  if (!results.votes) return html`<p class="muted">${words.noVotes}</p>`;
  const head = (first) => html`<thead><tr><th scope="col">${first}</th>${questions.map((name) => html`<th scope="col" title=${study.questions[name]}>${words.questions[name] ?? name}</th>`)}</tr></thead>`;
  return html`
    <section aria-label=${words.means}><h2>${words.means}</h2>
      <div class="table-wrap" tabindex="0" role="region" aria-label=${words.means}><table>${head(words.edit)}
        <tbody>${results.means.map((row) => html`<tr><th scope="row">${row.label}</th>${questions.map((name) => html`<td><${Mean} ...${row[name]} from=${1} to=${5} /></td>`)}</tr>`)}</tbody></table></div></section>
    ${results.preferences.length > 0 &&
    html`<section aria-label=${words.preferences}><h2>${words.preferences}</h2>
      <div class="table-wrap" tabindex="0" role="region" aria-label=${words.preferences}><table>${head(words.pair)}
        <tbody>${results.preferences.map((row) => html`<tr><th scope="row">${words.over(row.label, row.over)}</th>${questions.map((name) => html`<td><${Mean} ...${row[name]} from=${0} to=${1} /></td>`)}</tr>`)}</tbody></table></div></section>`}
    <section aria-label=${words.agreement}><h2>${words.agreement}</h2>
      <dl class="agreement">${questions.map((name) => html`<div><dt>${words.questions[name] ?? name}</dt><dd>${results.agreement[name] == null ? "–" : results.agreement[name].toFixed(2)}</dd></div>`)}</dl>
      <p class="help">${words.notes}</p></section>`;
}

export function StudyView({ id }) {
  const [version, setVersion] = useState(0);
  const path = `studies/${api.name(id)}`;
  const { value, error } = useAsync(() => Promise.all([api.get(path), api.get(`${path}/results`)]), [id, version]);
  const [asks, setAsks] = useState(false);
  const { run, error: problem, busy } = useAction();
  useEffect(() => {
    const timer = setInterval(() => setVersion((one) => one + 1), 10_000);
    return () => clearInterval(timer);
  }, []);
  const [shown, setShown] = useState(null);
  useEffect(() => value && setShown(value), [value]);
  if (error) return html`<div class="column"><${ErrorLine}>${error}<//></div>`;
  if (!shown) return html`<p class="loading" role="status">${text.loading}</p>`;
  const [study, results] = shown;
  const close = () => run(async () => (await api.post(`${path}/close`), setAsks(false), setVersion(version + 1)));
  return html`<div class="column study-page">
    <p><a href="#/studies">${words.all}</a></p>
    <h1>${study.title}</h1>
    <p class="facts"><span>${words.shownNames[study.shown]}</span><span>${words.comparisons(study.comparisons)}</span><span>${words.voters(results.voters)}</span>
      <span>${words.votes(results.votes)}</span>${study.closed && html`<span>${words.closedAt(when(study.closed))}</span>`}</p>
    ${!study.closed &&
    html`<div class="link-box"><label for="study-link">${words.link}</label>
      <input id="study-link" readonly value=${linkOf(study)} onFocus=${(e) => e.target.select()} />
      <${CopyButton} value=${linkOf(study)} label=${words.copyLink} /><a class="button quiet" href=${study.link} target="_blank" rel="noopener">${words.try}</a>
      <p class="help">${words.linkHelp}</p></div>`}
    <${ErrorLine}>${problem}<//>
    <${Results} study=${study} results=${results} />
    <p class="row"><a class="button" href=${study.csv} download>${words.csv}</a>
      ${!study.closed && (asks ? html`<button type="button" class="danger" disabled=${busy} onClick=${close}>${words.reallyClose}</button>` : html`<button type="button" class="quiet" onClick=${() => setAsks(true)}>${words.close}</button>`)}</p>
  </div>`;
}
