/** Asking for the key, and forgetting it. */

import { byId } from "./dom.js";

export class KeyDialog {
  constructor(api, onKey) {
    this.api = api;
    this.dialog = byId("key-dialog");
    this.problem = byId("key-problem");
    byId("open-key").addEventListener("click", () => this.open());
    byId("cancel-key").addEventListener("click", () => this.dialog.close());
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#use(byId("key").value.trim(), onKey);
    });
    byId("forget-key").addEventListener("click", async () => {
      await this.api.closeConsole().catch(() => {}); // a wrong key has no session to close
      this.api.key = "";
      location.reload();
    });
  }

  open(message = "") {
    this.problem.textContent = message;
    this.problem.hidden = !message;
    byId("forget-key").disabled = !this.api.key;
    if (!this.dialog.open) this.dialog.showModal();
    byId("key").focus();
  }

  async #use(key, onKey) {
    this.api.key = key;
    try {
      await this.api.openConsole();
    } catch (error) {
      this.open(error.status === 401 ? "The server does not accept this key." : error.message);
      return;
    }
    byId("key").value = "";
    this.dialog.close();
    onKey();
  }
}
