// importance: which parameters had to do with the metric, and how sure that is
const im = { stamp:'', have:null, mode:'' }
const imBox = el('div','stage'), imInfo = el('span','sub'), imMode = el('span','seg')
for (const m of ['min','max']) { const b = button(m,'',() => { im.mode = m; link(); views.show() },'whether the least or the greatest is best'); b.dataset.mode = m; imMode.append(b) }
views.add({name:'importance', title:'Importance', show:paintImportance}).append(el('div','bar tools', scopeTool(), aimTool(), labelled('best is', imMode), imInfo), imBox)
keep('mode', () => im.mode, v => { im.mode = v == 'min' || v == 'max' ? v : '' })

async function paintImportance() {
  showScope(); showAims()
  const runs = scoped().filter(r => r.has.has(aim())), mode = im.mode || best(aim()), stamp = JSON.stringify([aim(), mode, runs.map(r => [r.id, r.state])])
  for (const b of imMode.children) b.setAttribute('aria-pressed', b.dataset.mode == mode)
  if (!runs.length) { im.stamp = ''; imInfo.textContent = ''; return imBox.replaceChildren(empty('Nothing to weigh', shown.length ? 'None of these runs has logged '+(aim() || 'a number')+'.' : 'No run is listed.')) }
  if (stamp == im.stamp) return
  im.stamp = stamp; imInfo.textContent = ''; imBox.replaceChildren(empty('Weighing '+many(runs.length,'run')+' …', 'This takes a moment.'))
  try {
    const answer = await ask('api/importance', {metric:aim(), runs:runs.map(r => r.id), mode})
    if (im.stamp == stamp) bars(answer)
  } catch (e) { if (im.stamp == stamp) { im.stamp = ''; imInfo.textContent = ''; imBox.replaceChildren(empty('This cannot be told', e.message)) } }
}
function bars(answer) {
  imInfo.textContent = many(answer.runs,'run')
  if (!answer.rows.length) return imBox.replaceChildren(empty('Too little to say', 'Parameters must differ between runs, and there must be enough runs that have them.'))
  const most = Math.max(...answer.rows.map(o => o[3]), 1e-9), per = v => (100*Math.min(1, Math.max(0, v/Math.max(1,most)))).toFixed(2)+'%'
  const row = ([param,much,low,high,corr,n]) => {
    const bar = el('i','bar-fill'), whisker = el('i','whisker'), unsure = low <= 0.001
    bar.style.width = per(much); whisker.style.left = per(low); whisker.style.width = `calc(${per(high)} - ${per(low)})`
    const e = make('button', {cls:'bar-row'+(unsure ? ' unsure' : ''), onclick:() => { sc.x = 'c:'+param; sc.y = 's:'+answer.metric; views.go('scatter', true) }, title:param+': click to see it as a scatter'},
      el('span','bar-name',param), el('span','bar-line', bar, whisker), el('span','bar-value',much.toFixed(2)), el('span','bar-way', way(corr, answer.metric)), el('span','sub', n+''))
    return e
  }
  imBox.replaceChildren(el('div','bars', el('div','bar-row head', el('span','','parameter'), el('span','','importance, with its 90% interval'), el('span','bar-value',''), el('span','','trend'), el('span','','runs')), ...answer.rows.map(row)),
    el('p','sub note','A pale bar may be chance: its interval reaches zero. What is important here may still be so because of another parameter that changed with it; click a bar to see the runs themselves.'))
  imBox.dataset.drawn = answer.rows.length
}
function way(corr, metric) { // in words and as a sign
  if (corr === null || corr === undefined) return 'by kind'
  const r = (corr > 0 ? '+' : '−')+Math.abs(corr).toFixed(2)
  return Math.abs(corr) < .1 ? 'no trend '+r : (corr > 0 ? '↗ ' : '↘ ')+r
}
