// What stands beside the images: overlays, lesions, findings and facts of the open case.
import { byId, make } from "./elements.js";

const NOT_LOOKED_AT = 255;

/** The overlays of a case with what a person may change of them. */
export function overlaysOf(about) {
  const hasLesions = about.overlays.some(isOfLesions);
  return about.overlays.map((one) => {
    const parts = [...one.structures.map(({ code, colour }) => [code, rgb(colour)]), [NOT_LOOKED_AT, [130, 130, 130, 255]]];
    return { ...one, isShown: isOfLesions(one) || !hasLesions, opacity: isOfLesions(one) ? 0.6 : 0.4, table: Object.fromEntries(parts) };
  });
}

/** Where lesions are marked, an annotation of healthy tissue is switched off at first: it would hide the image. */
function isOfLesions(overlay) {
  return overlay.structures.some(({ kind }) => kind === "lesion");
}

function rgb(colour) {
  return [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16)).concat(255);
}

export function showOverlays(overlays, isOutlined, changed) {
  const root = byId("overlays");
  if (!overlays.length) {
    root.replaceChildren(make("p", { className: "quiet" }, "This case has no annotation."));
    return;
  }
  const outline = make("input", { type: "checkbox", checked: isOutlined, id: "outline" });
  outline.addEventListener("change", () => changed(outline.checked));
  root.replaceChildren(
    ...overlays.map((overlay) => overlayBlock(overlay, () => changed(outline.checked))),
    make("label", { className: "outline" }, outline, "Outlines only (C)"),
  );
}

function overlayBlock(overlay, changed) {
  const box = make("input", { type: "checkbox", checked: overlay.isShown, className: "shown" });
  const kind = overlay.is_prediction ? "prediction" : "annotation";
  const label = make("label", {}, box, make("span", {}, overlay.name), make("span", { className: "kind" }, kind));
  const slider = make("input", {
    type: "range", min: 5, max: 100, step: 5, value: 100 * overlay.opacity, "aria-label": `Opacity of ${overlay.name}`,
  });
  box.addEventListener("change", () => { overlay.isShown = box.checked; changed(); });
  slider.addEventListener("input", () => { overlay.opacity = slider.value / 100; changed(); });
  return make("div", { className: "overlay" }, label, slider, structureList(overlay));
}

function structureList(overlay) {
  const lines = overlay.structures.map((one) => {
    const swatch = make("span", { className: "swatch" });
    swatch.style.backgroundColor = one.colour;
    const ml = one.ml === null ? "" : `${one.ml.toFixed(one.ml < 10 ? 2 : 1)} ml`;
    return make("li", {}, swatch, make("span", {}, one.name), make("span", { className: "ml" }, ml));
  });
  return make("ul", { className: "structures" }, ...lines);
}

export function showFacts(about) {
  const lines = Object.entries(about.facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  byId("facts").replaceChildren(...lines);
}

export function showLesions(lesions, go) {
  const root = byId("lesions");
  if (!lesions.length) {
    root.replaceChildren(make("p", { className: "quiet" }, "None."));
    return;
  }
  const several = new Set(lesions.map((one) => one.overlay + one.structure)).size > 1;
  const lines = lesions.map((one, index) => {
    const what = several ? `${one.structure}, ${one.overlay}` : `Lesion ${index + 1}`;
    const certainty = one.probability === null ? "" : `p ${one.probability.toFixed(2)}`;
    const ml = `${one.ml.toFixed(one.ml < 1 ? 3 : 1)} ml`;
    const button = make("button", { type: "button", "data-index": index }, make("span", {}, what),
      make("span", { className: "ml" }, [certainty, ml].filter(Boolean).join(" · ")));
    button.addEventListener("click", () => go(index));
    return make("li", {}, button);
  });
  root.replaceChildren(make("ol", { className: "places" }, ...lines));
}

/** Mark the lesion that was gone to. */
export function markLesion(index) {
  for (const button of byId("lesions").querySelectorAll("button")) {
    const isCurrent = Number(button.dataset.index) === index;
    if (isCurrent) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    if (isCurrent) button.scrollIntoView({ block: "nearest" });
  }
}

export function showFindings(findings, notes) {
  const lines = [
    ...notes.map((message) => make("li", { className: "warning" }, message)),
    ...findings.map((one) => make("li", { className: one.severity },
      make("b", {}, `${one.severity} ${one.code}`), make("br"), one.message)),
  ];
  const nothing = make("p", { className: "quiet" }, "None: nothing is wrong with this case.");
  byId("findings").replaceChildren(lines.length ? make("ul", { className: "findings" }, ...lines) : nothing);
}

export function showWaiting(text) {
  for (const id of ["lesions", "findings"]) byId(id).replaceChildren(make("p", { className: "quiet" }, text));
}
