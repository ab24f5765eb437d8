/** Two to four runs side by side, in step, and where their settings differ. */

import * as api from "./api.js";
import { clock } from "./format.js";
import { useKeys } from "./keys.js";
import { drawPictures, useFrames } from "./player.js";
import { Pictures } from "./pictures.js";
import { mediaOf, settingsOf } from "./run.js";
import { text } from "./text.js";
import { Empty, ErrorLine, IconButton, useAsync } from "./ui.js";
import { html, useEffect, useRef, useState } from "./vendor/ui.js";

/** What is not the same in all runs: [name, value, value, …]. */
function differences(runs) {
  const tables = runs.map((run) => new Map([["instruction", run.instruction ?? ""], ...settingsOf(run)]));
  const names = [...new Set(tables.flatMap((table) => [...table.keys()]))];
  return names.map((name) => [name, ...tables.map((table) => table.get(name) ?? "")]).filter(([, first, ...others]) => others.some((one) => one !== first));
}

function Grid({ runs }) {
  const [all, setAll] = useState([]);
  const [, redraw] = useState(0);
  const [source, setSource] = useState(false);
  const [frame, setFrame] = useState(0);
  const [playing, setPlaying] = useState(false);
  const canvases = useRef([]);
  const frames = Math.max(...runs.map((run) => run.frames ?? 1));
  const fps = runs[0].fps ?? 24;
  useEffect(() => {
    const made = runs.map((run) => new Pictures(mediaOf(run), run.fps, () => redraw((one) => one + 1)));
    setAll(made);
    return () => made.forEach((one) => one.close());
  }, [runs]);
  const [leader, ...others] = all;
  const draw = () =>
    all.forEach((one, at) => {
      const canvas = canvases.current[at];
      if (!canvas) return;
      drawPictures(canvas, one, { mode: source ? "before" : "after", wipe: 0, step: one.steps, tiny: runs[at].height < 256 });
      if (one.size) canvas.parentNode.style.setProperty("--ratio", one.size[0] / one.size[1]);
    });
  useEffect(draw);
  useFrames(leader, frames, (now) => {
    for (const one of others) {
      if (leader.playing === !one.playing) leader.playing ? one.play() : one.pause();
      const off = Math.abs(one.time - leader.time);
      const wraps = leader.playing && off > (leader.leader.duration || 0) - 0.5 / fps;
      if (off > 0.5 / fps && !wraps && !one.leader.seeking) one.leader.currentTime = leader.time;
    }
    if (playing !== leader.playing) setPlaying(leader.playing);
    if (now !== frame) setFrame(now);
    if (leader.playing) draw();
  });
  const toggle = () => (leader?.playing ? leader.pause() : leader?.play());
  const seek = (next) => all.forEach((one) => one.seek(Math.max(0, Math.min(frames - 1, next))));
  const step = (by) => (leader?.pause(), seek(frame + by));
  useKeys({ " ": toggle, ArrowLeft: () => step(-1), ArrowRight: () => step(1), b: [() => setSource(true), () => setSource(false)] });
  return html`<div class=${`compare-grid of-${runs.length}`}>
      ${runs.map(
        (run, at) => html`<figure key=${run.name}><div class=${`picture${run.height < 256 ? " tiny" : ""}`}><canvas ref=${(one) => (canvases.current[at] = one)} role="img" aria-label=${run.title} data-frame=${frame} /></div>
          <figcaption><a href=${`#/run/${api.name(run.name)}`}>${run.title}</a></figcaption></figure>`,
      )}
    </div>
    <div class="transport">
      <${IconButton} icon=${playing ? "pause" : "play"} label=${playing ? text.player.pause : text.player.play} onClick=${toggle} />
      <${IconButton} icon="back" label=${text.player.back} onClick=${() => step(-1)} />
      <${IconButton} icon="next" label=${text.player.next} onClick=${() => step(1)} />
      <input type="range" class="seek" min="0" max=${frames - 1} value=${frame} aria-label=${text.player.position} aria-valuetext=${text.player.frameOf(frame + 1, frames)} onInput=${(e) => (leader?.pause(), seek(Number(e.target.value)))} />
      <span class="frame-count">${text.player.frameOf(frame + 1, frames)}<span class="aside">${clock(frame / fps)}</span></span>
      <label class="check"><input type="checkbox" checked=${source} onChange=${(e) => setSource(e.target.checked)} /><span>${text.compare.source}</span></label>
    </div>`;
}

export function Compare({ query }) {
  const names = (query.get("runs") ?? "").split(",").map(decodeURIComponent).filter(Boolean).slice(0, 4);
  const { value: runs, error } = useAsync(() => Promise.all(names.map((name) => api.get(`runs/${api.name(name)}`))), [names.join()]);
  if (names.length < 2) return html`<${Empty} icon="side" title=${text.compare.title}><p>${text.compare.help}</p><a class="button primary" href="#/gallery">${text.nav.gallery}</a><//>`;
  if (error) return html`<div class="column"><${ErrorLine}>${error}<//></div>`;
  if (!runs) return html`<p class="loading" role="status">${text.loading}</p>`;
  const rows = differences(runs);
  return html`<div class="compare">
    <h1>${text.compare.title}</h1>
    <${Grid} runs=${runs} />
    <section aria-label=${text.compare.differ}>
      <h2>${text.compare.differ}</h2>
      ${rows.length ? html`<div class="table-wrap" tabindex="0" role="region" aria-label=${text.compare.differ}><table><thead><tr><th scope="col">${text.compare.setting}</th>${runs.map((run) => html`<th scope="col">${run.title}</th>`)}</tr></thead>
        <tbody>${rows.map(([name, ...values]) => html`<tr><th scope="row">${name}</th>${values.map((value) => html`<td>${value || "–"}</td>`)}</tr>`)}</tbody></table></div>` : html`<p class="muted">${text.compare.same}</p>`}
    </section>
  </div>`;
}
