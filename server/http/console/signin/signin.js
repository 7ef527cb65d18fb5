const KEY = "river-key";
const SIGNED_IN = "river-signed-in";
const CONSOLE = location.pathname.replace(/\/$/, "");
const form = document.getElementById("form");
const field = document.getElementById("key");
const message = document.getElementById("message");

async function open(key) {
  const headers = { Authorization: `Bearer ${key}` };
  const response = await fetch(CONSOLE, { method: "POST", headers });
  if (!response.ok) return false;
  try {
    sessionStorage.setItem(KEY, key);
    // The console takes the mark away; where the cookie is not kept, this page comes again and finds it.
    sessionStorage.setItem(SIGNED_IN, "1");
  } catch { /* site data are blocked, and so, most likely, is the cookie */ }
  location.replace(CONSOLE);
  return true;
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  message.textContent = "";
  try {
    if (await open(field.value.trim())) return;
    message.textContent = "The server does not accept this key.";
    field.select();
  } catch {
    message.textContent = "The server cannot be reached, or the key holds characters that no header can.";
  }
});

let known = null;
let signedIn = null;
let blocked = false;
try {
  known = sessionStorage.getItem(KEY);
  signedIn = sessionStorage.getItem(SIGNED_IN);
  sessionStorage.removeItem(KEY);
  sessionStorage.removeItem(SIGNED_IN);
} catch {
  blocked = true;
}
if (blocked) {
  message.textContent = "This browser blocks site data: it will not keep the cookie of the console.";
} else if (signedIn) {
  message.textContent = "This browser did not keep the cookie of the console.";
} else if (known) {
  // A key that this tab knows already: the cookie may have ended, the key may not.
  open(known).catch(() => {});
}
