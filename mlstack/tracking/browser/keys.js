// the keyboard
const keys = [['/','write a filter'], ['j  k  ↓  ↑','go through the runs'], ['space','show or hide the run, or the group'], ['enter','open the run, fold the group'], ['x','show this run only'],
  ['1 … 9','the view with this number'], ['g','group by …'], ['t','light or dark'], ['z','reset zoom'], ['?','this help'], ['esc','close, or leave']]
const syntax = ["lr > 1e-3 and state == 'finished'", "tags.has('baseline') or name.startswith('adam')", "`val/acc` > .9 and model.width in [64, 128]", "config.lr == None"]
const help = document.body.appendChild(make('dialog', {id:'help', onclick:e => { if (e.target == help) help.close() }}, el('div','',
  el('h2','','Keyboard'), el('dl','', ...keys.flatMap(([k,what]) => [el('dt','',...k.split(/ {2}/).map(o => el('kbd','',o))), el('dd','',what)])),
  el('h2','','Filter'), el('p','sub','Names of config and summary and of the run itself: name, project, state, tags, group, created, seconds, host. A name with a slash stands in backquotes.'), ...syntax.map(o => el('pre','mono',o)),
  el('h2','','Charts'), el('p','sub','Drag to zoom: what is in sight is read again in full detail. Double click, or z, goes back. Everything in sight is in the address; copy it to share it.'))))
$('help-open').onclick = () => help.showModal()

function goTo(i) {
  if (!items.length) return
  at = Math.max(0, Math.min(items.length-1, i))
  const list = $('list'), top = at*H
  if (top < list.scrollTop) list.scrollTop = top
  else if (top+H > list.scrollTop+list.clientHeight) list.scrollTop = top+H-list.clientHeight
  paintRows(); views.now?.reach?.(at)
  const o = items[at]; focus(o.runs ? null : o.id, o.runs ? o.key : undefined)
}
function act(open) {
  const o = items[at]; if (!o) return
  if (open) o.runs ? fold(o.key) : openRun(o.id)
  else o.runs ? toggleGroup(o.key) : toggle(o.id)
}
const does = { '/': () => $('query').focus(), j: () => goTo(at+1), ArrowDown: () => goTo(at+1), k: () => goTo(at-1), ArrowUp: () => goTo(at-1), ' ': () => act(false), Enter: () => act(true),
  x: () => items[at] && pick((items[at].runs || [items[at]]).map(r => r.id)), g: () => { $('group').focus(); try { $('group').showPicker() } catch {} }, t: () => $('theme').click(), z: () => reset(), '?': () => help.showModal() }
document.addEventListener('keydown', e => {
  const on = document.activeElement, writing = on?.matches('input:not([type=checkbox],[type=range]), textarea, select, [contenteditable]')
  if (e.key == 'Escape') { if (help.open) return; fullCard() ? unfull() : S.run && !writing ? closeRun() : 0; return on.blur() }
  if (writing || e.ctrlKey || e.metaKey || e.altKey || help.open) return
  if ((e.key == ' ' || e.key == 'Enter') && on?.matches('button, input, a, summary')) return
  if (S.run && !'?t'.includes(e.key)) return // the list is out of sight
  const n = +e.key, fn = does[e.key] || (n && views.all[n-1] && (() => views.go(views.all[n-1].name, true)))
  if (fn) { e.preventDefault(); fn() }
})
