document.documentElement.dataset.theme = store.get('theme') || (dark.matches ? 'dark' : 'light')
new ResizeObserver(() => paintRows()).observe($('list'))
S.metrics = []; S.differ = []; S.now = Date.now()/1000
restore()
refresh()
