/** Small helpers around the document. Text always goes in as text, never as markup. */

export const byId = (id) => {
  const found = document.getElementById(id);
  if (!found) throw new Error(`no element '${id}'`);
  return found;
};

/** An element with properties and children (elements or strings). */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria-") || key.startsWith("data-") || key === "role" || key === "scope") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

export const number = (value, digits = 0) =>
  value === null || value === undefined || Number.isNaN(value) ? "–"
    : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
