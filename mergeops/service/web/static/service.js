"use strict";
// Decisions need a body of JSON and an answer in words; all else is htmx.
const csrf = () => JSON.parse(document.body.getAttribute("hx-headers"));
const tell = (place, text) => { place.textContent = text; place.hidden = !text; };

async function decide(form, decision) {
  const problem = form.querySelector("[role=alert]");
  const reason = form.elements.reason.value.trim();
  if (decision === "reject" && !reason) {
    tell(problem, "Say why, for the proposer reads it.");
    form.elements.reason.focus();
    return;
  }
  if (decision === "approve" && !confirm(`Make version ${form.dataset.version} of ${form.dataset.model} the champion?`)) return;
  const buttons = form.querySelectorAll("button");
  buttons.forEach((button) => { button.disabled = true; });
  try {
    const answer = await fetch(`/api/v1/proposals/${encodeURIComponent(form.dataset.model)}/${decision}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...csrf() },
      body: JSON.stringify({ version: Number(form.dataset.version), reason: reason || (decision === "approve" ? null : "") }),
    });
    const said = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
    if (!answer.ok) throw new Error(said.error);
    const done = document.createElement("p");
    done.className = "done";
    done.setAttribute("role", "status");
    done.textContent = decision === "approve"
      ? `Version ${said.to} of ${said.name} is champion now.`
      : `Version ${said.to} of ${said.name} was rejected.`;
    form.replaceWith(done);
  } catch (error) {
    tell(problem, error.message);
    buttons.forEach((button) => { button.disabled = false; });
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-decision]");
  if (button) decide(button.closest("form"), button.dataset.decision);
});
document.addEventListener("htmx:responseError", (event) => {
  const text = event.detail.xhr.responseText;
  let message = text;
  try { message = JSON.parse(text).error; } catch { /* plain text */ }
  tell(document.getElementById("problem"), message);
});
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful && event.detail.elt.matches("[data-reload]")) location.reload();
});
// A log is read from its end, until somebody scrolls up.
const logs = document.querySelectorAll("pre.log[role=log]");
logs.forEach((log) => {
  log.scrollTop = log.scrollHeight;
  let follows = true;
  log.addEventListener("scroll", () => { follows = log.scrollTop + log.clientHeight >= log.scrollHeight - 8; });
  new MutationObserver(() => { if (follows) log.scrollTop = log.scrollHeight; }).observe(log, { childList: true });
});
// A picture that MLflow does not have is left out.
document.querySelectorAll("img.plot").forEach((img) => {
  img.addEventListener("error", () => img.remove());
  if (img.complete && !img.naturalWidth && img.loading !== "lazy") img.remove();
});
