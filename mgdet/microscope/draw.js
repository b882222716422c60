"use strict";
// How everything looks: signs, the picture, the plane. Nothing here changes what is chosen.

const COLORS = { cls: "#e69f00", loc: "#56b4e9", both: "#009e73", ignored: "#595959", "": "#ffffff" };
const WITHOUT = "#d55e00", PREDICTED = "#cc79a7", INK = "#1a1a1a";
const SIGNS = [
  ["both", "learns both tasks"], ["cls", "classification only"], ["loc", "localization only"],
  ["ignored", "ignored"], ["", "near candidate, background"],
];

function sign(ctx, kind, x, y, r) {
  ctx.lineWidth = 1;
  ctx.strokeStyle = INK;
  ctx.fillStyle = COLORS[kind];
  ctx.beginPath();
  if (kind === "cls") {
    ctx.moveTo(x, y - 1.25 * r);
    ctx.lineTo(x + 1.15 * r, y + 0.85 * r);
    ctx.lineTo(x - 1.15 * r, y + 0.85 * r);
    ctx.closePath();
  } else if (kind === "loc") {
    ctx.rect(x - 0.9 * r, y - 0.9 * r, 1.8 * r, 1.8 * r);
  } else if (kind === "ignored") {
    const d = 0.65 * r;
    for (const [width, color] of [[4, "#fff"], [1.8, COLORS.ignored]]) {
      ctx.lineWidth = width;
      ctx.strokeStyle = color;
      ctx.beginPath();
      ctx.moveTo(x - d, y - d);
      ctx.lineTo(x + d, y + d);
      ctx.moveTo(x - d, y + d);
      ctx.lineTo(x + d, y - d);
      ctx.stroke();
    }
    return;
  } else {
    ctx.arc(x, y, kind ? r : 0.45 * r, 0, 7);
    if (!kind) ctx.strokeStyle = "#6b6b6b";
  }
  ctx.fill();
  ctx.stroke();
}

function ring(ctx, x, y, r) {
  for (const [width, color] of [[4, "#fff"], [2, INK]]) {
    ctx.lineWidth = width;
    ctx.strokeStyle = color;
    ctx.beginPath();
    ctx.arc(x, y, r, 0, 7);
    ctx.stroke();
  }
}

function outline(ctx, box, color, width, dash = []) {
  for (const [w, c, d] of [[width + 2, "#fff", []], [width, color, dash]]) {
    ctx.lineWidth = w;
    ctx.strokeStyle = c;
    ctx.setLineDash(d);
    ctx.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
  }
  ctx.setLineDash([]);
}

function tag(ctx, text, x, y, color, limits) {
  ctx.font = "600 12px system-ui, 'DejaVu Sans', sans-serif";
  const width = ctx.measureText(text).width + 6;
  x = Math.max(0, Math.min(x, limits.width - width));
  y = Math.max(0, Math.min(y, limits.height - 16));
  ctx.fillStyle = color;
  ctx.fillRect(x, y, width, 16);
  ctx.fillStyle = "#fff";
  ctx.textBaseline = "middle";
  ctx.textAlign = "left";
  ctx.fillText(text, x + 3, y + 8.5);
}

// A canvas as wide as its place, with lines that are sharp on every screen; units are CSS pixels.
function prepared(canvas, ratio) {
  const width = canvas.clientWidth || 300, height = Math.round(width * ratio);
  canvas.style.height = `${height}px`;
  const fine = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * fine);
  canvas.height = Math.round(height * fine);
  const ctx = canvas.getContext("2d");
  ctx.setTransform(fine, 0, 0, fine, 0, 0);
  ctx.clearRect(0, 0, width, height);
  return { ctx, width, height };
}

const signSize = (width) => Math.max(3, Math.min(5, width / 120)); // pixels: smaller on a phone

// scene: {image, bitmap, window: [x, y, w, h], kinds, visible, view, lacking, object, focus, marked}
function drawPicture(canvas, scene) {
  const [x0, y0, w, h] = scene.window;
  const limits = prepared(canvas, h / w), { ctx } = limits, scale = limits.width / w;
  const at = (x, y) => [(x - x0) * scale, (y - y0) * scale];
  const boxAt = (b) => [...at(b[0], b[1]), ...at(b[2], b[3])];
  ctx.fillStyle = "#fff";
  ctx.fillRect(0, 0, limits.width, limits.height);
  ctx.globalAlpha = 0.6;
  ctx.drawImage(scene.bitmap, ...at(0, 0), scene.image.width * scale, scene.image.height * scale);
  ctx.globalAlpha = 1;
  for (const crowd of scene.image.crowds) outline(ctx, boxAt(crowd), COLORS.ignored, 1, [2, 4]);
  const tags = [];
  scene.image.boxes.forEach((box, g) => {
    const lacking = scene.lacking[g], chosen = g === scene.object;
    outline(ctx, boxAt(box), lacking ? WITHOUT : INK, chosen ? 3 : lacking ? 2 : 1, lacking ? [7, 5] : []);
    const [x, y, right, bottom] = boxAt(box);
    const seen = right > 0 && bottom > 0 && x < limits.width && y < limits.height;
    if (seen && (lacking || chosen)) tags.push([`${g}${lacking ? `: no ${lacking}` : ""}`, x, y - 16, lacking ? "#b34700" : INK]);
  });
  const points = [], radius = signSize(limits.width);
  for (const kind of ["", "ignored", "loc", "cls", "both"]) {
    for (const i of scene.visible) {
      if (scene.kinds[i] !== kind) continue;
      const [x, y] = at(...scene.view.places[i]);
      if (x < -9 || y < -9 || x > limits.width + 9 || y > limits.height + 9) continue;
      sign(ctx, kind, x, y, radius);
      points.push({ prior: i, x, y });
    }
  }
  for (const p of points) if (scene.marked.has(p.prior)) ring(ctx, p.x, p.y, 7);
  for (const t of tags) tag(ctx, ...t, limits);
  if (scene.focus) {
    const { prior, object } = scene.focus;
    if (object >= 0) outline(ctx, boxAt(scene.image.boxes[object]), INK, 3);
    outline(ctx, boxAt(scene.view.anchors[prior]), "#0072b2", 2, [6, 4]);
    outline(ctx, boxAt(scene.view.boxes[prior]), PREDICTED, 3);
    const [x, y] = at(...scene.view.places[prior]);
    sign(ctx, scene.kinds[prior], x, y, 6);
    ring(ctx, x, y, 9);
  }
  return points;
}

// plane: {pairs: [{pair, prior, kind, x, y}], top, before, focus, marked}
function drawPlane(canvas, plane) {
  const limits = prepared(canvas, 0.82), { ctx } = limits;
  const left = 52, bottom = limits.height - 44, top = 12, right = limits.width - 14;
  const at = (x, y) => [left + x * (right - left), bottom - (Math.min(y, plane.top) / plane.top) * (bottom - top)];
  ctx.fillStyle = "#fff";
  ctx.fillRect(0, 0, limits.width, limits.height);
  ctx.font = "12px system-ui, 'DejaVu Sans', sans-serif";
  ctx.strokeStyle = "#dcdcdc";
  ctx.fillStyle = "#404040";
  ctx.lineWidth = 1;
  for (let i = 0; i <= 5; i++) {
    const [x] = at(i / 5, 0), [, y] = at(0, (i / 5) * plane.top);
    ctx.beginPath();
    ctx.moveTo(x, top);
    ctx.lineTo(x, bottom);
    ctx.moveTo(left, y);
    ctx.lineTo(right, y);
    ctx.stroke();
    ctx.textAlign = "center";
    ctx.textBaseline = "top";
    ctx.fillText((i / 5).toFixed(1), x, bottom + 5);
    ctx.textAlign = "right";
    ctx.textBaseline = "middle";
    ctx.fillText(Number(((i / 5) * plane.top).toPrecision(2)), left - 6, y);
  }
  ctx.fillStyle = INK;
  ctx.textAlign = "center";
  ctx.textBaseline = "bottom";
  const which = plane.before ? "the prior itself, before regression," : "the predicted box";
  ctx.fillText(`IoU of ${which} with the object`, (left + right) / 2, limits.height - 4);
  ctx.save();
  ctx.translate(13, (top + bottom) / 2);
  ctx.rotate(-Math.PI / 2);
  ctx.fillText("score for the object's class", 0, 4);
  ctx.restore();
  const points = [], radius = signSize(limits.width);
  for (const kind of ["", "ignored", "loc", "cls", "both"]) {
    for (const p of plane.pairs) {
      if (p.kind !== kind) continue;
      const [x, y] = at(p.x, p.y);
      sign(ctx, kind, x, y, radius);
      points.push({ ...p, x, y });
    }
  }
  for (const p of points) if (plane.marked.has(p.prior)) ring(ctx, p.x, p.y, 6.5);
  for (const p of points) {
    if (plane.focus && p.prior === plane.focus.prior) {
      sign(ctx, p.kind, p.x, p.y, p.pair === plane.focus.pair ? 6 : radius);
      ring(ctx, p.x, p.y, p.pair === plane.focus.pair ? 9 : 6);
    }
  }
  return points;
}

function drawBrush(canvas, a, b) {
  const ctx = canvas.getContext("2d");
  ctx.fillStyle = "rgba(0, 114, 178, 0.18)";
  ctx.strokeStyle = "#0072b2";
  ctx.lineWidth = 1.5;
  const box = [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.abs(a.x - b.x), Math.abs(a.y - b.y)];
  ctx.fillRect(...box);
  ctx.strokeRect(...box);
}
