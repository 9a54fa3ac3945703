const start = new URLSearchParams(location.hash.slice(1))
$('query').value = start.get('q') || ''
if (start.get('project')) { const o = el('option','',start.get('project')); o.value = start.get('project'); $('project').append(o); $('project').value = start.get('project') }
document.documentElement.dataset.theme = store.get('theme') || (dark.matches ? 'dark' : 'light')
new ResizeObserver(() => paintRows()).observe($('list'))
S.metrics = []; S.differ = []; S.now = Date.now()/1000
refresh()
