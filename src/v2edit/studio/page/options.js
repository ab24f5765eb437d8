/** The settings of an edit: one definition each, and the controls made of them. */

import { text } from "./text.js";
import { Field, Segments } from "./ui.js";
import { html, useState } from "./vendor/ui.js";

const OTHER = "+";
const SIZE = /^\d+x\d+$/;
const FPS = /^\d+(\.\d+)?(\/\d+)?$/;

const number = (name, min, max, step, fallback) => ({ name, type: "number", min, max, step, fallback });
const choice = (name, ...choices) => ({ name, type: "choice", choices });
const flag = (name) => ({ name, type: "flag" });
const line = (name, whole = /./) => ({ name, type: "text", whole }); // `whole`: what is typed to its end

export const SEEDS = number("seeds", 1, 16, 1, 1);
export const MORE = {
  edit: [
    ["effort", [number("steps", 1, 200, 1, 50), number("subtasks", 1, 6, 1, 1), number("seed", 0, 2 ** 31, 1, 0)]],
    [
      "control",
      [number("alpha", 0, 1, 0.05), number("beta", 0, 1, 0.05), number("guidance", 0, 30, 0.5), number("mixture", 0, 1, 0.1), line("negative_prompt")],
    ],
    ["clip", [choice("long", "auto", "windows", "blocks"), flag("loop"), line("fps", FPS), choice("format", "mp4", "webm", "gif", "webp", "prores", "png")]],
    ["memory", [line("resolution", SIZE), choice("offload", "auto", "none", "model", "group"), choice("quantize", "none", "int8", "fp8", "nf4"), flag("vae_tiling")]],
  ],
  scene: [
    ["effort", [choice("quality", "normal", "draft", "high"), number("steps", 1, 200, 1, 50), number("subtasks", 1, 6, 1, 1), number("seed", 0, 2 ** 31, 1, 0)]],
    ["control", [number("alpha", 0, 1, 0.05), number("beta", 0, 1, 0.05), number("guidance", 0, 30, 0.5), line("negative_prompt")]],
    ["scene", [choice("path", "auto", "views", "orbit"), number("frames", 2, 512, 1), number("side", 16, 4096, 16), choice("up", "auto", "x", "y", "z", "-x", "-y", "-z")]],
    ["memory", [line("resolution", SIZE), choice("offload", "auto", "none", "model", "group"), choice("quantize", "none", "int8", "fp8", "nf4"), flag("vae_tiling")]],
  ],
};

/** Set an option, or leave it out where it has its default. */
export function withOption(options, name, value) {
  const next = { ...options };
  if (value === undefined || value === "" || value === null) delete next[name];
  else next[name] = value;
  return next;
}

/** A number or a line. What is typed stays as it was typed, and counts at once where it is whole, else when it is left. */
function Typed({ id, option, value, placeholder, onChange }) {
  const [typed, setTyped] = useState(null);
  const { type, whole } = option;
  const set = (given) => given !== String(value ?? "") && onChange(given === "" ? null : type === "number" ? Number(given) : given);
  const take = (event) => {
    const { target } = event;
    setTyped(target.value);
    if (!target.validity.badInput && (!whole || !target.value || whole.test(target.value))) set(target.value);
  };
  const leave = ({ target }) => {
    if (!target.validity.badInput) set(target.value);
    setTyped(null);
  };
  return html`<input
    id=${id}
    type=${type}
    min=${option.min}
    max=${option.max}
    step=${option.step}
    value=${typed ?? value ?? ""}
    placeholder=${placeholder}
    aria-describedby=${`${id}-help`}
    onInput=${take}
    onBlur=${leave}
  />`;
}

/** One setting; `own` are the values of the clip by option, which are shown where none is given. */
export function Option({ option, options, own = {}, onChange }) {
  const { name, type, choices, fallback } = option;
  const id = `option-${name}`;
  const words = text.options[name];
  const set = (value) => onChange(withOption(options, name, value));
  const value = options[name];
  if (type === "flag") {
    return html`<div class="field">
      <label class="check"><input type="checkbox" checked=${Boolean(value)} aria-describedby=${`${id}-help`} onChange=${(e) => set(e.target.checked || null)} /><span>${words.label}</span></label>
      <p class="help" id=${`${id}-help`}>${words.help}</p>
    </div>`;
  }
  if (type === "choice") {
    return html`<${Field} id=${id} label=${words.label} help=${words.help}>
      <select id=${id} aria-describedby=${`${id}-help`} value=${value ?? choices[0]} onChange=${(e) => set(e.target.value === choices[0] ? null : e.target.value)}>
        ${choices.map((one) => html`<option key=${one} value=${one} selected=${one === (value ?? choices[0])}>${text.choices[one] ?? one}</option>`)}
      </select>
    <//>`;
  }
  const placeholder = type === "number" ? (fallback ?? text.edit.modelsOwn) : own[name];
  return html`<${Field} id=${id} label=${words.label} help=${words.help}><${Typed} id=${id} option=${option} value=${value} placeholder=${placeholder} onChange=${set} /><//>`;
}

export function Strength({ options, onChange }) {
  const value = options.strength ?? "normal";
  return html`<div class="field">
    <div class="field-head"><span class="label">${text.options.strength.label}</span></div>
    <${Segments}
      label=${text.options.strength.label}
      value=${String(value)}
      choices=${Object.entries(text.strengths)}
      onChange=${(word) => onChange(withOption(options, "strength", word === "normal" ? null : word))}
    />
    <p class="help">${text.options.strength.help[value] ?? text.options.strength.help.normal}</p>
  </div>`;
}

export function More({ kind, options, own, onChange }) {
  const changed = MORE[kind].flatMap(([, list]) => list).filter(({ name }) => options[name] !== undefined).length;
  return html`<details class="more">
    <summary>${text.edit.more}${changed ? html`<span class="aside">${text.edit.changed(changed)}</span>` : null}</summary>
    ${MORE[kind].map(
      ([group, list]) => html`<fieldset class="group" key=${group}>
        <legend>${text.groups[group]}</legend>
        ${list.map((option) => html`<${Option} key=${option.name} option=${option} options=${options} own=${own} onChange=${onChange} />`)}
      </fieldset>`,
    )}
  </details>`;
}

/** The models that the studio knows, with what fits this machine, or any other by its Hugging Face id. */
export function ModelPicker({ machine, options, onChange }) {
  const models = machine?.models ?? [];
  const fallback = machine?.default_model ?? models[0]?.name;
  const value = options.model ?? fallback;
  const model = models.find((one) => one.name === value);
  const [own, setOwn] = useState(Boolean(options.model) && !model);
  const fits = model?.fits ? (text.fits[model.fits] ?? model.fits) : "";
  const set = (name) => onChange(withOption(options, "model", name === fallback ? null : name.trim()));
  const choose = (name) => (setOwn(name === OTHER), name !== OTHER && set(name));
  return html`<${Field} id="option-model" label=${text.options.model.label} help=${(!own && model?.note) || text.options.model.help} aside=${own ? "" : fits}>
    <select id="option-model" aria-describedby="option-model-help" disabled=${!machine} onChange=${(e) => choose(e.target.value)}>
      ${!machine && html`<option>${text.edit.models}</option>`}
      ${models.map((one) => html`<option key=${one.name} value=${one.name} selected=${!own && one.name === value}>${one.label ?? one.name}${one.fits === "no" ? ` – ${text.fits.no}` : ""}</option>`)}
      <option value=${OTHER} selected=${own}>${text.edit.otherModel}</option>
    </select>
    ${own && html`<input type="text" aria-label=${text.edit.modelId} placeholder="zai-org/CogVideoX-5b" value=${options.model ?? ""} onChange=${(e) => set(e.target.value)} />`}
  <//>`;
}
