/** The prompt pair: word for word what stays and what changes, and both prompts to edit. */

import { text } from "./text.js";
import { ErrorLine } from "./ui.js";
import { html, useState } from "./vendor/ui.js";

/** Mark removed beside added as one change: [[kind, text]] of the server to [[kind, text, text of the target]]. */
export function join(pieces) {
  const joined = [];
  for (let at = 0; at < pieces.length; at += 1) {
    const [kind, words] = pieces[at];
    if (kind === "removed" && pieces[at + 1]?.[0] === "added") {
      joined.push(["changed", words, pieces[at + 1][1]]);
      at += 1;
    } else joined.push([kind, words]);
  }
  return joined;
}

/** Word by word, by the longest common subsequence: for runs, whose model's tokens the page does not have. */
export function compareWords(source, target) {
  const a = source.match(/\S+\s*/g) ?? [];
  const b = target.match(/\S+\s*/g) ?? [];
  const same = (i, j) => a[i].trim() === b[j].trim();
  const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1)
    for (let j = b.length - 1; j >= 0; j -= 1)
      length[i][j] = same(i, j) ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
  const pieces = [];
  const push = (kind, word) => {
    const last = pieces[pieces.length - 1];
    if (last?.[0] === kind) last[1] += word;
    else pieces.push([kind, word]);
  };
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && same(i, j)) push("shared", (i += 1, j += 1, b[j - 1]));
    else if (i < a.length && (j >= b.length || length[i + 1][j] >= length[i][j + 1])) push("removed", a[i++]);
    else push("added", b[j++]);
  }
  return pieces;
}

const spaces = (words) => [words.match(/^\s*/)[0], words.trim(), words.match(/\s*$/)[0]];

function Piece({ kind, words, target }) {
  const [before, bare, after] = spaces(words);
  if (kind === "shared" || !bare) return html`<span>${words}</span>`;
  if (kind === "changed") {
    const [, next, end] = spaces(target);
    return html`${before}<span class="change"><del>${bare}</del><span class="arrow" aria-label=${text.prompts.becomes}>→</span><ins>${next}</ins></span>${end || after}`;
  }
  const tag = { removed: "del", added: "ins", cut: "s" }[kind] ?? "span";
  return html`${before}<${tag} class=${kind}>${bare}<//>${after}`;
}

export function Pieces({ pieces }) {
  return html`<p class="pieces">${join(pieces).map(([kind, words, target]) => html`<${Piece} kind=${kind} words=${words} target=${target} />`)}</p>`;
}

export function Legend() {
  return html`<p class="legend" aria-hidden="true">
    <span>${text.prompts.shared}</span>
    <span class="change"><del>${text.prompts.old}</del><span class="arrow">→</span><ins>${text.prompts.changed}</ins></span>
    <ins class="added">${text.prompts.added}</ins>
    <del class="removed">${text.prompts.removed}</del>
  </p>`;
}

/** The prompts of the edit that is prepared. `onChange` gets {source_prompt, target_prompt}; null gives them back. */
export function PromptPair({ preview, draft, onChange, lvlm }) {
  const [edits, setEdits] = useState(draft.source_prompt != null || draft.target_prompt != null);
  const { value, error, waits } = preview;
  const own = draft.source_prompt != null || draft.target_prompt != null;
  const comparison = value?.comparisons?.[value.comparisons.length - 1];
  const source = draft.source_prompt ?? value?.source ?? "";
  const target = draft.target_prompt ?? value?.targets?.at?.(-1) ?? value?.chain?.at?.(-1) ?? "";
  return html`<section class="prompts" aria-busy=${waits} aria-label=${text.prompts.title}>
    <div class="section-head">
      <h2>${text.prompts.title}</h2>
      ${value?.written_by && html`<span class="aside">${text.prompts.by(value.written_by)}</span>`}
    </div>
    ${value?.comparisons?.map(
      (one, index) => html`${value.comparisons.length > 1 ? html`<p class="aside">${text.run.subtask(index + 1, value.comparisons.length)}</p>` : null}<${Pieces} pieces=${one.pieces} />`,
    )}
    ${comparison && html`<${Legend} /><p class="help">${comparison.summary}</p>`}
    ${!value && !error && html`<p class="muted">${waits && draft.instruction ? text.prompts.waits : text.prompts.empty}</p>`}
    <${ErrorLine}>${error}<//>
    ${edits &&
    html`<div class="field">
        <label for="source-prompt">${text.prompts.source}</label>
        <textarea id="source-prompt" rows="3" value=${source} aria-describedby="source-help" onInput=${(e) => onChange({ source_prompt: e.target.value || null })} />
        <p class="help" id="source-help">${text.prompts.sourceHelp}</p>
      </div>
      <div class="field">
        <label for="target-prompt">${text.prompts.target}</label>
        <textarea id="target-prompt" rows="3" value=${target} aria-describedby="target-help" onInput=${(e) => onChange({ target_prompt: e.target.value || null })} />
        <p class="help" id="target-help">${text.prompts.targetHelp}</p>
      </div>`}
    <div class="row">
      <button type="button" class="quiet" aria-expanded=${edits} onClick=${() => setEdits(!edits)}>${edits ? text.prompts.hide : text.prompts.edit}</button>
      ${own && html`<button type="button" class="quiet" onClick=${() => onChange({ source_prompt: null, target_prompt: null })}>${text.prompts.reset}</button>`}
    </div>
    ${lvlm &&
    html`<label class="check"><input type="checkbox" checked=${Boolean(draft.options.lvlm)} onChange=${(e) => onChange({ source_prompt: null, target_prompt: null, lvlm: e.target.checked })} /><span>${text.prompts.lvlm(lvlm.model)}</span></label>`}
  </section>`;
}
