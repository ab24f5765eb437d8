/** What of a scene's space may change: everything, or a box between two corners, in the scene's own units. */

import { withOption } from "./options.js";
import { Splats, boxOf } from "./scene.js";
import { text } from "./text.js";
import { Icon, Segments } from "./ui.js";
import { html, useRef, useState } from "./vendor/ui.js";

const AXES = ["x", "y", "z"];
const UNIT = [-1, -1, -1, 1, 1, 1]; // where the scene's extent is not known

function Corner({ label, values, onChange }) {
  return html`<fieldset class="row corner"><legend class="help">${label}</legend>
    ${AXES.map(
      (axis, at) => html`<label class="small-field" key=${axis}><span>${axis}</span>
        <input type="number" step="any" aria-label=${text.region.part(label, axis)} value=${values[at]}
          onInput=${(e) => e.target.value !== "" && isFinite(e.target.valueAsNumber) && onChange(at, e.target.valueAsNumber)} /></label>`,
    )}
  </fieldset>`;
}

/** The scene that is edited, in 3D where it is a splat, and its box. */
export function SceneSource({ source, draft, onChange }) {
  const viewer = useRef(null);
  const [loaded, setLoaded] = useState(false);
  const box = boxOf(draft.options.box3d);
  const set = (next) => onChange({ options: withOption(draft.options, "box3d", next) });
  const choose = (mode) => set(mode === "all" ? null : (loaded && viewer.current?.middle()) || UNIT);
  const move = (at, value) => set(box.map((one, place) => (place === at ? value : one)));
  const shown = () => setLoaded(true);
  return html`${source.splat
      ? html`<${Splats} media=${{ splat_after: source.splat }} box=${box} viewer=${viewer} onLoaded=${shown} label=${null} />`
      : html`<div class="scene-source"><${Icon} name="cube" /><h2>${source.name}</h2><p class="muted">${text.edit.scene}</p></div>`}
    <section class="mask-tools" aria-label=${text.region.title}>
      <div class="row"><span class="label">${text.region.title}</span>
        <${Segments} label=${text.region.title} value=${box ? "box" : "all"} choices=${Object.entries(text.region.modes)} onChange=${choose} /></div>
      ${box &&
      html`<div class="row">
        <${Corner} label=${text.region.corners[0]} values=${box.slice(0, 3)} onChange=${move} />
        <${Corner} label=${text.region.corners[1]} values=${box.slice(3)} onChange=${(at, value) => move(at + 3, value)} />
      </div>`}
      <p class="help">${box ? text.region.help.box : text.region.help.all}</p>
    </section>`;
}
