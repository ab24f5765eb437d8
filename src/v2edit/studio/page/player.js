/** Before and after on one canvas: by a wipe, side by side or alone; in step, at any strength. */

import { clock } from "./format.js";
import { useKeys } from "./keys.js";
import { Pictures } from "./pictures.js";
import { text } from "./text.js";
import { ErrorLine, IconButton, Segments } from "./ui.js";
import { html, useEffect, useRef, useState } from "./vendor/ui.js";

const SPEEDS = [0.25, 0.5, 1, 2];
const SEAM = 8; // pixels between two pictures side by side

function drawMask(context, pictures, x, width, height, colour) {
  const mask = pictures.mask();
  if (mask.readyState < 2) return;
  const layer = new OffscreenCanvas(width, height);
  const own = layer.getContext("2d");
  own.drawImage(mask, 0, 0, width, height);
  own.globalCompositeOperation = "multiply";
  own.fillStyle = colour;
  own.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "screen";
  context.drawImage(layer, x, 0);
  context.globalCompositeOperation = "source-over";
}

/** Draw the pictures as a view shows them. */
export function drawPictures(canvas, pictures, { mode, wipe, step, mask, tiny }) {
  if (!pictures.size) return;
  const [width, height] = pictures.size;
  const wide = mode === "side" ? 2 * width + SEAM : width;
  if (canvas.width !== wide || canvas.height !== height) Object.assign(canvas, { width: wide, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = !tiny;
  const put = (part, x, from, share) => {
    const [video, left, top, w, h] = part;
    if (video.readyState < 2 || !w) return;
    const cut = share * w;
    context.drawImage(video, left + from * w, top, cut, h, x + from * width, 0, share * width, height);
  };
  const [before, after] = [pictures.part(0), pictures.part(step)];
  const used = [after[0]];
  if (mode !== "after") used.push(before[0]);
  if (mask) used.push(pictures.mask());
  pictures.use(used);
  if (mode === "side") {
    context.clearRect(0, 0, wide, height);
    put(before, 0, 0, 1);
    put(after, width + SEAM, 0, 1);
  } else if (mode === "before") put(before, 0, 0, 1);
  else {
    put(after, 0, 0, 1);
    if (mode === "wipe" && wipe > 0) put(before, 0, 0, wipe);
  }
  if (mask) {
    const colour = getComputedStyle(canvas).getPropertyValue("--mask-colour");
    drawMask(context, pictures, mode === "side" ? width + SEAM : 0, width, height, colour);
  }
}

/** Follow a leader's frames: calls `onFrame` at each that is shown. */
export function useFrames(pictures, frames, onFrame) {
  useEffect(() => {
    if (!pictures) return undefined;
    let ends = false;
    let handle = 0;
    const look = () => {
      if (ends) return;
      pictures.follow();
      onFrame(Math.min(frames - 1, Math.floor(pictures.time * pictures.fps + 1e-3)));
      handle = requestAnimationFrame(look);
    };
    look();
    return () => {
      ends = true;
      cancelAnimationFrame(handle);
    };
  });
}

export function usePictures(media, fps) {
  const [pictures, setPictures] = useState(null);
  const [version, setVersion] = useState(0);
  const [error, setError] = useState(false);
  useEffect(() => {
    const made = new Pictures(media, fps, (change) => (change.error ? setError(true) : setVersion((one) => one + 1)));
    setPictures(made);
    return () => made.close();
  }, [media.compare, media.after, fps]);
  return { pictures, version, error };
}

export function ComparePlayer({ media, frames = 1, fps = 24, tiny, subtaskNames, sound = true }) {
  const canvas = useRef();
  const frame_ = useRef();
  const { pictures, version, error } = usePictures(media, fps);
  const steps = 1 + (media.subtasks?.length ?? 0);
  const pair = Boolean(media.compare || media.before);
  const [view, setView] = useState({ mode: pair ? "wipe" : "after", wipe: 0.5, step: steps, mask: false, tiny });
  const [held, setHeld] = useState(false);
  const [frame, setFrame] = useState(0);
  const [playing, setPlaying] = useState(false);
  const [settings, setSettings] = useState({ rate: 1, loop: true, muted: true });
  const change = (some) => setView((old) => ({ ...old, ...some }));
  const shown = held ? { ...view, mode: "before", mask: false } : view;
  const draw = () => pictures && drawPictures(canvas.current, pictures, shown);
  useEffect(draw, [pictures, version, shown.mode, shown.wipe, shown.step, shown.mask]);
  useEffect(() => frame_.current?.style.setProperty("--wipe", `${100 * view.wipe}%`), [view.wipe]);
  useEffect(() => pictures?.set(settings), [pictures, settings]);
  useFrames(pictures, frames, (now) => {
    if (pictures.playing !== playing) setPlaying(pictures.playing);
    if (now !== frame) setFrame(now);
    if (pictures.playing || now !== frame) draw();
  });
  const toggle = () => (pictures?.playing ? pictures.pause() : pictures?.play());
  const seek = (next) => pictures?.seek(Math.max(0, Math.min(frames - 1, next)));
  const step = (by) => {
    pictures?.pause();
    seek((frame + by + frames) % frames);
  };
  useKeys({
    " ": toggle,
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    b: [() => setHeld(true), () => setHeld(false)],
    m: () => media.mask && change({ mask: !view.mask }),
    w: () => pair && change({ mode: view.mode === "wipe" ? "side" : "wipe" }),
    l: () => setSettings((old) => ({ ...old, loop: !old.loop })),
  });
  const size = pictures?.size;
  useEffect(() => {
    if (size) frame_.current.style.setProperty("--ratio", (view.mode === "side" ? 2 * size[0] : size[0]) / size[1]);
  });
  const modes = pair ? ["wipe", "side", "before", "after"] : ["after"];
  return html`<div class=${`player${steps > 1 ? " has-dial" : ""}`}>
    <div class=${`picture${tiny ? " tiny" : ""}`} ref=${frame_} data-mode=${shown.mode}>
      <canvas ref=${canvas} role="img" aria-label=${text.player.canvas[shown.mode]} data-frame=${frame} />
      ${shown.mode === "wipe" &&
      html`<input
          type="range"
          class="wipe-range"
          min="0"
          max="1"
          step="0.001"
          value=${view.wipe}
          aria-label=${text.player.wipe}
          onInput=${(e) => change({ wipe: Number(e.target.value) })}
          onPointerUp=${(e) => e.target.blur()}
        /><span class="wipe-line" aria-hidden="true" />`}
      ${shown.mode !== "after" && html`<span class="tag left">${text.player.before}</span>`}
      ${shown.mode !== "before" && html`<span class="tag right">${view.step === 0 ? text.player.before : view.step < steps ? text.player.step(view.step, steps) : text.player.after}</span>`}
    </div>
    <${ErrorLine}>${error && text.player.broken}<//>
    ${frames > 1 &&
    html`<div class="transport">
      <${IconButton} icon=${playing ? "pause" : "play"} label=${playing ? text.player.pause : text.player.play} onClick=${toggle} />
      <${IconButton} icon="back" label=${text.player.back} onClick=${() => step(-1)} />
      <${IconButton} icon="next" label=${text.player.next} onClick=${() => step(1)} />
      <input type="range" class="seek" min="0" max=${frames - 1} value=${frame} aria-label=${text.player.position} aria-valuetext=${text.player.frameOf(frame + 1, frames)} onInput=${(e) => (pictures?.pause(), seek(Number(e.target.value)))} />
      <span class="frame-count">${text.player.frameOf(frame + 1, frames)}<span class="aside">${clock(frame / fps)}</span></span>
      <${IconButton} icon="loop" label=${text.player.loop} pressed=${settings.loop} onClick=${() => setSettings({ ...settings, loop: !settings.loop })} />
      ${sound && html`<${IconButton} icon=${settings.muted ? "silent" : "sound"} label=${text.player.sound} pressed=${!settings.muted} onClick=${() => setSettings({ ...settings, muted: !settings.muted })} />`}
      <select aria-label=${text.player.speed} onChange=${(e) => setSettings({ ...settings, rate: Number(e.target.value) })}>
        ${SPEEDS.map((one) => html`<option value=${one} selected=${one === settings.rate}>${one}×</option>`)}
      </select>
    </div>`}
    <div class="row player-modes">
      ${pair && html`<${Segments} label=${text.player.view} value=${view.mode} choices=${modes.map((mode) => [mode, text.player.modes[mode]])} onChange=${(mode) => change({ mode })} />`}
      ${media.mask && html`<label class="check"><input type="checkbox" checked=${view.mask} onChange=${(e) => change({ mask: e.target.checked })} /><span>${text.player.mask}</span></label>`}
    </div>
    ${steps > 1 &&
    html`<div class="dial field">
      <div class="field-head"><label for="dial">${text.player.dial}</label><span class="aside">${text.player.dialAt(view.step, steps)}</span></div>
      <input id="dial" type="range" min="0" max=${steps} step="1" value=${view.step} list="dial-steps" aria-valuetext=${text.player.dialAt(view.step, steps)} onInput=${(e) => change({ step: Number(e.target.value) })} />
      <datalist id="dial-steps">${Array.from({ length: steps + 1 }, (_, at) => html`<option value=${at} />`)}</datalist>
      <p class="help">${subtaskNames?.[view.step] ?? text.player.dialHelp}</p>
    </div>`}
  </div>`;
}
