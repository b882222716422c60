// The tables: of assigners, of objects, of an object's best priors, and of one prior under all assigners.

function fillAssigners() {
  const heads = ["assigner", "cls positives", "loc positives", "in both", "ignored", "objects without cls", "without loc"];
  el("assigners").tHead.replaceChildren(row(heads, "th"));
  const body = el("assigners").tBodies[0];
  body.replaceChildren(...data.assigners.map((assigner, i) => {
    const c = counted(view.assigners[assigner.name]);
    const label = make("label"), radio = make("input", null, { type: "radio", name: "assigner", value: i });
    radio.checked = i === state.assigner;
    radio.onchange = () => choose({ assigner: i });
    label.append(radio, ` ${assigner.name}`);
    const first = make("td");
    first.append(label);
    const lack = (n) => cell(n || "none", n ? "none" : "");
    const tr = row([first, c.cls, c.loc, c.both, c.ignored, lack(c.withoutCls), lack(c.withoutLoc)]);
    if (i === state.assigner) tr.className = "chosen";
    tr.onclick = (event) => { if (!label.contains(event.target)) choose({ assigner: i }); };
    return tr;
  }));
  const { warming } = view.assigners[name()];
  el("rule").textContent = data.assigners[state.assigner].rule +
    (warming ? ` At this epoch a training still warms up with ${warming}; shown is ${name()} itself.` : "");
}

function fillObjects() {
  const learning = view.assigners[name()], cls = perObject(learning.cls), loc = perObject(learning.loc);
  el("objects").caption.textContent = image().boxes.length
    ? `Objects of the image under ${name()}` : "The image has no objects: nothing is positive.";
  el("objects").tHead.replaceChildren(row(
    ["object", make("th", "class", { class: "text" }), "size, pixels", "cls positives", "loc positives"], "th"));
  el("objects").tBodies[0].replaceChildren(...image().boxes.map((box, g) => {
    const button = make("button", `${g}`, { type: "button", "aria-label": `Look at object ${g}` });
    button.onclick = () => choose({ object: state.object === g ? -1 : g });
    const first = make("td");
    first.append(button);
    const count = (n) => cell(n || "none", n ? "" : "none");
    const size = `${(box[2] - box[0]).toFixed(0)} × ${(box[3] - box[1]).toFixed(0)}`;
    const tr = row([first, cell(className(g), "text"), size, count(cls[g]), count(loc[g])]);
    if (g === state.object) tr.className = "chosen";
    return tr;
  }));
}

const WORDS = { cls: "classification", loc: "localization" };

function labelText(owner, g) {
  if (owner === IGNORED) return "ignored";
  if (owner < 0) return "background";
  return owner === g ? "positive" : `positive for object ${owner}`;
}

function fillRanks() {
  const g = state.object, learning = view.assigners[name()];
  el("ranks").replaceChildren(...(g < 0 ? [] : ["cls", "loc"]).map((task) => {
    const { owner, criterion } = learning[task];
    const table = make("table"), box = make("div", null, { class: "wide" });
    box.append(table);
    const by = criterion === null ? null : view.criteria[criterion];
    table.append(make("caption", `Object ${g}, ${WORDS[task]} under ${name()}: ` +
      (by ? `best by ${by.name}` : "its criterion is not known")));
    if (!by) return box;
    const found = view.object.flatMap((object, k) => (object === g && by.rank[k] > 0 ? [k] : []));
    found.sort((a, b) => by.rank[a] - by.rank[b]);
    const head = make("thead"), body = make("tbody");
    head.append(row(["rank", "prior", by.name, "score", "IoU before", "after", "label"], "th"));
    for (const k of found.slice(0, 12)) {
      const prior = view.prior[k], button = make("button", view.priors[prior], { type: "button" });
      button.onclick = () => { state.kept = true; show(focusOn(prior, k)); };
      const which = make("td");
      which.append(button);
      const label = labelText(owner[prior], g);
      body.append(row([by.rank[k], which, number(by.value[k]), share(view.score[k]), share(view.before[k]),
        share(view.after[k]), cell(label, label === "positive" ? "text" : "text hint")]));
    }
    table.append(head, body);
    return box;
  }));
}

function fillPrior() {
  const place = el("prior");
  if (!state.focus) {
    place.replaceChildren(make("h2", "No prior chosen"), make("p", "Point at a prior in the picture or in the plane."));
    return;
  }
  const { prior, pair, object, index } = state.focus, a = view.anchors[prior];
  const size = data.points ? "point" : `anchor ${(a[2] - a[0]).toFixed(0)} × ${(a[3] - a[1]).toFixed(0)}`;
  const level = `level ${view.level[prior]} (stride ${data.strides[view.level[prior]]})`;
  const title = make("h2", `Prior ${index}: ${size}, ${level}${state.kept ? ", kept" : ""}`);
  const text = pair < 0 ? "It is near no object." : `With object ${object} (${className(object)}): score ` +
    `${share(view.score[pair])}, IoU ${share(view.before[pair])} before and ${share(view.after[pair])} after regression.`;
  const table = make("table"), head = make("thead"), body = make("tbody"), wide = make("div", null, { class: "wide" });
  head.append(row(["assigner", "classification", "criterion", "rank", "localization", "criterion", "rank"], "th"));
  for (const assigner of data.assigners) {
    const learning = view.assigners[assigner.name], cells = [assigner.name];
    for (const task of ["cls", "loc"]) {
      const { owner, criterion } = learning[task], label = labelText(owner[prior], object);
      const by = criterion === null || pair < 0 ? null : view.criteria[criterion];
      cells.push(cell(label, label.startsWith("positive") ? "" : "hint"));
      cells.push(by ? `${by.name} = ${number(by.value[pair])}` : "–", by ? by.rank[pair] || "–" : "–");
    }
    const tr = row(cells);
    if (assigner.name === name()) tr.className = "chosen";
    body.append(tr);
  }
  table.append(head, body);
  wide.append(table);
  place.replaceChildren(title, make("p", text), wide);
}
