// The list of cases: search, filters, and the order with the doubtful cases first.
import { byId, make } from "./elements.js";

const FILTERS = {
  database: { all: "Any database", values: (one) => [one.database] },
  sequence: { all: "Any sequence", values: (one) => one.sequences },
  pathology: { all: "Any pathology", values: (one) => [one.pathology] },
  split: { all: "Any split", values: (one) => [one.split] },
  flag: { all: "Any flag", values: (one) => one.flags },
};

export class CaseList {
  constructor(answer, open) {
    this.cases = answer.cases;
    this.diceWord = answer.dice_word;
    this.open = open;
    this.current = null;
    this.shown = [];
    this.selects = this.#makeFilters();
    byId("search").addEventListener("input", () => this.refresh());
    byId("list").addEventListener("keydown", (event) => this.#move(event));
    this.refresh();
  }

  #makeFilters() {
    const selects = {};
    for (const [name, filter] of Object.entries(FILTERS)) {
      const values = new Set(this.cases.flatMap(filter.values).filter(Boolean));
      if (values.size < (name === "flag" ? 1 : 2)) continue;
      const options = [...values].sort().map((value) => make("option", { value }, value));
      const select = make("select", { "aria-label": filter.all, name }, make("option", { value: "" }, filter.all), ...options);
      select.addEventListener("change", () => this.refresh());
      selects[name] = select;
      byId("filters").append(select);
    }
    if (this.diceWord) {
      const select = make("select", { "aria-label": "Order", name: "order" },
        make("option", { value: "dice" }, "Doubtful first"), make("option", { value: "name" }, "By name"));
      select.addEventListener("change", () => this.refresh());
      selects.order = select;
      byId("filters").append(select);
    }
    return selects;
  }

  /** Show the cases that meet all filters. */
  refresh() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const set = Object.entries(FILTERS).filter(([name]) => this.selects[name]?.value);
    for (const [name, select] of Object.entries(this.selects)) select.classList.toggle("set", name !== "order" && select.value !== "");
    this.shown = this.cases.filter((one) => {
      const text = [one.name, one.person, one.visit, one.pathology, ...one.sequences, ...one.flags].join(" ").toLowerCase();
      return words.every((word) => text.includes(word)) && set.every(([name, filter]) => filter.values(one).includes(this.selects[name].value));
    });
    if (this.selects.order?.value === "dice") {
      this.shown = this.shown.map((one, index) => [one, index]).sort(([one, i], [other, j]) => rank(one) - rank(other) || i - j).map(([one]) => one);
    }
    byId("list").replaceChildren(...this.shown.map((one) => this.#line(one)));
    const all = this.cases.length;
    const what = all === 1 ? "case" : "cases";
    byId("count").textContent = this.shown.length === all ? `${all} ${what}` : `${this.shown.length} of ${all} ${what}`;
    this.mark(this.current);
  }

  #line(one) {
    const about = make("span", { className: "about" }, [one.sequences.join(" "), one.pathology, one.split].filter(Boolean).join(" · "));
    if (one.flags.length) about.append(" · ", make("span", { className: "flag" }, one.flags.join(", ")));
    const button = make("button", { type: "button", tabIndex: -1, "data-name": one.name }, make("span", { className: "name" }, one.name));
    if (one.dice !== null) button.append(make("span", { className: "dice", title: `${this.diceWord} Dice` }, one.dice.toFixed(2)));
    button.append(one.problem ? make("span", { className: "about problem" }, one.problem) : about);
    button.addEventListener("click", () => this.open(one.name));
    return make("li", {}, button);
  }

  /** Mark the open case; the list is one stop of the tabulator key, at this case or the first. */
  mark(name) {
    this.current = name;
    const buttons = [...byId("list").querySelectorAll("button")];
    const chosen = buttons.find((button) => button.dataset.name === name) ?? buttons[0];
    for (const button of buttons) {
      button.tabIndex = button === chosen ? 0 : -1;
      if (button.dataset.name === name) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    if (chosen?.dataset.name === name) chosen.scrollIntoView({ block: "nearest" });
  }

  /** The name of the case that is so many lines from the open one, or null at the ends. */
  beside(step) {
    const index = this.shown.findIndex((one) => one.name === this.current);
    if (index < 0) return this.shown[0]?.name ?? null;
    return this.shown[index + step]?.name ?? null;
  }

  #move(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    const buttons = [...byId("list").querySelectorAll("button")];
    const target = buttons[buttons.indexOf(document.activeElement) + step];
    if (!target) return;
    for (const button of buttons) button.tabIndex = button === target ? 0 : -1;
    target.focus();
  }
}

/** Cases that cannot be shown come last; those without a Dice before them. */
function rank(one) {
  return one.problem ? 3 : one.dice ?? 2;
}
