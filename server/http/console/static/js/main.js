/** Puts the parts together and connects to the server. */

import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { Compare } from "./compare.js";
import { showConfiguration } from "./configuration.js";
import { legend } from "./depth.js";
import { Dial } from "./dial.js";
import { byId, element } from "./dom.js";
import { KeyDialog } from "./key.js";
import { Live } from "./live.js";
import { session } from "./storage.js";
import { startTabs } from "./tabs.js";
import { startTheme } from "./theme.js";

const server = { api: new Api(), model: null, layers: 0 };
const dial = new Dial();

function fail(error) {
  const problem = byId("problem");
  problem.textContent = error && error.status !== 401 ? error.message : "";
  problem.hidden = !problem.textContent;
}

const live = new Live(server, fail);

/** The model and its adapters, of which a request names one. */
function showModels(names) {
  byId("model").textContent = names[0];
  byId("adapter").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  byId("adapter-row").hidden = names.length === 1;
  server.model = names[0];
}

async function connect() {
  try {
    const river = await server.api.json("river");
    if (!river.active) throw new Error("This server's model is served without a river.");
    const models = await server.api.json("v1/models");
    server.layers = river.num_layers;
    showModels(models.data.map(({ id }) => id));
    dial.start(river);
    showConfiguration(river);
    for (const host of document.querySelectorAll(".legend-host")) host.replaceChildren(legend(river.num_layers));
    fail(null);
    live.start();
  } catch (error) {
    byId("model").textContent = "not connected";
    fail(error);
  }
}

// The sign-in page left it: where it finds it again, this page did not open.
session.remove("river-signed-in");
startTheme();
startTabs(document.querySelector('[role="tablist"]'));
new Chat(server, dial, fail);
new Compare(server, dial, fail);
const keys = new KeyDialog(server.api, connect);
server.api.onUnauthorized = () => {
  live.stop();
  keys.open(server.api.key ? "The server does not accept this key." : "This server asks for a key.");
};

for (const box of document.querySelectorAll(".numbers")) {
  box.addEventListener("change", () => {
    for (const other of document.querySelectorAll(".numbers")) other.checked = box.checked;
    document.body.classList.toggle("show-numbers", box.checked);
  });
}

byId("adapter").addEventListener("change", () => { server.model = byId("adapter").value; });

byId("default-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const status = byId("default-status");
  try {
    const river = await server.api.json("river", { method: "PATCH", body: { threshold: dial.threshold } });
    showConfiguration(river);
    const whose = river.mode === "verified" ? "Requests that exit" : "Requests";
    status.textContent = `${whose} without a τ of their own now run at ${river.threshold}.`;
  } catch (error) {
    status.textContent = error.message;
  }
});

connect();
