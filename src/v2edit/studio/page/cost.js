/** What an edit will take, counted before it begins. */

import { duration, gib } from "./format.js";
import { text } from "./text.js";
import { ErrorLine } from "./ui.js";
import { html } from "./vendor/ui.js";

export function Cost({ cost }) {
  const { value, error, waits } = cost;
  if (error) return html`<${ErrorLine}>${error}<//>`;
  if (!value) return html`<p class="cost empty-cost">${waits ? text.cost.counting : text.cost.later}</p>`;
  const parts = Object.entries(value.seconds ?? {}).filter(([, seconds]) => seconds >= 0.5);
  const memory = value.memory_parts ?? [];
  return html`<div class=${`cost${value.fits === false ? " too-much" : ""}`} aria-busy=${waits} aria-live="polite">
    <dl>
      <div><dt>${text.cost.time}</dt><dd>${value.total_seconds != null ? text.cost.about(duration(value.total_seconds)) : text.cost.unknown}</dd></div>
      <div><dt>${text.cost.memory}</dt><dd>${value.memory_gib != null ? gib(value.memory_gib) : text.cost.unknown}</dd></div>
    </dl>
    ${value.fits === false && html`<p class="error">${text.cost.tooMuch}</p>`}
    ${parts.length + memory.length > 0 &&
    html`<details class="more"><summary>${text.cost.parts}</summary>
      ${value.note && html`<p class="help">${value.note}</p>`}
      <dl class="pairs">
        ${parts.map(([part, seconds]) => html`<div><dt>${part}</dt><dd>${duration(seconds)}</dd></div>`)}
        ${memory.map((one) => html`<div><dt>${one.name}</dt><dd>${gib(one.gib)}${one.fits ? "" : ` – ${text.fits.no}`}</dd></div>`)}
        ${Object.entries(value.limits ?? {}).map(([name, what]) => html`<div><dt>${name}</dt><dd>${what}</dd></div>`)}
      </dl></details>`}
  </div>`;
}
