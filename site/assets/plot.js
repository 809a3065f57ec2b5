// The plot: uPlot draws axes and grid; points are links in an SVG above them, so that the keyboard reaches them and
// colors come from the style sheet.
"use strict";
(() => {
  const { plots, first } = JSON.parse(document.getElementById("plot-json").textContent);
  const chart = document.getElementById("chart");
  const tip = document.getElementById("tip");
  const empty = document.getElementById("plot-empty");
  const legend = document.getElementById("legend");
  const choice = document.getElementById("plot-data-set");
  const radios = [...document.querySelectorAll("input[name=axis]")];
  const AXES = {
    layers: { label: "layers", base: 2, what: "depth" },
    parameters: { label: "parameters", base: 10, what: "number of parameters" },
    memory: { label: "memory of a training step, MiB", base: 10, what: "memory" },
    seconds: { label: "training time, s", base: 10, what: "training time" },
  };
  const KINDS = { model: "model, measured here", variant: "other settings, measured here", published: "published by the authors" };
  const SHAPES = {
    rev: "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0Z",
    res: "M-4.5-4.5H4.5V4.5H-4.5Z",
    deq: "M0-6.2 6.2 0 0 6.2-6.2 0Z",
    rev_gat: "M0-6 5.6 4.2H-5.6Z",
    gcnii: "M0 6 5.6-4.2H-5.6Z",
    oscillator: "M-6-3.5H6V3.5H-6Z",
  };
  const OTHER = "M-5-1.6H-1.6V-5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5Z";
  const SVG = "http://www.w3.org/2000/svg";
  const NEAR = 28;
  let plot = null;
  let marks = [];

  const group = (number) => number.toLocaleString("en-US", { maximumFractionDigits: 6 });
  const short = (number) => {
    for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (number >= size) return `${group(number / size)}${unit}`;
    return group(number);
  };

  function element(name, attributes, ...children) {
    const node = document.createElementNS(SVG, name);
    for (const [key, text] of Object.entries(attributes)) node.setAttribute(key, text);
    node.append(...children);
    return node;
  }

  // Ticks at powers of two, or at 1, 2 and 5 times powers of ten; fewer where they would be too many.
  function logTicks(low, high, base, most) {
    const steps = base === 2 ? [[1, 1], [1, 2], [1, 3]] : [[0, 1], [1, 1], [1, 2]];
    for (const [plain, every] of steps) {
      const ticks = [];
      for (let power = Math.floor(Math.log(low) / Math.log(base)); base ** power <= high; power += 1) {
        if (power % every) continue;
        for (const factor of base === 10 && !plain ? [1, 2, 5] : [1]) ticks.push(Number((factor * base ** power).toPrecision(6)));
      }
      const inside = ticks.filter((tick) => tick >= low && tick <= high);
      if (inside.length <= most) return inside;
    }
    return [low, high].map((end) => Number(end.toPrecision(1)));
  }

  function colors() {
    const style = (name) => {
      const probe = document.createElement("span");
      probe.className = name;
      chart.append(probe);
      const { color } = getComputedStyle(probe);
      probe.remove();
      return color;
    };
    return { text: style("probe-text"), grid: style("probe-grid") };
  }

  const current = () => ({ shown: plots[Number(choice.value)], axis: radios.find((radio) => radio.checked).value });

  function range(values, isLog) {
    const low = Math.min(...values);
    const high = Math.max(...values);
    if (isLog) {
      const pad = low === high ? 2 : Math.max(1.15, (high / low) ** 0.09);
      return [low / pad, high * pad];
    }
    const pad = Math.max((high - low) * 0.12, 0.2);
    return [low - pad, high + pad];
  }

  function render() {
    const { shown, axis } = current();
    const { label, base, what } = AXES[axis];
    const points = shown.points.filter((point) => point[axis] !== null);
    plot?.destroy();
    plot = null;
    marks = [];
    hide();
    chart.replaceChildren();
    empty.hidden = points.length > 0;
    empty.textContent = `The ${what} of models on ${shown.data} has not been measured here; the published figures do not state it.`;
    drawLegend(points);
    if (!points.length) return;
    const { text, grid } = colors();
    const width = chart.clientWidth;
    const height = width < 560 ? 320 : 400;
    const [low, high] = range(points.map((point) => point[axis]), true);
    const ends = points.flatMap((point) => [point.value - (point.std ?? 0), point.value + (point.std ?? 0)]);
    if (shown.published) ends.push(shown.published.value);
    const bounds = range(ends, false);
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const shared = { stroke: text, font, labelFont: font, labelSize: 22, ticks: { stroke: grid, width: 1, size: 6 }, grid: { stroke: grid, width: 1 } };
    plot = new uPlot(
      {
        width,
        height,
        padding: [14, 14, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: { x: { time: false, distr: 3, log: base, range: () => [low, high] }, y: { range: () => bounds } },
        series: [{}, { show: true, points: { show: false } }],
        axes: [
          { ...shared, label, size: 30, splits: () => logTicks(low, high, base, width < 560 ? 6 : 9), values: (_, ticks) => ticks.map(short), filter: (_, ticks) => ticks },
          { ...shared, label: shown.label, size: 46 },
        ],
      },
      [[low, high], [null, null]],
      chart,
    );
    // uPlot paints in a microtask, and only then knows where a value stands.
    requestAnimationFrame(() => plot && drawPoints(points, axis, shown));
  }

  function drawPoints(points, axis, shown) {
    const over = plot.over;
    over.querySelector("svg")?.remove();
    const [width, height] = [over.clientWidth, over.clientHeight];
    const svg = element("svg", { class: "points", width, height, role: "list", "aria-label": `${shown.data}: ${shown.metric}` });
    marks = points.map((point) => ({ point, x: plot.valToPos(point[axis], "x"), y: plot.valToPos(point.value, "y") }));
    const taken = marks.map(({ x, y }) => ({ left: x - 7, right: x + 7, top: y - 7, bottom: y + 7 }));
    if (shown.published) taken.push(drawPublished(svg, shown.published, width));
    for (const line of lines(axis)) svg.append(element("path", { class: "join", d: line }));
    // Models come last, above the runs that lie under them, and the keyboard goes from left to right.
    const order = [...marks].sort((a, b) => a.x - b.x || a.y - b.y);
    for (const mark of order) svg.append(drawMark(mark));
    over.append(svg);
    for (const mark of order) if (mark.point.kind !== "variant") drawName(svg, mark, taken, width, height);
  }

  function drawPublished(svg, published, width) {
    const y = plot.valToPos(published.value, "y");
    const text = element("text", { class: "reference-text", x: width - 4, y: y - 6, "text-anchor": "end" }, published.label);
    svg.append(element("path", { class: "reference", d: `M0 ${y}H${width}` }), text);
    plot.over.append(svg);
    if (text.getBBox().width > 0.7 * width) text.textContent = published.short;
    const box = text.getBBox();
    return { left: box.x, right: box.x + box.width, top: box.y, bottom: box.y + box.height };
  }

  function* lines(axis) {
    const joined = new Map();
    for (const mark of marks) {
      if (!mark.point.line) continue;
      joined.set(mark.point.line, [...(joined.get(mark.point.line) ?? []), mark]);
    }
    for (const along of joined.values()) {
      if (along.length < 2) continue;
      along.sort((a, b) => a.point.layers - b.point.layers);
      yield along.map(({ x, y }, index) => `${index ? "L" : "M"}${x} ${y}`).join("");
    }
  }

  function drawMark(mark) {
    const { point, x, y } = mark;
    const link = element("a", { href: `models/${point.model}.html`, class: `mark ${point.kind}`, "aria-label": [point.model, ...facts(point)].join(", ") });
    if (point.std) {
      const reach = Math.abs(plot.valToPos(point.value + point.std, "y") - y);
      link.append(element("path", { class: "whisker", d: `M0 ${-reach}V${reach}M-3 ${-reach}H3M-3 ${reach}H3` }));
    }
    link.append(element("circle", { class: "halo", r: 12 }), element("path", { class: "shape", d: SHAPES[point.family] ?? OTHER }));
    link.setAttribute("transform", `translate(${x} ${y})`);
    link.addEventListener("focus", () => show(mark));
    link.addEventListener("blur", hide);
    mark.node = link;
    return element("g", { role: "listitem" }, link);
  }

  // A name is written where it covers neither a point nor another name, and else left to the tooltip.
  function drawName(svg, { point, x, y }, taken, width, height) {
    const text = element("text", { class: "name", "aria-hidden": "true" }, point.model);
    svg.append(text);
    const { width: long } = text.getBBox();
    for (const [dx, dy, anchor] of [[10, 4, "start"], [-10, 4, "end"], [0, -11, "middle"], [0, 20, "middle"]]) {
      const left = x + dx - { start: 0, end: long, middle: long / 2 }[anchor];
      const box = { left, right: left + long, top: y + dy - 11, bottom: y + dy + 3 };
      const isInside = box.left >= 0 && box.right <= width && box.top >= 0 && box.bottom <= height;
      const overlaps = (other) => box.left < other.right && box.right > other.left && box.top < other.bottom && box.bottom > other.top;
      if (!isInside || taken.some(overlaps)) continue;
      for (const [key, value] of Object.entries({ x: x + dx, y: y + dy, "text-anchor": anchor })) text.setAttribute(key, value);
      taken.push(box);
      return;
    }
    text.remove();
  }

  const facts = (point) => [
    point.text,
    `${group(point.layers)} layers`,
    ...(point.parameters === null ? [] : [`${group(point.parameters)} parameters`]),
    ...(point.memory === null ? [] : [`${group(point.memory)} MiB of memory`]),
    ...(point.seconds === null ? [] : [`${group(point.seconds)} s of training`]),
    point.note,
  ];

  function show(mark) {
    const [figure, ...rest] = facts(mark.point);
    const note = rest.pop();
    tip.replaceChildren();
    for (const [kind, text] of [["tip-name", mark.point.model], ["tip-figure", figure], ["", rest.join(" · ")], ["tip-note", note]]) {
      const line = document.createElement("div");
      line.className = kind;
      line.textContent = text;
      tip.append(line);
    }
    for (const other of marks) other.node?.classList.toggle("near", other === mark);
    tip.hidden = false;
    const figureBox = tip.parentElement.getBoundingClientRect();
    const overBox = plot.over.getBoundingClientRect();
    const x = overBox.left - figureBox.left + mark.x;
    const y = overBox.top - figureBox.top + mark.y;
    const left = Math.max(0, Math.min(x - tip.offsetWidth / 2, figureBox.width - tip.offsetWidth));
    const above = y - tip.offsetHeight - 16;
    tip.style.left = `${left}px`;
    tip.style.top = `${above >= 0 ? above : y + 16}px`;
  }

  function hide() {
    tip.hidden = true;
    for (const mark of marks) mark.node?.classList.remove("near");
  }

  function nearest(event) {
    const box = plot.over.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const distance = (mark) => Math.hypot(mark.x - x, mark.y - y);
    const best = marks.reduce((found, mark) => (!found || distance(mark) < distance(found) ? mark : found), null);
    return best && distance(best) <= NEAR ? best : null;
  }

  chart.addEventListener("pointermove", (event) => {
    const mark = plot && nearest(event);
    chart.classList.toggle("pointing", Boolean(mark));
    if (mark) show(mark);
    else if (!chart.contains(document.activeElement)) hide();
  });
  chart.addEventListener("pointerleave", hide);
  // A touch moves the pointer, too, so whether its point was shown before is asked when it begins.
  let wasNear = null;
  chart.addEventListener("pointerdown", () => {
    wasNear = marks.find((mark) => mark.node.classList.contains("near")) ?? null;
  }, true);
  chart.addEventListener("click", (event) => {
    // The keyboard, and a click that asks for a new tab, follow the link itself.
    if (event.detail === 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const mark = plot && nearest(event);
    if (!mark) return;
    event.preventDefault();
    // On a touch screen the first touch shows what a point is, and a second one opens its page.
    if (event.pointerType === "touch" && mark !== wasNear) show(mark);
    else location.href = `models/${mark.point.model}.html`;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });

  function drawLegend(points) {
    const families = [...new Map(points.map((point) => [point.family, point.family_name]))];
    const kinds = Object.keys(KINDS).filter((kind) => points.some((point) => point.kind === kind));
    const items = [
      ...families.map(([family, name]) => [SHAPES[family] ?? OTHER, "model", name]),
      ...kinds.map((kind) => [SHAPES.rev, kind, KINDS[kind]]),
    ];
    legend.replaceChildren(
      ...items.map(([shape, kind, text], index) => {
        const item = document.createElement("li");
        const picture = element("svg", { viewBox: "-8 -8 16 16", width: 16, height: 16, "aria-hidden": "true" });
        // Families differ in shape and kinds in color, so each is shown without the other.
        const name = index < families.length ? "mark family" : `mark ${kind}`;
        picture.append(element("g", { class: name }, element("path", { class: "shape", d: shape })));
        item.append(picture, text);
        return item;
      }),
    );
  }

  for (const [index, { data, metric, points }] of plots.entries()) {
    const isPublished = points.every((point) => point.kind === "published");
    const isTwice = plots.filter((other) => other.data === data).length > 1;
    choice.add(new Option(`${data}${isTwice ? `, ${metric}` : ""}${isPublished ? " (published)" : ""}`, index, index === first, index === first));
  }
  choice.addEventListener("change", render);
  for (const radio of radios) radio.addEventListener("change", render);
  document.addEventListener("theme", render);
  let seen = 0;
  new ResizeObserver(() => {
    if (chart.clientWidth === seen) return;
    seen = chart.clientWidth;
    render();
  }).observe(chart);
})();
