// A picture with numbers over its patches; a click or an arrow key moves the marked patch.

import { colour } from "./colours.js";
import { make } from "./tools.js";

const SIDE = 480; // pixels of the encoder's square, or a little more: patches have whole pixels

/** Where the marked patch is, in fractions of the square: panels of other grids mark the same. */
export const spot = { x: 0.5, y: 0.5 };

/** Number of the patch at the marked place. */
export function patchAt([rows, columns]) {
  const cell = (at, count) => Math.min(count - 1, Math.max(0, Math.floor(at * count)));
  return cell(spot.y, rows) * columns + cell(spot.x, columns);
}

/** A canvas with its caption; `moved` is called when the marked patch has changed. */
export class Panel {
  constructor(title, className, grid, moved) {
    [this.rows, this.columns] = grid;
    this.title = title;
    this.moved = moved;
    this.canvas = make("canvas", { tabIndex: 0, role: "img", "data-panel": title });
    this.canvas.width = this.columns * Math.max(1, Math.round(SIDE / this.columns));
    this.canvas.height = this.rows * Math.max(1, Math.round(SIDE / this.rows));
    this.said = make("span", {});
    this.figure = make(
      "figure",
      {},
      this.canvas,
      make("figcaption", {}, make("span", { className }, title), this.said),
    );
    this.canvas.addEventListener("click", (event) => this.click(event));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  click(event) {
    const frame = this.canvas.getBoundingClientRect();
    this.move(
      (event.clientX - frame.left) / frame.width,
      (event.clientY - frame.top) / frame.height,
    );
  }

  key(event) {
    const steps = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    this.move(spot.x + step[0] / this.columns, spot.y + step[1] / this.rows);
  }

  /** Mark the patch at a place, by its middle. */
  move(x, y) {
    const middle = (at, count) =>
      (Math.min(count - 1, Math.max(0, Math.floor(at * count + 1e-9))) + 0.5) / count;
    Object.assign(spot, { x: middle(x, this.columns), y: middle(y, this.rows) });
    this.moved();
  }

  /**
   * Draw the image in its box of the square, values over the visible patches, outlines, the mark.
   *
   * `view`: picture, box, outlines (or null), opacity; `values` may be null; `low`, `high` end the
   * colours.
   */
  draw(view, values, low, high, visible, said) {
    const { width, height } = this.canvas;
    const pen = this.canvas.getContext("2d");
    const [left, top, right, bottom] = view.box;
    const place = [left * width, top * height, (right - left) * width, (bottom - top) * height];
    pen.globalAlpha = 1;
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, width, height);
    pen.drawImage(view.picture, ...place);
    const w = width / this.columns;
    const h = height / this.rows;
    pen.globalAlpha = view.opacity;
    (values ?? []).forEach((value, i) => {
      if (visible && !visible[i]) return;
      pen.fillStyle = `rgb(${colour((value - low) / (high - low || 1)).join(" ")})`;
      pen.fillRect((i % this.columns) * w, Math.floor(i / this.columns) * h, w, h);
    });
    pen.globalAlpha = 1;
    if (view.outlines) pen.drawImage(view.outlines, ...place);
    const patch = patchAt([this.rows, this.columns]);
    const corner = [(patch % this.columns) * w, Math.floor(patch / this.columns) * h];
    for (const [ink, line] of [["#000", 5], ["#00e5ff", 2.5]]) {
      pen.strokeStyle = ink;
      pen.lineWidth = line;
      pen.strokeRect(...corner, w, h);
    }
    this.said.textContent = said ? `: ${said}` : "";
    const at = `row ${Math.floor(patch / this.columns) + 1}, column ${(patch % this.columns) + 1}`;
    const value = values ? `, ${values[patch].toPrecision(3)} there` : "";
    this.canvas.setAttribute("aria-label", `${this.title}; marked patch: ${at}${value}`);
  }
}
