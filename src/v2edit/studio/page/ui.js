/** Small parts that every view is made of. */

import { html, useEffect, useMemo, useRef, useState } from "./vendor/ui.js";
import { text } from "./text.js";

const ICONS = {
  play: "M7 5l11 7-11 7z",
  pause: "M7 5h3.5v14H7zM13.5 5H17v14h-3.5z",
  back: "M17 6l-8 6 8 6M7 6v12",
  next: "M7 6l8 6-8 6M17 6v12",
  sound: "M5 10v4h3l4 4V6L8 10zM15 9a4 4 0 010 6M17.5 6.5a8 8 0 010 11",
  silent: "M5 10v4h3l4 4V6L8 10zM16 10l4 4M20 10l-4 4",
  loop: "M6 12a6 6 0 0110-4.5L18 9M18 5v4h-4M18 12a6 6 0 01-10 4.5L6 15M6 19v-4h4",
  star: "M12 4.5l2.3 4.9 5.2.7-3.8 3.7.9 5.3-4.6-2.6-4.6 2.6.9-5.3-3.8-3.7 5.2-.7z",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12M10 10.5v5.5M14 10.5v5.5",
  copy: "M9 9h10v10H9zM5 15V5h10",
  down: "M12 5v10M7.5 11l4.5 4.5 4.5-4.5M5 19h14",
  up: "M12 15V5M7.5 9L12 4.5 16.5 9M5 19h14",
  close: "M6 6l12 12M18 6L6 18",
  again: "M19 12a7 7 0 11-2-4.9L19 9M19 5v4h-4",
  brush: "M19 5l-8.5 8.5M8 14c-2 0-3 1.5-3 3.5 0 .8-.4 1.5-1 2 3 .8 6-.2 6-2.7 0-1.4-.8-2.8-2-2.8z",
  box: "M5 5h14v14H5z",
  eraser: "M4 15l9-9 6 6-7 7H8zM9 10l6 6",
  undo: "M9 6L5 10l4 4M5 10h9a5 5 0 010 10h-3",
  wipe: "M4 6h16v12H4zM12 3v18M12 6h8v12h-8",
  side: "M4 6h7v12H4zM13 6h7v12h-7z",
  mask: "M4 6h16v12H4zM12 9a3 3 0 100 6 3 3 0 000-6z",
  search: "M10.5 5a5.5 5.5 0 100 11 5.5 5.5 0 000-11zM15 15l4.5 4.5",
  stop: "M7 7h10v10H7z",
  raise: "M7 14l5-5 5 5",
  lower: "M7 10l5 5 5-5",
  film: "M4 6h16v12H4zM8 6v12M16 6v12M4 12h16",
  cube: "M12 4l7 4v8l-7 4-7-4V8zM12 12l7-4M12 12v8M12 12L5 8",
  queue: "M5 7h14M5 12h14M5 17h9",
  grid: "M5 5h6v6H5zM13 5h6v6h-6zM5 13h6v6H5zM13 13h6v6h-6z",
  study: "M6 4h12v16H6zM9 9h6M9 13h6M9 17h3",
  help: "M8.5 8.8a3.5 3.5 0 117 0c0 2.6-3.5 2.7-3.5 5.4M12 18v.6",
  sun: "M12 8a4 4 0 100 8 4 4 0 000-8zM12 3v2M12 19v2M3 12h2M19 12h2",
};
const FILLED = new Set(["play", "pause", "stop"]);

export function Icon({ name, filled }) {
  return html`<svg class=${FILLED.has(name) || filled ? "icon filled" : "icon"} viewBox="0 0 24 24" aria-hidden="true">
    <path d=${ICONS[name]} />
  </svg>`;
}

export function IconButton({ icon, label, pressed, filled, ...more }) {
  return html`<button type="button" class="icon-button" aria-label=${label} title=${label} aria-pressed=${pressed} ...${more}>
    <${Icon} name=${icon} filled=${filled} />
  </button>`;
}

/** One of a few choices, side by side. */
export function Segments({ label, value, choices, onChange, disabled }) {
  const group = useMemo(() => `s${Math.random().toString(36).slice(2)}`, []);
  return html`<fieldset class="segments" disabled=${disabled}>
    <legend class="visually-hidden">${label}</legend>
    ${choices.map(
      ([key, title]) => html`<label key=${key}>
        <input type="radio" name=${group} value=${key} checked=${key === value} onChange=${() => onChange(key)} />
        <span>${title}</span>
      </label>`,
    )}
  </fieldset>`;
}

/** A labelled control with its sentence of help. */
export function Field({ id, label, help, aside, children }) {
  return html`<div class="field">
    <div class="field-head"><label for=${id}>${label}</label>${aside ? html`<span class="aside">${aside}</span>` : null}</div>
    ${children}
    ${help ? html`<p class="help" id=${`${id}-help`}>${help}</p>` : null}
  </div>`;
}

export function ErrorLine({ children }) {
  return children ? html`<p class="error" role="alert">${children}</p>` : null;
}

export function Empty({ icon, title, children }) {
  return html`<div class="empty">
    <${Icon} name=${icon} />
    <h2>${title}</h2>
    <div class="empty-text">${children}</div>
  </div>`;
}

export function Bar({ value, label }) {
  return html`<progress class="bar" max="1" value=${value ?? undefined} aria-label=${label} />`;
}

export function State({ state }) {
  return html`<span class=${`state state-${state}`}>${text.states[state] ?? state}</span>`;
}

/** Copy text, and say that it was. */
export function CopyButton({ value, label }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await copyText(value);
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<button type="button" class="quiet" onClick=${copy}>
    <${Icon} name="copy" />${done ? text.copied : label}
  </button>`;
}

async function copyText(value) {
  if (navigator.clipboard) return navigator.clipboard.writeText(value);
  const area = document.createElement("textarea"); // the clipboard is closed to pages without https
  area.value = value;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** The result of an asynchronous function, asked again when what it depends on changes, after `wait` ms of quiet. */
export function useAsync(ask, depends, wait = 0) {
  const [result, setResult] = useState({ value: null, error: null, waits: true });
  useEffect(() => {
    const abort = new AbortController();
    setResult((old) => ({ ...old, waits: true }));
    const timer = setTimeout(async () => {
      try {
        const value = await ask(abort.signal);
        if (!abort.signal.aborted) setResult({ value, error: null, waits: false });
      } catch (error) {
        if (!abort.signal.aborted) setResult({ value: null, error: error.message, waits: false });
      }
    }, wait);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, depends);
  return result;
}

/** Run something on a click: what was wrong, and whether it runs. */
export function useAction() {
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const run = async (action) => {
    setBusy(true);
    setError(null);
    try {
      return await action();
    } catch (problem) {
      setError(problem.message);
    } finally {
      setBusy(false);
    }
  };
  return { run, error, busy, setError };
}

export function Dialog({ title, onClose, children }) {
  const dialog = useRef();
  useEffect(() => {
    dialog.current.showModal();
  }, []);
  return html`<dialog
    ref=${dialog}
    aria-label=${title}
    onClose=${onClose}
    onClick=${(event) => event.target === dialog.current && dialog.current.close()}
  >
    <header><h2>${title}</h2><${IconButton} icon="close" label=${text.close} onClick=${() => dialog.current.close()} /></header>
    ${children}
  </dialog>`;
}

/** A piece of text that is edited where it stands. */
export function Editable({ label, value, placeholder, onSave, tag = "input", ...more }) {
  const [draft, setDraft] = useState(value);
  useEffect(() => setDraft(value), [value]);
  const save = () => draft !== value && onSave(draft);
  return html`<${tag}
    class="editable"
    aria-label=${label}
    placeholder=${placeholder}
    value=${draft}
    onInput=${(event) => setDraft(event.target.value)}
    onBlur=${save}
    onKeyDown=${(event) => event.key === "Enter" && tag === "input" && event.target.blur()}
    ...${more}
  />`;
}
