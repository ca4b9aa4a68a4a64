// Compares two entries as leaderboard/ranking/comparison does: items by their covariance, runs and further levels of
// seeds by Student's t.
const NODES = 400;
const NORMAL = Array.from({ length: 81 }, (_, i) => {
  const x = (i - 40) * 0.2;
  return [x, 0.2 * Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI)];
});

function two(value) {
  return value.toFixed(2).replace("-", "\u2212");
}

function drawn(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { scale: Math.sqrt(squares / (values.length - 1) / values.length), df: values.length - 1 };
}

// P(|N(0, items^2) + sum of scale t(df)| >= size): the widest term exactly, the others over nodes.
function tail(size, items, draws) {
  if (!draws.length) return items > 0 ? 2 * normal(-size / items) : Number(size === 0);
  const widest = draws.reduce((a, b) => (b.scale > a.scale ? b : a));
  const exact = items > widest.scale ? null : widest;
  if (draws.nodes === undefined) {
    let nodes = [[0, 1]];
    if (exact && items > 0) nodes = product(nodes, NORMAL.map(([x, w]) => [items * x, w]));
    for (const draw of draws) {
      if (draws.length > 2) nodes = merged(nodes, widest.scale);
      if (draw !== exact) nodes = product(nodes, quantiles(draw.df).map(([x, w]) => [draw.scale * x, w]));
    }
    draws.nodes = draws.length > 2 ? merged(nodes, widest.scale) : nodes;
  }
  const nodes = draws.nodes;
  const beyond = exact ? (x) => student(-x / exact.scale, exact.df) : (x) => normal(-x / items);
  return Math.min(1, nodes.reduce((sum, [x, w]) => sum + w * (beyond(size - x) + beyond(size + x)), 0));
}

// Fewer nodes with the same mean: those become one that are close beside a term of this scale, which is integrated exactly.
function merged(nodes, scale) {
  const places = new Map();
  for (const [x, w] of nodes) {
    const place = Math.round(40 * Math.asinh(x / scale));
    const found = places.get(place);
    if (found) {
      found[0] += w * x;
      found[1] += w;
    } else places.set(place, [w * x, w]);
  }
  return [...places.values()].map(([sum, w]) => [sum / w, w]);
}

function product(some, others) {
  return some.flatMap(([x, w]) => others.map(([y, v]) => [x + y, w * v]));
}

// Distribution of Student's t with a whole number of degrees of freedom: a finite sum (Abramowitz and Stegun 26.7.3-4).
function student(t, df) {
  const angle = Math.atan(t / Math.sqrt(df)), cosine = Math.cos(angle) ** 2;
  let sum = 0, term = 1;
  const odd = df % 2 === 1;
  for (let k = odd ? 1 : 0; k < df - 1; k += 2) {
    if (k > (odd ? 1 : 0)) term *= cosine * (k - 1) / k;
    sum += term;
  }
  const inside = odd
    ? (2 / Math.PI) * (angle + (df > 1 ? Math.sin(angle) * Math.cos(angle) * sum : 0))
    : Math.sin(angle) * sum;
  return (1 + inside) / 2;
}

function normal(x) {
  // Abramowitz and Stegun 7.1.26 is good to 1e-7; the series below is good to 1e-15 where it is used.
  const z = Math.abs(x);
  if (z > 8) return x < 0 ? 0 : 1;
  let sum = z, term = z;
  for (let k = 3; k < 250 && term > 1e-18 * sum; k += 2) {
    term *= z * z / k;
    sum += term;
  }
  const half = sum * Math.exp(-z * z / 2) / Math.sqrt(2 * Math.PI);
  return x < 0 ? 0.5 - half : 0.5 + half;
}

function quantiles(df) {
  if (!quantiles.known) quantiles.known = new Map();
  if (!quantiles.known.has(df)) {
    const nodes = [];
    for (let i = 0; i < NODES; i += 1) {
      const v = (i + 0.5) / NODES, u = 3 * v * v - 2 * v * v * v;
      let low = -1e7, high = 1e7;
      for (let k = 0; k < 80; k += 1) {
        const middle = (low + high) / 2;
        if (student(middle, df) < u) low = middle;
        else high = middle;
      }
      nodes.push([(low + high) / 2, 6 * v * (1 - v) / NODES]);
    }
    quantiles.known.set(df, nodes);
  }
  return quantiles.known.get(df);
}

for (const box of document.querySelectorAll(".compare")) {
  const data = JSON.parse(box.querySelector("script[type='application/json']").textContent);
  const [one, other] = box.querySelectorAll("select");
  for (const [index, name] of data.names.entries()) {
    one.add(new Option(name, index));
    other.add(new Option(name, index));
  }
  one.value = 0;
  other.value = 1;
  one.addEventListener("change", show);
  other.addEventListener("change", show);
  box.hidden = false;
  show();

  function show() {
    const a = Number(one.value), b = Number(other.value);
    const rows = data.numbers.map((number) => [number.label, number, difference(number, a, b)]);
    box.querySelector("tbody").replaceChildren(...rows.map(([label, number, found]) => {
      const row = document.createElement("tr");
      const texts = [label, number.estimates[a], number.estimates[b], found.estimate];
      for (const text of texts) row.append(cell(typeof text === "number" ? two(text) : text));
      row.append(cell(found.p === null ? "–" : `${two(found.low)} to ${two(found.high)}`), cell(found.p === null ? "–" : found.p.toPrecision(2)));
      row.dataset.p = found.p ?? "";
      return row;
    }));
    box.querySelector(".said").textContent = a === b ? "Pick two entries." : said(data.names[a], data.names[b], rows[0][2]);
  }

  function cell(text) {
    const made = document.createElement("td");
    made.className = "number";
    made.textContent = text;
    return made;
  }

  function said(a, b, found) {
    const what = `${a} against ${b}`;
    if (found.p === null) return `${what}: with one run of an entry nothing is said over runs.`;
    const p = `p = ${found.p.toPrecision(2)}`;
    const size = two(Math.abs(found.estimate));
    if (found.p >= 0.05) return `${what}: the scores cannot be told apart (${size}, ${p}).`;
    return `${what}: ${found.estimate > 0 ? a : b} is better, by ${size} in the score (${p}).`;
  }

  // The numbers by seed of each level beside items and runs: of the difference where both have the same seeds.
  function seeds(number, a, b) {
    if (!number.levels) return [];
    const [one, other] = [number.levels[a], number.levels[b]];
    return [...new Set([...Object.keys(one), ...Object.keys(other)])].flatMap((level) => {
      const [of, and] = [one[level] ?? {}, other[level] ?? {}];
      const same = Object.keys(of).length === Object.keys(and).length && Object.keys(of).every((seed) => seed in and);
      const values = same ? [Object.keys(of).map((seed) => of[seed] - and[seed])] : [Object.values(of), Object.values(and)];
      return values.filter((some) => some.length > 1);
    });
  }

  function difference(number, a, b) {
    const at = (i, j) => number.covariance[Math.max(i, j)][Math.min(i, j)];
    const estimate = number.estimates[a] - number.estimates[b];
    const items = Math.sqrt(Math.max(0, at(a, a) + at(b, b) - 2 * at(a, b)));
    const paired = data.seeds[a].length === data.seeds[b].length && data.seeds[a].every((seed) => data.seeds[b].includes(seed));
    const runs = paired
      ? [data.seeds[a].map((seed, i) => number.runs[a][i] - number.runs[b][data.seeds[b].indexOf(seed)])]
      : [number.runs[a], number.runs[b]];
    if (runs.some((values) => values.length < 2)) return { estimate, p: null };
    const draws = [...runs, ...seeds(number, a, b)].map(drawn).filter((draw) => draw.scale > 0);
    const p = tail(Math.abs(estimate), items, draws);
    let low = 0, high = 1;
    while (tail(high, items, draws) > 0.05 && high < 1e6) high *= 2;
    for (let i = 0; i < 50; i += 1) {
      const middle = (low + high) / 2;
      if (tail(middle, items, draws) > 0.05) low = middle;
      else high = middle;
    }
    return { estimate, p, low: Math.max(-1, estimate - high), high: Math.min(1, estimate + high) };
  }
}
