const form = document.getElementById("form");
const field = document.getElementById("key");
const message = document.getElementById("message");

async function open(key) {
  const headers = { Authorization: `Bearer ${key}` };
  const response = await fetch(location.pathname, { method: "POST", headers });
  if (!response.ok) return false;
  sessionStorage.setItem("river-key", key);
  location.reload();
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

// A key that this tab knows already: the cookie may have ended, the key may not.
const known = sessionStorage.getItem("river-key");
if (known) {
  sessionStorage.removeItem("river-key");
  open(known).catch(() => {});
}
