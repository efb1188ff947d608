// What both halves of the page use: elements, requests, marks.

/** Make an element: properties, then children; text is never read as HTML. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name === "className" ? "class" : name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Ask the server; what it refuses is thrown with its own line. */
export async function ask(path, parameters = {}, options = {}) {
  const query = new URLSearchParams(parameters);
  let reply;
  try {
    reply = await fetch(`${path}?${query}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("medalign explore does not answer; is it still running?");
  }
  const document = await reply.json();
  if (!reply.ok) throw new Error(document.error);
  return document;
}

/** A row's mark of an item: right, wrong, or the points of what is neither. */
export function mark(value, kind, who) {
  const right = kind !== "report" && value === 1;
  const wrong = kind !== "report" && value === 0;
  const name = right ? "right" : wrong ? "wrong" : "partly";
  const points = Math.min(99, Math.round(100 * value));
  const said = right || wrong ? name : `${points} of 100 points`;
  return make(
    "span",
    { className: `mark ${name}`, title: `${who}: ${said}`, role: "img", "aria-label": said },
    right ? "✓" : wrong ? "✗" : String(points),
  );
}

/** Bytes for a person. */
export function size(count) {
  return count < 1e9 ? `${Math.round(count / 1e6)} MB` : `${(count / 1e9).toFixed(1)} GB`;
}

/** A long name, such as that of an image by its content, with its first letters. */
export function short(name) {
  return name.length > 24 ? `${name.slice(0, 12)}…` : name;
}

/** A class name of an arm, for its colour. */
export function armClass(arm) {
  return arm === "LoRA" ? "lora" : arm.startsWith("MEDALIGN") ? "medalign" : "other";
}

export const byId = (id) => document.getElementById(id);
