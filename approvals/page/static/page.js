// What the pages do beyond plain HTML: passkeys, counting down, and noticing that somebody decided.
"use strict";
document.documentElement.classList.add("scripted");

const token = document.body.dataset.token || "";

const fromText = (text) =>
  Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
const toText = (buffer) =>
  btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    credentials: "same-origin",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, csrf: token }),
  });
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.message || "The hub did not answer as expected. Reload the page.");
  return told;
}

const withIds = (list) => (list || []).map((each) => ({ ...each, id: fromText(each.id) }));

async function sign(options) {
  const asked = { ...options, challenge: fromText(options.challenge) };
  if (options.allowCredentials) asked.allowCredentials = withIds(options.allowCredentials);
  const made = await navigator.credentials.get({ publicKey: asked });
  const response = {
    clientDataJSON: toText(made.response.clientDataJSON),
    authenticatorData: toText(made.response.authenticatorData),
    signature: toText(made.response.signature),
  };
  if (made.response.userHandle) response.userHandle = toText(made.response.userHandle);
  return { id: made.id, rawId: toText(made.rawId), type: made.type, response, clientExtensionResults: {} };
}

async function create(options) {
  const made = await navigator.credentials.create({
    publicKey: {
      ...options,
      challenge: fromText(options.challenge),
      user: { ...options.user, id: fromText(options.user.id) },
      excludeCredentials: withIds(options.excludeCredentials),
    },
  });
  const response = {
    clientDataJSON: toText(made.response.clientDataJSON),
    attestationObject: toText(made.response.attestationObject),
  };
  return { id: made.id, rawId: toText(made.rawId), type: made.type, response, clientExtensionResults: {} };
}

function explain(error) {
  if (error.name === "NotAllowedError") return "The passkey was not used: it was cancelled, or took too long. Try again.";
  if (error.name === "InvalidStateError") return "This device already has a passkey here.";
  if (error.name === "SecurityError") return "Passkeys do not work at this address. Use localhost or the HTTPS name of this hub.";
  return error.message;
}

// A button with data-passkey fetches options there, has them signed, and sends the answer to data-answer.
for (const button of document.querySelectorAll("[data-passkey]")) {
  const place = document.getElementById(button.dataset.says);
  if (!window.PublicKeyCredential) {
    button.disabled = true;
    place.textContent = "This browser has no passkeys.";
    place.hidden = false;
    continue;
  }
  button.addEventListener("click", async () => {
    const form = button.closest("form");
    // The field for a code is for the other way.
    const asked = form ? [...form.elements].filter((field) => field.name !== "code") : [];
    if (!asked.every((field) => field.reportValidity())) return;
    const fields = form ? Object.fromEntries(new FormData(form)) : {};
    delete fields.code;
    button.disabled = true;
    place.hidden = true;
    try {
      const options = await post(button.dataset.passkey, fields);
      const make = "creates" in button.dataset ? create : sign;
      const told = await post(button.dataset.answer, { ...fields, answer: await make(options.publicKey) });
      location.assign(told.next);
    } catch (error) {
      place.textContent = explain(error);
      place.hidden = false;
      place.focus();
      button.disabled = false;
    }
  });
}

// One press is enough.
for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", () => setTimeout(() => form.querySelectorAll("button").forEach((b) => (b.disabled = true))));
}
addEventListener("pageshow", (event) => event.persisted && location.reload());

for (const time of document.querySelectorAll("time[data-moment]")) {
  time.title = time.textContent;
  time.textContent = new Date(time.dateTime).toLocaleString([], { dateStyle: "medium", timeStyle: "medium" });
}

const counted = [...document.querySelectorAll("time[data-left]")].map((time) => ({
  time,
  // By the hub's clock: how long was left when the page was made.
  ends: performance.now() + 1000 * Number(time.dataset.left),
}));
function count() {
  for (const { time, ends } of counted) {
    const left = Math.max(0, Math.round((ends - performance.now()) / 1000));
    const hours = Math.floor(left / 3600);
    const minutes = Math.floor((left % 3600) / 60);
    const seconds = String(left % 60).padStart(2, "0");
    time.textContent = `${hours ? `${hours}:${String(minutes).padStart(2, "0")}` : minutes}:${seconds}`;
  }
}
if (counted.length) setInterval(count, 1000);

const watched = document.querySelector("[data-standing]");
if (watched) {
  const look = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch(watched.dataset.ask, { credentials: "same-origin" });
        const told = answer.ok ? await answer.json() : null;
        if (told && told.standing !== watched.dataset.standing) {
          const busy = [...document.querySelectorAll("textarea, input.code")].some((field) => field.value);
          if (!busy) return location.reload();
          document.getElementById("moved").hidden = false;
          return;
        }
      } catch { /* the hub restarts; the next look finds it */ }
    }
    setTimeout(look, 2000);
  };
  setTimeout(look, 1500);
}
