"use strict";
document.documentElement.classList.add("scripted");
for (const board of document.querySelectorAll(".board")) {
  const head = board.querySelector("thead tr:last-child");
  const picture = board.querySelector(".picture");

  // Sorting stays within the parts of the table: an entry below the floor never climbs above the floor.
  for (const span of head ? head.querySelectorAll(".sort") : []) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...span.childNodes);
    span.append(button);
    button.addEventListener("click", () => sort(span.closest("th")));
  }

  function sort(heading) {
    const column = [...head.children].indexOf(heading);
    const text = heading.classList.contains("text");
    const rank = column === 0;
    const before = heading.getAttribute("aria-sort");
    const descending = before ? before === "ascending" : !text && !rank;
    for (const other of head.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    for (const body of board.querySelectorAll("tbody")) {
      const rows = [...body.querySelectorAll("tr:not(.part)")];
      const keys = new Map(rows.map((row) => [row, key(row.children[column], text)]));
      rows.sort((a, b) => compare(keys.get(a), keys.get(b), descending));
      body.append(...rows);
    }
  }

  function key(cell, text) {
    if (text) return cell.textContent.trim().toLowerCase();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  }

  function compare(a, b, descending) {
    if (a === null || b === null) return (a === null) - (b === null); // what is not known comes last either way
    const order = a < b ? -1 : a > b ? 1 : 0;
    return descending ? -order : order;
  }

  const boxes = [...board.querySelectorAll(".grades input")];
  for (const box of boxes) {
    box.hidden = false;
    box.addEventListener("change", () => {
      const shown = new Set(boxes.filter((other) => other.checked).map((other) => other.value));
      for (const part of board.querySelectorAll("[data-grade]")) part.toggleAttribute("hidden", !shown.has(part.dataset.grade));
    });
  }

  // A row and its mark light up together.
  function light(entry) {
    if (!picture) return;
    let found = false;
    for (const part of picture.querySelectorAll("[data-entry]")) {
      const lit = part.dataset.entry === entry;
      part.classList.toggle("lit", lit);
      found ||= lit;
    }
    picture.classList.toggle("focused", found);
  }
  for (const part of board.querySelectorAll("tr[data-entry], .mark[data-entry]")) {
    part.addEventListener("pointerenter", () => light(part.dataset.entry));
    part.addEventListener("pointerleave", () => light(null));
  }
}
