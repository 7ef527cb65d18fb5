/** Light, dark, or what the system prefers; remembered in this browser. */

import { byId } from "./dom.js";

const KEY = "river-theme";

export function startTheme() {
  const choice = byId("theme");
  choice.value = localStorage.getItem(KEY) ?? "auto";
  const apply = () => {
    if (choice.value === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice.value;
  };
  choice.addEventListener("change", () => {
    localStorage.setItem(KEY, choice.value);
    apply();
  });
  apply();
}
