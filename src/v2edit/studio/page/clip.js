/** The clip that is edited: player, frame stepping, and which part is edited. */

import { clock } from "./format.js";
import { useKeys } from "./keys.js";
import { text } from "./text.js";
import { IconButton } from "./ui.js";
import { html, useEffect, useRef, useState } from "./vendor/ui.js";

/** Where a frame is shown: in the middle of its time, so that rounding does not show its neighbour. */
export const timeOf = (frame, fps) => (frame + 0.5) / fps;

/** A video that plays within a part and steps by frames: {video, frame, playing, seek, toggle, step}. */
export function usePlayback(frames, fps, part) {
  const video = useRef();
  const [frame, setFrame] = useState(0);
  const [playing, setPlaying] = useState(false);
  const [from, to] = part ?? [0, frames - 1];
  useEffect(() => {
    const own = video.current;
    if (!own) return undefined;
    let ends = false;
    let handle = 0;
    const look = () => {
      if (ends) return;
      const now = Math.min(frames - 1, Math.floor(own.currentTime * fps + 1e-3));
      setFrame(now);
      if (!own.paused && now >= to && to < frames - 1) own.currentTime = timeOf(from, fps);
      handle = requestAnimationFrame(look);
    };
    const play = () => (setPlaying(true), cancelAnimationFrame(handle), look());
    const pause = () => {
      setPlaying(false);
      cancelAnimationFrame(handle);
      setFrame(Math.min(frames - 1, Math.floor(own.currentTime * fps + 1e-3)));
    };
    const seeked = () => own.paused && setFrame(Math.min(frames - 1, Math.floor(own.currentTime * fps + 1e-3)));
    const again = () => {
      own.currentTime = timeOf(from, fps);
      own.play().catch(() => {}); // a pause may come before it plays
    };
    const all = { play, pause, seeked, ended: again };
    for (const [kind, act] of Object.entries(all)) own.addEventListener(kind, act);
    return () => {
      ends = true;
      cancelAnimationFrame(handle);
      for (const [kind, act] of Object.entries(all)) own.removeEventListener(kind, act);
    };
  }, [frames, fps, from, to]);
  const seek = (next) => {
    const bounded = Math.max(0, Math.min(frames - 1, next));
    setFrame(bounded);
    if (video.current) video.current.currentTime = timeOf(bounded, fps);
  };
  const toggle = () => (video.current?.paused ? video.current.play().catch(() => {}) : video.current?.pause());
  const step = (by) => {
    video.current?.pause();
    seek(frame + by);
  };
  return { video, frame, playing, seek, toggle, step };
}

export function Transport({ playback, frames, fps, children }) {
  const { frame, playing, seek, toggle, step } = playback;
  useKeys({ " ": toggle, ArrowLeft: () => step(-1), ArrowRight: () => step(1), k: toggle, ",": () => step(-1), ".": () => step(1) });
  return html`<div class="transport">
    <${IconButton} icon=${playing ? "pause" : "play"} label=${playing ? text.player.pause : text.player.play} onClick=${toggle} />
    <${IconButton} icon="back" label=${text.player.back} onClick=${() => step(-1)} />
    <${IconButton} icon="next" label=${text.player.next} onClick=${() => step(1)} />
    <input
      type="range"
      class="seek"
      min="0"
      max=${frames - 1}
      value=${frame}
      aria-label=${text.player.position}
      aria-valuetext=${text.player.frameOf(frame + 1, frames)}
      onInput=${(e) => seek(Number(e.target.value))}
    />
    <span class="frame-count">${text.player.frameOf(frame + 1, frames)}<span class="aside">${clock(frame / fps)}</span></span>
    ${children}
  </div>`;
}

/** Two handles on one line: the first and the last frame that are edited. */
export function Trim({ frames, fps, trim, onChange }) {
  const last = frames - 1;
  const first = trim ? Math.round((trim[0] ?? 0) * fps) : 0;
  const end = trim && trim[1] != null ? Math.round(trim[1] * fps) - 1 : last;
  const set = (from, to) => {
    const low = Math.max(0, Math.min(from, to));
    const high = Math.min(last, Math.max(from, to));
    onChange(low === 0 && high === last ? null : [low / fps, (high + 1) / fps]);
  };
  const style = { "--from": `${(100 * first) / Math.max(1, last)}%`, "--to": `${(100 * end) / Math.max(1, last)}%` };
  const bar = useRef();
  useEffect(() => {
    for (const [name, value] of Object.entries(style)) bar.current.style.setProperty(name, value);
  });
  return html`<div class="trim">
    <span class="label" id="trim-label">${text.edit.trim}</span>
    <div class="trim-track" ref=${bar}>
      <input type="range" min="0" max=${last} value=${first} aria-label=${text.edit.trimStart} aria-valuetext=${clock(first / fps)} onInput=${(e) => set(Math.min(Number(e.target.value), end), end)} />
      <input type="range" min="0" max=${last} value=${end} aria-label=${text.edit.trimEnd} aria-valuetext=${clock((end + 1) / fps)} onInput=${(e) => set(first, Math.max(Number(e.target.value), first))} />
    </div>
    <span class="aside">${trim ? text.edit.trimmed(clock(first / fps), clock((end + 1) / fps), end - first + 1) : text.edit.whole(frames)}</span>
    ${trim && html`<button type="button" class="quiet" onClick=${() => onChange(null)}>${text.edit.all}</button>`}
  </div>`;
}
