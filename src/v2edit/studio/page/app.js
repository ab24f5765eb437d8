/** The page: its frame, and which view the address names. */

import { html, render, useEffect, useState } from "./vendor/ui.js";
import { Compare } from "./compare.js";
import { EditView } from "./edit.js";
import { Gallery } from "./gallery.js";
import { JobsView } from "./jobs.js";
import { useKeys } from "./keys.js";
import { ReportView } from "./report.js";
import { RunView } from "./run.js";
import { start, state, unlock, useStore } from "./store.js";
import { Studies, StudyView } from "./studies.js";
import { text } from "./text.js";
import { Dialog, ErrorLine, Icon, IconButton, useAction } from "./ui.js";
import { gib } from "./format.js";

function readAddress() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, ...rest] = path.split("/").map(decodeURIComponent);
  return { view: view || "edit", id: rest.join("/") || null, query: new URLSearchParams(query ?? "") };
}

const VIEWS = {
  edit: EditView,
  jobs: JobsView,
  run: RunView,
  scene: RunView,
  gallery: Gallery,
  compare: Compare,
  report: ReportView,
  studies: Studies,
  study: StudyView,
};
const TABS = [
  ["edit", "film", text.nav.edit],
  ["jobs", "queue", text.nav.jobs],
  ["gallery", "grid", text.nav.gallery],
  ["studies", "study", text.nav.studies],
];
const TAB_OF = { run: "gallery", scene: "gallery", compare: "gallery", report: "gallery", study: "studies" };

function Header({ view, onHelp }) {
  const { machine, jobs } = useStore();
  const waiting = [...jobs.values()].filter((job) => ["queued", "loading", "running"].includes(job.state)).length;
  const device = machine?.devices?.[0];
  const here = TAB_OF[view] ?? view;
  return html`<header class="top">
    <a class="brand" href="#/edit"><span>V2Edit</span> studio</a>
    <nav aria-label=${text.nav.label}>
      ${TABS.map(
        ([key, icon, title]) => html`<a key=${key} href=${`#/${key}`} aria-current=${here === key ? "page" : undefined}>
          <${Icon} name=${icon} /><span>${title}</span>${key === "jobs" && waiting ? html`<b class="count">${waiting}</b>` : null}
        </a>`,
      )}
    </nav>
    ${device &&
    html`<p class="device" title=${text.deviceTitle}>
      ${device.name}${device.free_gib != null ? html`<span>${text.free(gib(device.free_gib))}</span>` : null}
    </p>`}
    <${IconButton} icon="help" label=${text.keys.title} onClick=${onHelp} />
  </header>`;
}

function Login() {
  const [token, setToken] = useState("");
  const { run, error, busy } = useAction();
  const send = (event) => {
    event.preventDefault();
    run(() => unlock(token.trim()));
  };
  return html`<main class="login">
    <form onSubmit=${send}>
      <h1>${text.login.title}</h1>
      <p class="help">${text.login.help}</p>
      <label for="token">${text.login.label}</label>
      <input id="token" type="password" autocomplete="current-password" value=${token} onInput=${(e) => setToken(e.target.value)} />
      <${ErrorLine}>${error}<//>
      <button class="primary" disabled=${busy || !token.trim()}>${text.login.send}</button>
    </form>
  </main>`;
}

function Help({ onClose }) {
  return html`<${Dialog} title=${text.keys.title} onClose=${onClose}>
    <dl class="keys">
      ${text.keys.list.map(([key, what]) => html`<div><dt><kbd>${key}</kbd></dt><dd>${what}</dd></div>`)}
    </dl>
  <//>`;
}

function App() {
  const [address, setAddress] = useState(readAddress);
  const [helps, setHelps] = useState(false);
  useStore();
  useEffect(() => {
    const read = () => {
      setAddress(readAddress());
      window.scrollTo(0, 0);
    };
    window.addEventListener("hashchange", read);
    return () => window.removeEventListener("hashchange", read);
  }, []);
  useKeys({ "?": () => setHelps(true), "/": () => document.querySelector("input[type=search]")?.focus() ?? (location.hash = "#/gallery") });
  if (state.locked) return html`<${Login} />`;
  const View = VIEWS[address.view] ?? EditView;
  return html`<${Header} view=${address.view} onHelp=${() => setHelps(true)} />
    ${!state.online && html`<p class="offline" role="status">${text.offline}</p>`}
    ${state.machine?.problems?.map((line) => html`<p class="offline" role="status">${line}</p>`)}
    <main class=${`view view-${address.view}`}>
      ${state.ready
        ? html`<${View} key=${`${address.view}/${address.id}`} id=${address.id} query=${address.query} />`
        : html`<p class="loading" role="status">${text.loading}</p>`}
    </main>
    ${helps && html`<${Help} onClose=${() => setHelps(false)} />`}`;
}

render(html`<${App} />`, document.getElementById("app"));
start();
