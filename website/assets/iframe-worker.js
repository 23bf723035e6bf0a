// Search in pages that are opened from disk: browsers allow no worker there, so its script runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.title = "search"
      this.ready = new Promise(resolve => { this.frame.onload = resolve })
      window.addEventListener("message", event => {
        if (event.source === this.frame.contentWindow)
          this.dispatchEvent(new MessageEvent("message", { data: event.data }))
      })
      this.frame.srcdoc = `<script>postMessage = data => parent.postMessage(data, "*")
        importScripts = (...urls) => Promise.all(urls.map(url => new Promise(resolve => {
          const script = document.createElement("script")
          script.src = url
          script.onload = resolve
          document.head.append(script)
        })))</script><script src="${url}"></script>`
      document.body ? document.body.append(this.frame)
        : addEventListener("DOMContentLoaded", () => document.body.append(this.frame))
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() { this.frame.remove() }
  }
}
