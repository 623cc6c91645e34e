// The keyboard: every action of the page by one key. Fields and lists keep their own keys.
import { byId, make } from "./elements.js";

const OWN_KEYS = { ArrowUp: true, ArrowDown: true, ArrowLeft: true, ArrowRight: true, PageUp: true, PageDown: true, Home: true, End: true, " ": true };

/** Actions are {keys, text, run}; they are listed in the dialogue of help, too. */
export function listenToKeys(actions) {
  const byKey = new Map(actions.flatMap((action) => action.keys.map((key) => [key.toLowerCase(), action])));
  // On the way down, since NiiVue's canvases have keys of their own.
  window.addEventListener("keydown", (event) => {
    const { target } = event;
    if (target.matches("canvas")) event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    if (target.matches("input[type=search], select") && event.key !== "Escape") return;
    if (target.matches("input, button") && OWN_KEYS[event.key] && ownsKey(target, event.key)) return;
    const action = byKey.get(event.key.toLowerCase());
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action.run(event);
  }, { capture: true });
  byId("keys").replaceChildren(...actions.flatMap(({ keys, names, text }) => [
    make("dt", {}, ...(names ?? keys).flatMap((key, index) => [index ? " " : "", make("kbd", {}, key)])),
    make("dd", {}, text),
  ]));
}

/** Sliders have arrows, boxes and buttons the space bar, the list of cases its arrows. */
function ownsKey(target, key) {
  if (target.matches("input[type=range]")) return key !== " ";
  if (target.closest("#list")) return ["ArrowUp", "ArrowDown", " "].includes(key);
  return key === " ";
}
