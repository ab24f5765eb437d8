// Controls without a name, text without contrast, ids that are there twice, and what is wider than the window; in words.
() => {
  const found = [];
  const parse = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const luminance = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(parse(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const shown = (element) => {
    const box = element.getBoundingClientRect();
    return element.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && box.width > 1 && box.height > 1;
  };
  const words = (element) => (element.getAttribute("aria-label") || element.textContent || "").trim();
  for (const one of document.querySelectorAll("a[href], button, input, select, textarea, video, canvas, [role=img], dialog")) {
    if (!one.checkVisibility()) continue;
    const labels = [...(one.labels ?? [])].map(words).join("") + (one.getAttribute("aria-label") ?? "");
    const own = /^(A|BUTTON)$/.test(one.tagName) ? words(one) : "";
    if (!(labels + own).trim()) found.push(`no name: ${one.outerHTML.slice(0, 120)}`);
    if (one.getAttribute("aria-describedby") && !document.getElementById(one.getAttribute("aria-describedby")))
      found.push(`no help: ${one.outerHTML.slice(0, 120)}`);
  }
  for (const one of document.querySelectorAll("img")) if (one.getAttribute("alt") === null) found.push(`no alt: ${one.src}`);
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push(`twice: #${id}`);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.nodeValue.trim() || !shown(one) || one.closest(":disabled, .disabled, option, .picture, .visually-hidden")) continue;
    const back = behind(one);
    const front = over(parse(getComputedStyle(one).color), back);
    const [light, dark] = [luminance(front), luminance(back)].sort((a, b) => b - a);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) found.push(`contrast ${contrast.toFixed(2)}: ${walker.currentNode.nodeValue.trim().slice(0, 60)}`);
  }
  if (document.documentElement.scrollWidth > innerWidth) {
    const wide = [...document.querySelectorAll("body *")].filter((one) => one.getBoundingClientRect().right > innerWidth + 1);
    found.push(`wider than the window: ${wide.slice(0, 3).map((one) => one.className || one.tagName)}`);
  }
  return found;
}
