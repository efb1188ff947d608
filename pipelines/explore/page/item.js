// One item: its question, every row's answer, its image, who looks where, which patches are alike.

import { gradient } from "./colours.js";
import { Panel, patchAt } from "./panels.js";
import { armClass, ask, byId, make, mark, short, size } from "./tools.js";

const look = { opacity: 0.6, own: false, outlines: true, layer: "" }; // kept from item to item
let newest = 0; // number of the item shown last: what comes late for another one is dropped
let typed = null; // the question that was answered last: item, image, what came of it
let alike = null; // the request of a similarity that is under way

export async function showItem(place, run, setCluster) {
  const mine = ++newest;
  const home = byId("detail");
  let item;
  try {
    item = await ask("/api/item", { item: place });
  } catch (error) {
    if (mine === newest) home.replaceChildren(make("p", { className: "notice" }, error.message));
    return;
  }
  if (mine !== newest) return;
  const pictures = make("div", { id: "pictures" });
  home.replaceChildren(head(item, run, setCluster), answers(item, run), pictures);
  home.scrollTop = 0;
  if (item.images.length) await showImage(item, 0, run, pictures, mine);
  else pictures.append(make("p", { className: "soft" }, "This item shows no image."));
}

function head(item, run, setCluster) {
  const back = make("button", { type: "button", id: "toList" }, "To the list");
  back.addEventListener("click", () => byId("list").scrollIntoView());
  const only = make("button", { type: "button", id: "only" }, `only this ${run.cluster}`);
  only.addEventListener("click", () => setCluster(item.cluster));
  const fields = Object.entries(item.fields).map(([name, value]) => `${name} ${value}`);
  const about = [item.kind, ...fields, `${run.cluster} ${short(item.cluster)}`].join(", ");
  return make(
    "div",
    {},
    back,
    make("h2", {}, `Item ${item.place}: ${item.id}`),
    make("p", { className: "soft" }, `${about} `, only),
    make("p", { id: "question" }, item.question),
    make("p", {}, make("span", { className: "soft" }, "Reference: "), item.reference),
  );
}

function answers(item, run) {
  const lines = item.answers.map((answer, row) => {
    const { name, arm } = run.rows[row];
    const title = Object.entries(answer.scores)
      .map(([one, value]) => `${one} ${value.toFixed(2)}`)
      .join(", ");
    return make(
      "tr",
      {},
      make("td", { className: armClass(arm) }, name),
      make("td", {}, mark(answer.mark, item.kind, name)),
      make("td", { title }, answer.text || "(nothing)"),
    );
  });
  return make("table", { id: "answers", "aria-label": "Answers" }, make("tbody", {}, ...lines));
}

/** Load a picture that the page may draw on a canvas. */
async function load(path, parameters) {
  const query = new URLSearchParams(parameters);
  const reply = await fetch(`${path}?${query}`);
  if (!reply.ok) throw new Error((await reply.json()).error);
  return createImageBitmap(await reply.blob());
}

async function showImage(item, number, run, home, mine) {
  const query = { item: item.place, image: number };
  let maps;
  const view = { outlines: null };
  try {
    [maps, view.picture] = await Promise.all([ask("/api/maps", query), load("/picture", query)]);
    if (maps.regions.length) view.shapes = await load("/outlines", query);
  } catch (error) {
    if (mine === newest) home.replaceChildren(make("p", { className: "notice" }, error.message));
    return;
  }
  if (mine !== newest) return;
  view.box = maps.box;
  const again = () => showImage(item, number, run, home, mine);
  const shown = new Shown(item, number, run, maps, view);
  home.replaceChildren(
    ...shown.parts(
      (other) => showImage(item, other, run, home, mine),
      (name, button) => askArm(name, item, button, again),
    ),
  );
  shown.draw();
  await shown.compare();
}

async function askArm(name, item, button, again) {
  const said = byId("asked");
  button.disabled = true;
  said.textContent = `${name}: its model is loaded and asked; this may take minutes …`;
  try {
    await ask("/api/ask", { arm: name, item: item.place }, { method: "POST" });
    if (said.isConnected) await again();
  } catch (error) {
    said.textContent = error.message;
    button.disabled = false;
  }
}

/** The panels of one image. */
class Shown {
  constructor(item, number, run, maps, view) {
    Object.assign(this, { item, number, run, maps, view });
    this.known = Object.entries(maps.students);
    this.similar = { teacher: null, students: {} };
    this.grid = maps.grid ?? this.known[0]?.[1].grid ?? [1, 1];
    const panel = (title, style, grid) =>
      new Panel(title, style, grid, () => {
        this.draw();
        this.compare();
      });
    this.plain = panel("Image", "", this.grid);
    this.looks = [
      ...(maps.teacher ? [["teacher", panel("Teacher E_a", "", maps.grid)]] : []),
      ...this.known.map(([name, one]) => [name, panel(name, this.style(name), one.grid)]),
    ];
    this.words = panel("Question", "", maps.grid ?? [1, 1]);
    this.alike = [
      ...(maps.visible ? [["teacher", panel("Teacher S_e", "", maps.grid)]] : []),
      ...this.known
        .filter(([, one]) => one.similarity)
        .map(([name, one]) => [name, panel(`${name} S_x`, this.style(name), one.grid)]),
    ];
  }

  style(name) {
    return armClass(name);
  }

  /** The elements of the page, in their order. */
  parts(other, asked) {
    this.bar = make("p", { className: "soft", id: "scale" });
    this.likeBar = make("p", { className: "soft" });
    const figures = (panels) =>
      make("div", { className: "panels" }, ...panels.map((panel) => panel.figure));
    const looks = [this.plain, ...this.looks.map(([, panel]) => panel)];
    this.home = figures(looks);
    const form = this.typing();
    if (typed?.item === this.item.place && typed.image === this.number) this.answered(typed.found);
    return [
      ...this.choices(other),
      ...this.maps.notes.map((note) => make("p", { className: "soft" }, note)),
      this.tools(),
      this.home,
      this.bar,
      this.legend(),
      form,
      this.asking(asked),
      ...(this.alike.length
        ? [
            make("h3", {}, "Patches like the marked one"),
            figures(this.alike.map(([, panel]) => panel)),
            this.likeBar,
          ]
        : []),
    ];
  }

  choices(other) {
    if (this.item.images.length < 2) return [];
    const buttons = this.item.images.map((name, i) => {
      const pressed = String(i === this.number);
      const button = make("button", { type: "button", "aria-pressed": pressed }, name);
      button.addEventListener("click", () => other(i));
      return button;
    });
    return [make("div", { className: "tools", role: "group", "aria-label": "Image" }, ...buttons)];
  }

  tools() {
    const control = (label, input) => make("label", {}, label, " ", input);
    const changed = (input, set) =>
      input.addEventListener("input", () => {
        set(input);
        this.draw();
      });
    const opacity = make("input", {
      id: "opacity", type: "range", min: "0", max: "100", step: "5",
      value: String(Math.round(100 * look.opacity)),
    });
    changed(opacity, (input) => (look.opacity = Number(input.value) / 100));
    const own = make("input", { id: "own", type: "checkbox", checked: look.own });
    changed(own, (input) => (look.own = input.checked));
    const parts = [control("Colours", opacity)];
    if (this.looks.length > 1) parts.push(control("each map its own scale", own));
    if (this.maps.regions.length) {
      const shapes = make("input", { id: "outlines", type: "checkbox", checked: look.outlines });
      changed(shapes, (input) => (look.outlines = input.checked));
      parts.push(control("regions", shapes));
    }
    const layers = new Set(this.known.flatMap(([, one]) => Object.keys(one.layers).map(Number)));
    if (layers.size > 1) {
      const chooser = make(
        "select",
        { id: "layer" },
        make("option", { value: "" }, "where it was distilled"),
        ...[...layers].sort((a, b) => a - b).map((one) =>
          make("option", { value: String(one) }, String(one)),
        ),
      );
      chooser.value = look.layer;
      if (chooser.selectedIndex < 0) chooser.value = look.layer = "";
      changed(chooser, (input) => (look.layer = input.value));
      parts.push(control("layer", chooser));
    }
    return make("div", { className: "tools" }, ...parts);
  }

  legend() {
    const keys = this.maps.regions.map(({ label, colour }) => {
      const key = make("span", { className: "key" });
      key.style.borderColor = colour;
      return make("span", {}, key, label, " ");
    });
    return make("p", { className: "soft", id: "regions" }, ...keys);
  }

  /** A line to type a question into: its map joins the others, its answer stands below. */
  typing() {
    const { no_map: noMap, no_answer: noAnswer } = this.run;
    const lacking = [noMap, noAnswer].filter(Boolean);
    const open = lacking.length < 2;
    this.field = make("input", {
      id: "words", type: "text", maxlength: "2000", autocomplete: "off",
      "aria-describedby": "lacks", disabled: !open,
    });
    const button = make("button", { type: "submit", disabled: !open }, "Ask");
    this.came = make("div", { id: "came", role: "status", "aria-live": "polite" });
    const form = make(
      "form",
      { id: "typed", "aria-label": "A question in words" },
      make("label", { for: "words" }, "Ask in words"),
      this.field,
      button,
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!button.disabled) this.put(button);
    });
    const lacks = lacking.map((one) => make("p", { className: "soft" }, `${one}.`));
    return make("div", {}, form, make("div", { id: "lacks" }, ...lacks), this.came);
  }

  /** Ask what is typed; a second question waits until the first is answered. */
  async put(button) {
    const query = { item: this.item.place, image: this.number, question: this.field.value };
    button.disabled = true;
    this.came.replaceChildren("asked; questions are answered one after another …");
    try {
      const found = await ask("/api/question", query, { method: "POST" });
      typed = { item: this.item.place, image: this.number, found };
      this.answered(found);
      if (this.home.isConnected) this.draw();
    } catch (error) {
      this.came.replaceChildren(make("p", { className: "notice" }, error.message));
    }
    button.disabled = false;
  }

  /** Show what came of a question. */
  answered(found) {
    this.field.value = found.question;
    this.asked = found.map;
    this.looks = this.looks.filter(([name]) => name !== "question");
    this.words.figure.remove();
    if (found.map) {
      this.looks.push(["question", this.words]);
      this.home.append(this.words.figure);
    }
    const lines = found.notes.map((note) => make("p", { className: "soft" }, `${note}.`));
    if (found.answer !== null) {
      const said = make("span", { id: "answer" }, found.answer || "(nothing)");
      lines.push(make("p", {}, make("span", { className: "soft" }, "The model: "), said));
    }
    if (found.map) lines.push(make("p", { className: "soft" }, `Map drawn of: ${found.question}`));
    this.came.replaceChildren(...lines);
  }

  /** Buttons that put the question to arms whose attention is not known. */
  asking(asked) {
    const { students, weights } = this.run;
    const open = students.filter((name) => !this.maps.students[name]?.similarity);
    if (!open.length) return "";
    const heavy = weights ? ` Each has ${size(weights)} of weights.` : "";
    const buttons = open.map((name) => {
      const button = make("button", { type: "button", "data-arm": name }, `ask ${name}`);
      button.addEventListener("click", () => asked(name, button));
      return button;
    });
    const why = `Attention of a student: its model is loaded when you ask for it.${heavy}`;
    return make(
      "div",
      {},
      make("p", { className: "soft" }, why),
      make("div", { className: "tools", role: "group", "aria-label": "Ask a student" }, ...buttons),
      make("p", { id: "asked", role: "status" }),
    );
  }

  /** The values of a map, times the number of patches it is spread over: 1 is an even gaze. */
  gaze(name) {
    const { teacher, visible, students } = this.maps;
    let values = teacher;
    let said = "";
    if (name === "question") {
      values = this.asked;
      said = "the map of the words";
    } else if (name !== "teacher") {
      const one = students[name];
      const layer = look.layer === "" ? one.layer : Number(look.layer);
      const map = one.layers[layer];
      if (!map) return { values: null, said: `layer ${layer} was not kept` };
      values = map.values;
      const apart = map.divergence === null ? "" : `, KL ${map.divergence.toFixed(2)}`;
      said = `layer ${layer}${apart}`;
    }
    const seen = visible && visible.length === values.length ? visible : null;
    const count = seen ? seen.filter(Boolean).length : values.length;
    return { values: values.map((value) => value * count), said, seen };
  }

  draw() {
    const view = {
      ...this.view,
      opacity: look.opacity,
      outlines: look.outlines ? this.view.shapes : null,
    };
    this.plain.draw(view, null, 0, 1, null, "");
    const gazes = this.looks.map(([name]) => this.gaze(name));
    const tops = gazes.map(({ values }) => (values ? Math.max(...values) : 0));
    const top = Math.max(...tops);
    this.looks.forEach(([, panel], i) => {
      const { values, said, seen } = gazes[i];
      panel.draw(view, values, 0, look.own ? tops[i] : top, seen, said);
    });
    if (this.looks.length) {
      const high = look.own ? "its highest patch" : `${top.toFixed(1)} times`;
      scale(this.bar, "attention: 0", `${high} (1 is an even gaze over the image)`);
    } else this.bar.replaceChildren();
    const rows = this.alike.map(([name]) =>
      name === "teacher" ? this.similar.teacher : this.similar.students[name],
    );
    const seen = (values) =>
      this.maps.visible && values && this.maps.visible.length === values.length
        ? this.maps.visible
        : null;
    const shown = rows.flatMap((values) =>
      (values ?? []).filter((_, i) => seen(values)?.[i] ?? true),
    );
    const low = shown.length ? Math.min(...shown) : 0;
    this.alike.forEach(([, panel], i) => {
      const said = rows[i] && i && rows[0] ? `r ${this.agreement(rows[0], rows[i])}` : "";
      panel.draw(view, rows[i] ?? null, low, 1, seen(rows[i]), said);
    });
    if (this.alike.length) {
      const r = this.alike.length > 1 ? "; r: correlation with the teacher's row" : "";
      scale(this.likeBar, `similarity: ${low.toFixed(2)}`, `1${r}`);
    }
  }

  /** Pearson's correlation of two rows over the other patches that show image. */
  agreement(first, second) {
    const patch = patchAt(this.grid);
    const visible = this.maps.visible ?? first.map(() => true);
    const places = first.map((_, i) => i).filter((i) => visible[i] && i !== patch);
    const mean = (values) => places.reduce((sum, i) => sum + values[i], 0) / places.length;
    const [p, q] = [mean(first), mean(second)];
    const dot = (x, y, a, b) => places.reduce((sum, i) => sum + (x[i] - a) * (y[i] - b), 0);
    const norm = Math.sqrt(dot(first, first, p, p) * dot(second, second, q, q));
    return (dot(first, second, p, q) / (norm || 1)).toFixed(2);
  }

  /** Ask for the rows of the marked patch; an older request is dropped. */
  async compare() {
    if (!this.alike.length) return;
    alike?.abort();
    alike = new AbortController();
    const query = { item: this.item.place, image: this.number, patch: patchAt(this.grid) };
    try {
      this.similar = await ask("/api/similarity", query, { signal: alike.signal });
      this.draw();
    } catch (error) {
      if (error.name !== "AbortError") this.likeBar.textContent = error.message;
    }
  }
}

function scale(home, low, high) {
  const bar = make("span", { className: "bar" });
  bar.style.background = gradient();
  home.replaceChildren(low, " ", bar, " ", high);
}
