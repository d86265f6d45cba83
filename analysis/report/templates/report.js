// Draw each figure from the Vega-Lite specification beside it.
"use strict";

const NARROW = 480; // pixels

async function draw(figure) {
  const element = figure.querySelector(".chart");
  const spec = JSON.parse(figure.querySelector("script").textContent);
  if (element.clientWidth < NARROW) fit(spec.config, element.clientWidth);
  await vegaEmbed(element, spec, {
    actions: false,
    logLevel: 1, // errors only
    defaultStyle: false,
    renderer: "svg",
    tooltip: { disableDefaultStyle: true },
  });
}

// Make labels, titles and legends fit a narrow chart.
function fit(config, width) {
  Object.assign(config.legend, { columns: 3, labelLimit: width / 3 - 30 });
  Object.assign(config.axis, { labelLimit: 0.42 * width, titleFontSize: 12 });
  config.axisX = { titleAnchor: "end" }; // a long title extends to the left, below the row labels
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
