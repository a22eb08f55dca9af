// @ts-check
// Elements of the page. Whatever comes from files, captions and logs goes in as text, never as markup.

/**
 * @typedef {string | number | Node | null | undefined | false} Child
 * @typedef {Record<string, any>} Properties  `class`, `onclick` and other handlers, `data-*`, `aria-*`, attributes and `style` as an object
 */

/**
 * An element of this tag with these properties and children.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Properties} [properties]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") made.className = value;
    else if (name === "style") Object.assign(made.style, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "string") /** @type {any} */ (made)[name] = value;
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) made.append(typeof child === "number" ? String(child) : child);
  }
  return made;
}

/**
 * Sets text only where it differs, so that a screen reader is not told the same again and nothing is laid out anew.
 * @param {Node} node
 * @param {string} text
 */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * A button with a word on it; with `icon` alone it keeps the word for screen readers and as its tooltip.
 * @param {string} label
 * @param {() => unknown} act
 * @param {{ icon?: string, only?: boolean, kind?: string, title?: string }} [look]  icon: a class of PrimeIcons, which ComfyUI's page has
 */
export function button(label, act, { icon = "", only = false, kind = "", title = "" } = {}) {
  return element(
    "button",
    { type: "button", class: `mt-button ${kind}`, title: title || (only ? label : ""), "aria-label": only ? label : undefined, onclick: act },
    icon && element("i", { class: `pi ${icon}`, "aria-hidden": "true" }),
    only ? null : element("span", {}, label),
  );
}

/** Keys typed in fields and lists of ours are not shortcuts of the graph. @param {HTMLElement} whole */
export function keepKeys(whole) {
  for (const kind of ["keydown", "keyup", "paste", "copy"]) whole.addEventListener(kind, (event) => event.stopPropagation());
}

/** Loads a stylesheet that lies next to a module, once. @param {string} url */
export function addStylesheet(url) {
  if (document.querySelector(`link[href="${url}"]`)) return;
  document.head.append(element("link", { rel: "stylesheet", href: url }));
}
