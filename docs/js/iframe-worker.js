/* Browsers start no worker from file://. The search of the site then runs in a hidden frame of the same page instead. */
class IFrameWorker extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    frame.srcdoc = "<!doctype html><title>search</title>";
    this.ready = new Promise((resolve, reject) => {
      frame.addEventListener("load", () => {
        const inner = frame.contentWindow;
        inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        const script = inner.document.createElement("script");
        script.addEventListener("load", () => resolve(inner));
        script.addEventListener("error", () => reject(new Error(`cannot load ${url}`)));
        script.src = url;
        inner.document.body.append(script);
      }, { once: true });
    });
    document.documentElement.append(frame);
  }

  postMessage(data) {
    this.ready.then((inner) => inner.dispatchEvent(new inner.MessageEvent("message", { data })));
  }
}

if (location.protocol === "file:") {
  window.IFrameWorker = IFrameWorker; // by this name the search script finds its parent
  window.Worker = IFrameWorker;
}
