/* SPDX-License-Identifier: Apache-2.0 */
(() => {
  'use strict';
  const data = JSON.parse(document.getElementById('group-data').textContent);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const COLORS = ['#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#9B8B00', '#8C8C8C'];
  const count = data.sessions.length;
  const tip = byId('tip');

  let ink = {};
  const readColors = () => {
    const style = getComputedStyle(document.documentElement);
    for (const name of ['ink', 'soft', 'line', 'dot', 'warn', 'fail', 'accent', 'panel', 'none']) {
      ink[name] = style.getPropertyValue('--' + name).trim();
    }
  };
  const stateColor = (i) => ({ look: ink.warn, doubtful: ink.fail })[data.states[i]] || ink.dot;
  const format = (value) => {
    if (value === null || value === undefined) return '–';
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString('en');
    return String(Number(value.toPrecision(size >= 100 ? 4 : 3)));
  };
  const median = (values) => {
    const sorted = values.filter((v) => v !== null).sort((a, b) => a - b);
    if (!sorted.length) return null;
    const half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  };
  const ticksOf = (low, high, most) => {
    const raw = (high - low) / Math.max(most, 1);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= raw) || raw;
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) {
      found.push(Number((k * step).toPrecision(12)));
    }
    return found;
  };
  const rangeOf = (values, share = 0.05) => {
    let low = Infinity;
    let high = -Infinity;
    for (const v of values) if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); }
    const room = (high - low) * share || Math.abs(high) * share || 1;
    return [low - room, high + room];
  };

  /* One plot: paint(context, width, height) draws the base and returns its points. */
  const plots = [];
  let lit = null;
  class Plot {
    constructor(canvas, paint, lines) {
      Object.assign(this, { canvas, paint, lines, points: [], drawn: false });
      this.height = Number(canvas.getAttribute('height'));
      canvas.style.height = this.height + 'px';
      plots.push(this);
      canvas.addEventListener('pointermove', (event) => this.point(event));
      canvas.addEventListener('pointerleave', () => light(null));
      canvas.addEventListener('click', (event) => {
        const hit = this.nearest(event);
        if (hit && data.links[hit.i]) location.href = data.links[hit.i];
      });
    }
    draw() {
      const width = this.canvas.clientWidth;
      if (!width) return;
      const scale = Math.min(window.devicePixelRatio || 1, 2);
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(this.height * scale);
      const context = this.canvas.getContext('2d');
      context.setTransform(scale, 0, 0, scale, 0, 0);
      context.font = '11px system-ui,sans-serif';
      this.points = this.paint(context, width, this.height) || [];
      this.places = new Map(this.points.map((p) => [p.i, p]));
      this.base = document.createElement('canvas');
      this.base.width = this.canvas.width;
      this.base.height = this.canvas.height;
      this.base.getContext('2d').drawImage(this.canvas, 0, 0);
      this.scale = scale;
      this.drawn = true;
      this.mark();
    }
    mark() {
      if (!this.drawn) return;
      const context = this.canvas.getContext('2d');
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, this.canvas.width, this.canvas.height);
      context.drawImage(this.base, 0, 0);
      context.setTransform(this.scale, 0, 0, this.scale, 0, 0);
      if (lit === null) return;
      for (const p of this.many ? this.points.filter((q) => q.i === lit) : [this.places.get(lit)]) {
        if (!p) continue;
        context.beginPath();
        context.arc(p.x, p.y, 6, 0, 7);
        context.lineWidth = 2.5;
        context.strokeStyle = ink.ink;
        context.stroke();
      }
    }
    nearest(event) {
      const box = this.canvas.getBoundingClientRect();
      const x = event.clientX - box.left;
      const y = event.clientY - box.top;
      let best = null;
      let least = 12 ** 2;
      for (const p of this.points) {
        const d = (p.x - x) ** 2 + (p.y - y) ** 2;
        if (d < least) { least = d; best = p; }
      }
      return best;
    }
    point(event) {
      const hit = this.nearest(event);
      this.canvas.classList.toggle('over', Boolean(hit && data.links[hit.i]));
      if (!hit) { light(null); return; }
      light(hit.i);
      say(event, hit.i, this.lines(hit));
    }
  }
  const say = (event, i, lines) => {
    const name = document.createElement('b');
    name.textContent = data.sessions[i];
    tip.replaceChildren(name);
    for (const line of lines) {
      const part = document.createElement('div');
      part.textContent = line;
      tip.append(part);
    }
    tip.hidden = false;
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 18 + tip.offsetHeight < innerHeight;
    tip.style.left = Math.max(left, 4) + 'px';
    tip.style.top = (below ? event.clientY + 18 : event.clientY - tip.offsetHeight - 12) + 'px';
  };
  const rowOf = new Map(all('#sessions tbody tr').map((row) => [Number(row.dataset.i), row]));
  const light = (i) => {
    if (i === null) tip.hidden = true;
    if (i === lit) return;
    rowOf.get(lit)?.classList.remove('on');
    lit = i;
    rowOf.get(lit)?.classList.add('on');
    for (const plot of plots) plot.mark();
  };
  const stateLine = (i) => {
    const score = data.scores[i];
    return score === null ? data.states[i] : `${data.states[i]}, score ${Math.round(score)}`;
  };
  const dot = (context, x, y, radius, color, alpha = 0.8) => {
    context.globalAlpha = alpha;
    context.fillStyle = color;
    context.beginPath();
    context.arc(x, y, radius, 0, 7);
    context.fill();
    context.globalAlpha = 1;
  };

  /* Dots on a line: those at the same place are stacked to both sides of it. */
  const stack = (places, room, radius) => {
    const bin = radius * 1.6;
    const bins = new Map();
    for (const p of places) {
      const key = Math.round(p.at / bin);
      if (!bins.has(key)) bins.set(key, []);
      bins.get(key).push(p);
    }
    for (const same of bins.values()) {
      const step = Math.min(radius * 2, (2 * room) / Math.max(same.length - 1, 1));
      same.forEach((p, k) => { p.aside = (k % 2 ? 1 : -1) * Math.ceil(k / 2) * step; });
    }
  };
  const dotSize = count > 400 ? 2.2 : count > 100 ? 2.8 : 3.6;

  /* Strip plots. */
  for (const canvas of all('canvas[data-strip]')) {
    const entry = data.numeric[Number(canvas.dataset.strip)];
    const middle = median(entry.values);
    const figure = canvas.closest('figure');
    figure.querySelector('small').textContent = `median ${format(middle)}`;
    const [lowBound, highBound] = entry.bounds || [null, null];
    const paint = (context, width, height) => {
      const [low, high] = rangeOf(entry.values);
      const x = (v) => 8 + ((v - low) / (high - low)) * (width - 16);
      const base = height - 16;
      context.globalAlpha = 0.14;
      context.fillStyle = ink.warn;
      if (lowBound !== null && lowBound > low) context.fillRect(0, 0, x(lowBound), base);
      if (highBound !== null && highBound < high) {
        context.fillRect(x(highBound), 0, width - x(highBound), base);
      }
      context.globalAlpha = 1;
      context.strokeStyle = ink.line;
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(0, base + 0.5);
      context.lineTo(width, base + 0.5);
      context.stroke();
      context.fillStyle = ink.soft;
      context.textBaseline = 'bottom';
      context.textAlign = 'center';
      for (const tick of ticksOf(low, high, Math.max(2, Math.floor(width / 110)))) {
        context.fillText(format(tick), Math.min(Math.max(x(tick), 14), width - 14), height);
      }
      const places = [];
      entry.values.forEach((v, i) => { if (v !== null) places.push({ i, at: x(v), value: v }); });
      stack(places, base / 2 - 4, dotSize);
      const order = { ok: 0, look: 1, doubtful: 2 };
      places.sort((a, b) => (order[data.states[a.i]] || 0) - (order[data.states[b.i]] || 0));
      for (const p of places) {
        p.x = p.at;
        p.y = base / 2 + p.aside;
        dot(context, p.x, p.y, dotSize, stateColor(p.i));
      }
      context.strokeStyle = ink.ink;
      context.lineWidth = 1.5;
      context.beginPath();
      context.moveTo(x(middle), 2);
      context.lineTo(x(middle), base);
      context.stroke();
      return places;
    };
    new Plot(canvas, paint, (p) => {
      const z = entry.z ? entry.z[p.i] : null;
      return [
        `${entry.label}: ${format(p.value)}` + (z === null ? '' : ` (z ${z.toFixed(1)})`),
        stateLine(p.i),
      ];
    });
  }

  /* Asymmetry: one line of dots per structure. */
  const pairs = byId('pairs');
  if (pairs) {
    const everything = data.pairs.flatMap((p) => p.values).filter((v) => v !== null);
    const sizes = everything.map(Math.abs).sort((a, b) => a - b);
    const reach = Math.max(10, 1.15 * sizes[Math.floor(0.985 * (sizes.length - 1))]);
    const clip = (v) => Math.max(-reach, Math.min(reach, v));
    const paint = (context, width, height) => {
      const left = Math.min(190, width * 0.3);
      const x = (v) => left + ((v + reach) / (2 * reach)) * (width - left - 10);
      const points = [];
      context.textBaseline = 'middle';
      for (const tick of ticksOf(-reach, reach, 8)) {
        context.strokeStyle = tick === 0 ? ink.soft : ink.line;
        context.beginPath();
        context.moveTo(x(tick), 4);
        context.lineTo(x(tick), height - 24);
        context.stroke();
        context.fillStyle = ink.soft;
        context.textAlign = 'center';
        context.fillText(format(tick), x(tick), height - 14);
      }
      data.pairs.forEach((pair, row) => {
        const y = 18 + row * 30;
        context.textAlign = 'right';
        context.fillStyle = ink.ink;
        context.fillText(pair.label, left - 12, y);
        const places = [];
        pair.values.forEach((v, i) => {
          if (v !== null) places.push({ i, at: x(clip(v)), value: v, pair });
        });
        stack(places, 11, dotSize);
        for (const p of places) {
          p.x = p.at;
          p.y = y + p.aside;
          dot(context, p.x, p.y, dotSize, stateColor(p.i), 0.7);
          points.push(p);
        }
        const middle = median(pair.values);
        context.strokeStyle = ink.ink;
        context.lineWidth = 1.5;
        context.beginPath();
        context.moveTo(x(clip(middle)), y - 11);
        context.lineTo(x(clip(middle)), y + 11);
        context.stroke();
        context.lineWidth = 1;
      });
      return points;
    };
    const plot = new Plot(pairs, paint, (p) => [
      `${p.pair.label}: ${p.value > 0 ? '+' : ''}${format(p.value)} %`, stateLine(p.i),
    ]);
    plot.many = true;
  }

  /* The plot of anything against anything. */
  const scatter = byId('scatter');
  if (scatter) {
    const [chooseX, chooseY, chooseColor, ofTiv] = ['plot-x', 'plot-y', 'plot-c', 'plot-tiv'].map(byId);
    const tiv = data.numeric.find((entry) => entry.key === 'tiv');
    const fill = (select, groups, chosen) => {
      for (const [title, options] of groups) {
        if (!options.length) continue;
        const group = document.createElement('optgroup');
        group.label = title;
        for (const [key, label] of options) group.append(new Option(label, key, key === chosen, key === chosen));
        select.append(group);
      }
    };
    const named = (group) => data.numeric.filter((e) => e.group === group).map((e) => [e.key, e.label]);
    const classes = data.classes.map((c) => [c.key, c.label]);
    const find = (words, list) => {
      for (const word of words) {
        const hit = list.find(([, label]) => label.toLowerCase() === word);
        if (hit) return hit[0];
      }
      return list.length ? list[0][0] : null;
    };
    const measured = ['Volumes', 'Structures', 'Quality'].map((g) => [g, named(g)]);
    const people = named('Participants');
    const color = find(['sex', 'gender', 'group', 'diagnosis'], classes) || 'state';
    const x = find(['age'], people) || find(['group'], classes) || 'none';
    fill(chooseY, measured, data.numeric.some((e) => e.key === 'gm') ? 'gm' : data.numeric[0].key);
    fill(chooseX, [['Participants', [...people, ...classes]], ...measured, ['Order', [['none', 'order of sessions']]]], x);
    fill(chooseColor, [['Colour', [...classes, ['state', 'rating']]]], color);
    if (!tiv) ofTiv.parentElement.hidden = true;
    const numeric = (key) => data.numeric.find((entry) => entry.key === key);
    const STATES = ['ok', 'look', 'doubtful'];

    const choice = () => {
      const y = numeric(chooseY.value);
      const share = tiv && ofTiv.checked && (y.group === 'Structures' || (y.group === 'Volumes' && y !== tiv));
      const ys = y.values.map((v, i) => (share
        ? (v === null || !tiv.values[i] ? null : (100 * v) / tiv.values[i]) : v));
      const label = share ? y.label.replace('(ml)', '(% of TIV)') : y.label;
      const kind = data.classes.find((c) => c.key === chooseX.value);
      const xs = kind ? kind.values : (numeric(chooseX.value)?.values || data.sessions.map((_, i) => i + 1));
      const xLabel = kind ? kind.label : (numeric(chooseX.value)?.label || 'Session');
      const colored = data.classes.find((c) => c.key === chooseColor.value);
      const levels = colored ? [...colored.levels, 'missing'] : STATES;
      const level = (i) => (colored
        ? (colored.values[i] === null ? colored.levels.length : colored.values[i])
        : Math.max(STATES.indexOf(data.states[i]), 0));
      const paintOf = (l) => (colored
        ? (l === colored.levels.length ? ink.none : COLORS[l % COLORS.length])
        : [ink.dot, ink.warn, ink.fail][l]);
      return { ys, label, kind, xs, xLabel, colored, levels, level, paintOf };
    };
    const paint = (context, width, height) => {
      const c = choice();
      const [left, right, top, bottom] = [64, 14, 10, 46];
      const there = data.sessions.map((_, i) => i).filter((i) => c.ys[i] !== null && c.xs[i] !== null);
      context.fillStyle = ink.soft;
      if (!there.length) {
        context.textAlign = 'center';
        context.fillText('No session has both values.', width / 2, height / 2);
        return [];
      }
      const [yLow, yHigh] = rangeOf(there.map((i) => c.ys[i]));
      const [xLow, xHigh] = c.kind ? [-0.5, c.kind.levels.length - 0.5] : rangeOf(there.map((i) => c.xs[i]), 0.03);
      const px = (v) => left + ((v - xLow) / (xHigh - xLow)) * (width - left - right);
      const py = (v) => height - bottom - ((v - yLow) / (yHigh - yLow)) * (height - top - bottom);
      context.lineWidth = 1;
      context.textBaseline = 'middle';
      context.textAlign = 'right';
      for (const tick of ticksOf(yLow, yHigh, 7)) {
        context.strokeStyle = ink.line;
        context.beginPath();
        context.moveTo(left, py(tick));
        context.lineTo(width - right, py(tick));
        context.stroke();
        context.fillText(format(tick), left - 8, py(tick));
      }
      context.textAlign = 'center';
      if (c.kind) c.kind.levels.forEach((name, l) => context.fillText(name, px(l), height - bottom + 14));
      else {
        for (const tick of ticksOf(xLow, xHigh, Math.floor(width / 90))) {
          context.fillText(format(tick), px(tick), height - bottom + 14);
        }
      }
      context.fillStyle = ink.ink;
      context.fillText(c.xLabel, (left + width - right) / 2, height - 10);
      context.save();
      context.translate(12, (height - bottom + top) / 2);
      context.rotate(-Math.PI / 2);
      context.fillText(c.label, 0, 0);
      context.restore();
      const points = there.map((i) => ({ i, x: px(c.xs[i]), y: py(c.ys[i]), at: py(c.ys[i]), value: c.ys[i], of: c.xs[i], c }));
      if (c.kind) {
        c.kind.levels.forEach((_, l) => {
          const same = points.filter((p) => p.of === l);
          stack(same, ((width - left - right) / c.kind.levels.length) * 0.4, dotSize * 1.2);
          for (const p of same) p.x += p.aside;
          const middle = median(same.map((p) => p.value));
          if (middle === null) return;
          context.strokeStyle = ink.ink;
          context.lineWidth = 2;
          context.beginPath();
          context.moveTo(px(l - 0.25), py(middle));
          context.lineTo(px(l + 0.25), py(middle));
          context.stroke();
        });
      }
      for (const p of points) dot(context, p.x, p.y, dotSize * 1.2, c.paintOf(c.level(p.i)), 0.75);
      if (!c.kind && chooseX.value !== 'none') {
        const groups = c.colored ? c.levels.map((_, l) => l) : [null];
        for (const l of groups) {
          const own = points.filter((p) => l === null || c.level(p.i) === l);
          if (own.length < 3) continue;
          const mx = own.reduce((s, p) => s + p.of, 0) / own.length;
          const my = own.reduce((s, p) => s + p.value, 0) / own.length;
          const sxx = own.reduce((s, p) => s + (p.of - mx) ** 2, 0);
          if (!sxx) continue;
          const slope = own.reduce((s, p) => s + (p.of - mx) * (p.value - my), 0) / sxx;
          const xs = own.map((p) => p.of);
          context.strokeStyle = l === null ? ink.ink : c.paintOf(l);
          context.lineWidth = 2;
          context.beginPath();
          for (const at of [Math.min(...xs), Math.max(...xs)]) context.lineTo(px(at), py(my + slope * (at - mx)));
          context.stroke();
        }
      }
      const legend = byId('scatter-legend');
      legend.replaceChildren();
      c.levels.forEach((name, l) => {
        const own = points.filter((p) => c.level(p.i) === l).length;
        if (!own) return;
        const item = document.createElement('li');
        const chip = document.createElement('span');
        chip.className = 'chip';
        chip.style.background = c.paintOf(l);
        item.append(chip, `${name} (${own})`);
        legend.append(item);
      });
      return points;
    };
    const plot = new Plot(scatter, paint, (p) => [
      `${p.c.label}: ${format(p.value)}`,
      `${p.c.xLabel}: ${p.c.kind ? p.c.kind.levels[p.of] : format(p.of)}`,
      ...(p.c.colored ? [`${p.c.colored.label}: ${p.c.levels[p.c.level(p.i)]}`] : []),
      stateLine(p.i),
    ]);
    for (const control of [chooseX, chooseY, chooseColor, ofTiv]) {
      control.addEventListener('change', () => plot.draw());
    }
  }

  /* The table: sort, search, choose by rating. */
  const body = document.querySelector('#sessions tbody');
  const rows = all('tr', body);
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const states = all('.state');
  const search = byId('search');
  const showRows = () => {
    const wanted = states.filter((b) => b.getAttribute('aria-pressed') === 'true').map((b) => b.dataset.state);
    const parts = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      row.hidden = (wanted.length > 0 && !wanted.includes(row.dataset.state))
        || !parts.every((part) => words.get(row).includes(part));
      if (!row.hidden) shown++;
    }
    byId('count').textContent = shown === rows.length ? `${shown} sessions` : `${shown} of ${rows.length} sessions`;
  };
  search.addEventListener('input', showRows);
  for (const button of states) {
    button.addEventListener('click', () => {
      button.setAttribute('aria-pressed', String(button.getAttribute('aria-pressed') !== 'true'));
      showRows();
    });
  }
  const heads = all('#sessions thead th');
  const cellValue = (row, column, kind) => {
    const cell = row.children[column];
    const text = cell.dataset.v ?? cell.textContent.trim();
    if (text === '') return null;
    if (kind === 'text') return text;
    const value = Number(text);
    return Number.isNaN(value) ? text : value;
  };
  heads.forEach((head, column) => {
    const button = head.querySelector('button');
    button.addEventListener('click', () => {
      const up = head.getAttribute('aria-sort') !== 'ascending';
      heads.forEach((other) => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const keyed = rows.map((row) => [cellValue(row, column, button.dataset.kind), row]);
      keyed.sort(([a, rowA], [b, rowB]) => {
        if (a === null || b === null) return (a === null) - (b === null);
        const d = typeof a === 'number' && typeof b === 'number'
          ? a - b : String(a).localeCompare(String(b), 'en', { numeric: true });
        return (up ? d : -d) || rowA.dataset.i - rowB.dataset.i;
      });
      body.append(...keyed.map(([, row]) => row));
    });
  });
  for (const row of rows) {
    row.addEventListener('pointerenter', () => light(Number(row.dataset.i)));
    row.addEventListener('pointerleave', () => light(null));
  }
  showRows();

  const redraw = () => { readColors(); for (const plot of plots) plot.draw(); };
  let waiting = 0;
  addEventListener('resize', () => { clearTimeout(waiting); waiting = setTimeout(redraw, 120); });
  matchMedia('(prefers-color-scheme:dark)').addEventListener('change', redraw);
  for (const part of all('details')) part.addEventListener('toggle', () => {
    for (const plot of plots) if (part.contains(plot.canvas)) plot.draw();
  });
  redraw();
})();
