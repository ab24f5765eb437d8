/** A scene before and after: in 3D (loaded only when asked for), and as the videos along the camera path. */

import { ComparePlayer } from "./player.js";
import { text } from "./text.js";
import { Bar, ErrorLine, IconButton, Segments } from "./ui.js";
import { html, useEffect, useRef, useState } from "./vendor/ui.js";
import { useKeys } from "./keys.js";

/** A box of a job's options as six numbers: they have it as such a list, or as text. */
export function boxOf(value) {
  const numbers = (Array.isArray(value) ? value : String(value ?? "").split(",")).map(Number);
  return numbers.length === 6 && numbers.every(isFinite) && value !== "" ? numbers : null;
}

/** Splats in 3D, one or two with a wipe between; `box` is shown as its edges, and `viewer` takes the viewer. */
export function Splats({ media, box = null, viewer: given, onLoaded, label = text.player.after }) {
  const canvas = useRef();
  const frame = useRef();
  const edges = useRef();
  const own = useRef(null);
  const viewer = given ?? own;
  const [loaded, setLoaded] = useState(0);
  const [error, setError] = useState(null);
  const [wipe, setWipe] = useState(0.5);
  const [follows, setFollows] = useState(false);
  const [light, setLight] = useState(false);
  useEffect(() => {
    let ends = false;
    (async () => {
      try {
        const { SceneViewer } = await import("./scene3d.js");
        if (ends) return;
        viewer.current = new SceneViewer(canvas.current, setLoaded, setFollows);
        viewer.current.onBox = (lines) => edges.current?.setAttribute("d", lines);
        await viewer.current.load(media);
        if (!ends) setLoaded(1), onLoaded?.();
      } catch (problem) {
        if (!ends) setError(/webgl/i.test(problem.message) ? text.scene.noWebgl : text.scene.broken(problem.message));
      }
    })();
    return () => {
      ends = true;
      viewer.current?.close();
    };
  }, [media.splat_after]);
  useEffect(() => {
    viewer.current?.set({ wipe, light });
    frame.current.style.setProperty("--wipe", `${100 * wipe}%`);
  }, [wipe, light, loaded]);
  useEffect(() => viewer.current?.setBox(box), [box?.join(), loaded]);
  const play = () => viewer.current?.follow(!follows);
  useKeys({ " ": play, b: [() => viewer.current?.set({ wipe: 1 }), () => viewer.current?.set({ wipe })] });
  const drag = (event) => {
    event.preventDefault();
    const box = frame.current.getBoundingClientRect();
    const move = (e) => setWipe(Math.max(0, Math.min(1, (e.clientX - box.left) / box.width)));
    const up = () => (window.removeEventListener("pointermove", move), window.removeEventListener("pointerup", up));
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", up);
  };
  const both = Boolean(media.splat_before);
  return html`<div class=${`picture space${light ? " light" : ""}`} ref=${frame} data-loaded=${loaded >= 1}>
      <canvas ref=${canvas} role="img" aria-label=${text.scene.canvas} tabindex="0" />
      ${both && html`<span class="wipe-line grab" aria-hidden="true" onPointerDown=${drag} /><span class="tag left">${text.player.before}</span>`}
      ${label && html`<span class="tag right">${label}</span>`}
      ${box && html`<svg class="box-edges" role="img" aria-label=${text.region.shown}><path ref=${edges} /></svg>`}
      ${loaded < 1 && !error && html`<div class="over"><p>${text.scene.loading}</p><${Bar} value=${loaded} label=${text.scene.loading} /></div>`}
      ${error && html`<div class="over"><${ErrorLine}>${error}<//></div>`}
    </div>
    <div class="transport">
      ${media.path && html`<${IconButton} icon=${follows ? "pause" : "play"} label=${follows ? text.scene.stop : text.scene.follow} onClick=${play} />`}
      ${both && html`<label class="grow"><span class="visually-hidden">${text.player.wipe}</span><input type="range" min="0" max="1" step="0.01" value=${wipe} aria-label=${text.player.wipe} onInput=${(e) => setWipe(Number(e.target.value))} /></label>`}
      <${IconButton} icon="again" label=${text.scene.reset} onClick=${() => viewer.current?.reset()} />
      <${IconButton} icon="sun" label=${text.scene.light} pressed=${light} onClick=${() => setLight(!light)} />
    </div>
    <p class="help">${text.scene.help}</p>`;
}

export function SceneStage({ run, media }) {
  const [view, setView] = useState("space");
  return html`<div class="row"><${Segments} label=${text.player.view} value=${view} choices=${Object.entries(text.scene.views)} onChange=${setView} /></div>
    ${view === "space" ? html`<${Splats} media=${media} box=${boxOf(run.settings?.local?.box3d)} />` : html`<${ComparePlayer} media=${media} frames=${run.frames ?? 1} fps=${run.fps ?? 8} tiny=${run.height < 256} sound=${false} />`}`;
}
