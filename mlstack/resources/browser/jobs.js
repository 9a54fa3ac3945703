// jobs: who has what and who waits, what ran when, schedules, notebooks that have run; and one job with its log
{ // a scope of its own
const J = { d:null, stamp:'', id:'', timer:null, span:0, most:40, cards:8, open:null }
const jobsBox = el('div','shelf jobs'), jobsView = {name:'jobs', title:'Jobs', show:showJobs, hide:() => { wideView(false); clearTimeout(J.timer); J.stamp = '' }}
views.add(jobsView).append(jobsBox)
const onJobs = () => views.now == jobsView
keep('job', () => onJobs() ? J.id : '', v => { if (v == J.id) return; J.id = v; if (onJobs()) showJobs(true) })
function showJobs(anew) { wideView(true); if (anew !== true && J.timer && J.stamp) return; clearTimeout(J.timer); J.stamp = ''; J.id ? openJob(J.id) : closeJob(); pollJobs() }
function goJob(id) { J.id = id || ''; link(true); J.stamp = ''; $('views').scrollTop = 0; showJobs(true) }
async function pollJobs() {
  clearTimeout(J.timer)
  try {
    const d = J.id ? await readJob() : await get('api/jobs', {stamp:J.stamp}); if (!onJobs()) return
    if (!J.id && d && !d.same) { J.d = d; J.now = Date.now()/1000-d.now; J.stamp = d.stamp; if (!jobsBox.querySelector('.confirm')) paintJobs(d) }
    jobsBox.querySelector('.away')?.remove()
  } catch (e) { if (!jobsBox.querySelector('.away')) jobsBox.prepend(el('div','banner bad away', e.status ? e.message : 'not connected')); J.stamp = '' }
  for (const e of jobsBox.querySelectorAll('.clock')) e.tick()
  if (onJobs()) J.timer = setTimeout(pollJobs, document.hidden ? 10000 : J.id && J.open?.live ? 1000 : 2000)
}
const clock = fn => { const e = el('span','clock'); e.tick = () => { e.textContent = fn(Date.now()/1000-(J.now || 0)) }; e.tick(); return e }
const stateOf = s => el('span','state '+s, s)
const lasted = r => r.began ? clock(now => span(Math.max(0, Math.round((r.ended || (r.state == 'running' ? now : r.began))-r.began)))) : el('span','','')
const jobLink = (r, text) => r.own ? press(text, () => goJob(r.id), 'link') : el('span','sub',text)
const named = r => (r.name || 'a job')+(r.count ? ' ['+r.index+']' : '')

// the list
function paintJobs(d) {
  const live = d.jobs.filter(r => r.state == 'running' || r.state == 'waiting'), done = d.jobs.filter(r => !live.includes(r)).sort((a,b) => (b.ended || 0)-(a.ended || 0)), order = {running:0, waiting:1}
  live.sort((a,b) => order[a.state]-order[b.state] || (a.expect || 1e12)-(b.expect || 1e12) || (a.submitted || 0)-(b.submitted || 0))
  const books = done.filter(r => r.kind == 'notebook')
  if (!d.jobs.length && !d.schedules.length) return jobsBox.replaceChildren(...amissOf(d), machinePanel(d), empty('No jobs yet', 'What is submitted is listed here, with its log, until you delete it.', el('pre','mono','from mlstack.resources import submit\nsubmit(train, config, gpus=1, time="4h")\nsubmit("train.ipynb", params=dict(lr=1e-3))')))
  jobsBox.replaceChildren(...amissOf(d), machinePanel(d), ...some(timeline(d)), liveTable(live), ...some(d.schedules.length && scheduleTable(d)), ...some(books.length && gallery(books)), ...some(done.length && doneTable(done)))
}
const some = e => e ? [e] : []
const amissOf = d => d.amiss.length ? [el('div','banner warn', ...d.amiss.slice(0,5).map(t => el('div','',t)))] : []
const part = (title, about, ...kids) => el('section','', el('h2','shelf-title', title, about ? el('span','sub',about) : null), ...kids)
const meter = (title, share, text) => { const fill = el('i'); fill.style.width = Math.round(100*share)+'%'; const e = el('div','meter', el('div','', el('b','',title), el('span','sub',text)), el('div','meter-line',fill)); return e }
function machinePanel(d) {
  const m = d.machine, G = 2**30, gb = n => +(n/G).toPrecision(3)+' GiB'
  return el('div','meters', meter(m.host, m.cores ? m.cores_used/m.cores : 0, m.cores_used+' of '+many(m.cores,'core')+' held'), meter('memory', m.memory ? m.memory_used/m.memory : 0, gb(m.memory_used)+' of '+gb(m.memory)),
    ...m.gpus.map((g,i) => meter('GPU '+i, g.used, (g.used ? Math.round(100*g.used)+'% of ' : '')+gb(g.bytes)+(g.used ? '' : ', free'))))
}
function liveTable(rows) {
  const n = s => rows.filter(r => r.state == s).length
  if (!rows.length) return part('Queue', 'nothing runs, nothing waits')
  const first = rows.slice(0,300)
  const p = part('Queue', n('running')+' running, '+n('waiting')+' waiting', dataTable(['','job','who','asks for','why, or where','time',''], first.map(r => {
    const when = r.state == 'running' ? el('span','', lasted(r), r.left != null ? clock(now => { const s = (J.d.now+r.left)-now; return ' · '+(s > 0 ? age(s)+' left' : 'its time is over') }) : null) : r.expect ? clock(now => 'in about '+age(Math.max(0, r.expect-now))) : el('span','', '')
    const where = r.state == 'running' ? [r.why, r.gpus.length ? many(r.gpus.length,'GPU') : '', r.on == 'local' ? '' : r.on, r.where].filter(Boolean).join(' · ') : (r.on == 'local' ? '' : r.on+': ')+r.why
    const stop = r.own ? el('span','') : null; if (stop) { const b = press('cancel', () => confirmIn(b, '', 'cancel it', () => act1('api/job/cancel', {id:r.id})), 'link'); stop.append(b) }
    return el('tr','', el('td','', stateOf(r.state)), el('td','who-job', jobLink(r, named(r)), el('div','sub', r.own ? [r.kind == 'notebook' ? r.notebook : r.kind, r.tries > 1 ? 'attempt '+r.tries : ''].filter(Boolean).join(' · ') : '')), el('td','',r.user || ''), el('td','',r.what), el('td','why',where), el('td','nowrap',when), el('td','',stop)) })),
    rows.length > first.length ? el('p','sub pad','… and '+(rows.length-first.length)+' more') : null)
  p.className = 'queue'; return p
}
async function act1(path, body) { try { await ask(path, body) } catch (e) { toast(e.message) } J.stamp = ''; pollJobs() }
function doneTable(rows) {
  const shown = rows.slice(0,J.most), more = press('more', () => { J.most += 100; paintJobs(J.d) })
  return part('Over', many(rows.length,'job'), dataTable(['','job','asked for','reason','took','ended'], shown.map(r => el('tr','', el('td','', stateOf(r.state)), el('td','who-job', jobLink(r, named(r)), el('div','sub', r.kind == 'notebook' ? r.notebook : r.kind)), el('td','',r.what), el('td','why',r.state == 'finished' ? '' : r.why), el('td','nowrap',lasted(r)), el('td','nowrap', r.ended ? since(r.ended) : '')))), rows.length > shown.length ? more : null)
}
function scheduleTable(d) {
  const row = s => {
    const doit = what => act1('api/schedule', {id:s.id, do:what}), b = press('delete', () => confirmIn(b, 'Delete this schedule? Its jobs stay.', 'delete', () => doit('delete')), 'link danger')
    const remark = s.trouble ? el('span','error','could not be started: '+s.trouble) : s.skipped ? el('span','sub','left out once, '+date(s.skipped.at)+': the one before still ran') : null
    return el('tr','', el('td','who-job', el('b','',s.name), el('div','sub', s.notebook || s.kind || '')), el('td','mono',s.expr+(s.zone ? ' '+s.zone : '')), el('td','nowrap', s.paused ? el('span','state','paused') : s.next ? clock(now => s.next > now ? 'in '+age(s.next-now) : 'now') : ''), el('td','number',String(s.fired)), el('td','', s.previous ? press('last', () => goJob(s.previous), 'link') : '', remark),
      el('td','nowrap', press(s.paused ? 'resume' : 'pause', () => doit(s.paused ? 'resume' : 'pause'), 'link'), ' · ', b)) }
  return part('Schedules', '', dataTable(['name','when','next','#started','',''], d.schedules.map(row)))
}
function gallery(rows) {
  const card = r => { const e = el('button','book', el('div','book-head', el('b','',named(r)), stateOf(r.state)), el('div','sub', r.notebook+' · '+(r.ended ? age(Math.max(0, Date.now()/1000-r.ended))+' ago' : '')), paramsOf(r.params), r.state == 'finished' || !r.why ? null : el('div','error', r.why.split('\n')[0])); e.onclick = () => goJob(r.id); return e }
  return part('Notebooks', many(rows.length,'run'), el('div','books', ...rows.slice(0,J.cards).map(card)), rows.length > J.cards ? press('more', () => { J.cards += 24; paintJobs(J.d) }) : null)
}
const paramsOf = p => { const keys = Object.keys(p); return el('dl','kv', ...keys.slice(0,5).flatMap(k => [el('dt','',k), el('dd','',said(p[k]))]), ...(keys.length > 5 ? [el('dt','','…'), el('dd','','')] : [])) }

// what ran when: a lane for each GPU, and as many as are needed for what needs none
function timeline(d) {
  const now = d.now, all = d.jobs.flatMap(r => (r.spans || []).map(s => ({...s, r, to:s.ended || (r.state == 'running' ? now : s.began)}))).filter(s => s.to > now-30*86400)
  if (!all.length) return null
  const from = J.span ? now-J.span : Math.min(now-600, Math.max(now-7*86400, all.reduce((a,s) => Math.min(a,s.began), now))), shown = all.filter(s => s.to > from), lanes = lanesOf(d, shown), at = t => 100*(Math.max(from,t)-from)/(now-from)
  const seg = el('span','seg', ...[['all',0],['1 h',3600],['1 d',86400],['7 d',7*86400]].map(([text,s]) => { const b = press(text, () => { J.span = s; paintJobs(J.d) }, ''); b.setAttribute('aria-pressed', J.span == s); return b }))
  const bar = s => { const b = el('button','span '+(s.r.state == 'failed' || s.r.state == 'lost' ? 'bad' : s.state == 'running' ? 'live' : ''), s.r.name); b.style.left = at(s.began)+'%'; b.style.width = Math.max(.3, at(s.to)-at(s.began))+'%'; b.style.setProperty('--tint', colours[[...s.r.name].reduce((a,c) => (a*31+c.charCodeAt(0))>>>0, 7)%colours.length])
    b.setAttribute('aria-label', s.r.name+', '+s.r.state); b.onmousemove = e => say(e.clientX, e.clientY, el('b','',named(s.r)), el('div','sub', (s.state || '')+' · '+date(s.began)+' · '+span(Math.round(s.to-s.began))), el('div','sub', s.gpus.length ? many(s.gpus.length,'GPU') : s.cores ? many(s.cores,'core') : '')); b.onmouseleave = hush; b.onclick = () => { hush(); goJob(s.r.id) }; return b }
  const rows = lanes.slice(0,28).map(l => { const e = el('div','lane', el('span','lane-name',l.name), el('div','lane-line', ...l.spans.map(bar))); e.title = l.title || ''; return e })
  const ticks = el('div','lane axis', el('span','lane-name',''), el('div','lane-line', ...ticksOf(from, now).map(([t,text]) => { const e = el('span','tick',text); e.style.left = at(t)+'%'; return e })))
  const p = part('What ran when', '', el('div','card times', usage(d, shown, from, now), ...rows, ticks)); p.querySelector('h2').append(el('span','gap'), seg); return p
}
function lanesOf(d, spans) {
  const here = d.machine.host, gpus = new Map(d.machine.gpus.map((g,i) => [here+' '+g.id, {name:'GPU '+i, title:g.id, spans:[]}])), free = []
  for (const s of [...spans].sort((a,b) => a.began-b.began)) {
    for (const g of s.gpus) { const key = s.host+' '+g; if (!gpus.has(key)) gpus.set(key, {name:(s.host == here ? '' : brief(s.host,9)+' ')+brief(g.replace(/^(GPU|MIG)-/,''),8), title:key, spans:[]}); gpus.get(key).spans.push(s) }
    if (s.gpus.length) continue
    let lane = free.find(l => l.until <= s.began && l.host == s.host); if (!lane) free.push(lane = {name:free.some(l => l.host == s.host) ? '' : brief(s.host || 'no GPU', 14), title:s.host, host:s.host, spans:[], until:0})
    lane.spans.push(s); lane.until = s.to
  }
  return [...gpus.values(), ...free]
}
function usage(d, spans, from, now) { // how many at once, as steps
  const byGpu = d.machine.gpus.length || spans.some(s => s.gpus.length), changes = spans.flatMap(s => { const n = byGpu ? s.gpus.length : 1; return n ? [[Math.max(from,s.began),n],[s.to,-n]] : [] }).sort((a,b) => a[0]-b[0] || a[1]-b[1])
  let n = 0, most = Math.max(1, d.machine.gpus.length); const steps = [[from,0]]
  for (const [t,by] of changes) { steps.push([t,n]); n += by; steps.push([t,n]); most = Math.max(most,n) }
  steps.push([now,n]); const x = t => +(1000*(t-from)/(now-from)).toFixed(2), y = n => +(46-44*n/most).toFixed(2)
  const e = svg('svg', {viewBox:'0 0 1000 48', preserveAspectRatio:'none', class:'usage', role:'img', 'aria-label':(byGpu ? 'GPUs in use' : 'jobs running')+' over time'}, svg('path', {class:'area', d:'M0,46 '+steps.map(([t,n]) => 'L'+x(t)+','+y(n)).join(' ')+' L1000,46 Z'}), svg('path', {class:'edge-line', d:'M'+steps.map(([t,n]) => x(t)+','+y(n)).join(' L')}))
  return el('div','lane tall', el('span','lane-name', (byGpu ? 'GPUs' : 'jobs')+' ('+most+')'), el('div','lane-line',e))
}
function ticksOf(from, to) {
  const step = [60,300,600,1800,3600,3*3600,6*3600,12*3600,86400,2*86400,7*86400].find(s => (to-from)/s <= (innerWidth < 600 ? 4 : 8)) || 7*86400, shift = new Date(from*1000).getTimezoneOffset()*60, out = []
  for (let t = Math.ceil((from-shift)/step)*step+shift; t <= to; t += step) { const s = date(t); out.push([t, step >= 86400 ? s.slice(5,10) : s.slice(11)]) }
  return out.filter(([t]) => (t-from)/(to-from) < .96)
}

// one job
function closeJob() { J.open = null; if (J.d) paintJobs(J.d); else jobsBox.replaceChildren(el('p','sub pad','…')) }
function openJob(id) {
  J.open = {id, at:-1, raw:'', live:true, stamp:'', log:el('pre','joblog mono'), head:el('div'), rest:el('div','panels'), book:el('div'), form:el('div')}
  const o = J.open; o.log.tabIndex = 0; o.log.setAttribute('aria-label','log'); o.logPart = part('Log', '', o.log); o.logPart.hidden = true
  jobsBox.replaceChildren(o.head, o.form, o.rest, o.logPart, o.book)
}
async function readJob() {
  const o = J.open, id = J.id; if (o?.id != id) return
  let r; try { r = await get('api/job', {id}) } catch (e) { if (e.status == 404) o.live = false; throw e }
  if (J.open != o) return
  const stamp = JSON.stringify({...r, left:0}); if (stamp != o.stamp && !jobsBox.querySelector('.confirm')) { o.stamp = stamp; paintJob(o, r) }
  const got = await get('api/job/log', {id, at:o.at}); if (J.open != o) return
  if (o.at < 0 || got.at != o.at) o.raw = got.at ? '… '+got.at.toLocaleString('en')+' bytes before\n' : ''
  o.at = got.next; o.live = r.state == 'running' || r.state == 'waiting'
  if (got.text) { const low = o.log.scrollTop+o.log.clientHeight >= o.log.scrollHeight-24 || !o.raw; o.raw = (o.raw+got.text).replace(/[^\n]*\r(?=[^\n])/g,'').slice(-400000); o.log.textContent = o.raw; o.logPart.hidden = false; if (low) o.log.scrollTop = o.log.scrollHeight }
}
function paintJob(o, r) {
  const live = r.state == 'running' || r.state == 'waiting', stop = live && press('cancel', () => confirmIn(stop, 'Cancel this job?', 'cancel it', () => act1('api/job/cancel', {id:r.id})), 'solid danger')
  const gone = !live && press('delete', () => confirmIn(gone, 'Delete its folder? Its run stays.', 'delete', async () => { try { await ask('api/job/delete', {id:r.id}); goJob('') } catch (e) { toast(e.message) } }), 'link danger')
  const again = press('start again …', () => againForm(o, r), 'solid'), run = S.runs.has(r.run) ? press('its run', () => openRun(r.run), 'link') : null
  o.head.replaceChildren(el('div','jobhead', press('‹ jobs', () => goJob(''), 'back'), el('div','onetitle', el('div','', el('h1','',named(r)), stateOf(r.state)), el('div','sub', r.id+' · '+r.on+(r.where ? ' · '+r.where : '')+' · ', lasted(r), r.left ? ' · '+age(r.left)+' left' : '')), el('span','jobdo', run, again, stop || null, gone || null)),
    ...(r.why && r.state != 'finished' ? [el('div','banner '+(r.state == 'failed' || r.state == 'lost' ? 'bad' : 'warn'), r.why, r.expect ? clock(now => ' · starts in about '+age(Math.max(0,r.expect-now))) : null)] : []))
  const what = {kind:r.kind, command:r.command.join(' '), notebook:r.path, 'asks for':r.what, submitted:r.submitted ? date(r.submitted) : '', ...r.facts, folder:r.folder}
  const whys = r.tries.some(t => t.reason), cells = t => [el('td','number',String(t.n ?? '')), el('td','',stateOf(t.state || 'lost')), ...(whys ? [el('td','reason', t.reason || '')] : []), el('td','nowrap', t.began ? date(t.began).slice(5) : ''), el('td','nowrap', t.began && t.ended ? span(Math.round(t.ended-t.began)) : ''), el('td','nowrap', t.usage?.cpu != null ? span(t.usage.cpu) : '')]
  const tries = r.tries.length ? panel('Attempts', dataTable(['','',...(whys ? ['reason'] : []),'began','took','CPU'], r.tries.map(t => el('tr','', ...cells(t))))) : null
  o.rest.replaceChildren(...[panel('Job', facts(what, 99)), Object.keys(r.params).length ? panel('Parameters', facts(r.params)) : null, tries, r.traceback ? panel('Error', el('pre','patch', r.traceback)) : null].filter(Boolean))
  for (const e of o.rest.children) e.classList.toggle('broad', e == tries || e.firstChild.textContent == 'Error')
  if (r.kind == 'notebook') { const key = [r.output, live ? Math.floor(Date.now()/15000) : r.state].join(); if (o.bookKey != key) { o.bookKey = key; notebookFrame(o, r) } }
}
function notebookFrame(o, r) { // a page without scripts, in an origin of its own; the server says so once more
  const frame = o.frame || el('iframe','page tall'); o.frame = frame; frame.setAttribute('sandbox',''); frame.title = 'the notebook'; frame.src = 'api/job/notebook?'+new URLSearchParams({id:r.id, t:Date.now()})+(r.state == 'failed' ? '#failed' : '')
  if (!o.book.firstChild) o.book.replaceChildren(part('Notebook', r.output ? '' : 'as it was submitted', frame))
}
function againForm(o, r) {
  const text = v => typeof v == 'string' ? v : JSON.stringify(v), name = make('input', {cls:'field', value:r.name, ariaLabel:'name', maxLength:200}), inputs = Object.entries(r.again).map(([k,v]) => { const long = k == 'command' && r.kind == 'command' || text(v).length > 60; const e = el(long ? 'textarea' : 'input','field mono'); e.value = text(v); e.was = e.value; e.name = k; e.setAttribute('aria-label', k); e.spellcheck = false; if (long) e.rows = 3; return e })
  const wrong = el('div','error'), go = press('start', async () => {
    go.disabled = true; wrong.textContent = ''
    const fields = Object.fromEntries(inputs.filter(e => e.value != e.was).map(e => [e.name, e.value]))
    try { const made = await ask('api/job/again', {id:r.id, fields, ...(name.value != r.name ? {name:name.value} : {})}); toast('submitted'); goJob(made.id) } catch (e) { wrong.textContent = e.message; go.disabled = false }
  }, 'solid main')
  const form = panel('Start it again', el('p','sub pad', r.kind == 'function' ? 'What its run recorded as config. What you change is changed among the arguments of the call.' : r.kind == 'notebook' ? 'The notebook as it was submitted, with other parameters.' : 'A command is split into words as a shell would, and runs without one.'),
    el('div','fields', el('label','', el('span','','name'), name), ...inputs.map(e => el('label','', el('span','',e.name), e))), wrong, el('div','formdo', go, press('close', () => o.form.replaceChildren(), 'link')))
  form.onkeydown = e => e.stopPropagation(); o.form.replaceChildren(form); (inputs[0] || name).focus()
}
}
