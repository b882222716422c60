// Selects trials: an axis that is narrowed leaves those within it, in both charts and in the table.

const axes = JSON.parse(document.getElementById("axes").textContent);
const steps = axes.map((axis) => axis.steps);
const ranges = steps.map((each) => [0, each.length - 1]);
const trials = Object.keys(axes[0].at);
const svg = document.querySelector(".parallel svg");
const top_ = Number(svg.dataset.top), high = Number(svg.dataset.high);
const said = document.querySelector(".picked output"), all = document.querySelector(".picked button");
const of = (name) => document.querySelectorAll(`[data-trial="${CSS.escape(name)}"]`);
const slider = (i, end) => document.querySelector(`input[data-axis="${i}"][data-end="${end}"]`);
const isNarrow = (i) => ranges[i][0] > 0 || ranges[i][1] < steps[i].length - 1;

function isIn(name) {
  return axes.every((axis, i) => {
    const at = axis.at[name];
    return !isNarrow(i) || (at !== null && at >= ranges[i][0] && at <= ranges[i][1]);
  });
}

function show() {
  let count = 0;
  for (const name of trials) {
    const chosen = isIn(name);
    count += chosen;
    for (const node of of(name)) node.classList.toggle("off", !chosen);
  }
  const narrow = axes.filter((axis, i) => isNarrow(i)).map((axis) => axis.name);
  said.textContent = `${count} of ${trials.length} trials${narrow.length ? `, by ${narrow.join(", ")}` : ""}`;
  all.hidden = !narrow.length;
  axes.forEach((axis, i) => {
    const [low, top] = ranges[i].map((k) => steps[i][k][0]);
    const brush = document.querySelector(`.axis[data-axis="${i}"] .brush`);
    brush.setAttribute("y", top_ + high * (1 - top) - 6);
    brush.setAttribute("height", isNarrow(i) ? high * (top - low) + 12 : 0);
    for (const [end, k] of [["low", ranges[i][0]], ["high", ranges[i][1]]]) {
      slider(i, end).value = k;
      slider(i, end).setAttribute("aria-valuetext", steps[i][k][1]);
      slider(i, end).title = steps[i][k][1];
    }
  });
}

function reset(i) {
  ranges[i] = [0, steps[i].length - 1];
}

// The height, 0 to 1, at which the pointer is.
function heightAt(event) {
  const box = svg.getBoundingClientRect();
  const y = ((event.clientY - box.top) / box.height) * svg.viewBox.baseVal.height;
  return 1 - (y - top_) / high;
}

for (const hold of document.querySelectorAll(".hold")) {
  const i = Number(hold.parentNode.dataset.axis);
  let from = null;
  hold.addEventListener("pointerdown", (event) => {
    from = heightAt(event);
    hold.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  hold.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const [low, top] = [from, heightAt(event)].sort((a, b) => a - b);
    const within = steps[i].map(([at], k) => (at >= low && at <= top ? k : -1)).filter((k) => k >= 0);
    if (top - low > 0.03 && within.length) ranges[i] = [within[0], within[within.length - 1]];
    else reset(i); // a click shows the whole axis again
    show();
  });
  const end = (event) => {
    if (from !== null && Math.abs(heightAt(event) - from) <= 0.03) { reset(i); show(); }
    from = null;
  };
  hold.addEventListener("pointerup", end);
  hold.addEventListener("pointercancel", () => { from = null; });
}

for (const input of document.querySelectorAll(".sliders input")) {
  input.addEventListener("input", () => {
    const i = Number(input.dataset.axis), value = Number(input.value);
    if (input.dataset.end === "low") ranges[i] = [Math.min(value, ranges[i][1]), ranges[i][1]];
    else ranges[i] = [ranges[i][0], Math.max(value, ranges[i][0])];
    show();
  });
}

all.addEventListener("click", () => { axes.forEach((axis, i) => reset(i)); show(); });

for (const name of trials) {
  for (const node of of(name)) {
    const mark = (on) => () => { for (const each of of(name)) each.classList.toggle("marked", on); };
    for (const kind of ["pointerenter", "focusin"]) node.addEventListener(kind, mark(true));
    for (const kind of ["pointerleave", "focusout"]) node.addEventListener(kind, mark(false));
  }
}

show();
