// The list: items by pages, filters, keys. What is shown of one item is in item.js.

import { showItem } from "./item.js";
import { armClass, ask, byId, make, mark, short } from "./tools.js";

const ALL_FIELDS = "\u0000"; // the choice that reads the data file
let run = null;
let starts = [0]; // where the pages up to this one begin
let following = null;
let listed = []; // the items of this page
let chosen = null; // place of the item that is shown
let cluster = "";
let search = 0; // number of the newest search: older ones are dropped

const say = (text) => (byId("status").textContent = text);

function filter() {
  const parameters = {};
  for (const name of ["kind", "turn", "field"]) {
    const value = byId(name).value;
    if (value && value !== ALL_FIELDS) parameters[name] = value;
  }
  if (parameters.field) parameters.value = byId("value").value;
  if (["gained", "lost"].includes(parameters.turn)) {
    Object.assign(parameters, { a: byId("a").value, b: byId("b").value });
  }
  if (cluster) parameters.cluster = cluster;
  return parameters;
}

/** Fill the page that begins at the last of `starts`; a long search goes on until it has one. */
async function list() {
  const mine = ++search;
  const wanted = filter();
  const found = [];
  let from = starts.at(-1);
  byId("lines").replaceChildren();
  listed = [];
  following = null;
  pages();
  try {
    do {
      const page = await ask("/api/items", { ...wanted, from });
      if (mine !== search) return;
      found.push(...page.items);
      from = page.following;
      if (from !== null && found.length < 50) {
        say(`searched ${from.toLocaleString()} of ${page.total.toLocaleString()} items …`);
      }
      append(page.items.slice(0, 50 - listed.length));
    } while (from !== null && listed.length < 50);
  } catch (error) {
    if (mine === search) say(error.message);
    return;
  }
  // a page that was filled by several answers may have got more than it shows
  following = found.length > listed.length ? listed.at(-1).place + 1 : from;
  pages();
  const filtered = Object.keys(wanted).length > 0;
  const all = run.items.toLocaleString();
  if (!listed.length) say(starts.length > 1 ? "no more items" : "no item is like that");
  else if (!filtered) say(`items ${listed[0].place} to ${listed.at(-1).place}, of ${all}`);
  else if (following === null && starts.length === 1) say(`${listed.length} of ${all} items`);
  else say(`${listed.length} items from ${listed[0].place} on, of ${all} in all`);
}

function pages() {
  byId("back").disabled = starts.length < 2;
  byId("more").disabled = following === null;
}

function append(items) {
  for (const item of items) {
    listed.push(item);
    const line = make(
      "tr",
      { tabIndex: -1, "data-place": String(item.place), "aria-selected": "false" },
      make("td", {}, String(item.place)),
      make("td", {}, item.question, make("div", { className: "soft" }, item.reference)),
      ...item.marks.map((value, row) =>
        make("td", { className: "row" }, mark(value, item.kind, run.rows[row].name)),
      ),
    );
    line.addEventListener("click", () => choose(item.place, false));
    byId("lines").append(line);
  }
  select();
}

/** Mark the line of the item that is shown; the first one takes the focus where it is not here. */
function select() {
  const lines = [...byId("lines").children];
  for (const line of lines) {
    const own = Number(line.dataset.place) === chosen;
    line.setAttribute("aria-selected", String(own));
    line.tabIndex = own ? 0 : -1;
  }
  if (lines.length && !lines.some((line) => line.tabIndex === 0)) lines[0].tabIndex = 0;
}

/** Show an item; `held` keeps the focus in the list. */
async function choose(place, held) {
  chosen = place;
  history.replaceState(null, "", `#item=${place}`);
  select();
  if (held) {
    const line = byId("lines").querySelector(`[data-place="${place}"]`);
    line?.focus({ preventScroll: true });
    line?.scrollIntoView({ block: "nearest" });
  }
  await showItem(place, run, setCluster);
  const narrow = matchMedia("(max-width: 900px)").matches;
  if (narrow && !held) byId("detail").scrollIntoView({ block: "start" });
}

/** Go to the next or the previous item of the list, over the ends of pages. */
async function step(by) {
  const here = listed.findIndex((item) => item.place === chosen);
  const next = here < 0 ? 0 : here + by;
  if (next >= 0 && next < listed.length) return choose(listed[next].place, true);
  if (by > 0 ? following === null : starts.length < 2) return undefined;
  await turn(by > 0);
  if (listed.length) await choose(listed.at(by > 0 ? 0 : -1).place, true);
  return undefined;
}

async function turn(on) {
  if (on && following !== null) starts.push(following);
  else if (!on && starts.length > 1) starts.pop();
  await list();
}

function refilter() {
  starts = [0];
  byId("pair").hidden = !["gained", "lost"].includes(byId("turn").value);
  byId("cluster").hidden = !cluster;
  byId("cluster").textContent = `${run.cluster} ${short(cluster)} ✕`;
  return list();
}

function setCluster(name) {
  cluster = name;
  refilter();
}

/** Offer the fields of the data file, which the server reads when it is asked to. */
async function fields(asked) {
  const found = await ask("/api/fields", asked ? { asked: 1 } : {});
  const chooser = byId("field");
  if (found.state === "reading") {
    if (asked) say("reading the data file for its fields …");
    await new Promise((done) => setTimeout(done, 300));
    return fields(asked);
  }
  if (found.state === "failed") {
    say(`no groups: ${found.reason}`);
    chooser.value = "";
    return undefined;
  }
  if (found.state === "unread") {
    chooser.append(make("option", { value: ALL_FIELDS }, "read the data file …"));
    return undefined;
  }
  const first = run.fields.filter((name) => name in found.fields);
  const names = [...new Set([...first, ...Object.keys(found.fields)])];
  chooser.replaceChildren(make("option", { value: "" }, "none"));
  chooser.append(...names.map((name) => make("option", { value: name }, name)));
  chooser.disabled = !names.length;
  if (asked) say(names.length ? `groups: ${names.join(", ")}` : "no field groups these items");
  chooser.onchange = () => fieldChosen(found.fields);
  return undefined;
}

async function fieldChosen(known) {
  const name = byId("field").value;
  if (name === ALL_FIELDS) return fields(true);
  const values = known[name] ?? [];
  byId("value").replaceChildren(...values.map((one) => make("option", { value: one }, one)));
  byId("value-label").hidden = !name;
  return refilter();
}

function keys(event) {
  const field = event.target.closest("input, select, textarea");
  if (field || event.ctrlKey || event.metaKey || event.altKey) return;
  const inList = event.target.closest("#lines") !== null;
  const by = { j: 1, k: -1, ...(inList ? { ArrowDown: 1, ArrowUp: -1 } : {}) }[event.key];
  if (by) {
    event.preventDefault();
    step(by);
  } else if (inList && event.key === "Enter") {
    choose(Number(event.target.closest("tr").dataset.place), true).then(() =>
      byId("detail").focus(),
    );
  }
}

async function start() {
  run = await ask("/api/run");
  document.title = `${run.title}: MedAlign explorer`;
  byId("title").textContent = `MedAlign explorer: ${run.title}`;
  const shown = [`${run.items.toLocaleString()} items of ${run.file}`];
  if (run.teacher) shown.push(`teacher ${run.teacher} (${run.store})`);
  byId("about").textContent = shown.join("; ");
  byId("notes").replaceChildren(
    ...run.notes.map((note) => make("p", { className: "notice" }, note)),
  );
  byId("heads").replaceChildren(
    make("th", {}, "#"),
    make("th", {}, "question, reference"),
    ...run.rows.map((row) =>
      make("th", { className: "row", title: row.name, scope: "col" },
        make("span", { className: armClass(row.arm) }, row.name)),
    ),
  );
  byId("kind").append(...run.kinds.map((kind) => make("option", { value: kind }, kind)));
  for (const [id, place] of [["a", run.pair[0]], ["b", run.pair[1]]]) {
    const options = run.rows.map((row, i) => make("option", { value: String(i) }, row.name));
    byId(id).replaceChildren(...options);
    byId(id).value = String(place);
  }
  for (const id of ["kind", "turn", "a", "b", "value"]) {
    byId(id).addEventListener("change", refilter);
  }
  byId("field").onchange = () => fieldChosen({});
  byId("cluster").addEventListener("click", () => setCluster(""));
  byId("more").addEventListener("click", () => turn(true));
  byId("back").addEventListener("click", () => turn(false));
  byId("filters").addEventListener("reset", () => setTimeout(() => {
    byId("a").value = String(run.pair[0]);
    byId("b").value = String(run.pair[1]);
    byId("value-label").hidden = true;
    setCluster("");
  }));
  byId("filters").addEventListener("submit", (event) => {
    event.preventDefault();
    const place = Number(byId("go").value);
    if (/^\d+$/.test(byId("go").value.trim()) && place < run.items) choose(place, false);
    else say(`items are numbered 0 to ${run.items - 1}`);
  });
  document.addEventListener("keydown", keys);
  await list();
  const asked = /^#item=(\d+)$/.exec(location.hash);
  if (asked && Number(asked[1]) < run.items) await choose(Number(asked[1]), false);
  else if (listed.length) await choose(listed[0].place, true);
  await fields(false);
}

start().catch((error) => say(error.message));
