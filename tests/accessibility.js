// Findings of one page that a visitor who cannot see it, or cannot use a mouse, would meet; an empty list is a pass.
// The rules are WCAG 2.1 A and AA ones: 1.1.1, 1.3.1, 1.4.3, 2.1.1, 3.1.1, 4.1.2.
() => {
  const found = [];
  const say = (rule, node) => found.push(`${rule}: ${(node.outerHTML || "").slice(0, 160)}`);
  const shown = (node) => {
    const box = node.getBoundingClientRect(), style = getComputedStyle(node);
    return box.width > 1 && box.height > 1 && style.visibility === "visible" && style.opacity !== "0" &&
      !node.closest("[aria-hidden=true], [inert]");
  };
  const named = (node) => {
    const by = (node.getAttribute("aria-labelledby") || "").split(/\s+/).map((id) => document.getElementById(id)?.textContent || "").join("");
    const label = node.labels && [...node.labels].map((one) => one.textContent).join("");
    return [node.getAttribute("aria-label"), by, label, node.textContent, node.title, node.placeholder, node.alt].some((text) => text && text.trim());
  };
  if (!document.documentElement.lang) say("html-lang", document.documentElement);
  if (!document.title.trim()) say("document-title", document.head);
  for (const node of document.querySelectorAll("button, a[href], input:not([type=hidden]), select, textarea, [role=button], [role=tab], [role=combobox], [role=checkbox]"))
    if (shown(node) && !named(node)) say("name", node);
  for (const node of document.querySelectorAll("[tabindex]")) if (node.tabIndex > 0) say("tabindex", node);
  for (const node of document.querySelectorAll("img")) if (shown(node) && !node.hasAttribute("alt")) say("image-alt", node);
  for (const node of document.querySelectorAll("[data-testid=stVegaLiteChart]"))
    if (shown(node) && ![node, ...node.querySelectorAll("[aria-label], [role=img]")].some((one) => (one.getAttribute("aria-label") || "").length > 20)) say("chart-alt", node);
  for (const node of document.querySelectorAll("[data-testid=stMain] table"))
    if (shown(node)) {
      if (!node.getAttribute("aria-label") && !node.caption) say("table-name", node);
      if ([...node.querySelectorAll("th")].some((one) => !one.scope)) say("th-scope", node);
    }
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  for (const id of new Set(ids)) if (ids.filter((one) => one === id).length > 1 && document.querySelector(`[aria-labelledby~="${CSS.escape(id)}"], label[for="${CSS.escape(id)}"]`)) say(`duplicate-id ${id}`, document.getElementById(id));
  let level = 0;
  for (const node of document.querySelectorAll("[data-testid=stMain] :is(h1, h2, h3, h4, h5, h6)")) {
    if (!shown(node)) continue;
    const next = Number(node.tagName[1]);
    if (level && next > level + 1) say("heading-order", node);
    level = next;
  }
  // contrast of text against the nearest opaque background
  const parse = (colour) => (colour.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const over = (top, below) => { const a = top.length > 3 ? top[3] : 1; return [0, 1, 2].map((i) => top[i] * a + below[i] * (1 - a)); };
  const background = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      layers.push(colour);
      if (colour.length < 4 || colour[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const luminance = (rgb) => rgb.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const walker = document.createTreeWalker(document.querySelector("[data-testid=stMain]"), NodeFilter.SHOW_TEXT);
  const low = new Map();
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !shown(node) || node.closest("svg, canvas, [disabled], [aria-disabled=true]")) continue;
    const style = getComputedStyle(node), ground = background(node);
    let alpha = 1;
    for (let at = node; at; at = at.parentElement) alpha *= Number(getComputedStyle(at).opacity);
    const colour = parse(style.color);
    const ink = over([...colour.slice(0, 3), (colour[3] ?? 1) * alpha], ground);
    const [light, dark] = [luminance(ink), luminance(ground)].sort((a, b) => b - a);
    const ratio = (light + 0.05) / (dark + 0.05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) low.set(`${style.color} on ${ground.map(Math.round)}`, [ratio, node]);
  }
  for (const [pair, [ratio, node]] of low) say(`contrast ${ratio.toFixed(2)} ${pair}`, node);
  return found;
}
