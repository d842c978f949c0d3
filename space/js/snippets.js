/** Programs for the uses of a model: a tab each, with a button that copies. */

import { announce, el } from './dom.js';

const STEPS = { ArrowRight: 1, ArrowLeft: -1 };

/** @param {any} model */
export function makeSnippets(model) {
  const code = el('code', {});
  const copy = el('button', { type: 'button', class: 'copy', onclick: () => copyText(code, copy) }, 'Copy');
  const panel = el('div', { role: 'tabpanel', id: 'program', tabindex: 0 }, el('pre', {}, code));
  const tabs = model.snippets.map((snippet) => el('button', { type: 'button', role: 'tab', id: `tab-${snippet.id}`, 'aria-controls': 'program', onclick: () => choose(snippet) }, snippet.title));
  const list = el('div', { role: 'tablist', 'aria-labelledby': 'programs' }, ...tabs);
  list.addEventListener('keydown', (event) => {
    if (!(event.key in STEPS)) return;
    const next = (tabs.indexOf(document.activeElement) + STEPS[event.key] + tabs.length) % tabs.length;
    tabs[next].focus();
    tabs[next].click();
  });

  function choose(snippet) {
    code.textContent = snippet.code;
    code.className = snippet.language;
    copy.textContent = 'Copy';
    panel.setAttribute('aria-labelledby', `tab-${snippet.id}`);
    for (const tab of tabs) {
      const chosen = tab.id === `tab-${snippet.id}`;
      tab.setAttribute('aria-selected', String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
    }
  }

  choose(model.snippets[0]);
  return el('div', { class: 'snippets' }, el('div', { class: 'heading' }, list, copy), panel);
}

async function copyText(code, button) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = 'Copied';
    announce('Copied.');
  } catch { // not allowed here, in a frame of another page for example
    getSelection().selectAllChildren(code);
    button.textContent = 'Selected';
    announce('The program is selected: copy it with the keyboard.');
  }
}
