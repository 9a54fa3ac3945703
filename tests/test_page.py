"The page in a real browser: what it draws, what it escapes, how it follows a live run, and how it looks on a phone."
import json, math, subprocess, sys, time
import pytest
import mlstack.tracking as track

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


def until(browser, script, seconds=60):
    end = time.monotonic()+seconds
    while not (got := browser.execute_script('return '+script)):
        assert time.monotonic() < end, f'never came true: {script}'
        time.sleep(.05)
    return got


def load(browser, page, query=''):
    browser.get('about:blank')
    browser.get(page.url+(f'#q={query}' if query else ''))
    until(browser, "document.querySelectorAll('[data-drawn]').length")
    return browser


def drawn(browser): return dict(browser.execute_script("return [...document.querySelectorAll('[data-drawn]')].map(e => [e.querySelector('h2').title, +e.dataset.drawn])"))


def typed(browser, query):
    browser.execute_script("const q = document.getElementById('query'); q.value = arguments[0]; q.oninput()", query)


def silent(browser): assert not [o for o in browser.get_log('browser') if o['level'] == 'SEVERE']


def test_runs_are_listed_and_drawn(browser, page):
    load(browser, page)
    until(browser, "[...document.querySelectorAll('[data-drawn]')].some(e => e.querySelector('h2').title == 'loss')")
    assert browser.execute_script("return document.getElementById('count').textContent") == '13 runs'
    assert drawn(browser)['loss'] == 9  # the newest ten, one of which logged no loss
    pixels = "(() => { const c = [...document.querySelectorAll('[data-drawn]')].find(e => e.querySelector('h2').title == 'loss').querySelector('canvas'), \
        d = c.getContext('2d').getImageData(0,0,c.width,c.height).data; let n = 0; for (let i = 0; i < d.length; i += 4) if (d[i+3] > 200 && Math.max(d[i],d[i+1],d[i+2])-Math.min(d[i],d[i+1],d[i+2]) > 60) n++; return n })()"
    assert browser.execute_script('return '+pixels) > 1000  # coloured lines, not an empty frame
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
    low, high = until(browser, 'S.zoom')
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
        until(browser, "document.getElementById('count').textContent == '1000 runs'")
        assert 5 < browser.execute_script("return document.querySelectorAll('.row').length") < 60
        browser.execute_script("document.getElementById('list').scrollTop = 1e6")
        until(browser, "[...document.querySelectorAll('.row .name')].some(e => e.textContent == 'run 0')")
    finally: page.close()
    silent(browser)
