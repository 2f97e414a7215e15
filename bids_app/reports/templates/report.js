/* SPDX-License-Identifier: Apache-2.0 */
(() => {
  'use strict';
  const root = document.documentElement;
  root.classList.add('script');
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  /* Figures: opacity, enlarge. */
  for (const figure of all('figure.mosaic')) {
    const slider = figure.querySelector('.opacity');
    if (slider) {
      slider.addEventListener('input', () => {
        figure.style.setProperty('--opacity', slider.value / 100);
        const area = figure.querySelector('.toggle-area');
        if (area) area.checked = true;
      });
    }
  }
  const zoom = document.getElementById('zoom');
  for (const button of all('.enlarge')) {
    button.addEventListener('click', () => {
      const figure = button.closest('figure');
      const stage = zoom.querySelector('.stage');
      const rows = figure.querySelector('.rows').cloneNode(true);
      rows.style.setProperty('--opacity', figure.style.getPropertyValue('--opacity'));
      for (const css of ['line', 'area']) {
        const box = figure.querySelector('.toggle-' + css);
        if (box && !box.checked) all('.' + css, rows).forEach((part) => part.remove());
      }
      const view = figure.querySelector('.view:checked');
      if (view) rows.classList.add('as-' + view.classList[2].slice(5));
      stage.replaceChildren(rows);
      zoom.showModal();
      stage.scrollLeft = (stage.scrollWidth - stage.clientWidth) / 2;
    });
  }
  zoom.querySelector('.close').addEventListener('click', () => zoom.close());
  zoom.addEventListener('click', (event) => { if (event.target === zoom) zoom.close(); });

  /* Tables: sort by a column, filter by words. */
  const cellValue = (row, column) => {
    const text = row.cells[column].textContent.trim();
    return /^[\d.,]+( %)?$/.test(text) ? parseFloat(text.replaceAll(',', '')) : text;
  };
  for (const table of all('table.sortable')) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    all('.sort', table).forEach((button, column) => {
      button.addEventListener('click', () => {
        const head = button.parentElement;
        const down = head.getAttribute('aria-sort') === 'ascending';
        all('th[aria-sort]', table).forEach((th) => th.removeAttribute('aria-sort'));
        head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
        const sign = down ? -1 : 1;
        rows.sort((one, other) => {
          const [a, b] = [cellValue(one, column), cellValue(other, column)];
          if (typeof a === 'number' && typeof b === 'number') return sign * (a - b);
          return sign * String(a).localeCompare(String(b));
        });
        body.append(...rows);
      });
    });
    const box = table.closest('details').querySelector('.filter');
    const found = table.closest('details').querySelector('.found');
    box.addEventListener('input', () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rows) {
        const text = (row.cells[0].textContent + ' ' + row.cells[1].textContent).toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        if (!row.hidden) count++;
      }
      found.textContent = words.length ? `${count} of ${rows.length}` : '';
    });
  }

  /* Navigation: mark the section in view. */
  const links = new Map(all('nav a').map((a) => [a.hash.slice(1), a]));
  if ('IntersectionObserver' in window) {
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        links.forEach((a) => a.classList.remove('here'));
        const link = links.get(entry.target.id);
        if (link) link.classList.add('here');
      }
    }, { rootMargin: '-20% 0px -70% 0px' });
    all('header[id],section[id]').forEach((part) => seen.observe(part));
  }

  const copy = document.getElementById('copy-methods');
  copy.addEventListener('click', async () => {
    const text = document.getElementById('boilerplate').innerText;
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = 'Copied';
    } catch {
      const range = document.createRange();
      range.selectNodeContents(document.getElementById('boilerplate'));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      copy.textContent = 'Selected: press Ctrl+C';
    }
  });

  /* Viewer: three linked planes through one small volume. */
  const holder = document.getElementById('viewer-data');
  if (!holder) return;
  const data = JSON.parse(holder.textContent);
  const [nx, ny, nz] = data.shape;

  const unpackPicture = async (sprite, [w, h, d]) => {
    const image = new Image();
    image.src = sprite.uri;
    await image.decode();
    const canvas = document.createElement('canvas');
    canvas.width = image.width;
    canvas.height = image.height;
    const context = canvas.getContext('2d', { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, image.width, image.height).data;
    const volume = new Uint8Array(w * h * d);
    for (let k = 0; k < d; k++) {
      const left = (k % sprite.tiles) * w;
      const top = Math.floor(k / sprite.tiles) * h;
      for (let j = 0; j < h; j++) {
        let from = 4 * ((top + h - 1 - j) * image.width + left);
        let to = w * (j + h * k);
        for (let i = 0; i < w; i++, from += 4) volume[to++] = pixels[from];
      }
    }
    return volume;
  };
  const unpackLabels = async (text) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const rgb = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  const heat = [[0, 0, 4], [51, 16, 104], [129, 37, 129], [208, 64, 111], [251, 136, 97], [254, 230, 173], [252, 253, 191]];
  const heatColor = (value) => {
    const at = value / 255 * (heat.length - 1);
    const low = Math.min(Math.floor(at), heat.length - 2);
    return heat[low].map((c, n) => c + (at - low) * (heat[low + 1][n] - c));
  };

  const planes = {
    axial: { across: 0, down: 1, normal: 2, letters: 'LRAP' },
    coronal: { across: 0, down: 2, normal: 1, letters: 'LRSI' },
    sagittal: { across: 1, down: 2, normal: 0, letters: 'PASI' },
  };
  const strides = [1, nx, nx * ny];
  const start = async () => {
    const scan = await unpackPicture(data.scan, data.shape);
    const labels = data.labels ? await unpackLabels(data.labels) : null;
    const entropy = data.entropy ? await unpackPicture(data.entropy, data.entropy.shape) : null;
    const viewer = document.getElementById('viewer');
    const read = document.getElementById('viewer-read');
    const gain = document.getElementById('viewer-gain');
    const opacity = document.getElementById('viewer-opacity');
    const available = {
      none: true,
      mask: labels && data.codes.some((c) => c[2]),
      tissue: labels && data.codes.some((c) => c[1]),
      structure: labels && data.codes.some((c) => c[0]),
      entropy: Boolean(entropy),
    };
    const choices = all('input[name=overlay]', viewer);
    for (const box of choices) if (!available[box.value]) box.parentElement.remove();
    if (choices.filter((box) => available[box.value]).length < 2) {
      viewer.querySelector('.pick').hidden = true;
      opacity.parentElement.hidden = true;
    }
    let overlay = ['structure', 'tissue', 'mask', 'none'].find((name) => available[name]);
    choices.forEach((box) => { box.checked = box.value === overlay; });

    const palette = { structure: [], tissue: [], mask: [] };
    (data.codes || []).forEach(([structure, tissue, mask], code) => {
      palette.structure[code] = data.colors[structure] ? rgb(data.colors[structure]) : null;
      palette.tissue[code] = data.tissues[tissue] ? rgb(data.tissues[tissue][1]) : null;
      palette.mask[code] = mask ? [230, 159, 0] : null;
    });
    const heats = Array.from({ length: 256 }, (_, value) => heatColor(value));
    const entropyAt = (position) => {
      const [w, h, d] = data.entropy.shape;
      const [i, j, k] = position.map((p, n) => Math.min(p >> 1, [w, h, d][n] - 1));
      return entropy[i + w * (j + h * k)];
    };

    const cross = data.shape.map((n) => Math.floor(n / 2));
    if (labels) { /* begin in the middle of the brain */
      const sum = [0, 0, 0];
      let count = 0;
      for (let v = 0; v < labels.length; v += 7) {
        const code = data.codes[labels[v]];
        if (!code[2] && !code[1]) continue;
        sum[0] += v % nx; sum[1] += Math.floor(v / nx) % ny; sum[2] += Math.floor(v / (nx * ny));
        count++;
      }
      if (count) sum.forEach((s, n) => { cross[n] = Math.round(s / count); });
    }

    const panes = all('canvas', viewer).map((canvas) => {
      const plane = planes[canvas.dataset.plane];
      const w = data.shape[plane.across];
      const h = data.shape[plane.down];
      const small = document.createElement('canvas');
      small.width = w;
      small.height = h;
      const over = document.createElement('canvas');
      over.width = w;
      over.height = h;
      const slider = viewer.querySelector(`input[data-plane=${canvas.dataset.plane}]`);
      slider.max = data.shape[plane.normal] - 1;
      slider.addEventListener('input', () => { cross[plane.normal] = +slider.value; draw(); });
      const scale = Math.max(2, Math.ceil(700 / w));
      canvas.width = w * scale;
      canvas.height = h * scale;
      const move = (event) => {
        const box = canvas.getBoundingClientRect();
        const at = (share, n) => Math.min(n - 1, Math.max(0, Math.floor(share * n)));
        cross[plane.across] = at((event.clientX - box.left) / box.width, w);
        cross[plane.down] = h - 1 - at((event.clientY - box.top) / box.height, h);
        draw();
      };
      canvas.addEventListener('pointerdown', (event) => {
        canvas.setPointerCapture(event.pointerId);
        move(event);
      });
      canvas.addEventListener('pointermove', (event) => { if (event.buttons) move(event); });
      canvas.addEventListener('keydown', (event) => {
        const step = {
          ArrowLeft: [plane.across, -1], ArrowRight: [plane.across, 1], ArrowUp: [plane.down, 1],
          ArrowDown: [plane.down, -1], PageUp: [plane.normal, 1], PageDown: [plane.normal, -1],
        }[event.key];
        if (!step) return;
        event.preventDefault();
        cross[step[0]] = Math.min(data.shape[step[0]] - 1, Math.max(0, cross[step[0]] + step[1]));
        draw();
      });
      return { canvas, plane, w, h, small, over, slider, scale };
    });

    const paint = ({ canvas, plane, w, h, small, over, slider, scale }) => {
      const grey = new ImageData(w, h);
      const color = new ImageData(w, h);
      const factor = gain.value / 100;
      const base = cross[plane.normal] * strides[plane.normal];
      const table = palette[overlay];
      const position = [...cross];
      for (let row = 0; row < h; row++) {
        const down = h - 1 - row;
        let voxel = base + down * strides[plane.down];
        position[plane.down] = down;
        for (let column = 0; column < w; column++, voxel += strides[plane.across]) {
          const at = 4 * (row * w + column);
          const value = Math.min(255, scan[voxel] * factor);
          grey.data[at] = grey.data[at + 1] = grey.data[at + 2] = value;
          grey.data[at + 3] = 255;
          let paintIt = null;
          let alpha = 255;
          if (overlay === 'entropy') {
            position[plane.across] = column;
            const level = entropyAt(position);
            paintIt = heats[level];
            alpha = Math.min(255, level * 2.5);
          } else if (table) {
            paintIt = table[labels[voxel]];
          }
          if (paintIt) {
            color.data[at] = paintIt[0];
            color.data[at + 1] = paintIt[1];
            color.data[at + 2] = paintIt[2];
            color.data[at + 3] = alpha;
          }
        }
      }
      small.getContext('2d').putImageData(grey, 0, 0);
      over.getContext('2d').putImageData(color, 0, 0);
      const context = canvas.getContext('2d');
      context.imageSmoothingEnabled = true;
      context.imageSmoothingQuality = 'high';
      context.globalAlpha = 1;
      context.drawImage(small, 0, 0, canvas.width, canvas.height);
      context.imageSmoothingEnabled = overlay === 'entropy';
      context.globalAlpha = opacity.value / 100;
      context.drawImage(over, 0, 0, canvas.width, canvas.height);
      context.globalAlpha = 0.8;
      context.strokeStyle = '#56B4E9';
      context.lineWidth = 1.5;
      const x = (cross[plane.across] + 0.5) * scale;
      const y = (h - 1 - cross[plane.down] + 0.5) * scale;
      const hole = 7 * scale;
      context.beginPath();
      context.moveTo(x, 0); context.lineTo(x, y - hole);
      context.moveTo(x, y + hole); context.lineTo(x, canvas.height);
      context.moveTo(0, y); context.lineTo(x - hole, y);
      context.moveTo(x + hole, y); context.lineTo(canvas.width, y);
      context.stroke();
      context.globalAlpha = 1;
      const size = Math.round(canvas.width / 22);
      context.font = `700 ${size}px system-ui,sans-serif`;
      context.fillStyle = '#fff';
      context.strokeStyle = '#000';
      context.lineWidth = size / 6;
      const letter = (text, px, py, align, baseline) => {
        context.textAlign = align;
        context.textBaseline = baseline;
        context.strokeText(text, px, py);
        context.fillText(text, px, py);
      };
      const [left, right, top, bottom] = plane.letters;
      letter(left, 6, canvas.height / 2, 'left', 'middle');
      letter(right, canvas.width - 6, canvas.height / 2, 'right', 'middle');
      letter(top, canvas.width / 2, 4, 'center', 'top');
      letter(bottom, canvas.width / 2, canvas.height - 4, 'center', 'bottom');
      slider.value = cross[plane.normal];
    };

    let waiting = false;
    const draw = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        panes.forEach(paint);
        const voxel = cross[0] + cross[1] * strides[1] + cross[2] * strides[2];
        const mm = cross.map((v, n) => (data.origin[n] + v * data.spacing).toFixed(0));
        const parts = [`x ${mm[0]}, y ${mm[1]}, z ${mm[2]} mm`];
        if (labels) {
          const [structure, tissue] = data.codes[labels[voxel]];
          if (structure) parts.push(data.names[structure] || `label ${structure}`);
          if (tissue && data.tissues[tissue]) parts.push(data.tissues[tissue][0]);
        }
        if (entropy) parts.push(`uncertainty ${(entropyAt(cross) / 255 * data.entropy.top).toFixed(2)}`);
        read.textContent = parts.join('  ·  ').replaceAll('-', '\u2212').replaceAll(/(\w)\u2212(?=\w)/g, '$1-');
      });
    };

    let chosen = false; /* until the reader sets an opacity, thin uncertainty is shown stronger */
    choices.forEach((box) => box.addEventListener('change', () => {
      overlay = box.value;
      if (!chosen) opacity.value = overlay === 'entropy' ? 90 : 50;
      draw();
    }));
    gain.addEventListener('input', draw);
    opacity.addEventListener('input', () => { chosen = true; draw(); });

    for (const button of all('.jump')) {
      button.addEventListener('click', () => {
        if (!labels) return;
        const wanted = +button.dataset.label;
        const codes = new Set(data.codes.flatMap((c, n) => (c[0] === wanted ? [n] : [])));
        const found = [];
        for (let v = 0; v < labels.length; v++) if (codes.has(labels[v])) found.push(v);
        if (!found.length) return;
        const split = (v) => [v % nx, Math.floor(v / nx) % ny, Math.floor(v / (nx * ny))];
        const mean = [0, 1, 2].map((n) => found.reduce((s, v) => s + split(v)[n], 0) / found.length);
        let best = found[0];
        let least = Infinity;
        for (const v of found) { /* the voxel of the structure next to its centre */
          const distance = split(v).reduce((s, p, n) => s + (p - mean[n]) ** 2, 0);
          if (distance < least) { least = distance; best = v; }
        }
        split(best).forEach((p, n) => { cross[n] = p; });
        overlay = 'structure';
        if (!chosen) opacity.value = 50;
        choices.forEach((box) => { box.checked = box.value === overlay; });
        draw();
        document.getElementById('explore').scrollIntoView();
      });
    }
    const widths = [nx, nx, ny].map((n) => `minmax(0,${n}fr)`).join(' ');
    viewer.querySelector('.panes').style.setProperty('--columns', widths);
    document.getElementById('viewer-wait').remove();
    viewer.hidden = false;
    draw();
  };
  start().catch((error) => {
    document.getElementById('viewer-wait')?.remove();
    holder.insertAdjacentHTML('beforebegin', '<p class="notice">This browser cannot show the viewer; all figures below work.</p>');
    console.warn('viewer', error);
  });
})();
