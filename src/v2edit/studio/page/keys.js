/** Keys of the page: views say what theirs do, and `?` shows them all. */

import { useEffect } from "./vendor/ui.js";

const active = new Map(); // key -> stack of actions; the latest view's is taken

function isTyping(target) {
  return target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName);
}

function takes(target, key) {
  if (target.tagName === "INPUT" && /^(range|checkbox|radio|button)$/.test(target.type)) {
    return key.startsWith("Arrow") || key === " " || /^[0-9]$/.test(key);
  }
  return isTyping(target) || (target.closest("button, a, summary, [role=slider]") && (key === " " || key === "Enter"));
}

window.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.key === "Escape" && isTyping(event.target)) event.target.blur();
  if (takes(event.target, event.key) || document.querySelector("dialog[open]")) return;
  const stack = active.get(event.key);
  if (!stack?.length) return;
  event.preventDefault();
  stack[stack.length - 1].current?.(event);
});

/** Let keys do something while a view is shown: `{" ": play, b: [press, release]}`. */
export function useKeys(actions) {
  useEffect(() => {
    const boxes = [];
    const releases = [];
    for (const [key, action] of Object.entries(actions)) {
      const [press, release] = Array.isArray(action) ? action : [action];
      const box = { current: press };
      if (!active.has(key)) active.set(key, []);
      active.get(key).push(box);
      boxes.push([key, box]);
      if (release) {
        const up = (event) => event.key === key && release();
        window.addEventListener("keyup", up);
        releases.push(() => window.removeEventListener("keyup", up));
      }
    }
    return () => {
      for (const [key, box] of boxes) active.set(key, active.get(key).filter((one) => one !== box));
      for (const stop of releases) stop();
    };
  });
}
