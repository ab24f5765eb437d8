/** The edit that is being prepared: what it is of, and its settings. It survives a reload of the page. */

import * as api from "./api.js";

const KEY = "v2edit-draft";

export const empty = () => ({
  input: null, // {upload: ID} or {run: NAME, file}
  kind: "edit",
  instruction: "",
  source_prompt: null, // null: as the server finds it
  target_prompt: null,
  options: {},
  trim: null, // [start, end] in seconds
  mask: { mode: "none", keyframes: {}, box: null, invert: false, carry: "follow", id: null },
});

let draft = null;

export function loadDraft() {
  if (draft) return draft;
  try {
    draft = { ...empty(), ...JSON.parse(sessionStorage.getItem(KEY)) };
  } catch {
    draft = empty();
  }
  return draft;
}

export function saveDraft(next) {
  draft = next;
  try {
    sessionStorage.setItem(KEY, JSON.stringify(next));
  } catch {
    sessionStorage.removeItem(KEY); // too large: long strokes
  }
}

/** Begin anew with another input, with the settings of before. */
export function startDraft(input, kind) {
  const old = loadDraft();
  if (!old.input) return saveDraft({ ...old, input }); // all but the input was there: "again with" another clip
  const options = old.kind === kind ? old.options : { model: old.options.model };
  return saveDraft({ ...empty(), input, kind, options });
}

const OWN = new Set(["mask", "source_prompt", "target_prompt", "start", "end"]);

/** Begin with all that a run or a job was made with. */
export function draftFrom({ kind, input, instruction, options = {}, trim = null, mask = null }) {
  const kept = Object.fromEntries(Object.entries(options).filter(([name]) => !OWN.has(name)));
  const next = { ...empty(), input, kind: kind === "scene" ? "scene" : "edit", instruction: instruction ?? "", options: kept, trim };
  next.source_prompt = options.source_prompt ?? null;
  next.target_prompt = options.target_prompt ?? null;
  if (options.mask === "auto") next.mask.mode = "auto";
  if (mask) Object.assign(next.mask, { mode: "given", id: mask });
  saveDraft(next);
  location.hash = input ? "#/edit/again" : "#/edit";
}

/** What the server is asked with: prompts, cost and the job itself. */
export function request(draft) {
  const options = { ...draft.options };
  if (draft.source_prompt != null) options.source_prompt = draft.source_prompt;
  if (draft.target_prompt != null) options.target_prompt = draft.target_prompt;
  if (draft.mask.mode === "auto" && draft.kind === "edit") options.mask = "auto";
  const asked = { kind: draft.kind, input: draft.input, options };
  if (draft.instruction.trim()) asked.instruction = draft.instruction.trim();
  if (draft.trim) asked.trim = draft.trim;
  if (draft.mask.mode === "given" && draft.mask.id) asked.mask = draft.mask.id;
  return asked;
}

export const media = (input) =>
  input.upload ? `${api.ROOT}/uploads/${input.upload}` : `${api.ROOT}/runs/${api.name(input.run)}`;
