// where things came from and went: a graph from left to right; a node is a run, a version of an artifact, or a version of a model
const svg = (tag, about, ...kids) => { const e = document.createElementNS('http://www.w3.org/2000/svg', tag); for (const k in about) e.setAttribute(k, about[k]); for (const k of kids) if (k != null) e.append(k); return e }
const brief = (text, n) => text.length > n ? text.slice(0,n-1)+'…' : text
function lineageGraph(g) {
  const W = 178, H = 46, gapX = 54, gapY = 14, columns = new Map(), at = new Map()
  for (const n of g.nodes) (columns.get(n.distance) || columns.set(n.distance, []).get(n.distance)).push(n)
  const order = [...columns.keys()].sort((a,b) => a-b), tall = Math.max(...[...columns.values()].map(l => l.length)), height = tall*(H+gapY)-gapY+8
  order.forEach((d,x) => { const list = columns.get(d), top = 4+(tall-list.length)*(H+gapY)/2
    if (x) list.sort((a,b) => mid(a)-mid(b)); list.forEach((n,y) => at.set(n.id, [4+x*(W+gapX), top+y*(H+gapY)])) })
  function mid(n) { const ys = g.edges.filter(e => e.target == n.id && at.has(e.source)).map(e => at.get(e.source)[1]); return ys.length ? ys.reduce((a,b) => a+b)/ys.length : 1e6 }
  const lines = g.edges.filter(e => at.has(e.source) && at.has(e.target)).map(e => { const [x1,y1] = at.get(e.source), [x2,y2] = at.get(e.target), c = gapX*.6
    const d = x1 < x2 ? `M${x1+W},${y1+H/2} C${x1+W+c},${y1+H/2} ${x2-c},${y2+H/2} ${x2},${y2+H/2}` : `M${x1+W/2},${y1+H} C${x1+W/2},${y1+H+gapY+20} ${x2+W/2},${y2+H+gapY+20} ${x2+W/2},${y2+H}`
    return svg('path', {d, class:'edge'}, svg('title', {}, e.how)) })
  const nodes = g.nodes.map(n => { const [x,y] = at.get(n.id), open = nodeOpener(n)
    const box = svg('g', {class:'node '+n.kind+(n.id == g.root ? ' root' : '')+(/trash|deleted|gone|damaged|archived/.test(n.state) ? ' away' : ''), transform:`translate(${x},${y})`, ...(open ? {tabindex:0, role:'link'} : {})},
      svg('title', {}, n.label+'\n'+n.kind+(n.detail ? ', '+n.detail : '')), svg('rect', {width:W, height:H, rx:8}), svg('text', {x:11, y:19, class:'label'}, brief(n.label,23)), svg('text', {x:11, y:35, class:'detail'}, brief(n.kind+(n.detail ? ' · '+n.detail : ''),28)))
    if (open) { box.onclick = open; box.onkeydown = e => { if (e.key == 'Enter') { e.stopPropagation(); open() } } }
    return box })
  const width = order.length*(W+gapX)-gapX+8, e = svg('svg', {width, height:height+(g.edges.some(e => at.get(e.source)?.[0] >= at.get(e.target)?.[0]) ? 34 : 0), class:'lineage', role:'img', 'aria-label':'where this came from and what was made from it'}, ...lines, ...nodes)
  const box = el('div','graph', e); requestAnimationFrame(() => { const [x] = at.get(g.root) || [0]; box.scrollLeft = x-box.clientWidth/2+W/2 }); return el('div','', box, g.more ? el('p','sub','… and '+many(g.more,'thing')+' further away') : null)
}
function nodeOpener(n) {
  if (n.kind == 'run') return S.runs.has(n.project+'/'+n.run) ? () => openRun(n.project+'/'+n.run) : null
  if (n.kind == 'artifact') return () => showArtifact(n.project, n.name, n.version)
  if (n.kind == 'model') return () => showModel(n.name, n.version)
}

// what one run made and used
runTabs.push({name:'artifacts', title:'Artifacts', has:r => r.made.length || r.used.length, open(box, run) {
  const project = run.id.split('/')[0]; let key
  const table = (title, list, of) => list.length ? panel(title, el('table','data plain', el('tbody','', ...list.map(o => el('tr','', el('td','', press(o.name+':'+o.version, () => showArtifact(of(o), o.name, o.version))), el('td','',o.type), el('td','number', o.size == null ? '' : bytes(o.size))))))) : null
  const paint = r => {
    const now = JSON.stringify([r.made, r.used]); if (now == key) return; key = now
    const graph = el('div','', el('p','sub','…'))
    box.replaceChildren(el('div','panels', ...[table('Made', r.made, () => project), table('Used', r.used, o => o.project || project)].filter(Boolean)), el('h2','over','Where it came from and went'), graph)
    get('api/lineage', {id:r.id}).then(g => graph.replaceChildren(lineageGraph(g)), e => graph.replaceChildren(el('div','banner bad', e.message)))
  }
  paint(run); return {update:paint}
}})

// two views without the list of runs: artifacts and models. Each is a list, and what was chosen from it.
const shelf = {artifact:'', model:'', answers:new Map()}
const wideView = on => document.body.classList.toggle('wide', on)
function showArtifact(project, name, version) { shelf.artifact = project+'/'+name+':'+(version || ''); leaveFor('artifacts') }
function showModel(name, version) { shelf.model = name+':'+(version || ''); leaveFor('models') }
function leaveFor(view) { if (S.run) { S.run = ''; hideDetails() } if (views.now?.name == view) { link(true); views.show() } else views.go(view, true) }
const split = text => { const [, place, version] = /^(.*):([^:]*)$/.exec(text) || [0,text,'']; return [place, version] }
// asks, and draws only when the answer is another one than last time
function drawn(key, box, path, about, paint) {
  return ask(path+(about ? '?'+new URLSearchParams(about) : '')).then(d => { const text = JSON.stringify(d); if (box.told == key+text) return; box.told = key+text; paint(d) },
    e => { box.told = ''; box.replaceChildren(el('div','banner bad', e.status ? e.message : 'not connected')) })
}
const since = t => { const e = el('span','', age(Math.max(0, Date.now()/1000-t))+' ago'); e.title = date(t); return e }
const chips = (list, extra='') => el('span','chips', ...list.map(a => el('span','tag '+(a == 'champion' ? 'champion' : '')+extra, el('span','',a))))
const dataTable = (head, rows) => el('div','scroll', el('table','data', el('thead','', el('tr','', ...head.map(h => el('th', h.startsWith('#') ? 'number' : '', h.replace('#',''))))), el('tbody','', ...rows)))

const artifactList = el('div'), artifactPlace = el('div')
views.add({name:'artifacts', title:'Artifacts', show:paintArtifacts, hide:() => wideView(false)}).append(el('div','shelf', artifactList, artifactPlace))
keep('artifact', () => views.now?.name == 'artifacts' ? shelf.artifact : '', v => { shelf.artifact = v })
function paintArtifacts() {
  wideView(true); const project = $('project').value
  drawn(project+shelf.artifact, artifactList, 'api/artifacts', null, d => {
    const list = d.artifacts.filter(o => !project || o.project == project), [place] = split(shelf.artifact)
    if (!list.length) return artifactList.replaceChildren(empty('No artifacts yet', 'What a run keeps with log_artifact is listed here: models, data, reports.', el('pre','mono','run.log_artifact("model.pt", name="digits", type="model", aliases=["best"])')))
    const row = o => { const tr = el('tr', o.project+'/'+o.name == place ? 'on' : '', el('td','', press(o.name, () => showArtifact(o.project, o.name))), el('td','sub',o.project), el('td','',o.type), el('td','number',String(o.versions)), el('td','', chips(Object.entries(o.aliases).map(([a,v]) => a+' '+v))), el('td','number',bytes(o.size)), el('td','sub', since(o.created)))
      tr.onclick = e => { if (!e.target.closest('button')) showArtifact(o.project, o.name) }; return tr }
    artifactList.replaceChildren(dataTable(['name','project','type','#versions','aliases','#size','changed'], list.map(row)))
  })
  const [place, version] = split(shelf.artifact); if (!place) { artifactPlace.told = ''; return artifactPlace.replaceChildren() }
  const [, where, name] = /^(.*)\/([^/]*)$/.exec(place) || [0,'',place]
  drawn(shelf.artifact, artifactPlace, 'api/artifact', {project:where, name}, d => {
    const now = d.versions.find(v => v.version == version) || d.versions[0], detail = el('div','', el('p','sub','…'))
    const row = v => { const tr = el('tr', v == now ? 'on' : '', el('td','', press(v.version, () => showArtifact(where, name, v.version))), el('td','', chips(v.aliases)), el('td','number',bytes(v.size)), el('td','number',String(v.files)), el('td','', ...spaced(v.made.map(runLink))), el('td','', ...spaced(v.used.map(runLink))), el('td','sub', since(v.created)))
      tr.onclick = e => { if (!e.target.closest('button')) showArtifact(where, name, v.version) }; return tr }
    artifactPlace.replaceChildren(el('h2','shelf-title', name, el('span','sub',where)), dataTable(['version','aliases','#size','#files','made by','used by','made'], d.versions.map(row)), detail)
    get('api/artifact', {project:where, name, version:now.version}).then(v => detail.replaceChildren(...versionParts(v, now)), e => detail.replaceChildren(el('div','banner bad', e.message)))
  })
}
const spaced = list => list.slice(0,12).flatMap((o,i) => i ? [', ',o] : [o]).concat(list.length > 12 ? [' and '+(list.length-12)+' more'] : [])
function versionParts(v, row) {
  const file = f => { const a = make('a', {cls:'link', href:'api/download?'+new URLSearchParams({project:v.project, name:v.name, version:v.version, file:f.name}), download:''}, f.name); const sum = el('td','sub mono', f.digest.slice(0,12)); sum.title = 'SHA-256 '+f.digest; return el('tr','', el('td','',a), el('td','number', f.size == null ? 'missing' : bytes(f.size)), sum) }
  return [el('h2','over', v.name+':'+v.version), v.description ? el('p','about', v.description) : null, el('div','panels', panel('Files', dataTable(['file','#size','digest'], v.files.map(file)), v.more ? el('p','sub','… and '+many(v.more,'file')+' more') : null), Object.keys(v.metadata).length ? panel('Metadata', facts(v.metadata)) : null), el('h2','over','Where it came from and went'), lineageGraph(v.lineage)].filter(Boolean)
}

const modelList = el('div'), modelPlace = el('div')
views.add({name:'models', title:'Models', show:paintModels, hide:() => wideView(false)}).append(el('div','shelf', modelList, modelPlace))
keep('model', () => views.now?.name == 'models' ? shelf.model : '', v => { shelf.model = v })
function paintModels() {
  wideView(true); if (modelPlace.contains(document.activeElement) && document.activeElement.matches('input')) return
  drawn(shelf.model, modelList, 'api/models', null, d => {
    if (!d.models.length) { modelPlace.replaceChildren(); return modelList.replaceChildren(empty('No models yet', 'A model is a name whose versions are artifacts; an alias says which of them is in use.', el('pre','mono','track.register("project/model:best", "digits")\ntrack.model("digits").promote("v1")'))) }
    const [place, version] = split(shelf.model), model = d.models.find(m => m.name == place) || d.models[0]
    const row = m => { const tr = el('tr', m == model ? 'on' : '', el('td','', press(m.name, () => showModel(m.name))), el('td','number',String(m.versions.length)), el('td','', m.aliases.champion ? chips(['champion']) : el('span','sub','none'), ' ', m.aliases.champion || ''), el('td','', chips(Object.entries(m.aliases).filter(([a]) => a != 'champion').map(([a,v]) => a+' '+v))), el('td','sub', m.history[0] ? m.history[0].what : ''), el('td','sub', m.history[0] ? since(m.history[0].t) : ''))
      tr.onclick = e => { if (!e.target.closest('button')) showModel(m.name) }; return tr }
    modelList.replaceChildren(dataTable(['model','#versions','in use','other aliases','last change',''], d.models.map(row)))
    modelPlace.replaceChildren(...modelParts(model, model.versions.find(v => v.name == version) || model.versions[0]))
  })
}
function modelParts(m, now) {
  const names = [...new Set(m.versions.flatMap(v => Object.keys(v.metrics)))].sort(byInterest).slice(0,4), card = el('div','', el('p','sub','…'))
  const row = v => { const tr = el('tr', v == now ? 'on' : '', el('td','', press(v.name, () => showModel(m.name, v.name))), el('td','', chips(v.aliases), v.state == 'archived' ? el('span','sub',' archived') : null), ...names.map(k => el('td','number', num(v.metrics[k]))), el('td','', v.run?.id ? runLink(v.run.project+'/'+v.run.id) : el('span','sub','nobody knows')), el('td','sub', since(v.created)))
    tr.onclick = e => { if (!e.target.closest('button')) showModel(m.name, v.name) }; return tr }
  get('api/model', {name:m.name, version:now.name}).then(d => card.replaceChildren(el('div','panels', ...d.parts.map(([head,body]) => panel(head, typeof body == 'string' ? el('div','card-text', body) : facts(Object.fromEntries(body), 30)))), el('h2','over','Where it came from'), lineageGraph(d.lineage)), e => card.replaceChildren(el('div','banner bad', e.message)))
  const history = el('details','history', el('summary','','History'), el('table','data plain', el('tbody','', ...m.history.map(h => el('tr','', el('td','sub',date(h.t)), el('td','',h.what), el('td','',h.why), el('td','sub',h.by))))))
  return [el('h2','shelf-title', m.name), ...m.problems.map(p => el('div','banner warn', p)), dataTable(['version','aliases',...names.map(k => '#'+k),'made by','registered'], m.versions.map(row)), promoter(m, now), el('h2','over', m.name+' '+now.name), card, history]
}
// moving an alias: to which, why, and once more where the registry has doubts
function promoter(m, now) {
  const to = make('input', {cls:'field small', value:'champion', ariaLabel:'alias'}), why = make('input', {cls:'field small wide', placeholder:'why', ariaLabel:'why'}), box = el('div','promoter')
  for (const field of [to,why]) field.onkeydown = e => e.stopPropagation()
  const go = async more => { try { await ask('api/promote', {model:m.name, version:now.name, to:to.value.trim(), why:why.value.trim(), ...more}); document.activeElement?.blur(); modelList.told = ''; toast(more.back ? 'It is as it was before.' : now.name+' is '+to.value.trim()+' now.'); paintModels() }
    catch (e) { if (e.status != 409) return toast(e.message); const doubt = el('div','banner warn', e.message+' ', press('promote in spite of it', () => { doubt.remove(); go({...more, force:true}) }, 'solid danger'), ' ', press('leave it', () => doubt.remove(), 'solid')); box.after(doubt) } }
  box.append(el('span','','Let'), to, el('span','','mean '+now.name), why, press('promote', () => go({}), 'solid main'), press('give it back to the one before', () => go({back:true, version:''})))
  return box
}
