/** An answer as coloured tokens, readable by mouse, touch and keyboard. */

import { byId, element } from "./dom.js";
import { paint, say } from "./depth.js";

export class Answer {
  /** @param layers decoder layers of the model. @param label what a screen reader calls it. */
  constructor(layers, label) {
    this.layers = layers;
    this.pieces = [];
    this.current = -1;
    this.node = element("p", { className: "answer", tabIndex: 0, role: "group", "aria-label": label });
    this.node.addEventListener("pointerover", (event) => this.#point(event));
    this.node.addEventListener("click", (event) => this.#point(event));
    this.node.addEventListener("pointerleave", () => this.#select(-1));
    this.node.addEventListener("keydown", (event) => this.#key(event));
    this.node.addEventListener("focus", () => { if (this.node.matches(":focus-visible")) this.#select(0); });
    this.node.addEventListener("blur", () => this.#select(-1));
  }

  get text() { return this.pieces.map((piece) => piece.text).join(""); }

  /** Add text with the token ids and exit layers that made it (usually one of each). */
  add({ text, ids = [], depths = [] }) {
    // A word's leading space stays outside its colour, which could else hang on at a line's end.
    const space = text.trim() ? text.match(/^ */)[0] : "";
    const node = element("span", { className: "token" }, text.slice(space.length));
    const piece = { text, ids, depths: [], node };
    this.pieces.push(piece);
    this.node.append(space, node);
    this.#colour(piece, depths);
    return piece;
  }

  /** Mark the pieces whose numbers are in `places` as different from another answer. */
  mark(places) {
    this.pieces.forEach((piece, place) => {
      piece.different = places.has(place);
      piece.node.classList.toggle("different", piece.different);
    });
  }

  #colour(piece, depths) {
    piece.depths = depths;
    if (!depths.length) return;
    piece.node.dataset.layers = depths.join("·");
    // Text that several tokens made together (one character in several bytes) shows the deepest.
    paint(piece.node, Math.max(...depths), this.layers);
  }

  #point(event) {
    this.#select(this.pieces.findIndex((piece) => piece.node === event.target));
  }

  #key(event) {
    const last = this.pieces.length - 1;
    const moves = { ArrowRight: this.current + 1, ArrowLeft: this.current - 1, Home: 0, End: last };
    if (event.key === "Escape") this.#select(-1);
    if (!(event.key in moves) || last < 0) return;
    event.preventDefault();
    this.#select(Math.max(0, Math.min(last, moves[event.key])));
  }

  #select(place) {
    this.pieces[this.current]?.node.classList.remove("current");
    this.current = place;
    const tip = byId("tip");
    const piece = this.pieces[place];
    tip.hidden = !piece;
    if (!piece) {
      this.node.removeAttribute("aria-describedby");
      return;
    }
    piece.node.classList.add("current");
    tip.textContent = this.#describe(piece);
    this.node.setAttribute("aria-describedby", "tip");
    // Above the token, or below where there is no room; never outside the window.
    const box = piece.node.getClientRects()[0] ?? piece.node.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left), innerWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 0 ? above : box.bottom + 6}px`;
  }

  #describe({ text, depths, different }) {
    const shown = text.trim() ? `“${text.trim()}”` : "space";
    const said = [...new Set(depths)].map((layer) => say(layer, this.layers)).join("; ") || "depth not known";
    return `${shown}: ${said}${different ? "; not in the other answer" : ""}`;
  }
}
