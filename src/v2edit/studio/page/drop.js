/** Take a video, frames, an image or a scene by drop or choice, and send it to the server. */

import * as api from "./api.js";
import { bytes } from "./format.js";
import { putUpload, state } from "./store.js";
import { text } from "./text.js";
import { Bar, ErrorLine, Icon } from "./ui.js";
import { html, useLayoutEffect, useRef, useState } from "./vendor/ui.js";

const SCENE = /\.(zip|ply|splat|spz|sog|ksplat)$/i;

/** All files of a drop; folders are read to the bottom. */
async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return { files: [...transfer.files], folder: null };
  const files = [];
  const walk = async (entry) => {
    if (entry.isFile) return files.push(await new Promise((resolve, reject) => entry.file(resolve, reject)));
    const reader = entry.createReader();
    for (;;) {
      const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!batch.length) return;
      for (const one of batch) await walk(one);
    }
  };
  for (const entry of entries) await walk(entry);
  return { files, folder: entries.find((entry) => entry.isDirectory).name };
}

const order = new Intl.Collator(undefined, { numeric: true });

/** Upload files as one input. `onProgress` gets the share sent; returns the upload once the server has looked at it. */
async function send({ files, folder }, onProgress, signal) {
  const kept = files.filter((file) => !file.name.startsWith(".")).sort((a, b) => order.compare(a.name, b.name));
  if (!kept.length) throw new Error(text.drop.nothing);
  const hollow = kept.find((file) => !file.size);
  if (hollow) throw new Error(text.drop.hollow(hollow.name));
  const total = kept.reduce((sum, file) => sum + file.size, 0);
  const limit = state.machine?.limits?.max_upload_bytes;
  if (limit && total > limit) throw new Error(text.drop.tooLarge(bytes(total), bytes(limit)));
  const several = kept.length > 1;
  const kind = several || folder ? "frames" : SCENE.test(kept[0].name) ? "scene" : "file";
  const name = folder ?? (several ? text.drop.severalName : kept[0].name);
  const upload = await api.post("uploads", { name, bytes: total, files: kept.length, kind }, signal);
  let before = 0;
  try {
    for (const file of kept) {
      const path = `uploads/${upload.id}/${api.name(file.name)}`;
      await api.put(path, file, (loaded) => onProgress({ share: total ? (before + loaded) / total : 1, total }), signal);
      before += file.size;
    }
    putUpload(await api.post(`uploads/${upload.id}/finish`, {}, signal));
  } catch (error) {
    api.remove(`uploads/${upload.id}`).catch(() => {});
    throw error;
  }
  return upload.id;
}

/** The place to drop on, with the same by buttons. */
export function Drop({ onUpload, compact }) {
  const [progress, setProgress] = useState(null);
  const [error, setError] = useState(null);
  const [over, setOver] = useState(false);
  const abort = useRef(null);
  const file = useRef();
  const folder = useRef();

  const take = async (given) => {
    setError(null);
    abort.current = new AbortController();
    setProgress({ share: 0, total: 0 });
    try {
      onUpload(await send(given, setProgress, abort.current.signal));
    } catch (problem) {
      if (problem.name !== "AbortError") setError(problem.message);
    }
    setProgress(null);
  };
  useLayoutEffect(() => {
    const stop = (event) => event.preventDefault();
    const hover = (event) => (stop(event), setOver(true));
    const leave = (event) => event.relatedTarget || setOver(false);
    const drop = async (event) => {
      stop(event);
      setOver(false);
      if (event.dataTransfer?.items?.length && !abort.current?.busy) take(await filesOf(event.dataTransfer));
    };
    const all = { dragover: hover, dragleave: leave, drop };
    for (const [kind, act] of Object.entries(all)) window.addEventListener(kind, act);
    return () => {
      for (const [kind, act] of Object.entries(all)) window.removeEventListener(kind, act);
      abort.current?.abort();
    };
  }, []);
  const chosen = (event, name) => {
    const files = [...event.target.files];
    if (files.length) take({ files, folder: name ? (files[0].webkitRelativePath || "").split("/")[0] || null : null });
    event.target.value = "";
  };
  return html`<section class=${`drop${over ? " over" : ""}${compact ? " compact" : ""}`} aria-label=${text.drop.label}>
    ${progress
      ? html`<p class="drop-title">${progress.share >= 1 ? text.drop.looking : text.drop.sending(bytes(progress.total * progress.share), bytes(progress.total))}</p>
          <${Bar} value=${progress.share} label=${text.drop.progress} />
          <button type="button" onClick=${() => abort.current.abort()}>${text.cancel}</button>`
      : html`<${Icon} name="film" />
          <h1 class="drop-title">${text.drop.title}</h1>
          <p class="muted">${text.drop.also}</p>
          <div class="row centre">
            <button type="button" class="primary" onClick=${() => file.current.click()}>${text.drop.file}</button>
            <button type="button" onClick=${() => folder.current.click()}>${text.drop.folder}</button>
          </div>`}
    <${ErrorLine}>${error}<//>
    <input ref=${file} type="file" class="visually-hidden" tabindex="-1" aria-label=${text.drop.file} multiple onChange=${(e) => chosen(e)} />
    <input ref=${folder} type="file" class="visually-hidden" tabindex="-1" aria-label=${text.drop.folder} webkitdirectory onChange=${(e) => chosen(e, true)} />
  </section>`;
}
