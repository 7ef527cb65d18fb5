/** Light, dark, or what the system prefers; remembered in this browser. */

import { byId } from "./dom.js";
import { local } from "./storage.js";

const KEY = "river-theme";

export function startTheme() {
  const choice = byId("theme");
  choice.value = local.get(KEY) ?? "auto";
  const apply = () => {
    if (choice.value === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice.value;
  };
  choice.addEventListener("change", () => {
    local.set(KEY, choice.value);
    apply();
  });
  apply();
}
