"Sweeps on the page and in a report of one file: as text only, followed while they run, few bytes, in a real browser."
import http.client, json, math, random, re
from urllib.parse import urlsplit
import pytest
import mlstack.tracking as track
from mlstack import core
from mlstack.sweeps import Sweep, SweepError, sweep_views
from mlstack.sweeps.coordinator import read_sweep
from mlstack.tracking import importance
from tests.house import go_to, until

NASTY = '<img src=x onerror="window.hit=1"></script><script>window.hit=1</script>'
SPEC = dict(name=NASTY, method='random', run_cap=60, metric=dict(name=f'loss {NASTY}', goal='minimize'), early_terminate=dict(type='hyperband', min_iter=3, eta=3, strict=True),
    parameters={'lr': dict(distribution='log_uniform_values', min=1e-4, max=1.), 'opt': dict(values=['sgd', NASTY]), 'drop.out': dict(min=0., max=.5)})


def curve(config, epoch): return .1 + abs(math.log10(config['lr'])+2)/4 + (config['opt'] == 'sgd')*.2 + math.exp(-epoch/2)


def go_on(sweep, n, reports=9):
    for _ in range(n):
        t = sweep.ask()
        if t.number % 11 == 7:
            sweep.tell(t, failed=f'ValueError: {NASTY}', error=f'Traceback\n{NASTY}')
            continue
        for epoch in range(reports):
            if not sweep.report(t, epoch, curve(t, epoch)): break
        sweep.tell(t)


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(importance, 'DRAWS', 3)  # of the forests: their honesty is tested elsewhere
    core.provide('page_views.sweeps', sweep_views.page_views)
    s = Sweep(SPEC, seed=1, runs_dir=tmp_path/'runs')
    go_on(s, 30)
    page = track.ui(port=0, block=False, dir=tmp_path/'runs')
    yield page, s
    page.close()
    s.close()
    core._providers.pop('page_views.sweeps', None)


def ask(page, path):
    at = urlsplit(page.url)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=600)  # forests on a busy machine
    connection.request('GET', path)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if answer.status == 200 else text


def said(page, path):
    status, answer = ask(page, path)
    assert status == 200, answer
    return answer


# reading

def test_a_reader_sees_what_is_written_and_writes_nothing(tmp_path):
    s = Sweep(SPEC, seed=1, runs_dir=tmp_path)
    go_on(s, 12)
    r, before = read_sweep(s.id, runs_dir=tmp_path), (s.folder/'journal.jsonl').read_bytes()
    for call in (r.ask, lambda: r.report(0, 1, .5), lambda: r.tell(0, .5), lambda: r.lost(0), lambda: r.restart(0), lambda: r.run(print)):
        with pytest.raises(SweepError, match='only read'): call()
    assert (s.folder/'journal.jsonl').read_bytes() == before
    t = s.ask()
    s.report(t, 0, .5)
    assert r.refresh() == 2 and r.trials[-1].reports == [(0, .5)] and r.live
    assert read_sweep(s.folder).df.equals(r.df) and r.df.equals(s.df)
    s.close()
    assert not r.live


def test_a_reader_waits_for_the_end_of_a_line_and_notices_another_file(tmp_path):
    s = Sweep(SPEC, seed=1, runs_dir=tmp_path)
    go_on(s, 3)
    r, journal = read_sweep(s.folder), s.folder/'journal.jsonl'
    t = s.ask()
    whole = journal.read_bytes()
    line = json.dumps(dict(event='report', time=1., n=t.number, step=0, value=.25)).encode()+b'\n'
    with open(journal, 'ab') as f: f.write(line[:20])
    assert r.refresh() == 1 and r.trials[t.number].reports == []
    with open(journal, 'ab') as f: f.write(line[20:])
    assert r.refresh() == 1 and r.trials[t.number].reports == [(0, .25)]
    journal.write_bytes(whole)  # what was written was taken back, as after a full disk
    assert r.refresh() and r.trials[t.number].reports == [] and len(r.trials) == 4
    s.close()


def test_nothing_to_read(tmp_path):
    with pytest.raises(SweepError, match='no sweep'): read_sweep('nope', runs_dir=tmp_path)
    (tmp_path/'p'/'sweeps'/'x').mkdir(parents=True)
    (tmp_path/'p'/'sweeps'/'x'/'journal.jsonl').touch()
    with pytest.raises(SweepError, match='before it began'): read_sweep('x', runs_dir=tmp_path)


def test_seconds_are_those_of_the_attempts(tmp_path):
    s = Sweep(SPEC, runs_dir=tmp_path)
    t = s.ask()
    s.close()
    events = [json.loads(o) for o in open(s.folder/'journal.jsonl')]
    at = t.asked
    events += [dict(event='report', time=at+5, n=0, step=0, value=.5), dict(event='requeue', time=at+100, n=0, attempt=1), dict(event='rewind', time=at+101, n=0, keep=0), dict(event='tell', time=at+110, n=0, state='DONE', value=.4, why='')]
    (s.folder/'journal.jsonl').write_text(''.join(json.dumps(o)+'\n' for o in events))
    r = read_sweep(s.folder)
    assert r.trials[0].seconds == pytest.approx(15) and r.df.seconds[0] == pytest.approx(15) and r.df.attempt[0] == 1


# what the server says

def test_only_what_changed_is_sent(world):
    page, s = world
    d = said(page, f'/api/sweep?id={s.id}')
    assert (len(d['rows']), d['head']['state'], d['head']['total']) == (30, 'running', 60)
    assert [o['at'] for o in d['head']['bands']] == [3, 9] and {p['name']: p['kind'] for p in d['head']['params']} == {'lr': 'log', 'opt': 'levels', 'drop.out': 'linear'}
    go_on(s, 2)
    after = f'&cursor={d["cursor"]}&epoch={d["epoch"]}'
    e = said(page, f'/api/sweep?id={s.id}{after}')
    assert [o[0] for o in e['rows']] == [30, 31] and 'file' not in e['head']
    assert said(page, f'/api/sweep?id={s.id}&cursor={e["cursor"]}&epoch={e["epoch"]}')['rows'] == []
    assert len(said(page, f'/api/sweep?id={s.id}&cursor=5&epoch=other')['rows']) == 32
    assert s.explain(3) == said(page, f'/api/sweep/trial?id={s.id}&n=3')['text']
    assert {o['parameter'] for o in said(page, f'/api/sweep/importance?id={s.id}')['rows']} == {'lr', 'opt', 'drop.out'}


def test_many_trials_are_few_bytes(tmp_path, monkeypatch):
    s = Sweep(SPEC | dict(run_cap=400), seed=2, runs_dir=tmp_path, durable=False)
    rng = random.Random(0)
    for _ in range(400):
        t = s.ask()
        for epoch in range(100):
            if not s.report(t, epoch, curve(t, epoch)+rng.random()/9): break
        s.tell(t)
    f = sweep_views.Followed(s.folder/'journal.jsonl')
    a = f.answer()
    assert len(a['rows']) == 400 and max(len(o[-1]) for o in a['rows']) == 50
    assert len(json.dumps(a)) < 400_000 < (s.folder/'journal.jsonl').stat().st_size
    assert f.answer(a['cursor'], a['epoch'])['rows'] == []
    s.close()


@pytest.mark.parametrize('id', ['', '..', '../x', '%2e%2e', 'nope', 'x/../y'])
def test_no_id_leads_elsewhere(world, id):
    page, s = world
    assert ask(page, f'/api/sweep?id={id}')[0] in (400, 404)
    assert ask(page, f'/api/sweep/trial?id={s.id}&n=99')[0] == 400 and ask(page, f'/api/sweep/trial?id={s.id}&n=-1')[0] == 400


def test_a_damaged_sweep_does_not_hide_the_others(world):
    page, s = world
    other = s.folder.parent/'zzz'
    other.mkdir()
    (other/'journal.jsonl').write_text('no json\n')
    d = said(page, '/api/sweeps')
    assert [o['id'] for o in d['sweeps']] == [s.id] and 'zzz' in d['amiss'][0]
    assert d['sweeps'][0]['ended'] == 30 and d['sweeps'][0]['best'] == s.best.value


def test_without_its_coordinator_nothing_runs(world):
    page, s = world
    s.report(s.ask(), 0, .5)
    assert said(page, f'/api/sweep?id={s.id}')['head']['counts']['RUNNING'] == 1
    s.close()
    d = said(page, f'/api/sweep?id={s.id}')
    assert (d['head']['state'], d['head']['counts']['LOST'], d['rows'][-1][1]) == ('stopped', 1, 'LOST')
    assert said(page, '/api/sweeps')['sweeps'][0]['state'] == 'stopped'


# in a browser

@pytest.fixture(scope='module')
def browser(chromium): return chromium(1300, 1000)
@pytest.fixture(scope='module')
def phone(chromium): return chromium(400, 800)


def load(browser, page, s): go_to(browser, page.url+f'#view=sweeps&sweep={s.id}', f"document.querySelector('.sweep')?.dataset.drawn == {len(s.trials)} && document.querySelector('.sweep-bars').dataset.drawn")
def silent(browser): assert not [o for o in browser.get_log('browser') if o['level'] == 'SEVERE' and 'ERR_CONNECTION_REFUSED' not in o['message']]  # a page left open by the test before asks on
def unhurt(browser): assert browser.execute_script('return [window.hit ?? null, document.querySelectorAll("body img").length]') == [None, 0]


def test_all_is_shown_as_text_and_followed(browser, world):
    page, s = world
    load(browser, page, s)
    assert browser.execute_script("return document.querySelector('.sweep-title h1').textContent").startswith(NASTY[:40])
    assert browser.execute_script("return document.querySelectorAll('.sweep-table tbody tr').length") == 30
    browser.execute_script("document.querySelector('.sweep-table tr[data-n=\"7\"]').click()")
    until(browser, "document.querySelector('.sweep-one pre')?.textContent.includes('onerror')")
    assert s.explain(7).split('\n')[0] == browser.execute_script("return document.querySelector('.sweep-words').textContent")
    go_on(s, 3)
    until(browser, "document.querySelectorAll('.sweep-table tbody tr').length == 33")
    until(browser, "document.querySelector('.sweep-progress .sub').textContent.startsWith('33 of 60 trials')")
    unhurt(browser)
    silent(browser)


def test_a_brush_keeps_a_part(browser, world):
    page, s = world
    load(browser, page, s)
    browser.execute_script("""const f = document.querySelector('.sweep-card.broad .sweep-frame'), b = f.getBoundingClientRect(), name = [...f.querySelectorAll('.axis-name')].find(e => e.textContent == 'lr'), x = b.left+parseFloat(name.style.left)
      f.setPointerCapture = () => {}
      const at = (kind, y) => f.dispatchEvent(new PointerEvent(kind, {clientX:x, clientY:b.top+y, bubbles:true}))
      at('pointerdown', 38); at('pointermove', 100); at('pointermove', 160); at('pointerup', 160)""")
    until(browser, "document.querySelector('.sweep-card.broad .sweep-frame').dataset.brushed == 1 && document.querySelectorAll('.sweep-table tbody tr').length < 30")
    shown = browser.execute_script("return [...document.querySelectorAll('.sweep-table tbody tr')].map(e => +e.dataset.n)")
    lrs = sorted((t['lr'], t.number) for t in s.trials)
    assert shown and sorted(shown) == sorted(n for _, n in lrs[-len(shown):])  # the upper part of the axis
    browser.execute_script("[...document.querySelectorAll('.sweep-card.broad button')].find(b => b.textContent == 'clear').click()")
    until(browser, "document.querySelectorAll('.sweep-table tbody tr').length == 30")
    browser.execute_script("[...document.querySelectorAll('.th-sort')][2].click()")
    assert browser.execute_script("return +document.querySelector('.sweep-table tbody tr').dataset.n") == s.best.number
    silent(browser)


def test_it_fits_a_phone(phone, world):
    page, s = world
    load(phone, page, s)
    assert phone.execute_script('return document.documentElement.scrollWidth') <= 400


def test_the_list_leads_to_a_sweep_and_back(browser, world):
    page, s = world
    go_to(browser, page.url+'#view=sweeps', "document.querySelector('.sweeps').dataset.drawn == 1")
    browser.execute_script("document.querySelector('.sweeps .who-job .link').click()")
    until(browser, "document.querySelector('.sweep')?.dataset.drawn == 30")
    browser.execute_script("document.querySelector('.sweep .back').click()")
    until(browser, "document.querySelector('.sweeps .who-job')")
    unhurt(browser)


def test_the_report_is_one_file_that_fetches_nothing(browser, world, tmp_path):
    page, s = world
    path = s.write_report(tmp_path/'sweep.html')
    text = path.read_text()
    assert not re.search(r'(src|href)=["\']?https?:', text) and "default-src 'none'" in text
    go_to(browser, path.as_uri(), "document.querySelector('.sweep')?.dataset.drawn == 30 && document.querySelector('.sweep-bars').dataset.drawn == 3")
    browser.execute_script("document.querySelector('.sweep-table tr[data-n=\"7\"]').click()")
    until(browser, "document.querySelector('.sweep-one pre')?.textContent.includes('onerror')")
    before = browser.execute_script('return document.documentElement.dataset.theme')
    browser.execute_script("document.querySelector('#theme').click()")
    assert before != browser.execute_script('return document.documentElement.dataset.theme')
    unhurt(browser)
    silent(browser)


def test_several_objectives_have_a_front(browser, world):
    "Two of them, of four trials of which one is beaten in both."
    page, s = world
    class Two: metrics = [dict(name='loss', goal='minimize'), dict(name='acc', goal='maximize')]
    objectives = sweep_views.objectives_of(Two)
    assert objectives == Two.metrics
    load(browser, page, s)
    found = browser.execute_script("""const rows = [[1,.9],[.5,.8],[.7,.7],[.2,.1]].map((values,n) => ({n, state:'DONE', value:values[0], values, why:'', params:[], reports:0, attempt:0, asked:0, ended:n, seconds:1, run:'x', curve:[]}))
      const b = sweepBoard({about:async () => ({text:''}), weigh:async () => ({rows:[]})}), head = {id:'x', name:'', method:'random', metric:'loss', goal:'minimize', objectives:arguments[0], params:[], state:'finished', why:'', rule:'', bands:[], total:4, counts:{DONE:4}, best:{n:3, value:.2}, created:0, elapsed:4, seed:0}
      document.querySelector('.sweeps').append(b.box); b.update(head, rows); return +b.box.querySelector('[data-front]').dataset.front""", objectives)
    assert found == 3
    silent(browser)
