// sweeps: the list of them, and one with its pictures
{ // a scope of its own
const W = { id:'', timer:null, list:null, board:null, head:null, rows:[], cursor:0, epoch:'' }
const sweepsBox = el('div','shelf sweeps'), sweepsView = {name:'sweeps', title:'Sweeps', show:showSweeps, hide:() => { wideView(false); clearTimeout(W.timer); W.timer = null }}
views.add(sweepsView).append(sweepsBox)
const onSweeps = () => views.now == sweepsView
keep('sweep', () => onSweeps() ? W.id : '', v => { if (v == W.id) return; W.id = v; if (onSweeps()) showSweeps(true) })
function showSweeps(anew) { wideView(true); if (anew !== true && W.timer) return W.board?.redraw(); clearTimeout(W.timer); begin(); pollSweeps() }
function goSweep(id) { W.id = id || ''; link(true); $('views').scrollTop = 0; showSweeps(true) }
function begin() { W.board = null; W.rows = []; W.cursor = 0; W.epoch = ''; W.list = ''; sweepsBox.replaceChildren() }
async function pollSweeps() {
  clearTimeout(W.timer); const id = W.id; let live = true
  try {
    const d = id ? await get('api/sweep', {id, cursor:W.cursor, epoch:W.epoch}) : await get('api/sweeps', {}); if (!onSweeps() || id != W.id) return
    id ? takeSweep(d) : paintSweeps(d); live = id ? d.head.state == 'running' : d.sweeps.some(o => o.state == 'running')
    sweepsBox.querySelector('.away')?.remove()
  } catch (e) { if (id == W.id && !sweepsBox.querySelector('.away')) sweepsBox.prepend(el('div','banner bad away', e.status ? e.message : 'not connected')) }
  if (onSweeps() && id == W.id) W.timer = setTimeout(pollSweeps, document.hidden ? 10000 : live ? 1500 : 4000)
}
function takeSweep(d) {
  if (d.epoch != W.epoch) { W.rows = []; W.file = d.head.file }
  for (const o of d.rows) { const t = sweepRow(d.columns, o); W.rows[t.n] = t }
  const same = d.epoch == W.epoch && !d.rows.length && JSON.stringify({...d.head, elapsed:0, eta:0}) == W.said
  W.said = JSON.stringify({...d.head, elapsed:0, eta:0}); W.cursor = d.cursor; W.epoch = d.epoch; W.head = {...d.head, file:W.file}
  if (!W.board) { W.board = sweepBoard({ back:() => goSweep(''), about:n => get('api/sweep/trial', {id:W.id, n}), weigh:() => get('api/sweep/importance', {id:W.id}), run:t => openRun(W.head.project+'/'+t.run) }); sweepsBox.replaceChildren(W.board.box) }
  if (!same || d.head.state == 'running') W.board.update(W.head, W.rows)
}
function paintSweeps(d) {
  const list = JSON.stringify(d.sweeps); if (list == W.list) return; W.list = list
  if (!d.sweeps.length) return sweepsBox.replaceChildren(empty('No sweeps yet', 'A sweep tries hyperparameters; what it tries is shown here while it runs.', el('pre','mono','from mlstack.sweeps import Sweep\nSweep("sweep.yaml").run(train, workers=4)')))
  const row = o => { const tr = el('tr','', el('td','who-job', button(o.name || o.id,'link',() => goSweep(o.id)), el('div','sub', o.name ? o.id : '')), el('td','',o.project), el('td','', el('span','state '+(o.state == 'running' ? 'running' : 'finished'), o.state)), el('td','',o.method), el('td','number', String(o.ended)+(o.total ? ' of '+o.total : '')), el('td','number', o.best === null ? '' : num(o.best)), el('td','',o.metric), el('td','nowrap', since(o.created)))
    tr.onclick = e => { if (!e.target.closest('button')) goSweep(o.id) }; return tr }
  const bad = d.amiss.map(t => el('div','banner warn', t))
  sweepsBox.replaceChildren(...bad, el('section','', el('h2','shelf-title','Sweeps', el('span','sub', many(d.sweeps.length,'sweep'))), dataTable(['sweep','project','','method','#trials','#best','metric','begun'], d.sweeps.map(row))))
  sweepsBox.dataset.drawn = d.sweeps.length
}
}
