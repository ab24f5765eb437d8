/** Prepare an edit: the clip and what of it may change, the instruction and its prompts, settings, cost, and go. */

import * as api from "./api.js";
import { Trim, Transport, usePlayback } from "./clip.js";
import { Cost } from "./cost.js";
import { empty, loadDraft, media, request, saveDraft, startDraft } from "./draft.js";
import { Drop } from "./drop.js";
import { bytes, clock, when } from "./format.js";
import { MaskCanvas, MaskTools, drawingAt, isPainted, sendMask } from "./mask.js";
import { ModelPicker, More, Option, SEEDS, Strength, withOption } from "./options.js";
import { PromptPair } from "./prompts.js";
import { SceneSource } from "./region.js";
import { putJob, putUpload, state, useStore } from "./store.js";
import { text } from "./text.js";
import { Bar, ErrorLine, Icon, IconButton, useAction, useAsync } from "./ui.js";
import { html, useEffect, useMemo, useRef, useState } from "./vendor/ui.js";

/** What is known of the input: an upload that is probed, or a run's own input. */
function useInput(input) {
  const { uploads } = useStore();
  const upload = input?.upload ? uploads.get(input.upload) : null;
  const asked = useAsync(async () => {
    if (!input) return null;
    if (input.upload) {
      const found = await api.get(`uploads/${input.upload}`);
      if (!state.uploads.has(found.id) || found.state !== "probing") putUpload(found);
      return found;
    }
    return fromRun(await api.get(`runs/${api.name(input.run)}`));
  }, [input?.upload, input?.run]);
  return { source: upload ?? asked.value, error: asked.error };
}

/** The edited video or scene of a run, which is edited further. */
function fromRun({ title, kind, frames, fps, width, height, media }) {
  const edited = media?.after ?? media?.edited;
  const kinds = kind === "scene" ? "scene" : frames > 1 ? "video" : "image";
  return { name: title, state: "ready", kind: kinds, splat: media?.splat_after, frames, fps, width, height, seconds: frames / fps, proxy: edited, thumb: frames > 1 ? null : edited };
}

function Stage({ source, draft, onChange }) {
  const { kind } = source;
  const frames = source.frames ?? 1;
  const fps = source.fps || 24;
  const moves = frames > 1 && source.proxy;
  const part = draft.trim && [Math.round(draft.trim[0] * fps), Math.round(draft.trim[1] * fps) - 1];
  const playback = usePlayback(frames, fps, part);
  const [tool, setTool] = useState(null);
  const [carried, setCarried] = useState(null);
  const size = { width: source.width ?? 1, height: source.height ?? 1 };
  const box = useRef();
  useEffect(() => {
    box.current?.style.setProperty("--shape", `${size.width} / ${size.height}`);
    box.current?.style.setProperty("--ratio", size.width / size.height);
  });
  const setMask = (mask) => (setCarried(null), onChange({ mask }));
  const add = (stroke) => {
    const own = draft.mask.keyframes[playback.frame] ?? drawingAt(draft.mask.keyframes, playback.frame)?.strokes ?? [];
    setMask({ ...draft.mask, id: null, keyframes: { ...draft.mask.keyframes, [playback.frame]: [...own, stroke] } });
  };
  const overlay = useRef();
  useEffect(() => {
    if (!carried || !overlay.current) return;
    const time = (playback.frame + 0.5) / fps;
    if (Math.abs(overlay.current.currentTime - time) > 0.5 / fps) overlay.current.currentTime = time;
  }, [carried, playback.frame]);
  if (kind === "scene") return html`<${SceneSource} source=${source} draft=${draft} onChange=${onChange} />`;
  return html`<div class=${`picture${size.height < 256 ? " tiny" : ""}`} ref=${box}>
      ${moves
        ? html`<video ref=${playback.video} src=${source.proxy} muted loop playsinline preload="auto" aria-label=${text.edit.clip} />`
        : html`<img src=${source.thumb ?? source.proxy} alt=${text.edit.clip} />`}
      ${carried && html`<video ref=${overlay} class="carried" src=${carried.preview} muted playsinline preload="auto" aria-label=${text.mask.title} />`}
      ${draft.mask.mode === "paint" && !carried && html`<${MaskCanvas} size=${size} frame=${playback.frame} mask=${draft.mask} tool=${tool ?? { size: 0.12 }} onStroke=${add} />`}
    </div>
    ${moves && html`<${Transport} playback=${playback} frames=${frames} fps=${fps} />`}
    ${moves && draft.kind === "edit" && html`<${Trim} frames=${frames} fps=${fps} trim=${draft.trim} onChange=${(trim) => onChange({ trim })} />`}
    ${draft.kind === "edit" &&
    html`<${MaskTools} draft=${draft} size=${size} frame=${playback.frame} frames=${frames} tool=${tool ?? { size: 0.12 }} setTool=${setTool} onChange=${setMask} onPreview=${(made) => (setCarried(made), onChange({ mask: { ...draft.mask, id: made.id } }))} />`}
    ${carried && html`<p class="help">${text.mask.share(Math.round(100 * (carried.share ?? 0)))} <button type="button" class="quiet" onClick=${() => setCarried(null)}>${text.mask.hide}</button></p>`}`;
}

function Facts({ source }) {
  const facts = [
    source.width && `${source.width} × ${source.height}`,
    source.frames > 1 && text.edit.frames(source.frames),
    source.fps && source.frames > 1 && `${Number(source.fps.toFixed?.(2) ?? source.fps)} fps`,
    source.seconds && source.frames > 1 && clock(source.seconds),
    source.sound && text.edit.sound,
    source.shots?.length > 1 && text.edit.shots(source.shots.length),
  ].filter(Boolean);
  return html`<p class="facts">${facts.map((fact) => html`<span>${fact}</span>`)}</p>`;
}

/** Add the painted mask's id to what is asked, once the server has it. */
async function withMask(draft, source) {
  const asked = request(draft);
  if (draft.mask.mode !== "paint" || !isPainted(draft.mask)) return asked;
  return { ...asked, mask: draft.mask.id ?? (await sendMask(draft.input, draft.mask, source)).id };
}

function Form({ draft, source, change }) {
  const { machine } = useStore();
  const { run, error, busy } = useAction();
  const asked = request(draft);
  const ready = source.state === "ready";
  const says = Boolean(asked.instruction || draft.target_prompt);
  const key = JSON.stringify(asked);
  const ask = useMemo(() => ({ ...asked, source_prompt: draft.source_prompt, target_prompt: draft.target_prompt }), [key]);
  const prompts = useAsync((signal) => (ready && says ? api.post("prompts", ask, signal) : Promise.resolve(null)), [key, ready], 450);
  const cost = useAsync((signal) => (ready && says ? api.post("estimates", asked, signal) : Promise.resolve(null)), [key, ready], 700);
  const setPrompts = ({ lvlm, ...change_ }) =>
    change(lvlm === undefined ? change_ : { ...change_, options: withOption(draft.options, "lvlm", lvlm || null) });
  const setOptions = (options) => change({ options });
  const isBuiltIn = (draft.options.model ?? machine?.default_model) === "primitives";
  const own = source.width ? { resolution: `${source.width}x${source.height}`, fps: source.frames > 1 && source.fps ? String(Number(source.fps.toFixed(2))) : undefined } : {};
  const refused = Boolean(prompts.error) && !(draft.source_prompt && draft.target_prompt);
  const go = () =>
    run(async () => {
      const job = await api.post("jobs", await withMask(draft, source));
      putJob(job);
      location.hash = `#/jobs/${job.id}`;
    });
  const submit = (event) => {
    event.preventDefault();
    if (ready && says && !refused && !busy) go();
  };
  const needs = !ready ? text.edit.probing : !says ? text.edit.needsInstruction : null;
  return html`<form class="form" onSubmit=${submit}>
    <div class="field">
      <label for="instruction" class="big-label">${text.edit.instruction}</label>
      <textarea
        id="instruction"
        rows="2"
        placeholder=${isBuiltIn ? text.edit.placeholderBuiltIn : text.edit.placeholder}
        aria-describedby="instruction-help"
        value=${draft.instruction}
        onInput=${(e) => change({ instruction: e.target.value, target_prompt: null })}
        onKeyDown=${(e) => e.key === "Enter" && (e.ctrlKey || e.metaKey) && submit(e)}
      />
      <p class="help" id="instruction-help">${text.edit.instructionHelp}</p>
    </div>
    <${PromptPair} preview=${prompts} draft=${draft} lvlm=${machine?.lvlm} onChange=${setPrompts} />
    <section class="settings" aria-label=${text.edit.settings}>
      <${ModelPicker} machine=${machine} options=${draft.options} onChange=${setOptions} />
      <${Strength} options=${draft.options} onChange=${setOptions} />
      ${draft.kind === "edit" && html`<${Option} option=${SEEDS} options=${draft.options} onChange=${setOptions} />`}
      <${More} kind=${draft.kind} options=${draft.options} own=${own} onChange=${setOptions} />
    </section>
    <div class="go">
      ${!prompts.error && html`<${Cost} cost=${cost} />`}
      <${ErrorLine}>${error}<//>
      <button class="primary wide" disabled=${Boolean(needs) || refused || busy}>${busy ? text.edit.starting : text.edit.start}</button>
      ${needs && html`<p class="help">${needs}</p>`}
    </div>
  </form>`;
}

const FEW = 6;

/** An upload of before: take it, or delete it. */
function Earlier({ upload, onChoose, onDelete, busy }) {
  const [asks, setAsks] = useState(false);
  const { name, thumb, width, height, frames, created } = upload;
  const facts = [width && `${width} × ${height}`, frames > 1 && text.edit.frames(frames), bytes(upload.bytes), when(created)].filter(Boolean);
  return html`<li>
    <button type="button" class="earlier" onClick=${onChoose}><span class="thumb">${thumb ? html`<img src=${thumb} alt="" loading="lazy" />` : html`<${Icon} name="cube" />`}</span><span class="recent-name">${name}</span></button>
    <div class="earlier-foot">
      ${asks ? html`<button type="button" class="danger" disabled=${busy} onClick=${onDelete}>${text.edit.reallyDelete}</button><${IconButton} icon="close" label=${text.cancel} onClick=${() => setAsks(false)} />` : html`<span class="facts">${facts.map((fact) => html`<span>${fact}</span>`)}</span><${IconButton} icon="trash" label=${text.edit.deleteUpload(name)} onClick=${() => setAsks(true)} />`}
    </div>
  </li>`;
}

/** What was uploaded before, latest first, to take again. */
function Recent({ onChoose }) {
  const { uploads } = useStore();
  const [whole, setWhole] = useState(false);
  const [version, setVersion] = useState(0);
  const { value } = useAsync(() => api.get("uploads"), [version, uploads.size]);
  const { run, error, busy } = useAction();
  const ready = (value?.uploads ?? []).filter((one) => one.state === "ready");
  if (!ready.length) return null;
  const list = whole ? ready : ready.slice(0, FEW);
  const forget = (id) => run(async () => (await api.remove(`uploads/${id}`), setVersion(version + 1)));
  return html`<section class="recent" aria-label=${text.edit.recent}>
    <h2>${text.edit.recent}</h2>
    <${ErrorLine}>${error}<//>
    <ul class="recent-list">${list.map((one) => html`<${Earlier} key=${one.id} upload=${one} busy=${busy} onChoose=${() => onChoose(one.id)} onDelete=${() => forget(one.id)} />`)}</ul>
    ${ready.length > list.length && html`<p><button type="button" onClick=${() => setWhole(true)}>${text.edit.allUploads(ready.length)}</button></p>`}
  </section>`;
}

const UNPOSED = new Set(["video", "frames"]); // pictures that may be of a scene, whose cameras are found first
const START = { trim: null, mask: empty().mask };

export function EditView({ id }) {
  const [draft, setDraft] = useState(() => {
    const known = loadDraft();
    if (id && id !== "again" && known.input?.upload !== id) startDraft({ upload: id }, known.kind); // by its address
    return loadDraft();
  });
  const change = (some) =>
    setDraft((old) => {
      const next = { ...old, ...some };
      saveDraft(next);
      return next;
    });
  const input = id ? draft.input : null;
  const { source, error } = useInput(input);
  useEffect(() => {
    const kind = source?.kind === "scene" ? "scene" : UNPOSED.has(source?.kind) && input.upload ? draft.kind : "edit";
    if (source?.kind && kind !== draft.kind) change({ kind, options: { model: draft.options.model }, trim: null });
  }, [source?.kind]);
  const uploaded = (upload) => {
    startDraft({ upload }, "edit");
    location.hash = `#/edit/${upload}`;
  };
  if (!input) return html`<div class="start"><${Drop} onUpload=${uploaded} /><${Recent} onChoose=${uploaded} /></div>`;
  if (error || source?.state === "failed")
    return html`<div class="column"><${ErrorLine}>${error ?? source.reason}<//><${Drop} onUpload=${uploaded} /></div>`;
  if (!source) return html`<p class="loading" role="status">${text.loading}</p>`;
  return html`<div class="edit">
    <section class=${`stage${draft.mask.mode === "paint" ? " painting" : ""}`} aria-label=${text.edit.clip}>
      <div class="stage-head">
        <h1>${source.name}</h1>
        <a class="quiet button" href="#/edit">${text.edit.other}</a>
      </div>
      <${Facts} source=${source} />
      ${input.upload &&
      UNPOSED.has(source.kind) &&
      html`<label class="check"><input type="checkbox" checked=${draft.kind === "scene"} onChange=${(e) => change({ ...START, kind: e.target.checked ? "scene" : "edit", options: { model: draft.options.model } })} /><span>${text.edit.asScene}</span></label>`}
      ${source.state === "ready"
        ? html`<${Stage} key=${media(draft.input)} source=${source} draft=${draft} onChange=${change} />`
        : html`<div class="picture waiting"><div><p>${text.edit.probing}</p><${Bar} label=${text.edit.probing} /></div></div>`}
    </section>
    <${Form} draft=${draft} source=${source} change=${change} />
  </div>`;
}
