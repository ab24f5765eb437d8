/** What may change, painted on frames: strokes and boxes, kept as points so that undo and reload are exact. */

import * as api from "./api.js";
import { useKeys } from "./keys.js";
import { text } from "./text.js";
import { ErrorLine, IconButton, Segments, useAction } from "./ui.js";
import { html, useEffect, useRef, useState } from "./vendor/ui.js";

const MODES = { edit: ["none", "auto", "paint"], scene: ["none"] };

/** The drawing at a frame: the latest keyframe up to it, else the first one; null for none. */
export function drawingAt(keyframes, frame) {
  const frames = Object.keys(keyframes).map(Number).sort((a, b) => a - b);
  const found = frames.filter((one) => one <= frame).pop() ?? frames[0];
  return found === undefined ? null : { frame: found, strokes: keyframes[found] };
}

/** Paint strokes in a colour on a canvas's context, whose size is that of the picture. */
export function paint(context, strokes, colour) {
  for (const { box, erase, size, points } of strokes) {
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = colour;
    if (box) {
      context.fillRect(...box);
      continue;
    }
    Object.assign(context, { lineWidth: size, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    points.forEach(([x, y], at) => (at ? context.lineTo(x, y) : context.moveTo(x, y)));
    if (points.length === 1) context.lineTo(points[0][0] + 0.01, points[0][1]);
    context.stroke();
  }
  context.globalCompositeOperation = "source-over";
}

/** A drawing as PNG (base64): white may change. */
function toPng(strokes, width, height, invert) {
  const layer = new OffscreenCanvas(width, height);
  paint(layer.getContext("2d"), strokes, "#fff");
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.fillStyle = invert ? "#fff" : "#000";
  context.fillRect(0, 0, width, height);
  if (invert) context.globalCompositeOperation = "difference";
  context.drawImage(layer, 0, 0);
  return canvas.toDataURL("image/png").split(",")[1];
}

export const isPainted = (mask) => Object.values(mask.keyframes).some((strokes) => strokes.length);

/** Give the server the mask that is painted; returns {id, preview, share}. */
export function sendMask(input, mask, { width, height }) {
  const keyframes = Object.entries(mask.keyframes)
    .filter(([, strokes]) => strokes.length)
    .map(([frame, strokes]) => ({ frame: Number(frame), png: toPng(strokes, width, height, mask.invert) }));
  return api.post("masks", { input, keyframes, carry: mask.carry });
}

/** The canvas over the picture: shows the mask, and takes strokes while it is painted. */
export function MaskCanvas({ size, frame, mask, tool, onStroke }) {
  const canvas = useRef();
  const stroke = useRef(null);
  const { width, height } = size;
  const active = mask.mode === "paint" && tool;
  const draw = () => {
    const context = canvas.current.getContext("2d");
    context.clearRect(0, 0, width, height);
    const drawing = drawingAt(mask.keyframes, frame);
    const extra = stroke.current ? [stroke.current] : [];
    const strokes = [...(drawing?.strokes ?? []), ...extra];
    const colour = getComputedStyle(canvas.current).getPropertyValue("--mask-colour");
    paint(context, strokes, colour);
    if (mask.invert && strokes.length) {
      context.globalCompositeOperation = "source-out";
      context.fillStyle = colour;
      context.fillRect(0, 0, width, height);
      context.globalCompositeOperation = "source-over";
    }
  };
  useEffect(draw);
  const at = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  };
  const down = (event) => {
    if (!active || event.button) return;
    event.preventDefault();
    canvas.current.setPointerCapture(event.pointerId);
    const [x, y] = at(event);
    const corner = [x, y];
    stroke.current = tool.box ? { box: [x, y, 0, 0], corner } : { erase: tool.erase, size: tool.size * height, points: [[x, y]] };
    draw();
  };
  const move = (event) => {
    const own = stroke.current;
    if (!own) return;
    const [x, y] = at(event);
    if (own.box) {
      const [left, top] = [Math.min(x, own.corner[0]), Math.min(y, own.corner[1])];
      own.box = [left, top, Math.abs(x - own.corner[0]), Math.abs(y - own.corner[1])];
    } else {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const one of events.length ? events : [event]) own.points.push(at(one).map((value) => Math.round(value * 10) / 10));
    }
    draw();
  };
  const up = () => {
    const own = stroke.current;
    stroke.current = null;
    if (own && (!own.box || own.box[2] * own.box[3] > 1)) onStroke(own.box ? { box: own.box } : own);
  };
  return html`<canvas
    ref=${canvas}
    class=${`mask-canvas${active ? " active" : ""}`}
    width=${width}
    height=${height}
    role="img"
    aria-label=${text.mask.canvas}
    onPointerDown=${down}
    onPointerMove=${move}
    onPointerUp=${up}
    onPointerCancel=${up}
  />`;
}

/** A box by its numbers, for those who do not draw. */
function BoxByNumbers({ size, onStroke }) {
  const [box, setBox] = useState(["", "", "", ""]);
  const whole = box.map(Number);
  const good = box.every((one) => one !== "") && whole[2] > 0 && whole[3] > 0 && whole[0] < size.width && whole[1] < size.height;
  return html`<details class="more"><summary>${text.mask.numbers}</summary>
    <div class="row">
      ${text.mask.boxParts.map(
        (label, index) => html`<label class="small-field"><span>${label}</span><input type="number" min="0" value=${box[index]} onInput=${(e) => setBox(box.map((one, at) => (at === index ? e.target.value : one)))} /></label>`,
      )}
      <button type="button" disabled=${!good} onClick=${() => onStroke({ box: whole })}>${text.mask.addBox}</button>
    </div></details>`;
}

/** Which part may change, and the tools to paint it with. */
export function MaskTools({ draft, size, frame, frames, tool, setTool, onChange, onPreview }) {
  const { mask } = draft;
  const { run, error, busy } = useAction();
  const set = (change) => onChange({ ...mask, id: null, ...change });
  const strokes = mask.keyframes[frame] ?? [];
  const painted = Object.keys(mask.keyframes).filter((key) => mask.keyframes[key].length);
  const add = (stroke) => set({ keyframes: { ...mask.keyframes, [frame]: [...(drawingAt(mask.keyframes, frame)?.strokes ?? []), stroke] } });
  const undo = () => {
    const { [frame]: gone, ...others } = mask.keyframes;
    set({ keyframes: strokes.length > 1 ? { ...others, [frame]: gone.slice(0, -1) } : others });
  };
  const choose = (mode) => {
    set({ mode });
    setTool(mode === "paint" ? { size: 0.12 } : null);
  };
  useKeys({ m: () => choose(mask.mode === "paint" ? "none" : "paint"), u: () => strokes.length && undo(), e: () => tool && setTool({ ...tool, box: false, erase: !tool.erase }), "[": () => tool && setTool({ ...tool, size: Math.max(0.01, tool.size / 1.25) }), "]": () => tool && setTool({ ...tool, size: Math.min(0.6, tool.size * 1.25) }) });
  const modes = mask.mode === "given" ? ["none", "auto", "given", "paint"] : MODES[draft.kind];
  return html`<section class="mask-tools" aria-label=${text.mask.title}>
    <div class="row">
      <span class="label">${text.mask.title}</span>
      <${Segments} label=${text.mask.title} value=${mask.mode} choices=${modes.map((mode) => [mode, text.mask.modes[mode]])} onChange=${choose} />
    </div>
    <p class="help">${text.mask.help[mask.mode]}</p>
    ${mask.mode === "paint" &&
    html`<div class="row tools">
        <${IconButton} icon="brush" label=${text.mask.brush} pressed=${Boolean(tool) && !tool.erase && !tool.box} onClick=${() => setTool({ size: tool?.size ?? 0.12 })} />
        <${IconButton} icon="box" label=${text.mask.box} pressed=${Boolean(tool?.box)} onClick=${() => setTool({ size: tool?.size ?? 0.12, box: true })} />
        <${IconButton} icon="eraser" label=${text.mask.erase} pressed=${Boolean(tool?.erase)} onClick=${() => setTool({ size: tool?.size ?? 0.12, erase: true })} />
        <label class="size"><span>${text.mask.size}</span><input type="range" min="0.01" max="0.6" step="0.01" value=${tool?.size ?? 0.12} disabled=${!tool || tool.box} onInput=${(e) => setTool({ ...tool, size: Number(e.target.value) })} /></label>
        <${IconButton} icon="undo" label=${text.mask.undo} disabled=${!strokes.length} onClick=${undo} />
        <button type="button" class="quiet" disabled=${!painted.length} onClick=${() => set({ keyframes: {} })}>${text.mask.clear}</button>
      </div>
      <div class="row">
        <label class="check"><input type="checkbox" checked=${mask.invert} onChange=${(e) => set({ invert: e.target.checked })} /><span>${text.mask.invert}</span></label>
        ${frames > 1 && html`<${Segments} label=${text.mask.carry} value=${mask.carry} choices=${Object.entries(text.mask.carries)} onChange=${(carry) => set({ carry })} />`}
        <button type="button" class="quiet" disabled=${!painted.length || busy} onClick=${() => run(async () => onPreview(await sendMask(draft.input, mask, size)))}>${busy ? text.mask.making : text.mask.preview}</button>
      </div>
      ${painted.length ? html`<p class="help">${text.mask.painted(painted.map((one) => Number(one) + 1))}</p>` : null}
      <${BoxByNumbers} size=${size} onStroke=${add} />`}
    <${ErrorLine}>${error}<//>
  </section>`;
}
