// The page: which case is open, where its crosshair is, and what the keys do.
import { CaseList } from "./case_list.js";
import { markLesion, overlaysOf, showFacts, showFindings, showLesions, showOverlays, showWaiting } from "./details.js";
import { byId, getJson, make } from "./elements.js";
import { listenToKeys } from "./keys.js";
import { Panes, PLANES } from "./panes.js";
import { CaseVoxels } from "./voxels.js";

const MOST_SHOWN = 4;
const OPEN_CASE = "open case";
const state = { about: null, voxels: null, overlays: [], position: [0, 0, 0], isOutlined: false, lesions: [], lesion: -1, stop: null };
const hidden = new Set(); // the names of sequences that a person has switched off, also for the next cases
const panes = new Panes(byId("panes"), (voxel) => goTo(voxel));
let list = null;

async function openCase(name) {
  if (!name) return;
  state.stop?.abort();
  const stop = new AbortController();
  state.stop = stop;
  list.mark(name);
  byId("case-name").textContent = name;
  sessionStorage.setItem(OPEN_CASE, name); // of this tab alone: an address would stay in the browser's history
  // What is shown is of another case until this one is open, also if it cannot be opened.
  Object.assign(state, { about: null, voxels: null });
  document.body.classList.add("opening");
  markEnds();
  say("Opening…");
  byId("panes").setAttribute("aria-busy", "true");
  try {
    const about = await getJson("api/case", { case: name }, stop.signal);
    const voxels = new CaseVoxels(about);
    Object.assign(state, { about, voxels, overlays: overlaysOf(about), position: about.start, lesions: [], lesion: -1 });
    byId("panes").querySelector(".empty")?.remove();
    document.body.classList.remove("opening");
    showCase();
    await voxels.read(() => state.position[2], (first, last) => {
      panes.read(first, last);
      showPlace();
      say(`Reading, ${Math.round(100 * voxels.share)} %. Axial slices can be seen already.`);
    }, stop.signal);
    await panes.whole();
    if (stop.signal.aborted) return;
    say(panes.whySlices);
    await loadFindings(name, stop.signal);
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
  }
  if (!stop.signal.aborted) byId("panes").setAttribute("aria-busy", "false");
}

/** Let the model of the run segment the open case, and open it again with the answer. */
async function answer() {
  const name = state.about?.name;
  if (!name || byId("answer").hidden || byId("answer").disabled) return;
  byId("answer").disabled = true;
  say("The model segments this case. This may take minutes.");
  try {
    await getJson("api/answer", { case: name });
    if (state.about?.name === name) await openCase(name);
  } catch (error) {
    fail(error);
  } finally {
    byId("answer").disabled = false;
  }
}

function showCase() {
  const { about, voxels, overlays, position } = state;
  showSequences();
  showOverlays(overlays, state.isOutlined, restyle);
  showFacts(about);
  showWaiting("Looked for when all voxels are read.");
  panes.open(voxels, overlays, shownSequences(), position);
  showPlace();
}

async function loadFindings(name, signal) {
  showWaiting("Looking…");
  const { findings, lesions } = await getJson("api/findings", { case: name }, signal);
  Object.assign(state, { lesions, lesion: -1 });
  showLesions(lesions, goToLesion);
  showFindings(findings, state.about.notes);
}

function shownSequences() {
  const all = state.about.sequences.map((_, index) => index);
  const wanted = all.filter((index) => !hidden.has(state.about.sequences[index].name)).slice(0, MOST_SHOWN);
  return wanted.length ? wanted : all.slice(0, 1);
}

function showSequences() {
  const shown = shownSequences();
  const legend = byId("sequences").querySelector("legend");
  const buttons = state.about.sequences.map(({ name }, index) => {
    const button = make("button", { type: "button", "aria-pressed": String(shown.includes(index)) }, name);
    button.addEventListener("click", () => toggleSequence(index, button));
    return button;
  });
  byId("sequences").replaceChildren(legend, ...buttons);
}

function toggleSequence(index, button) {
  const shown = shownSequences();
  const { name } = state.about.sequences[index];
  if (shown.includes(index)) {
    if (shown.length === 1) return;
    hidden.add(name);
  } else {
    hidden.delete(name);
    if (shown.length === MOST_SHOWN) hidden.add(state.about.sequences[shown.at(-1)].name);
  }
  for (const [other, element] of [...button.parentElement.querySelectorAll("button")].entries()) {
    element.setAttribute("aria-pressed", String(shownSequences().includes(other)));
  }
  panes.show(shownSequences());
}

function restyle(isOutlined) {
  const isOther = state.isOutlined !== isOutlined;
  state.isOutlined = isOutlined;
  if (isOther) panes.outline(isOutlined);
  else panes.recolour();
  showPlace();
}

function goTo(voxel) {
  if (!state.about) return;
  state.position = voxel.map((value, axis) => Math.min(Math.max(value, 0), state.about.shape[axis] - 1));
  panes.place(state.position);
  showPlace();
}

/** Move through the slices of the plane that is shown. */
function step(num) {
  const axis = { axial: 2, coronal: 1, sagittal: 0, "all three": 2 }[panes.plane];
  goTo(state.position.map((value, other) => (other === axis ? value + num : value)));
}

function goToLesion(index) {
  if (!state.lesions.length) return;
  state.lesion = (index + state.lesions.length) % state.lesions.length;
  markLesion(state.lesion);
  goTo(state.lesions[state.lesion].voxel);
}

function showPlace() {
  const { about, voxels, overlays, position } = state;
  const mm = about.affine.slice(0, 3).map((row) => row[3] + row[0] * position[0] + row[1] * position[1] + row[2] * position[2]);
  const parts = [make("b", {}, `Slice ${position[2] + 1} of ${about.shape[2]}`), ` · ${mm.map((value) => value.toFixed(1)).join(", ")} mm`];
  about.sequences.forEach(({ name }, index) => {
    const value = voxels.intensity(index, position);
    if (value !== null) parts.push(` · ${name} `, make("b", {}, Number(value.toPrecision(4)).toString()));
  });
  overlays.forEach((overlay, index) => {
    const code = voxels.code(index, position);
    const structure = code === 255 ? "not looked at" : overlay.structures.find((one) => one.code === code)?.name;
    if (structure && overlay.isShown) parts.push(` · ${overlay.name}: `, make("b", {}, structure));
  });
  byId("place").replaceChildren(...parts);
}

function setPlane(plane) {
  panes.setPlane(plane);
  for (const button of byId("planes").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.plane === plane));
  }
}

function showAllOverlays() {
  const isShown = !state.overlays.some((overlay) => overlay.isShown);
  for (const overlay of state.overlays) overlay.isShown = isShown;
  showOverlays(state.overlays, state.isOutlined, restyle);
  restyle(state.isOutlined);
}

function changeOpacity(change) {
  for (const overlay of state.overlays) overlay.opacity = Math.min(Math.max(overlay.opacity + change, 0.05), 1);
  showOverlays(state.overlays, state.isOutlined, restyle);
  restyle(state.isOutlined);
}

function outline() {
  restyle(!state.isOutlined);
  showOverlays(state.overlays, state.isOutlined, restyle);
}

function markEnds() {
  byId("previous").disabled = list.beside(-1) === null;
  byId("next").disabled = list.beside(1) === null;
}

function say(text) {
  byId("reading").className = "reading";
  byId("reading").textContent = text;
}

function fail(error) {
  byId("reading").className = "reading failed";
  byId("reading").textContent = error.message;
}

const ACTIONS = [
  { keys: ["n"], names: ["N"], text: "next case", run: () => openCase(list.beside(1)) },
  { keys: ["p"], names: ["P"], text: "previous case", run: () => openCase(list.beside(-1)) },
  { keys: ["ArrowUp", "ArrowDown"], names: ["↑", "↓"], text: "one slice up or down", run: (event) => step(event.key === "ArrowUp" ? 1 : -1) },
  { keys: ["PageUp", "PageDown"], names: ["Page ↑", "Page ↓"], text: "ten slices", run: (event) => step(event.key === "PageUp" ? 10 : -10) },
  ...Object.keys(PLANES).map((plane, index) => ({ keys: [String(index + 1)], text: `${plane} plane${index === 3 ? "s" : ""}`, run: () => setPlane(plane) })),
  { keys: ["l"], names: ["L"], text: "next lesion (with Shift: the one before)", run: (event) => goToLesion(state.lesion + (event.shiftKey ? -1 : 1)) },
  { keys: ["o"], names: ["O"], text: "overlays on or off", run: showAllOverlays },
  { keys: ["c"], names: ["C"], text: "outlines only, or filled", run: outline },
  { keys: ["+", "-"], text: "overlays stronger or weaker", run: (event) => changeOpacity(event.key === "+" ? 0.1 : -0.1) },
  { keys: ["s"], names: ["S"], text: "segment with the model (of a run)", run: answer },
  { keys: ["/"], text: "search", run: () => byId("search").focus() },
  { keys: ["Escape"], names: ["Esc"], text: "back to the images", run: () => byId("panes").focus() },
  { keys: ["?"], text: "these keys", run: () => byId("help").showModal() },
];

async function start() {
  for (const plane of Object.keys(PLANES)) {
    const button = make("button", { type: "button", "data-plane": plane, "aria-pressed": String(plane === "axial") }, plane[0].toUpperCase() + plane.slice(1));
    button.addEventListener("click", () => setPlane(plane));
    byId("planes").append(button);
  }
  byId("next").addEventListener("click", () => openCase(list.beside(1)));
  byId("previous").addEventListener("click", () => openCase(list.beside(-1)));
  byId("answer").addEventListener("click", answer);
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  listenToKeys(ACTIONS);
  try {
    const about = await getJson("api/cases");
    document.title = `${about.title} · multiseg view`;
    byId("title").textContent = about.title;
    byId("answer").hidden = !about.can_answer;
    list = new CaseList(about, openCase);
    const wanted = sessionStorage.getItem(OPEN_CASE);
    await openCase(about.cases.some((one) => one.name === wanted) ? wanted : list.beside(1));
  } catch (error) {
    fail(error);
  }
}

start();
