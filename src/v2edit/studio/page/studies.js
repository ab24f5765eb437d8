/** Blind comparisons: not yet. */
import { html } from "./vendor/ui.js";
export const Studies = () => html``;
export const StudyView = Studies;
