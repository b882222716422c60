// What is chosen, and the events. The numbers are those of the assigners; here they are counted and shown, never made.

const data = JSON.parse(document.getElementById("data").textContent);
const el = (id) => document.getElementById(id);
const IGNORED = -2;
const state = { image: 0, moment: data.moments.length - 1, assigner: 0, level: -1, object: -1, focus: null, kept: false };
let marked = new Set(); // indices of priors
let view = null, bitmap = null, picturePoints = [], planePoints = [], playing = 0, turn = 0;
const views = {}, bitmaps = {};

async function unpacked(key) {
  if (!views[key]) {
    const bytes = Uint8Array.from(atob(data.views[key]), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    views[key] = await new Response(stream).json();
  }
  return views[key];
}

async function decoded(index) {
  if (!bitmaps[index]) {
    const image = new Image();
    image.src = data.images[index].source;
    await image.decode();
    bitmaps[index] = image;
  }
  return bitmaps[index];
}

function make(tag, text, attributes = {}) {
  const node = document.createElement(tag);
  if (text !== undefined && text !== null) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function row(cells, tag = "td") {
  const tr = make("tr");
  for (const cell of cells) tr.append(cell instanceof Node ? cell : make(tag, cell));
  return tr;
}

const cell = (text, style) => make("td", text, style ? { class: style } : {});
const name = () => data.assigners[state.assigner].name;
const image = () => data.images[state.image];
const className = (g) => data.classes[image().labels[g]];
const share = (value) => value.toFixed(3);
const number = (value) => (value === 0 ? "0" : Math.abs(value) < 0.001 ? value.toExponential(1) : value.toFixed(3));

// --- what a view says

function kindOf(cls, loc) {
  if (cls >= 0) return loc >= 0 ? "both" : "cls";
  return loc >= 0 ? "loc" : cls === IGNORED ? "ignored" : "";
}

function kindsOf(learning) {
  return learning.cls.owner.map((cls, i) => kindOf(cls, learning.loc.owner[i]));
}

// Positives of each object in one task.
function perObject(task) {
  const counts = image().boxes.map(() => 0);
  for (const g of task.owner) if (g >= 0) counts[g]++;
  return counts;
}

function counted(learning) {
  const cls = learning.cls.owner, loc = learning.loc.owner;
  const none = (task) => perObject(task).filter((n) => n === 0).length;
  return {
    cls: cls.filter((g) => g >= 0).length,
    loc: loc.filter((g) => g >= 0).length,
    both: cls.filter((g, i) => g >= 0 && loc[i] >= 0).length,
    ignored: cls.filter((g) => g === IGNORED).length,
    withoutCls: none(learning.cls),
    withoutLoc: none(learning.loc),
  };
}

const levelShown = (i) => state.level < 0 || view.level[i] === state.level;

// The pair by which a prior is judged: with the chosen object, else with the one it learns from, else the best.
function pairOf(prior) {
  const pairs = view.prior.flatMap((p, k) => (p === prior ? [k] : []));
  if (!pairs.length) return -1;
  const { cls, loc } = view.assigners[name()];
  const wanted = [state.object, cls.owner[prior], loc.owner[prior]];
  for (const g of wanted) {
    const found = pairs.find((k) => g >= 0 && view.object[k] === g);
    if (found !== undefined) return found;
  }
  return pairs.reduce((a, b) => (view.after[b] > view.after[a] ? b : a));
}

function focusOn(prior, pair = pairOf(prior)) {
  return { prior, pair, object: pair >= 0 ? view.object[pair] : -1, index: view.priors[prior] };
}

// --- drawing

function windowOf() {
  const { width, height, boxes } = image();
  if (state.object < 0) return [0, 0, width, height];
  const [x1, y1, x2, y2] = boxes[state.object];
  const ratio = height / width, room = 1.9;
  const w = Math.min(width, Math.max((x2 - x1) * room, ((y2 - y1) * room) / ratio, width / 6)), h = w * ratio;
  const inside = (middle, part, whole) => Math.max(0, Math.min(middle - part / 2, whole - part));
  return [inside((x1 + x2) / 2, w, width), inside((y1 + y2) / 2, h, height), w, h];
}

function redraw() {
  const learning = view.assigners[name()], kinds = kindsOf(learning);
  const nobody = { cls: perObject(learning.cls), loc: perObject(learning.loc) };
  const lacking = image().boxes.map((_, g) => ["cls", "loc"].filter((t) => !nobody[t][g]).join(" or "));
  const all = el("candidates").checked;
  const near = new Set(view.prior.filter((_, k) => state.object < 0 || view.object[k] === state.object));
  const visible = view.priors.map((_, i) => i).filter((i) => levelShown(i) && (all || kinds[i]) &&
    (state.object < 0 || near.has(i)));
  const markedHere = new Set(visible.filter((i) => marked.has(view.priors[i])));
  picturePoints = drawPicture(el("picture"), { image: image(), bitmap, window: windowOf(), kinds, visible, view, lacking,
    object: state.object, focus: state.focus, marked: markedHere });
  const before = el("unregressed").checked;
  const pairs = [];
  view.prior.forEach((prior, k) => {
    const g = view.object[k];
    if (!levelShown(prior) || (state.object >= 0 && g !== state.object)) return;
    const own = (owner) => (owner >= 0 && owner !== g ? -1 : owner);
    const kind = kindOf(own(learning.cls.owner[prior]), own(learning.loc.owner[prior]));
    if (all || kind) pairs.push({ pair: k, prior, kind, x: (before ? view.before : view.after)[k], y: view.score[k] });
  });
  const largest = Math.max(0.001, ...view.score);
  const top = [0.02, 0.05, 0.1, 0.2, 0.5, 1].find((t) => t >= largest) || 1;
  planePoints = drawPlane(el("plane"), { pairs, top, before, focus: state.focus, marked: markedHere });
  const chosen = [...markedHere].map((i) => kinds[i]);
  el("marked").textContent = chosen.length
    ? `${chosen.length} priors marked: ` + SIGNS.map(([k, t]) => [chosen.filter((c) => c === k).length, t])
      .filter(([n]) => n).map(([n, t]) => `${n} ${t}`).join(", ") : "";
}

// --- choosing

function show(focus) {
  state.focus = focus;
  redraw();
  fillPrior();
}

async function choose(changes) {
  const mine = ++turn;
  if ("image" in changes) Object.assign(state, { object: -1, focus: null, kept: false }), marked = new Set();
  Object.assign(state, changes);
  const found = await Promise.all([unpacked(`${state.moment}/${state.image}`), decoded(state.image)]);
  if (mine !== turn) return; // something else was chosen meanwhile
  [view, bitmap] = found;
  const again = state.focus ? view.priors.indexOf(state.focus.index) : -1;
  state.focus = again < 0 ? null : focusOn(again);
  if (!state.focus) state.kept = false;
  fillControls();
  fillAssigners();
  fillObjects();
  fillRanks();
  show(state.focus);
  await tellMoves();
  const parts = { image: image().id, moment: state.moment, assigner: name(), level: state.level, object: state.object };
  history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
  document.body.dataset.ready = `${state.moment}/${state.image}/${state.assigner}/${state.level}/${state.object}`;
}

// How many positives came and went since the checkpoint before.
async function tellMoves() {
  const moment = data.moments[state.moment];
  let text = moment.name;
  if (state.moment > 0) {
    const former = await unpacked(`${state.moment - 1}/${state.image}`);
    const moved = ["cls", "loc"].map((task) => {
      const had = positives(former, task), has = positives(view, task);
      return `${task} +${[...has].filter((k) => !had.has(k)).length} −${[...had].filter((k) => !has.has(k)).length}`;
    });
    text += `; since the one before: ${moved.join(", ")}`;
  }
  el("when").textContent = text;
}

function positives(one, task) {
  return new Set(one.assigners[name()][task].owner.flatMap((g, i) => (g >= 0 ? [`${one.priors[i]}/${g}`] : [])));
}

function options(id, entries, value) {
  el(id).replaceChildren(...entries.map(([v, text]) => make("option", text, { value: v })));
  el(id).value = value;
}

function fillControls() {
  options("image", data.images.map((each, i) => [i, `${each.id} (${each.file})`]), state.image);
  options("level", [[-1, "all"], ...data.strides.map((s, i) => [i, `${i} (stride ${s})`])], state.level);
  options("object", [[-1, "all"], ...image().boxes.map((_, g) => [g, `${g} (${className(g)})`])], state.object);
  el("moment").max = data.moments.length - 1;
  el("moment").value = state.moment;
  el("moment").setAttribute("aria-valuetext", data.moments[state.moment].name);
  el("film").hidden = data.moments.length < 2;
}

function play() {
  if (playing) {
    clearInterval(playing);
    playing = 0;
  } else {
    playing = setInterval(() => choose({ moment: (state.moment + 1) % data.moments.length }), 1200);
  }
  el("play").textContent = playing ? "❚❚" : "▶";
  el("play").setAttribute("aria-label", playing ? "Stop" : "Play the checkpoints");
}

// The events of one canvas; `points()` gives what can be pointed at.
function listen(canvas, points) {
  let start = null;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: event.clientX - box.left - canvas.clientLeft, y: event.clientY - box.top - canvas.clientTop };
  };
  const nearest = (at, limit) => {
    let best = null, least = limit * limit;
    for (const p of points()) {
      const d = (p.x - at.x) ** 2 + (p.y - at.y) ** 2;
      if (d <= least) [best, least] = [p, d];
    }
    return best && focusOn(best.prior, best.pair);
  };
  canvas.onpointerdown = (event) => { start = place(event); };
  canvas.onpointermove = (event) => {
    const at = place(event);
    if (start && event.buttons && event.pointerType === "mouse" && Math.hypot(at.x - start.x, at.y - start.y) > 5) {
      redraw();
      drawBrush(canvas, start, at);
    } else if (!state.kept && event.pointerType === "mouse") show(nearest(at, 14));
  };
  canvas.onpointerup = (event) => {
    const at = place(event), a = start;
    start = null;
    if (!a) return;
    if (event.pointerType === "mouse" && Math.hypot(at.x - a.x, at.y - a.y) > 5) {
      const within = (v, p, q) => v >= Math.min(p, q) && v <= Math.max(p, q);
      const inside = points().filter((p) => within(p.x, a.x, at.x) && within(p.y, a.y, at.y));
      marked = new Set(inside.map((p) => view.priors[p.prior]));
      redraw();
    } else {
      const found = nearest(at, event.pointerType === "mouse" ? 14 : 28);
      state.kept = Boolean(found);
      if (!found) marked = new Set();
      show(found);
    }
  };
  canvas.onpointerleave = () => { start = null; if (!state.kept) show(null); };
  canvas.onkeydown = (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Escape") {
      state.kept = false;
      marked = new Set();
      show(null);
    } else if (step) {
      event.preventDefault();
      const all = points(), now = state.focus && all.find((p) => p.prior === state.focus.prior &&
        (p.pair === undefined || p.pair === state.focus.pair));
      const from = now || { x: canvas.clientWidth / 2, y: canvas.clientHeight / 2 };
      let best = null, least = Infinity;
      for (const p of all) {
        const along = (p.x - from.x) * step[0] + (p.y - from.y) * step[1];
        const aside = Math.abs((p.x - from.x) * step[1]) + Math.abs((p.y - from.y) * step[0]);
        const cost = now ? along + 2 * aside : Math.hypot(p.x - from.x, p.y - from.y);
        if ((!now || along > 0.5) && cost < least) [best, least] = [p, cost];
      }
      if (best) {
        state.kept = true;
        show(focusOn(best.prior, best.pair));
      }
    }
  };
}

function begin() {
  const about = data.about;
  el("about").textContent = `${about.name}: ${about.detector}. Source: ${about.source}. Data: ${about.data}. ` +
    `Its own assigner: ${about.assigner}.`;
  el("network").textContent = about.network;
  el("network").className = about.network.startsWith("UNTRAINED") ? "untrained" : "";
  for (const [kind, text] of SIGNS) {
    const li = make("li"), canvas = make("canvas", null, { width: 44, height: 44 }), ctx = canvas.getContext("2d");
    ctx.scale(2, 2);
    sign(ctx, kind, 11, 11, 6);
    li.append(canvas, text);
    el("legend").append(li);
  }
  for (const [text, color, dash] of [["object without a positive", WITHOUT, [5, 3]],
    ["prior pointed at", "#0072b2", [4, 3]], ["its predicted box", PREDICTED, []]]) {
    const li = make("li"), canvas = make("canvas", null, { width: 44, height: 44 }), ctx = canvas.getContext("2d");
    ctx.scale(2, 2);
    outline(ctx, [3, 5, 19, 17], color, 2.5, dash);
    li.append(canvas, text);
    el("legend").append(li);
  }
  el("image").onchange = () => choose({ image: Number(el("image").value) });
  el("level").onchange = () => choose({ level: Number(el("level").value) });
  el("object").onchange = () => choose({ object: Number(el("object").value) });
  el("moment").oninput = () => choose({ moment: Number(el("moment").value) });
  const next = (by) => choose({ image: (state.image + by + data.images.length) % data.images.length });
  el("before").onclick = () => next(-1);
  el("after").onclick = () => next(1);
  el("play").onclick = play;
  el("candidates").onchange = redraw;
  el("unregressed").onchange = redraw;
  listen(el("picture"), () => picturePoints);
  listen(el("plane"), () => planePoints);
  window.addEventListener("resize", () => { if (view) redraw(); });
  const asked = new URLSearchParams(location.hash.slice(1));
  const position = (list, value, otherwise) => (list.includes(value) ? list.indexOf(value) : otherwise);
  const within = (key, low, high, otherwise) => {
    const value = asked.has(key) ? Number(asked.get(key)) : otherwise;
    return Number.isInteger(value) && value >= low && value < high ? value : otherwise;
  };
  const first = { image: position(data.images.map((i) => String(i.id)), asked.get("image"), 0),
    assigner: position(data.assigners.map((a) => a.name), asked.get("assigner"), 0) };
  choose({ ...first, moment: within("moment", 0, data.moments.length, data.moments.length - 1),
    level: within("level", -1, data.strides.length, -1),
    object: within("object", -1, data.images[first.image].boxes.length, -1) });
}

begin();
