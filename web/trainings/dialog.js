// @ts-check
// Windows over the page, and questions in them or in the tab.
import { button, element, keepKeys } from "./element.js";
import { say } from "./words.js";

/**
 * Opens a window with its name and a button that closes it on top. Keys pressed in it are not the graph's, which lies below. It is gone once it is closed.
 * @param {string} name
 * @param {string} kind a class of it
 * @param {...(Node)} children
 * @returns {HTMLDialogElement}
 */
export function openDialog(name, kind, ...children) {
  const close = button(say("close"), () => dialog.close(), { icon: "pi-times", only: true });
  const dialog = element("dialog", { class: `mt-large mt-look ${kind}`, "aria-label": name }, element("header", {}, element("b", {}, name), close), ...children);
  return shown(dialog);
}

/** Shows a window; the browser gives back what was focused before as it is closed. @param {HTMLDialogElement} dialog */
export function shown(dialog) {
  keepKeys(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * Asks once more before something that cannot be undone. Whoever answers, also with Escape, is back where they were.
 * @param {HTMLElement} place
 * @param {{ question: string, yes: string, icon: string, no: string }} words
 * @param {() => unknown} act
 */
export function askAgain(place, { question, yes, icon, no }, act) {
  const before = /** @type {HTMLElement | null} */ (document.activeElement);
  const close = () => {
    place.replaceChildren();
    before?.focus();
  };
  const keep = button(no, close);
  const go = button(yes, () => (close(), act()), { icon, kind: "mt-danger" });
  const leave = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Escape") return;
    event.preventDefault(); // a window around it stays open
    close();
  };
  place.replaceChildren(element("div", { class: "mt-ask", role: "alertdialog", "aria-label": question, onkeydown: leave }, element("p", {}, question), element("div", { class: "mt-buttons" }, keep, go)));
  keep.focus();
}
