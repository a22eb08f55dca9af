// @ts-check
// Which clips and images stay bad: the items of the dataset with the highest losses of late, worst first.
import { element, setText } from "./element.js";
import { number, say } from "./words.js";

/** @typedef {import("./server.js").Detail} Detail */

export class Items {
  constructor() {
    this.rows = element("tbody");
    this.none = element("p", { class: "mt-faint" }, say("items.none"));
    const names = [say("items.item"), say("items.loss")].map((name) => element("th", { scope: "col" }, name));
    this.table = element("table", { class: "mt-items" }, element("caption", { class: "mt-faint" }, say("items.hint")), element("thead", {}, element("tr", {}, names)), this.rows);
    this.whole = element("div", {}, this.none, this.table);
  }

  /** @param {Detail["items"]} items worst first */
  show(items = []) {
    this.none.hidden = items.length > 0;
    this.table.hidden = !items.length;
    const most = items[0]?.loss ?? 0;
    while (this.rows.children.length > items.length) this.rows.lastElementChild?.remove();
    items.forEach((item, place) => {
      const row = /** @type {HTMLElement} */ (this.rows.children[place] ?? this.rows.appendChild(element("tr", {}, element("th", { scope: "row" }), element("td"))));
      setText(row.children[0], item.name);
      setText(row.children[1], number(item.loss));
      row.style.setProperty("--mt-share", String(most > 0 ? item.loss / most : 0));
    });
  }
}
