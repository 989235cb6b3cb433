// Replays the collectives of one step: one at a time, and which slice moved where.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("collectives").textContent);
  const root = document.getElementById("stepper");
  const find = (selector) => root.querySelector(selector);
  const slider = find("input"), axis = find("[name=axis]"), phase = find("[name=phase]");
  const MOST = 8; // members that are drawn
  const COLOURS = ["sky", "orange", "green", "purple", "red", "blue", "soft", "pale"];
  let shown = data.calls, at = 0;

  function svg(parent, name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  function cleared(selector, width, height) {
    const node = find(selector);
    node.replaceChildren();
    node.setAttribute("viewBox", `0 0 ${width} ${height}`);
    return node;
  }

  const count = (n) => n.toLocaleString("en");

  // The grid of ranks; an arrow for a message.
  function drawMap(call) {
    const wide = 52, high = 34;
    const columns = 1 + Math.max(...data.ranks.map((rank) => rank.column));
    const rows = 1 + Math.max(...data.ranks.map((rank) => rank.row));
    const map = cleared(".map", columns * wide + 10, rows * high + 10);
    const middle = (rank) => {
      const place = data.ranks[rank];
      return [place.column * wide + wide / 2 + 5, place.row * high + high / 2 + 5];
    };
    data.ranks.forEach((place, rank) => {
      const [x, y] = middle(rank), member = call.ranks.includes(rank);
      const box = { x: x - 22, y: y - 13, width: 44, height: 26, class: member ? "member" : "" };
      svg(svg(map, "rect", box), "title", {}, place.title);
      svg(map, "text", { x, y, class: member ? "dark" : "" }, rank);
    });
    if (call.verb === "send") {
      const [from, to] = call.ranks.map(middle);
      drawArrow(map, from, to, 14);
    }
  }

  // `gap`: how far from both ends it keeps away.
  function drawArrow(parent, [x1, y1], [x2, y2], gap) {
    const length = Math.hypot(x2 - x1, y2 - y1) || 1, [dx, dy] = [(x2 - x1) / length, (y2 - y1) / length];
    const tip = [x2 - gap * dx, y2 - gap * dy], [x, y] = [tip[0] - 9 * dx, tip[1] - 9 * dy];
    svg(parent, "line", { x1: x1 + gap * dx, y1: y1 + gap * dy, x2: x, y2: y, class: "arrow" });
    const corners = [tip, [x - 6 * dy, y + 6 * dx], [x + 6 * dy, y - 6 * dx]];
    svg(parent, "polygon", { points: corners.join(" "), class: "head" });
  }

  // What the members' buffers hold before, between and after. `held(i, j)`: of member i, in slice j.
  const OWN = (i) => ({ colour: COLOURS[i % COLOURS.length], text: "" });
  const SUM = { sum: true, text: "Σ" };
  const STATES = {
    all_reduce: [
      ["each its own numbers", (i) => OWN(i)],
      ["after the reduce-scatter", (i, j) => (i === j ? SUM : null)],
      ["after the all-gather", () => SUM],
    ],
    reduce_scatter: [
      ["each its own numbers", (i) => OWN(i)],
      ["after: the sum of one slice", (i, j) => (i === j ? SUM : null)],
    ],
    all_gather: [
      ["before: one slice each", (i, j) => (i === j ? OWN(i) : null)],
      ["after: all slices", (i, j) => OWN(j)],
    ],
    broadcast: [["after: all the same", () => OWN(0)]],
  };

  function drawSlices(call) {
    const n = Math.min(call.ranks.length, MOST), cell = 20, name = 52;
    if (call.verb === "send") {
      const picture = cleared(".slices", 340, 60);
      [[60, call.ranks[0]], [280, call.ranks[1]]].forEach(([x, rank]) => {
        svg(picture, "rect", { x: x - 45, y: 24, width: 90, height: 24, style: "fill: var(--sky)" });
        svg(picture, "text", { x, y: 36, class: "dark" }, `${count(call.elements)}`);
        svg(picture, "text", { x, y: 12, class: "title" }, `rank ${rank}`);
      });
      drawArrow(picture, [60, 36], [280, 36], 52);
      return;
    }
    const states = STATES[call.verb] || [], wide = n * cell + name + 14;
    const each = Math.max(wide, 150);
    const picture = cleared(".slices", Math.max(states.length, 1) * each, n * (cell + 4) + 26);
    states.forEach(([title, held], k) => {
      svg(picture, "text", { x: k * each + each / 2, y: 9, class: "title" }, title);
      for (let i = 0; i < n; i++) {
        const y = 20 + i * (cell + 4);
        svg(picture, "text", { x: k * each + name / 2, y: y + cell / 2 }, `rank ${call.ranks[i]}`);
        for (let j = 0; j < n; j++) {
          const x = k * each + name + j * cell, what = held(i, j);
          const fill = !what ? {} : what.sum ? { class: "sum" } : { style: `fill: var(--${what.colour})` };
          const box = svg(picture, "rect", { x, y, width: cell, height: cell, ...fill });
          svg(box, "title", {}, `slice ${j}: ${range(call, j)}`);
          if (what && what.text) svg(picture, "text", { x: x + cell / 2, y: y + cell / 2, class: "on" }, what.text);
        }
      }
    });
  }

  function range(call, j) {
    const n = call.ranks.length, edge = (k) => Math.floor((call.elements * k) / n);
    return edge(j) === edge(j + 1) ? "empty" : `elements ${count(edge(j))} to ${count(edge(j + 1) - 1)}`;
  }

  function explanation(call) {
    const n = call.ranks.length;
    const slices = `The buffer is cut into ${n} slices, of which slice ${n - 1} is ${range(call, n - 1)}.`;
    const more = n > MOST ? ` Drawn are ${MOST} of ${n} members and slices.` : "";
    const ring = "Bytes are counted as those of a ring; the MPI library may take another way.";
    const text = {
      all_reduce: `${slices} Reduce-scatter: member j ends with the sum Σ (or the largest) of slice j. `
        + `All-gather: it hands that slice to all. Each sends 2 (n-1)/n of the buffer. ${ring}`,
      reduce_scatter: `${slices} Member j ends with the sum Σ of slice j. Each sends (n-1)/n of the buffer. ${ring}`,
      all_gather: `${slices} Member j hands its slice j to all. Each sends (n-1)/n of the buffer. ${ring}`,
      broadcast: "One member, which the trace does not name, hands its buffer to all.",
      send: `The whole buffer goes from rank ${call.ranks[0]} to rank ${call.ranks[1]}.`,
    };
    return (text[call.verb] || "") + more;
  }

  function show() {
    const call = shown[at];
    slider.max = Math.max(shown.length - 1, 0);
    slider.value = at;
    find(".position").textContent = call
      ? `${at + 1} of ${shown.length}: ${call.verb} over ${call.axis}, ${call.what}`
      : "nothing passes these filters";
    find(".replay").hidden = !call;
    if (!call) return;
    const facts = {
      "ranks": call.verb === "send" ? call.ranks.join(" → ") : call.ranks.join(", "),
      "buffer": `${count(call.elements)} × ${call.dtype} = ${count(call.bytes)} bytes`,
      "sent": `${count(call.sent)} bytes by ${call.verb === "send" ? "the sender" : "each rank"}`,
      "for": call.what,
      "called at": call.site,
      "begun": `${call.start.toFixed(2)} ms into step ${data.step}`,
      "took": `${(call.waited + call.moved).toFixed(3)} ms: ${call.waited.toFixed(3)} until all had come, `
        + `${call.moved.toFixed(3)} after that`,
    };
    find("dl").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => {
      const [term, text] = [document.createElement("dt"), document.createElement("dd")];
      [term.textContent, text.textContent] = [name, value];
      return [term, text];
    }));
    find(".explanation").textContent = explanation(call);
    drawMap(call);
    drawSlices(call);
  }

  function go(to) {
    at = Math.min(Math.max(to, 0), Math.max(shown.length - 1, 0));
    show();
  }

  function filter() {
    const passes = (call) => (!axis.value || call.axis === axis.value) && (!phase.value || call.phase === phase.value);
    shown = data.calls.filter(passes);
    go(0);
  }

  for (const [select, key] of [[axis, "axis"], [phase, "phase"]]) {
    for (const value of new Set(data.calls.map((call) => call[key]))) select.add(new Option(value, value));
    select.addEventListener("change", filter);
  }
  slider.addEventListener("input", () => go(Number(slider.value)));
  for (const button of root.querySelectorAll("button")) {
    button.addEventListener("click", () => go(at + Number(button.dataset.by)));
  }
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input, select")) return;
    event.preventDefault();
    go(at + by);
  });
  show();
})();
