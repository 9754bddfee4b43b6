// The values behind a plot: where the pointer is, or, with the arrow keys, from point to point.
"use strict";

(() => {
  const number = (value) => {
    if (value === null) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  };

  class Plot {
    constructor(figure, data) {
      this.figure = figure;
      this.data = data;
      this.drawn = figure.querySelector(".drawn");
      this.svg = this.drawn.querySelector("svg");
      this.at = null;
      if (!this.svg) return;

      this.drawn.addEventListener("pointermove", (event) => this.point(event));
      this.drawn.addEventListener("pointerleave", () => this.clear());
      figure.addEventListener("blur", () => this.clear());
      figure.addEventListener("keydown", (event) => this.key(event));
    }

    // Pixels of the page for a place in the units of the SVG's viewBox.
    pixels(x, y) {
      const view = this.svg.viewBox.baseVal;
      const size = this.svg.getBoundingClientRect();
      return [(x * size.width) / view.width, (y * size.height) / view.height];
    }

    // Where the pointer is inside the axes, from 0 to 1 to the right and downwards.
    shares(event) {
      const size = this.svg.getBoundingClientRect();
      const view = this.svg.viewBox.baseVal;
      const [left, top, width, height] = this.data.box;
      const x = ((event.clientX - size.left) * view.width) / size.width;
      const y = ((event.clientY - size.top) * view.height) / size.height;
      return [(x - left) / width, (y - top) / height];
    }

    place(shareX, shareY) {
      const [left, top, width, height] = this.data.box;
      return this.pixels(left + shareX * width, top + shareY * height);
    }

    // The share of a value between the ends of an axis.
    along(axis, value) {
      const [low, high] = this.data[axis];
      return (value - low) / (high - low);
    }

    point(event) {
      const [x, y] = this.shares(event);
      if (x < -0.02 || x > 1.02 || y < -0.02 || y > 1.02) this.clear();
      else if (this.data.kind === "matrix") this.cell(x, y);
      else if (this.data.kind === "points") this.nearest(x, y);
      else this.column(this.closest(this.data.x[0] + x * (this.data.x[1] - this.data.x[0])));
    }

    key(event) {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") this.clear();
      if (!step || this.data.kind === "matrix") return;
      event.preventDefault();
      if (this.data.kind === "points") {
        const count = this.data.series[0].x.length;
        this.at = this.at === null ? 0 : Math.min(count - 1, Math.max(0, this.at + step));
        this.mark(this.data.series[0], this.at);
        return;
      }
      const places = this.places();
      const next = this.at === null ? 0 : places.indexOf(this.at) + step;
      this.column(places[Math.min(places.length - 1, Math.max(0, next))]);
    }

    places() {
      return [...new Set(this.data.series.flatMap((series) => series.x))].sort((a, b) => a - b);
    }

    closest(wanted) {
      return this.places().reduce((best, x) => (Math.abs(x - wanted) < Math.abs(best - wanted) ? x : best));
    }

    column(x) {
      this.at = x;
      const name = this.data.labels ? this.data.labels[x] : number(x);
      const lines = [`${this.data.xlabel} ${name}`];
      for (const series of this.data.series) {
        const i = series.x.indexOf(x);
        if (i >= 0) lines.push(`${series.name}: ${number(series.y[i])}`);
      }
      const [left, top] = this.place(this.along("x", x), 0);
      const [, bottom] = this.place(0, 1);
      this.show(lines.join("\n"), left, top);
      this.hair.hidden = false;
      this.hair.style.cssText = `left:${left}px;top:${top}px;height:${bottom - top}px`;
    }

    cell(x, y) {
      const rows = this.data.values;
      const row = Math.min(rows.length - 1, Math.max(0, Math.floor(y * rows.length)));
      const column = Math.min(rows[0].length - 1, Math.max(0, Math.floor(x * rows[0].length)));
      const text = `${this.data.rows} ${row}, ${this.data.columns} ${column}: ${number(rows[row][column])}`;
      this.show(text, ...this.place((column + 0.5) / rows[0].length, (row + 0.5) / rows.length));
      this.ring();
    }

    nearest(x, y) {
      let best = null;
      for (const series of this.data.series) {
        series.x.forEach((value, i) => {
          const far = (this.along("x", value) - x) ** 2 + (1 - this.along("y", series.y[i]) - y) ** 2;
          if (best === null || far < best.far) best = { series, i, far };
        });
      }
      if (best) this.mark(best.series, best.i);
    }

    mark(series, i) {
      this.show(
        `${series.name}: ${series.labels[i]}`,
        ...this.place(this.along("x", series.x[i]), 1 - this.along("y", series.y[i])),
      );
      this.ring();
    }

    ring() {
      this.dot.hidden = false;
      this.dot.style.cssText = `left:${this.left}px;top:${this.top}px`;
    }

    show(text, left, top) {
      if (!this.values) {
        [this.hair, this.dot, this.values] = ["hair", "dot", "values"].map((name) => {
          const element = document.createElement("div");
          element.className = name;
          this.drawn.append(element);
          return element;
        });
        this.values.setAttribute("role", "status");
      }
      this.hair.hidden = this.dot.hidden = true;
      this.values.hidden = false;
      this.values.textContent = text;
      [this.left, this.top] = [left, top];

      // Beside the place, on the side that has more room.
      const onTheRight = left < this.drawn.clientWidth / 2;
      const offset = onTheRight ? left + 12 : left - 12 - this.values.offsetWidth;
      this.values.style.left = `${Math.max(0, Math.min(offset, this.drawn.clientWidth - this.values.offsetWidth))}px`;
      this.values.style.top = `${Math.max(0, Math.min(top + 8, this.drawn.clientHeight - this.values.offsetHeight))}px`;
    }

    clear() {
      this.at = null;
      for (const element of [this.hair, this.dot, this.values]) if (element) element.hidden = true;
    }
  }

  for (const figure of document.querySelectorAll("figure")) {
    const data = figure.querySelector("script[type='application/json']");
    if (data) new Plot(figure, JSON.parse(data.textContent));
  }
})();
