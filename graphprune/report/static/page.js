"use strict";
// The page works without this: what it adds is the panel with the details of a block, and arrow keys.
(() => {
  document.documentElement.classList.add("scripted");
  for (const region of document.querySelectorAll(".scroll")) {
    if (region.scrollWidth <= region.clientWidth) region.removeAttribute("tabindex");
  }
  const panel = document.getElementById("panel");
  if (!panel) return;
  const content = panel.querySelector(".content");
  const blocks = [...document.querySelectorAll("button.block")];
  if (!blocks.length) return;
  let chosen = null;

  const point = (block) => {
    for (const one of blocks) one.tabIndex = one === block ? 0 : -1;
  };
  const choose = (block) => {
    if (chosen) chosen.setAttribute("aria-pressed", "false");
    chosen = chosen === block ? null : block;
    panel.hidden = chosen === null;
    if (!chosen) return;
    chosen.setAttribute("aria-pressed", "true");
    const details = document.getElementById(`block-${chosen.dataset.block}`);
    const title = document.createElement("h3");
    title.textContent = details.querySelector(".id").textContent;
    const about = [...details.querySelector(".about").children].map((one) => one.cloneNode(true));
    content.replaceChildren(title, ...about);
    panel.scrollTop = 0;
    // The panel will stand at the foot of the window: the block is not to be hidden by it.
    const under = chosen.getBoundingClientRect().bottom - (window.innerHeight - panel.offsetHeight);
    if (under > -12) window.scrollBy(0, under + 24);
  };
  const close = () => {
    if (!chosen) return;
    const last = chosen;
    choose(last);
    last.focus({ preventScroll: true });
  };
  // The block that lies nearest in the next row of blocks, up or down.
  const beyond = (block, sign) => {
    const from = block.getBoundingClientRect();
    let best = null;
    let least = Infinity;
    for (const one of blocks) {
      const to = one.getBoundingClientRect();
      const down = (to.top - from.top) * sign;
      const away = down * 1000 + Math.abs(to.left - from.left);
      if (down > from.height / 2 && away < least) [best, least] = [one, away];
    }
    return best;
  };
  const target = (block, key) => {
    const index = blocks.indexOf(block);
    switch (key) {
      case "ArrowRight": return blocks[index + 1];
      case "ArrowLeft": return blocks[index - 1];
      case "ArrowDown": return beyond(block, 1);
      case "ArrowUp": return beyond(block, -1);
      case "Home": return blocks[0];
      case "End": return blocks[blocks.length - 1];
      default: return undefined;
    }
  };

  point(blocks[0]);
  for (const block of blocks) {
    block.setAttribute("aria-controls", "panel");
    block.addEventListener("click", () => { point(block); choose(block); });
    block.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const next = target(block, event.key);
      if (next === undefined) return;
      event.preventDefault();
      if (!next) return;
      point(next);
      next.focus();
      if (chosen && chosen !== next) choose(next);
    });
  }
  panel.querySelector(".close").addEventListener("click", close);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
})();
