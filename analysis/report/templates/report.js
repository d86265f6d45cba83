// Draw each figure from the Vega-Lite specification beside it.
"use strict";

const NARROW = 480; // pixels
const COLUMNS = 3; // of the legend of a narrow chart

async function draw(figure) {
  const element = figure.querySelector(".chart");
  const spec = JSON.parse(figure.querySelector("script").textContent);
  if (element.clientWidth < NARROW) fit(spec, element.clientWidth);
  await vegaEmbed(element, spec, {
    actions: false,
    logLevel: 1, // errors only
    defaultStyle: false,
    renderer: "svg",
    tooltip: { disableDefaultStyle: true },
  });
}

// Make labels, titles and legends fit a narrow chart.
function fit(spec, width) {
  Object.assign(spec.config.axis, { labelLimit: 0.42 * width, titleFontSize: 12 });
  spec.config.axisX = { titleAnchor: "end" }; // a long title extends to the left, below the row labels
  for (const legend of legends(spec)) {
    legend.columns = Math.min(legend.columns ?? COLUMNS, COLUMNS);
    legend.labelLimit = width / legend.columns - 30;
  }
}

function* legends(value) {
  for (const [key, inner] of Object.entries(value ?? {})) {
    if (typeof inner !== "object" || inner === null) continue;
    if (key === "legend") yield inner;
    else if (key !== "data" && key !== "datasets") yield* legends(inner);
  }
}

async function drawAll() {
  for (const figure of document.querySelectorAll("figure")) {
    try {
      await draw(figure);
    } catch (error) {
      figure.querySelector(".chart").textContent = `This chart cannot be drawn: ${error}`;
      console.error(error);
    }
  }
  document.documentElement.dataset.drawn = "true";
}

// A print shows the folded tables, except the long list of runs.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not(.runs):not([open])")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});

drawAll();
