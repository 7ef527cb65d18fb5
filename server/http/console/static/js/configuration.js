/** The configuration in force, and the server's default τ. */

import { byId, element } from "./dom.js";

export function showConfiguration(river) {
  byId("configuration").replaceChildren(...rows(river).map(([name, value]) =>
    element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value))));
}

function rows(value, name = "") {
  if (name && isRow(value)) {
    return [[name, Object.entries(value).map(([key, inner]) => `${key}: ${inner}`).join(", ")]];
  }
  if (value !== null && typeof value === "object" && !Array.isArray(value)) {
    return Object.entries(value).flatMap(([key, inner]) => rows(inner, name ? `${name}: ${words(key)}` : words(key)));
  }
  return [[name, said(name, value)]];
}

/** A table of one number per number (such as speed-up by rows) fits on a line. */
const isRow = (value) => value !== null && typeof value === "object" && !Array.isArray(value)
  && Object.entries(value).length > 0
  && Object.entries(value).every(([key, inner]) => Number.isFinite(Number(key)) && typeof inner === "number");

const words = (key) => key.replaceAll("_", " ");

function said(name, value) {
  if (value === null) return "none";
  if (Array.isArray(value)) return value.map((item) => typeof item === "object" ? JSON.stringify(item) : String(item)).join(", ") || "none";
  if (name.endsWith("bytes")) return `${(value / 2 ** 20).toLocaleString("en", { maximumFractionDigits: 1 })} MiB`;
  return String(value);
}
