"The page in a real browser: what it draws, what it escapes, how it follows a live run, and how it looks on a phone."
import json, math, subprocess, sys, time
from urllib.parse import quote, urlencode
import pytest
import mlstack.tracking as track
from tests.house import go_to, until

NASTY = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    for i in range(12):
        with track.init(project='mnist', dir=folder, config=dict(lr=10**-(1+i/4), opt='adam' if i%2 else 'sgd'), name=f'run {i}') as run:
            for step in range(400): run.log({'loss': math.exp(-step/100)+i*.01, 'val/acc': 1-math.exp(-step/100)})
    with track.init(project=f'odd {NASTY}'.replace('/', ''), dir=folder, name=NASTY, notes=NASTY, tags=[NASTY], config={NASTY: NASTY}) as run:
        for step in range(10): run.log({NASTY: step*1., 'nan': math.nan, 'one': 1., 'word': NASTY}, step=step)
    return folder


@pytest.fixture(scope='module')
def page(folder):
    page = track.ui(port=0, block=False, dir=folder)
    yield page
    page.close()


@pytest.fixture(scope='module')
def browser(chromium): return chromium(1300, 900)


def load(browser, page, query=''): return go_to(browser, page.url+(f'#q={query}' if query else ''), "document.querySelectorAll('[data-drawn]').length")


def drawn(browser): return dict(browser.execute_script("return [...document.querySelectorAll('[data-drawn]')].map(e => [e.querySelector('h2').title, +e.dataset.drawn])"))


def typed(browser, query):
    browser.execute_script("const q = document.getElementById('query'); q.value = arguments[0]; q.oninput()", query)


def silent(browser): assert not [o for o in browser.get_log('browser') if o['level'] == 'SEVERE']


def test_runs_are_listed_and_drawn(browser, page):
    load(browser, page)
    until(browser, "[...document.querySelectorAll('[data-drawn=\"9\"]')].some(e => e.querySelector('h2').title == 'loss')")  # the newest ten, one of which logged no loss
    assert browser.execute_script("return document.getElementById('count').textContent") == '13 runs'
    pixels = "(() => { const c = [...document.querySelectorAll('[data-drawn]')].find(e => e.querySelector('h2').title == 'loss').querySelector('canvas'), \
        d = c.getContext('2d').getImageData(0,0,c.width,c.height).data; let n = 0; for (let i = 0; i < d.length; i += 4) if (d[i+3] > 200 && Math.max(d[i],d[i+1],d[i+2])-Math.min(d[i],d[i+1],d[i+2]) > 60) n++; return n })()"
    until(browser, pixels+' > 1000')  # coloured lines, not an empty frame
    browser.execute_script("document.getElementById('none').click()")
    until(browser, "document.querySelector('#charts .empty')")
    browser.execute_script("document.querySelector('.row[data-id^=\"mnist/\"]').click()")
    until(browser, "document.querySelector('[data-drawn=\"1\"]')")
    silent(browser)


def test_the_filter_is_the_query_language(browser, page):
    load(browser, page)
    typed(browser, "lr > 1e-2 and opt == 'adam'")
    until(browser, "document.getElementById('count').textContent == '2 of 13 runs'")
    typed(browser, 'lr >')
    assert 'not understood' in until(browser, "document.getElementById('note').textContent")
    assert browser.execute_script("return document.querySelectorAll('.row').length") == 2  # what was there stays
    typed(browser, 'lr > 1e6')
    until(browser, "document.querySelector('#charts .empty b')?.textContent == 'No run matches'")
    load(browser, page, 'lr > 0.05')  # a link keeps its filter
    until(browser, "document.getElementById('count').textContent == '2 of 13 runs'")
    silent(browser)


def test_everything_shown_is_escaped(browser, page):
    load(browser, page)
    typed(browser, "word != None")
    until(browser, "document.getElementById('count').textContent == '1 of 13 runs'")
    until(browser, "[...document.querySelectorAll('[data-drawn]')].length >= 2")
    browser.execute_script("document.querySelector('.more').click()")
    until(browser, "document.querySelector('#one .onehead .state')")
    assert browser.execute_script("return document.querySelector('#one h1').textContent") == NASTY
    assert NASTY in browser.execute_script("return document.querySelector('.row .name').textContent")
    assert browser.execute_script('return [window.hit ?? null, document.querySelectorAll("body img").length, document.querySelectorAll("script").length]') == [None, 0, 2]
    browser.execute_script("document.querySelector('#one .back').click()")
    silent(browser)


def test_axes_smoothing_log_and_zoom(browser, page):
    load(browser, page)
    for script in ("document.querySelector('[data-x=time]').click()", "document.querySelector('[data-x=relative]').click()", "document.querySelector('[data-x=step]').click()",
            "document.getElementById('smooth').value = .9; document.getElementById('smooth').oninput()", "document.getElementById('log').click()", "document.getElementById('theme').click()"):
        browser.execute_script(script)
        time.sleep(.4)
    loss = "[...cards.values()].find(c => c.k == 'loss')"
    browser.execute_script(f'const u = {loss}.u; u.setSelect({{left:50, top:0, width:100, height:100}})')
    axis, low, high = (until(browser, 'S.zoom')[k] for k in ('axis', 'low', 'high'))
    assert axis == 'step'
    until(browser, f'{loss}.data.x.length < 390 && {loss}.have == {loss}.stamp')
    x = browser.execute_script(f'return {loss}.data.x')
    assert 0 < low < high < 400 and x[0] <= low and x[-1] >= high and len(x) < high-low+4  # the part, with one point beyond each edge
    browser.execute_script("document.getElementById('reset').click()")
    until(browser, f'{loss}.data.x.length == 400')
    silent(browser)


def test_a_live_run_grows_and_ends_by_itself(browser, page, folder):
    load(browser, page)
    code = f"""
import mlstack.tracking as track, sys
run = track.init(project='live', dir={str(folder)!r}, name='alive')
for i in range(50): run.log(loss=1., step=i)
print(1, flush=True); sys.stdin.readline()
for i in range(50): run.log(loss=2., step=50+i)
print(1, flush=True); sys.stdin.readline()
"""
    p = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    mine = "[...S.runs.values()].find(r => r.name == 'alive')"
    p.stdout.readline()
    until(browser, f"{mine}?.state == 'running' && {mine}.points == 50")
    p.stdin.write('\n'); p.stdin.flush(); p.stdout.readline()
    until(browser, f'{mine}.points == 100')
    until(browser, "[...cards.values()].find(c => c.k == 'loss')?.data.rows.some(r => r[75] == 2)")
    p.kill()
    p.wait()
    until(browser, f"{mine}.state == 'killed'")
    silent(browser)


def test_a_phone_and_the_dark(chromium, page):
    phone = load(chromium(390, 844, dark=True), page)
    until(phone, "document.querySelectorAll('.row').length > 5")
    assert phone.execute_script('return document.documentElement.scrollWidth') <= 390
    assert phone.execute_script('return document.documentElement.dataset.theme') == 'dark'
    assert phone.execute_script("return [...document.querySelectorAll('.card')].every(e => e.getBoundingClientRect().width <= 390)")
    silent(phone)


OPEN = "document.querySelector('#one:not([hidden]) h1, #one:not([hidden]) h1')"  # the name of the run that is open


@pytest.fixture(scope='module')
def varied(tmp_path_factory):
    "24 runs whose last loss follows lr, with an epoch as the axis of what is validated; and one with a bad name and bad numbers."
    folder = tmp_path_factory.mktemp('varied')
    for i in range(24):
        config = dict(lr=10**-(1+i/8), opt='adam' if i % 2 else 'sgd', model=dict(width=[8, 16, 64][i % 3]), seed=i)
        with track.init(project='try', dir=folder, config=config, name=f'run {i}', group=f'g{i//12}', tags=['first'] if i < 6 else []) as run:
            run.define_metric('val/*', step_metric='epoch')
            for step in range(60):
                run.log({'train/loss': 3*math.exp(-step/20)+i*.1})
                if step % 10 == 9: run.log({'epoch': (step+1)/10, 'val/loss': 3*math.exp(-step/20)+i*.1+.05})
        (run.path/'code.diff').write_text(f'--- a/train.py\n+++ b/train.py\n-momentum = .9\n+momentum = .{i} # {NASTY}\n')
    with track.init(project='try', dir=folder, config={'lr': 1., NASTY: NASTY, 'opt': NASTY}, name=NASTY, group=NASTY, tags=[NASTY]) as run:
        for step in range(40): run.log({'train/loss': [math.nan, math.inf, 2.][step % 3], NASTY+'/a': step*1., NASTY+'/b': 1.})
    return folder


@pytest.fixture(scope='module')
def lab(varied):
    page = track.ui(port=0, block=False, dir=varied)
    yield page
    page.close()


def go(browser, page, **where):
    "Open a link, as another person would."
    browser.get('about:blank')
    browser.get(page.url+('#'+urlencode(where) if where else ''))
    until(browser, "typeof S == 'object' && S.ready")
    return browser


def packed(*names): return ','.join(quote(o, safe='') for o in names)
def ids(browser): return {r['name']: r['id'] for r in browser.execute_script('return [...S.runs.values()]')}


def test_groups_fold_and_show_bands(browser, lab):
    go(browser, lab, group='c:opt', q="opt == 'adam' or opt == 'sgd'")
    heads = until(browser, "[...document.querySelectorAll('.row.group')].map(e => [e.dataset.group, e.querySelector('.sub').textContent])")
    assert heads[0] == ['"adam"', '12 runs']  # 'sgd' is further down
    groups = browser.execute_script("return items.filter(o => o.runs).map(g => [g.label, g.runs.length, g.best, g.mean])")
    last = {o.name: o.summary['val/loss'] for o in track.runs(dir=lab.server.board.folder) if o.name.startswith('run')}
    for name, n, best, mean in groups:
        want = [v for k, v in last.items() if int(k[4:]) % 2 == (name == 'adam')]
        assert n == 12 and best == pytest.approx(min(want)) and mean == pytest.approx(sum(want)/12)
    loss = "[...cards.values()].find(c => c.k == 'train/loss')"
    until(browser, f"{loss}?.lines?.filter(o => o.name).length == 2")
    mean, high, low = browser.execute_script(f"return [{loss}.u.data[1], {loss}.lines[0].high, {loss}.lines[0].low].map(r => r[59])")
    vs = [3*math.exp(-59/20)+i*.1 for i in range(1, 24, 2)]
    assert (mean, low, high) == (pytest.approx(sum(vs)/12, rel=1e-5), pytest.approx(min(vs), rel=1e-5), pytest.approx(max(vs), rel=1e-5))
    browser.execute_script("document.querySelector('.row.group .more').click()")
    assert browser.execute_script("return [items.length, document.querySelectorAll('.row')[1].dataset.group]") == [14, '"sgd"']
    browser.execute_script("document.querySelectorAll('.row.group .dot')[0].click()")  # the whole group is hidden
    until(browser, f"{loss}?.lines?.filter(o => o.name).length == 1")
    browser.execute_script("document.getElementById('band').click()")
    until(browser, f"{loss}?.lines?.filter(o => o.name).length == 12")
    silent(browser)


def test_a_metric_as_the_axis_and_what_is_not_finite(browser, lab):
    go(browser, lab)
    val, loss = ("[...cards.values()].find(c => c.k == '%s')" % k for k in ('val/loss', 'train/loss'))
    until(browser, f"{val}?.data && {loss}?.data")
    assert browser.execute_script(f"return [{val}.data.axis, {val}.data.x, {loss}.data.axis]") == ['epoch', [1, 2, 3, 4, 5, 6], 'step']
    browser.execute_script("setAxis('epoch')")
    until(browser, f"{loss}?.data?.axis == 'epoch'")
    x = browser.execute_script(f"return {loss}.data.x")
    assert x == [1, 2, 3, 4, 5]  # a row belongs to the epoch that was told last, and before the first to none
    browser.execute_script("setAxis('step'); document.getElementById('logx').click()")
    until(browser, f"{loss}?.data?.logx && {loss}.data.x[0] > 0")
    typed(browser, 'name.startswith("<")')
    until(browser, f"{loss}?.data?.bad.length == 1 && {loss}.have == {loss}.stamp")
    assert browser.execute_script(f"return {loss}.below.textContent").startswith('1 run with values that are NaN')
    silent(browser)


def test_the_table_sorts_chooses_and_opens(browser, lab):
    go(browser, lab, view='table', cols=packed('c:lr', 's:val/loss'), q="name.startswith('run')")
    heads = "[...document.querySelectorAll('.th span')].map(e => e.textContent)"
    cells = "[...document.querySelectorAll('#view-table .tbody .row')].map(e => [...e.querySelectorAll('.td')].map(o => o.textContent))"
    until(browser, f"{cells}.length == 24")
    assert browser.execute_script('return '+heads) == ['name', 'lr', 'val/loss']
    for _ in range(2): browser.execute_script("document.querySelectorAll('.th')[2].click()")
    losses = [float(o[2]) for o in browser.execute_script('return '+cells)]
    assert losses == sorted(losses) and len(losses) == 24
    browser.execute_script("document.querySelector('#view-table .ghost').click()")
    browser.execute_script("[...document.querySelectorAll('.chooser label')].find(e => e.textContent == 'model.width').querySelector('input').click()")
    assert browser.execute_script('return '+heads) == ['name', 'lr', 'val/loss', 'model.width']
    browser.execute_script("document.querySelector('.chooser').hidePopover(); document.querySelector('#view-table .row .more').click()")
    assert until(browser, OPEN+"?.textContent") == 'run 0'
    silent(browser)


def test_a_brush_on_parallel_axes_becomes_a_filter(browser, lab):
    go(browser, lab, view='parallel', q="name.startswith('run')")
    until(browser, "document.querySelector('#pc')?.dataset.drawn == '24'")
    assert browser.execute_script('return pc.cols') == ['c:lr', 'c:opt', 'c:model.width', 's:val/loss']
    drag = """const [col, from, to] = arguments, b = pcFrame.getBoundingClientRect(), x = b.left+pc.x(pc.cols.indexOf(col)), at = t => b.top+pc.y(t)
        const send = (kind, y) => pcFrame.dispatchEvent(new PointerEvent(kind, {clientX:x, clientY:y, bubbles:true, pointerId:1}))
        pcFrame.setPointerCapture = () => {}; send('pointerdown', at(from)); send('pointermove', at(to)); send('pointerup', at(to))"""
    browser.execute_script(drag, 's:val/loss', -.02, .5)
    browser.execute_script(drag, 'c:opt', -.1, .2)
    kept = sorted(browser.execute_script('return kept().map(r => r.name)'))
    assert kept == sorted(f'run {i}' for i in range(1, 12, 2))  # the lower half of the losses, with adam
    browser.execute_script("[...document.querySelectorAll('#view-parallel .link')].find(e => e.textContent == 'as a filter').click()")
    until(browser, "document.getElementById('count').textContent == '6 of 25 runs'")
    assert not browser.execute_script("return document.getElementById('note').textContent")
    silent(browser)


def test_scatter_puts_points_where_they_belong(browser, lab):
    go(browser, lab, view='scatter', sx='c:lr', sy='s:val/loss', sc='c:model.width', q="name.startswith('run')")
    until(browser, "document.querySelector('#sc')?.dataset.drawn == '24'")
    points = browser.execute_script("return sc.points.map(o => [o.vx, o.vy, sc.px(o), sc.py(o)])")
    by_x, by_y = sorted(points), sorted(points, key=lambda o: o[1])
    assert [o[2] for o in by_x] == sorted(o[2] for o in points) and [o[3] for o in by_y] == sorted((o[3] for o in points), reverse=True)
    gaps = [b[2]-a[2] for a, b in zip(by_x, by_x[1:])]
    assert max(gaps)-min(gaps) < .1  # lr was spaced by powers, and the axis is a log one without being told
    browser.execute_script("const o = sc.points.find(o => o.run.name == 'run 7'), b = scFrame.getBoundingClientRect(), at = {clientX:b.left+sc.px(o), clientY:b.top+sc.py(o), bubbles:true}; \
        scFrame.dispatchEvent(new PointerEvent('pointermove', at)); scFrame.dispatchEvent(new MouseEvent('click', at))")
    assert until(browser, OPEN+"?.textContent") == 'run 7'
    silent(browser)


def test_importance_names_what_mattered(browser, lab):
    go(browser, lab, view='importance', metric='val/loss', q="name.startswith('run')")
    until(browser, "document.querySelector('#view-importance .stage').dataset.drawn")
    rows = browser.execute_script("return [...document.querySelectorAll('button.bar-row')].map(e => [e.querySelector('.bar-name').textContent, e.classList.contains('unsure')])")
    assert dict(rows)['lr'] is False and dict(rows)['opt'] is True and rows[0][0] in ('lr', 'seed')  # both order the runs, and opt does not
    browser.execute_script("[...document.querySelectorAll('button.bar-row')].find(e => e.querySelector('.bar-name').textContent == 'lr').click()")
    until(browser, "views.now.name == 'scatter' && sc.X == 'c:lr' && sc.Y == 's:val/loss'")
    silent(browser)


def test_compare_marks_what_differs(browser, lab):
    go(browser, lab)
    known = ids(browser)
    go(browser, lab, view='compare', on=packed(known['run 3'], known['run 4']))
    until(browser, "document.querySelector('#view-compare .diff').dataset.drawn")
    lines = browser.execute_script("return [...document.querySelectorAll('.compare tbody tr:not(.part)')].map(e => [e.querySelector('th').textContent, ...[...e.querySelectorAll('td')].map(o => [o.textContent, o.className.trim()])])")
    lines = {o[0]: o[1:] for o in lines}
    assert lines['opt'] == [['adam', ''], ['sgd', 'other']] and 'project' not in lines
    assert lines['val/loss'][0][1] == 'top' and lines['val/loss'][1][1] == ''
    assert browser.execute_script("return [...document.querySelectorAll('.changes tr')].map(e => [...e.children].map(o => o.textContent)).find(o => o[0] == 'opt')") == ['opt', 'adam', 'sgd']
    patch = browser.execute_script("return [...document.querySelectorAll('.diff .patch .a')].map(e => e.textContent)")
    assert any(f'momentum = .4 # {NASTY}' in o for o in patch) and not any('momentum = .3' in o for o in patch)
    browser.execute_script("document.getElementById('differing').click()")
    until(browser, "[...document.querySelectorAll('.compare tbody th')].some(e => e.textContent == 'project')")
    silent(browser)


def test_a_link_restores_everything(browser, lab):
    go(browser, lab)
    known = ids(browser)
    browser.execute_script("""
        pick(arguments[0]); groupBy('c:model.width'); fold('8'); sortBy('-s:val/loss'); setAxis('relative')
        smoothing.value = .5; smoothing.oninput(); document.getElementById('log').click(); S.closed.add('val'); link()
        table.choose(['c:lr', 's:val/loss']); pc.brush = {'c:lr':[.1,.6]}; views.go('scatter', true); sc.x = 'c:seed'; views.go('parallel', true)
        S.zoom = {axis:'relative', low:.25, high:.75}; link(); openRun(arguments[0][0])""", [known['run 1'], known['run 2']])
    state = """JSON.stringify([views.now.name, [...S.on], S.group, [...S.folded], S.sort, S.axis, S.smooth, S.log, S.logx, S.zoom, [...S.closed], table.cols, pc.brush, sc.x, S.run,
        "+OPEN+"?.textContent])"""
    until(browser, OPEN+"?.textContent == 'run 1'")
    link, want = browser.current_url, browser.execute_script('return '+state)
    browser.get('about:blank')
    browser.get(link)
    until(browser, "typeof S == 'object' && S.ready && "+OPEN+"?.textContent == 'run 1'")
    assert browser.execute_script('return '+state) == want and '"parallel"' in want and '0.25' in want
    assert browser.execute_script("return document.getElementById('group').value+document.getElementById('sort').value") == 'c:model.width-s:val/loss'
    browser.execute_script('closeRun()')
    browser.back()  # the run is open again
    until(browser, OPEN+"?.textContent == 'run 1'")
    silent(browser)


def test_the_keyboard_does_what_the_mouse_does(browser, lab):
    go(browser, lab, on='-')
    press = "document.dispatchEvent(new KeyboardEvent('keydown', {key:arguments[0], bubbles:true}))"
    keys = lambda *names: [browser.execute_script(press, o) for o in names]
    keys('j', 'j', 'ArrowDown', 'k', ' ')
    assert browser.execute_script("return [...S.on.keys()].map(id => shown.findIndex(r => r.id == id))") == [1]
    assert browser.execute_script("return document.querySelector('.row.at').dataset.id") == browser.execute_script('return shown[1].id')
    keys('Enter')
    until(browser, OPEN)
    keys('Escape')
    until(browser, "!"+OPEN)
    keys('3')
    assert browser.execute_script('return views.now.name') == 'parallel'
    keys('?')
    assert browser.execute_script("return document.getElementById('help').open")
    browser.execute_script("document.getElementById('help').close()")
    keys('/')
    assert browser.execute_script('return document.activeElement.id') == 'query'
    silent(browser)


def test_an_outlier_does_not_flatten_the_others(browser, tmp_path):
    with track.init(project='p', dir=tmp_path) as run:
        for step in range(200): run.log(loss=1e6 if step == 100 else math.exp(-step/50))
    page = track.ui(port=0, block=False, dir=tmp_path)
    try:
        go(browser, page)
        card = '[...cards.values()][0]'
        until(browser, f'{card}?.u?.scales.y.max > 1e6')
        browser.execute_script("document.getElementById('calm').click()")
        until(browser, f'{card}.u.scales.y.max < 2')
        browser.execute_script("document.getElementById('log').click()")
        until(browser, f'{card}.u.scales.y.max < 10 && {card}.u.scales.y.min > 0')
    finally: page.close()
    silent(browser)


def test_charts_are_found_folded_and_filled(browser, lab):
    go(browser, lab)
    until(browser, "document.querySelectorAll('.section').length")
    browser.execute_script("finder.value = 'val'; finder.oninput()")
    until(browser, "document.querySelectorAll('#charts .card').length == 1")
    browser.execute_script("document.querySelector('#charts .corner').click()")
    width = browser.execute_script("return document.querySelector('.card.full').getBoundingClientRect().width")
    assert width == 1300 and 'chart=val%2Floss' in browser.current_url
    browser.execute_script("document.dispatchEvent(new KeyboardEvent('keydown', {key:'Escape'}))")
    assert not browser.execute_script("return document.querySelector('.card.full')")
    browser.execute_script("finder.value = ''; finder.oninput(); [...document.querySelectorAll('.section')].find(e => e.textContent.includes('train')).click()")
    until(browser, "![...document.querySelectorAll('#charts .card h2')].some(e => e.title == 'train/loss')")
    silent(browser)


@pytest.mark.parametrize('view', ['curves', 'table', 'parallel', 'scatter', 'importance', 'compare'])
def test_every_view_shows_a_script_as_text(browser, lab, view):
    go(browser, lab, view=view, group='c:opt', sx=f'c:{NASTY}', sc='c:opt', axes=packed('c:lr', f'c:{NASTY}', 'c:opt'), cols=packed(f'c:{NASTY}', f's:{NASTY}/a', 'r:tags'))
    browser.execute_script("for (const o of [...S.runs.values()].filter(r => r.name.startsWith('<'))) S.on.delete(o.id), colour(o.id); views.show(); \
        const r = [...S.runs.values()].find(r => r.name.startsWith('<')); say(9, 9, ...tipOf(r, ['c:opt','r:tags','r:group']))")
    until(browser, f"(document.getElementById('views').textContent+document.querySelector('.tip').textContent).includes({json.dumps(NASTY)})")
    time.sleep(.2)
    assert browser.execute_script('return [window.hit ?? null, document.querySelectorAll("body img").length, document.querySelectorAll("script").length]') == [None, 0, 2]
    silent(browser)


@pytest.mark.parametrize('view', ['table', 'parallel', 'scatter', 'importance', 'compare'])
def test_every_view_fits_a_phone(phone, lab, view):
    go(phone, lab, view=view)
    time.sleep(.5)
    assert phone.execute_script('return document.documentElement.scrollWidth') <= 390
    silent(phone)


@pytest.fixture(scope='module')
def phone(chromium): return chromium(390, 844)


def test_a_thousand_runs_make_few_elements(browser, tmp_path):
    for i in range(1000):
        path = tmp_path/'big'/f'{i:05}'
        for o in ('events', 'lanes'): (path/o).mkdir(parents=True)
        (path/'meta.json').write_text(json.dumps(dict(format=1, id=f'{i:05}', project='big', name=f'run {i}', created=1.7e9+i, tags=[])))
        end = dict(k='finish', t=1.7e9+i+9, state='finished', last=dict(loss=i/1000))
        (path/'events'/'w.jsonl').write_text('\n'.join(map(json.dumps, (dict(k='start', t=1.7e9+i, owner=True, process={}), dict(k='config', t=1.7e9+i, p=['lr'], v=i), end)))+'\n')
    page = track.ui(port=0, block=False, dir=tmp_path)
    try:
        browser.get(page.url)
        until(browser, "document.getElementById('count').textContent == '1,000 runs'")
        assert 5 < browser.execute_script("return document.querySelectorAll('.row').length") < 60
        browser.execute_script("document.getElementById('list').scrollTop = 1e6")
        until(browser, "[...document.querySelectorAll('.row .name')].some(e => e.textContent == 'run 0')")
    finally: page.close()
    silent(browser)
